//! What goes over a connection between nodes, inside TLS.
//!
//! ```text
//!   caller                                   called
//!     Greeting { dialects, who, purpose } -->
//!                                         <-- Welcome { dialect, who } | Refused (then the end)
//!   purpose "calls":   Call / Reply / Refused, any number at once, in any order
//!   purpose "stream":  the protocol ends here; the bytes belong to whoever opened the stream
//!   purpose "join":    one Call, one Reply | Refused, the end (no certificate needed)
//!
//!   frame
//!   0      1      2        4              8             12             16
//!   | kind | 0    | method | call id      | deadline ms | length       | body ...
//! ```
//!
//! Numbers are big endian. Greeting, Welcome and Refused have JSON bodies, in which fields may come
//! (unknown ones are ignored). Call and Reply have the method's own bytes. `deadline` stands in
//! calls only: how long the caller will wait.
//!
//! | dialect | change |
//! | --- | --- |
//! | 1 | first |
//!
//! A node speaks the dialects from [`DIALECT_MIN`] to [`DIALECT_MAX`]; the newest common one is
//! taken.

mod frame;
mod greeting;

pub use frame::Frame;
pub use frame::HEADER_BYTES;
pub use frame::Header;
pub use frame::Kind;
pub use frame::ReadError;
pub use frame::read_frame;
pub use frame::write_frame;
pub use greeting::Dialects;
pub use greeting::Greeting;
pub use greeting::Purpose;
pub use greeting::Welcome;

/// The oldest dialect that is spoken.
pub const DIALECT_MIN: u16 = 1;

/// The newest dialect that is spoken.
pub const DIALECT_MAX: u16 = 1;

/// The largest body of a call or reply: what Raft sends at most (eight megabytes), with its version.
pub const BODY_BYTES_MAX: usize = (8 << 20) + 64;

/// The largest body before the greeting is accepted, and in a join.
pub const STRANGER_BYTES_MAX: usize = 32 * 1024;
