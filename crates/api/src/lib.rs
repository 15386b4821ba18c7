//! The words between Muster and the world: endpoints, their types, the OpenAPI document made from
//! them, and a typed client.
//!
//! ```text
//!   endpoint table (endpoint.rs) --+--> OpenAPI document (openapi.rs), committed, tested
//!                                  +--> server routes with their roles (crate `node`)
//!                                  +--> typed client (client/), the only door of the CLI
//! ```
//!
//! One table says for each operation its method, path, role, body and reply. The server cannot
//! serve a route that is not in it, nor forget the role, since it mounts handlers by endpoint type.

#![forbid(unsafe_code)]

pub mod client;
pub mod cluster;
pub mod cluster_network;
pub mod endpoint;
mod error;
pub mod fence;
pub mod ha;
pub mod history;
pub mod migrate;
pub mod openapi;
pub mod platform;
pub mod session;
pub mod settings;
pub mod types;
pub mod validate;
pub mod volume;
pub mod witness;

pub use error::ApiError;
pub use error::ErrorKind;
pub use model;
