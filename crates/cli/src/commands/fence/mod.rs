//! Fencing: what switches nodes off.

mod device;

use crate::commands::noun;

noun! {
    /// Fencing: devices that switch nodes off.
    Device(device),
}
