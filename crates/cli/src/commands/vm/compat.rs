//! What a machine's processors have, as a word of the command line.

use api::model::CpuCompat;
use clap::ValueEnum;

/// The words for [`CpuCompat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompatWord {
    /// All that every node has: it can go to each of them (usual).
    Cluster,
    /// All that its node has: it can only go to nodes that have as much.
    Node,
    /// The least that every processor of that maker has: it can go to older nodes, too.
    Minimal,
}

impl From<CompatWord> for CpuCompat {
    fn from(word: CompatWord) -> Self {
        match word {
            CompatWord::Cluster => Self::Cluster,
            CompatWord::Node => Self::Node,
            CompatWord::Minimal => Self::Minimal,
        }
    }
}
