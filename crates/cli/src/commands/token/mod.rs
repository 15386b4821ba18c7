//! Tokens for the API's TLS port.

mod create;
mod list;
mod revoke;

use crate::commands::noun;

noun! {
    /// Tokens for the API's TLS port.
    Create(create),
    List(list),
    Revoke(revoke),
}
