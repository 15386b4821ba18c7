//! The gate before every start of a machine: a live lease.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cluster::guard::boot_time;
use model::VmId;
use tokio::sync::watch;
use tokio::time::timeout;
use vm::engine::Ability;
use vm::engine::Adopted;
use vm::engine::Engine;
use vm::engine::EngineError;
use vm::engine::LaunchPlan;
use vm::engine::Launched;
use vm::engine::Stray;

use super::LeaseView;

/// The engine as the drivers get it. Everything but a start goes through as it is: what runs already
/// is adopted, looked at and ended without a lease.
pub(crate) struct PermitEngine {
    inner: Arc<dyn Engine>,
    lease: watch::Receiver<LeaseView>,
    /// How long a start waits for a lease: a node that has just joined, or whose leader has just
    /// changed, gets one in a moment.
    patience: Duration,
}

impl PermitEngine {
    pub(crate) fn new(
        inner: Arc<dyn Engine>,
        lease: watch::Receiver<LeaseView>,
        patience: Duration,
    ) -> Self {
        Self { inner, lease, patience }
    }

    fn permit(&self) -> Result<u64, EngineError> {
        let view = self.lease.borrow();
        view.may_start(boot_time()).map_err(|why| EngineError::NoLease { why })
    }

    /// The same, waited for as long as is sensible.
    pub(super) async fn permit_soon(&self) -> Result<u64, EngineError> {
        let mut lease = self.lease.clone();
        let live = lease.wait_for(|view| view.may_start(boot_time()).is_ok());
        // Whatever ends the wait, what holds now is what counts.
        drop(timeout(self.patience, live).await);
        self.permit()
    }
}

#[async_trait]
impl Engine for PermitEngine {
    async fn ability(&self) -> Result<Ability, EngineError> {
        self.inner.ability().await
    }

    async fn launch(&self, plan: LaunchPlan) -> Result<Launched, EngineError> {
        let vm = plan.vm;
        let before = self.permit_soon().await?;
        let launched = self.inner.launch(plan).await?;
        // Its processors do not run yet. A node that was fenced meanwhile has a new epoch, and the
        // machine belongs to the old one.
        let after = self.permit();
        if matches!(after, Ok(now) if now == before) {
            return Ok(launched);
        }
        drop(launched);
        self.inner.reap(vm).await?;
        Err(after.err().unwrap_or_else(|| EngineError::NoLease {
            why: "this node was fenced while the machine was being started".to_owned(),
        }))
    }

    async fn adopt(&self, vm: VmId) -> Result<Adopted, EngineError> {
        self.inner.adopt(vm).await
    }

    async fn strays(&self) -> Result<Vec<Stray>, EngineError> {
        self.inner.strays().await
    }

    async fn reap(&self, vm: VmId) -> Result<(), EngineError> {
        self.inner.reap(vm).await
    }
}
