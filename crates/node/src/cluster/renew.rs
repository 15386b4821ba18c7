//! A node's certificate renews itself at two thirds of its life, from the CA in its own state: it
//! needs nobody else for it, also when it is cut off or was off for a year.

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::app::now;
use crate::cluster::join;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(600);

/// Renews until the daemon ends.
pub(crate) async fn follow(app: Arc<App>) {
    loop {
        let result = pass(&app);
        if let Err(problem) = &result {
            tracing::warn!(problem, "the node's certificate cannot be renewed");
        }
        app.reconcilers.record("certificate", &result);
        tokio::time::sleep(EVERY).await;
    }
}

fn pass(app: &App) -> Result<(), String> {
    let (Some(own), Some(cluster)) = (app.peers.identity(), app.truth.state().cluster.clone())
    else {
        return Ok(());
    };
    if now() < own.facts().renew_at() {
        return Ok(());
    }
    let ca = join::ca(&cluster).map_err(|error| error.to_string())?;
    let renewed = own.renewed(&ca, now()).map_err(|error| error.to_string())?;
    tracing::info!(until = %peer::pki::Stamp(renewed.facts().not_after), "certificate renewed");
    app.peers.renew(renewed).map_err(|error| error.to_string())
}
