//! Which machines ran when they were stopped with their host: a file of this host, as the state of
//! the cluster only knows that they are off.
//!
//! | version | change |
//! | --- | --- |
//! | 1 | first |

use std::fs;
use std::io;
use std::path::Path;

use api::endpoint::ClusterShow;
use api::endpoint::NodeShow;
use api::endpoint::VmList;
use api::types::NodeView;
use api::types::VmListQuery;
use api::types::VmSummary;
use serde::Deserialize;
use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;

/// Where the file is unless another one is named.
pub(crate) const DEFAULT: &str = "/var/lib/muster/stopped-machines.json";

const VERSION: u32 = 1;

/// The file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    version: u32,
    /// Ids of the machines that ran.
    pub(crate) machines: Vec<String>,
    /// The node took machines before, and was set to drain.
    pub(crate) drained: bool,
}

impl Remembered {
    /// What the file says; nothing where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not of this form.
    pub(crate) fn read(file: &Path) -> Result<Self, CliError> {
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unusable(file, "read", &error)),
        };
        let read: Self =
            serde_json::from_slice(&text).map_err(|error| unusable(file, "read", &error))?;
        if read.version != VERSION {
            return Err(unusable(file, "read", &format!("it has version {}", read.version)));
        }
        Ok(read)
    }

    /// Adds to what is there: a stop that was cut short is done again.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub(crate) fn add(file: &Path, machines: &[String], drained: bool) -> Result<(), CliError> {
        let before = Self::read(file)?;
        let mut after = before.machines.clone();
        after.extend(machines.iter().filter(|it| !before.machines.contains(it)).cloned());
        let drained = drained || before.drained;
        if after == before.machines && drained == before.drained {
            return Ok(());
        }
        let part = file.with_extension("part");
        let all = Self { version: VERSION, machines: after, drained };
        // Durable before the machines stop: the host is switched off right afterwards.
        let written = fs::write(&part, serde_json::to_vec(&all).unwrap_or_default())
            .and_then(|()| fs::File::open(&part)?.sync_all())
            .and_then(|()| fs::rename(&part, file));
        written.map_err(|error| unusable(file, "written", &error))
    }

    /// Removes the file.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn forget(file: &Path) -> Result<(), CliError> {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(unusable(file, "removed", &error))
            }
            _ => Ok(()),
        }
    }
}

fn unusable(file: &Path, what: &str, why: &dyn std::fmt::Display) -> CliError {
    CliError::failed(
        format!("{} cannot be {what}: {why}", file.display()),
        "put it right or remove it, and start machines by hand: muster vm start NAME",
    )
}

/// The node that is asked.
///
/// # Errors
/// It does not answer.
pub(crate) async fn node_here(context: &Context) -> Result<NodeView, CliError> {
    let here = context.get::<ClusterShow>(&[]).await?.value.node.to_string();
    Ok(context.get::<NodeShow>(&[&here]).await?.value)
}

/// The machines of a node.
///
/// # Errors
/// Nobody answers for them.
pub(crate) async fn machines_of(
    context: &Context,
    node: &NodeView,
) -> Result<Vec<VmSummary>, CliError> {
    let query = VmListQuery { deleted: false, tag: None };
    let vms = context.query::<VmList>(&[], &query).await?.value;
    Ok(vms.into_iter().filter(|vm| vm.node == node.name.as_str()).collect())
}

#[cfg(test)]
mod tests {
    use super::Remembered;

    #[test]
    fn machines_are_added_once_and_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("list.json");
        let read = || Remembered::read(&file).expect("it can be read");
        assert_eq!(read(), Remembered::default());
        Remembered::add(&file, &["a".to_owned()], true).expect("it is written");
        Remembered::add(&file, &["b".to_owned(), "a".to_owned()], false).expect("it is written");
        assert_eq!((read().machines, read().drained), (vec!["a".to_owned(), "b".to_owned()], true));
        Remembered::forget(&file).expect("it is removed");
        Remembered::forget(&file).expect("there is none");
        assert_eq!(read(), Remembered::default());
    }

    #[test]
    fn a_file_of_another_form_is_refused_with_a_next_step() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("list.json");
        for text in ["", "[]", "{\"version\":2,\"machines\":[],\"drained\":false}"] {
            std::fs::write(&file, text).expect("written");
            let error = Remembered::read(&file).expect_err(text);
            assert!(!error.error().hint.is_empty(), "{text}");
        }
    }
}
