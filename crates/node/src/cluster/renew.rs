//! A node's certificate renews itself at two thirds of its life, from the CA in its own state: it
//! needs nobody else for it, also when it is cut off or was off for a year.

use std::sync::Arc;
use std::time::Duration;

use model::UnixMillis;

use crate::app::App;
use crate::app::now;
use crate::cluster::join;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(600);

/// Renews until the daemon ends.
pub(crate) async fn follow(app: Arc<App>) {
    loop {
        let result = pass(&app, now());
        if let Err(problem) = &result {
            tracing::warn!(problem, "the node's certificate cannot be renewed");
        }
        app.reconcilers.record("certificate", &result);
        tokio::time::sleep(EVERY).await;
    }
}

fn pass(app: &App, now: UnixMillis) -> Result<(), String> {
    let (Some(own), Some(cluster)) = (app.peers.identity(), app.truth.state().cluster.clone())
    else {
        return Ok(());
    };
    if now < own.facts().renew_at() {
        return Ok(());
    }
    let ca = join::ca(&cluster).map_err(|error| error.to_string())?;
    let renewed = own.renewed(&ca, now).map_err(|error| error.to_string())?;
    tracing::info!(until = %peer::pki::Stamp(renewed.facts().not_after), "certificate renewed");
    app.peers.renew(renewed).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use api::client::Client;
    use api::client::Target;
    use api::cluster::ClusterCreateBody;
    use api::endpoint::ClusterCreate;
    use vm::engine::fake::FakeEngine;
    use vm::engine::fake::FakeHost;

    use super::*;
    use crate::config::Config;
    use crate::config::EngineKind;
    use crate::http;
    use crate::start::assemble;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: dir.path().to_owned(),
            run_dir: dir.path().to_owned(),
            node_name: Some("h1".to_owned()),
            networking: false,
            engine: EngineKind::Fake,
            cluster_listen: "127.0.0.1:0".parse().unwrap(),
            cluster_addresses: vec!["127.0.0.1:7444".parse().unwrap()],
            ..Config::default()
        };
        let engine = Arc::new(FakeEngine::new(&FakeHost::new()));
        let (app, _) = assemble(&config, engine).await.unwrap();
        pass(&app, now()).unwrap();
        assert!(app.peers.identity().is_none(), "a host by itself has none");
        let listener = http::bind_unix(&config.socket_path(), &config).unwrap();
        tokio::spawn(http::serve_unix(listener, http::router(app.clone()), config.clone()));
        let client = Client::new(Target::Unix { path: config.socket_path() });
        let body = ClusterCreateBody { name: None };
        client.send::<ClusterCreate>(&[], &body).await.unwrap();

        let first = app.peers.identity().unwrap();
        let day = |n: u64| UnixMillis::new(now().get() + n * 86_400_000);
        pass(&app, day(59)).unwrap();
        assert_eq!(app.peers.identity().unwrap().facts(), first.facts(), "it is early");
        pass(&app, day(61)).unwrap();
        let second = app.peers.identity().unwrap();
        assert!(second.facts().not_after > day(149), "{second:?}");
        assert_eq!((second.node(), second.key_digest()), (first.node(), first.key_digest()));
        let kept = app.peers.dir().read().unwrap().unwrap();
        assert_eq!(kept.identity.facts(), second.facts(), "also after a restart");
    }
}
