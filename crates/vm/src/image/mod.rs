//! Images and disk files on one node: import, thin copies, sizes.
//!
//! ```text
//!  file | http(s) --fetch--> <id>.part/source --inspect--> qemu-img (sandboxed) --check--> <id>.qcow2
//!                   resume,      our own header                                      read-only,
//!                   sha256       readers, no guessing                                atomic rename
//! ```
//!
//! Trust boundaries: everything a server sends, every byte of an image. `inspect` reads headers
//! with bounds; `qemu_img` runs the one foreign program in a sandbox; nobody ever guesses a format.
//!
//! Who fails how: [`ImageError`]; [`ImageError::is_resumable`] says whether the fetched part is
//! kept.

mod cancel;
mod disk;
mod error;
mod fetch;
pub mod format;
pub mod inspect;
mod kept;
mod pipeline;
mod qemu_img;
mod space;
mod stage;
mod store;

#[cfg(test)]
mod tests;

pub use cancel::CancelMode;
pub use disk::DiskTool;
pub use disk::FlatDisk;
pub use error::ImageError;
pub use fetch::FetchError;
pub use fetch::HttpLimits;
pub use format::SourceFormat;
pub use inspect::HeaderError;
pub use qemu_img::SandboxUser;
pub use space::allocated_bytes;
pub use space::room_for;
pub use store::ImageStore;
pub use store::ImageStoreConfig;
pub use store::ImportJob;
pub use store::ImportPhase;
pub use store::ImportProgress;
pub use store::ImportRequest;
pub use store::ImportSource;
pub use store::Imported;
pub use store::Swept;
