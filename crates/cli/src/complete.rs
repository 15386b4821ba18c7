//! Names completed by the shell: the daemon is asked quickly, and nothing is ever printed but
//! candidates.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use api::client::Client;
use api::client::Target;
use api::endpoint::ImageList;
use api::endpoint::NetworkList;
use api::endpoint::NodeList;
use api::endpoint::OpList;
use api::endpoint::RuleList;
use api::endpoint::TokenList;
use api::endpoint::VmList;
use api::endpoint::VmShow;
use api::endpoint::VolumeList;
use clap::CommandFactory;
use clap_complete::CompleteEnv;
use clap_complete::engine::ArgValueCandidates;
use clap_complete::engine::CompletionCandidate;

use crate::cli::Cli;
use crate::cli::SOCKET_DEFAULT;

/// Environment variable by which a shell asks for completion.
pub(crate) const VARIABLE: &str = "MUSTER_COMPLETE";
/// How long the daemon may take: a shell that hangs at Tab is worse than no names.
const PATIENCE: Duration = Duration::from_millis(500);

/// Answers a shell that asks for completion, and ends the process; otherwise does nothing.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
}

macro_rules! candidates {
    ($(#[doc = $doc:literal] $name:ident: $endpoint:ty, |$item:ident| $value:expr;)*) => {$(
        #[doc = $doc]
        pub(crate) fn $name() -> ArgValueCandidates {
            ArgValueCandidates::new(|| {
                ask(async |client: Client| {
                    let list = client.get::<$endpoint>(&[]).await.ok()?;
                    Some(list.iter().map(|$item| $value).collect())
                })
            })
        }
    )*};
}

candidates! {
    /// Names of machines.
    vms: VmList, |vm| vm.name.to_string();
    /// Names of images.
    images: ImageList, |image| image.name.to_string();
    /// Names of networks.
    networks: NetworkList, |network| network.name.to_string();
    /// Names of volumes.
    volumes: VolumeList, |volume| volume.name.to_string();
    /// Names of placement rules.
    rules: RuleList, |rule| rule.name.to_string();
    /// Names of nodes.
    nodes: NodeList, |node| node.name.to_string();
    /// Names of tokens.
    tokens: TokenList, |token| token.name.to_string();
    /// Ids of operations that run.
    ops: OpList, |op| op.id.to_string();
}

/// Names of machines in the recycle bin.
pub(crate) fn deleted_vms() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(async |client: Client| {
            let query = api::types::VmListQuery { deleted: true, tag: None };
            let list = client.call::<VmList>(&[], &query, &api::endpoint::Nothing {}).await.ok()?;
            Some(list.iter().map(|vm| vm.name.to_string()).collect())
        })
    })
}

/// Names of the disks of the machine that stands before the word.
pub(crate) fn disks() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(async |client: Client| {
            let vm = word_after(&["disk"])?;
            let vm = client.get::<VmShow>(&[&vm]).await.ok()?;
            Some(vm.disks.iter().map(|disk| disk.name.to_string()).collect())
        })
    })
}

/// Names of the adapters of the machine that stands before the word.
pub(crate) fn nics() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        ask(async |client: Client| {
            let vm = word_after(&["nic"])?;
            let vm = client.get::<VmShow>(&[&vm]).await.ok()?;
            Some(vm.nics.iter().map(|nic| nic.name.to_string()).collect())
        })
    })
}

/// Asks the daemon of this machine. Whatever goes wrong, there are no names then.
fn ask(question: impl AsyncFnOnce(Client) -> Option<Vec<String>>) -> Vec<CompletionCandidate> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    let client = Client::new(Target::Unix { path: socket() });
    let names = runtime
        .block_on(async { tokio::time::timeout(PATIENCE, question(client)).await.ok().flatten() });
    runtime.shutdown_background();
    names.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

/// The socket by the line that is being typed, else by the environment, else the usual one.
fn socket() -> PathBuf {
    let mut args = std::env::args_os();
    while let Some(arg) = args.next() {
        if arg == "--socket" {
            return args.next().map(PathBuf::from).unwrap_or_default();
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--socket=")) {
            return path.into();
        }
    }
    std::env::var_os("MUSTER_SOCKET").unwrap_or_else(|| OsString::from(SOCKET_DEFAULT)).into()
}

/// The machine's name in `... disk VERB NAME`: the second word after the noun.
fn word_after(noun: &[&str]) -> Option<String> {
    let args: Vec<String> =
        std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let at = args.windows(noun.len()).position(|words| words == noun)?;
    args.get(at + noun.len() + 1).cloned()
}
