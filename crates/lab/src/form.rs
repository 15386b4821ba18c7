//! `lab up` makes one cluster of the nodes, by their API, as an administrator would: one command
//! for each node.
//!
//! It goes on from whatever there is. Where nodes are a cluster already, the others join that one.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use api::ApiError;
use api::client::Client;
use api::client::Target;
use api::cluster::ClusterCreateBody;
use api::cluster::ClusterHealth;
use api::cluster::ClusterJoinBody;
use api::cluster::ClusterView;
use api::cluster::JoinTokenCreateBody;
use api::endpoint::ClusterCreate;
use api::endpoint::ClusterJoin;
use api::endpoint::ClusterShow;
use api::endpoint::JoinTokenCreate;

use crate::Say;
use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::state::LabState;
use crate::up::Cancel;

/// How long forming may take. Three nodes need some seconds, but the machine may be very busy, and
/// 64 nodes join one after another.
const FORM_LIMIT: Duration = Duration::from_secs(180);

/// How long one answer may take: a join waits for a commit.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(50);

/// The token's life, in seconds: longer than forming may take.
const TOKEN_SECS: u64 = 600;

/// Most nodes that vote in a cluster.
const VOTERS_MAX: usize = 7;

/// A cluster that is being formed.
struct Forming<'a> {
    clients: BTreeMap<NodeName, Client>,
    cancel: &'a Cancel,
    started: Instant,
}

impl Lab {
    /// Makes one cluster of the lab's nodes, which all answer; returns how long it took.
    pub(crate) fn form(
        &self,
        state: &LabState,
        cancel: &Cancel,
        say: Say<'_>,
    ) -> Result<Duration, LabError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(LabError::io("ask the nodes of", self.dir()))?;
        let client = |node: &NodeName| Client::new(Target::Unix { path: self.socket(*node) });
        let clients = state.nodes.keys().map(|node| (*node, client(node))).collect();
        let forming = Forming { clients, cancel, started: Instant::now() };
        runtime.block_on(forming.run(say))?;
        Ok(forming.started.elapsed())
    }
}

impl Forming<'_> {
    async fn run(&self, say: Say<'_>) -> Result<(), LabError> {
        let mut inside = None;
        let mut outside = Vec::new();
        for node in self.clients.keys() {
            let view = self.until(*node, "answers", |_| true).await?;
            match view.name {
                Some(_) if inside.is_none() => inside = Some(*node),
                Some(_) => {}
                None => outside.push(*node),
            }
        }
        let first = match inside {
            Some(node) => node,
            None => {
                let node = outside.remove(0);
                let name = Some("lab".parse().map_err(|_| LabError::failed("a name", ""))?);
                self.send::<ClusterCreate>(node, &ClusterCreateBody { name }).await?;
                node
            }
        };
        self.until(first, "has a leader", |view| {
            !matches!(view.health, ClusterHealth::NoQuorum | ClusterHealth::Gone)
        })
        .await?;
        if !outside.is_empty() {
            let body = JoinTokenCreateBody { valid_s: Some(TOKEN_SECS), uses: None };
            let token = self.send::<JoinTokenCreate>(first, &body).await?.text;
            for node in outside {
                self.send::<ClusterJoin>(node, &ClusterJoinBody { token: token.clone() }).await?;
                say(&format!("{node}: joined"));
            }
        }
        for node in self.clients.keys() {
            self.until(*node, "is a node of the cluster", |view| self.is_whole(view)).await?;
        }
        Ok(())
    }

    /// Whether all are there and as many vote as shall.
    fn is_whole(&self, view: &ClusterView) -> bool {
        let nodes = self.clients.len();
        let voters = u32::try_from(nodes.min(VOTERS_MAX)).unwrap_or(u32::MAX);
        let well = matches!(view.health, ClusterHealth::Healthy | ClusterHealth::Single);
        well && view.nodes.len() == nodes && view.voters == voters
    }

    async fn send<E: api::endpoint::Endpoint>(
        &self,
        node: NodeName,
        body: &E::Body,
    ) -> Result<E::Reply, LabError> {
        self.cancel.check()?;
        let asked = self.clients[&node].send::<E>(&[], body);
        match tokio::time::timeout(ANSWER_LIMIT, asked).await {
            Ok(answer) => answer.map_err(|error| refused(node, &error)),
            Err(_) => Err(LabError::failed(
                format!("{node} did not answer in {} s", ANSWER_LIMIT.as_secs()),
                "try again: muster lab down, then muster lab up",
            )),
        }
    }

    /// Waits until a node sees the cluster so. A daemon that starts anew does not answer for a
    /// moment.
    async fn until(
        &self,
        node: NodeName,
        what: &str,
        so: impl Fn(&ClusterView) -> bool,
    ) -> Result<ClusterView, LabError> {
        let mut last = "it does not answer".to_owned();
        loop {
            self.cancel.check()?;
            let asked = self.clients[&node].get::<ClusterShow>(&[]);
            match tokio::time::timeout(ANSWER_LIMIT, asked).await {
                Ok(Ok(view)) if so(&view) => return Ok(view),
                Ok(Ok(view)) => last = view.words.join(" "),
                Ok(Err(error)) => last = error.message,
                Err(_) => {}
            }
            if self.started.elapsed() > FORM_LIMIT {
                return Err(LabError::failed(
                    format!("{node} was waited for until it {what}; it says: {last}"),
                    "form it by hand: muster lab up --no-cluster, then muster cluster create",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn refused(node: NodeName, error: &ApiError) -> LabError {
    LabError::failed(format!("{node}: {}", error.message), error.hint.clone())
}
