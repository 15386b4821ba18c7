//! Reservations of a LUN that takes none: nobody is kept from it, so nobody else may have a path.
//!
//! Only the coordinator uses it, whose node the state names after a proof of lost power of the one before;
//! clients of such a LUN get no path at all, and all their blocks go through the coordinator.

use std::io;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use volume::lease::ReservationKey;
use volume::provider::Fence;

/// The one key that there is.
#[derive(Default)]
pub(crate) struct LocalFence(Mutex<Option<ReservationKey>>);

impl LocalFence {
    fn key(&self) -> MutexGuard<'_, Option<ReservationKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fence for LocalFence {
    fn register(&self, key: ReservationKey) -> io::Result<()> {
        *self.key() = Some(key);
        Ok(())
    }

    fn unregister(&self) -> io::Result<()> {
        *self.key() = None;
        Ok(())
    }

    fn keys(&self) -> io::Result<Vec<ReservationKey>> {
        Ok(self.key().iter().copied().collect())
    }

    fn own(&self) -> io::Result<Option<ReservationKey>> {
        Ok(*self.key())
    }

    fn preempt(&self, key: ReservationKey) -> io::Result<()> {
        let mut own = self.key();
        match *own {
            None => Err(io::Error::other("this path has no key")),
            Some(known) => {
                if known == key {
                    *own = None;
                }
                Ok(())
            }
        }
    }
}
