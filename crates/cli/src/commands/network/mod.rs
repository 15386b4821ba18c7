//! Networks that machines are plugged into.

mod create;
mod delete;
mod list;
mod show;

use api::model::NetworkKind;

use crate::commands::noun;

noun! {
    /// Networks that machines are plugged into.
    List(list),
    Show(show),
    Create(create),
    Delete(delete),
}

/// What a network is made of, in words.
fn made_of(kind: &NetworkKind) -> String {
    match kind {
        NetworkKind::Nat { subnet } => format!("nat {subnet}"),
        NetworkKind::Bridge { bridge } => format!("bridge {bridge}"),
    }
}
