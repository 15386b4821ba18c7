//! Mistakes that somebody could make, put in on purpose: each must be found, else the simulator is
//! worth nothing. They stand in the shell around the product's code, never in it.

/// A planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// The file system calls unwritten blocks leasable.
    LeaseUnwritten,
    /// The file system calls shared blocks leasable.
    LeaseShared,
    /// A client gives leases back before its writes have ended.
    ReleaseEarly,
    /// The coordinator never hears of a recall that failed: leases count as given back.
    KeepLease,
    /// A fence is reported before the LUN has been asked.
    FenceUnproved,
    /// A new coordinator mounts without preempting the keys of before.
    NoClear,
    /// A client does not look for keys of a higher epoch, and a new coordinator neither.
    NoLook,
    /// A key is registered while commands of before are on the way.
    NoDrain,
    /// The LUN says that it has flushed, and has not.
    LyingFlush,
    /// A deed is called done before it is committed.
    EarlyDone,
    /// The file does not remember its writer.
    ForgetWriter,
    /// The LUN loses its cache and tells nobody.
    SilentLoss,
}

impl Plant {
    pub(crate) const ALL: [Self; 12] = [
        Self::LeaseUnwritten,
        Self::LeaseShared,
        Self::ReleaseEarly,
        Self::KeepLease,
        Self::FenceUnproved,
        Self::NoClear,
        Self::NoLook,
        Self::NoDrain,
        Self::LyingFlush,
        Self::EarlyDone,
        Self::ForgetWriter,
        Self::SilentLoss,
    ];
}
