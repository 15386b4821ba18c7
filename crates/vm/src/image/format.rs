//! Formats we import from. One is chosen by the caller, or by the file's extension; never by
//! content.

pub use model::ImageFormat as SourceFormat;

/// Name of QEMU's block driver for a format.
pub(super) fn qemu_driver(format: SourceFormat) -> &'static str {
    match format {
        SourceFormat::Raw => "raw",
        SourceFormat::Qcow2 => "qcow2",
        SourceFormat::Vhd => "vpc",
        SourceFormat::Vhdx => "vhdx",
        SourceFormat::Vmdk => "vmdk",
    }
}
