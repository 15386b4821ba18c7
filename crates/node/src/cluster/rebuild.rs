//! A node that has lost its log gets a new one from the others, under its own id.
//!
//! ```text
//!   found damaged --> note: word --> asks members --> state: damaged(word)
//!        |  the old log is never opened again             |  the leader takes the node's vote, then
//!        |  and nothing of the log is served              v  the node, out of the log
//!        |                                           state: cleared(word), count
//!        |                                                |
//!        +--- old files put aside, a new empty store <----+
//!                 |
//!                 v  note: filling; from here on it is served like one that has just joined
//!             learner, then voter; when its state says `cleared(word)`, the note goes
//! ```
//!
//! Why that is safe stands in docs/decisions/0023. In one sentence: what this node had acknowledged
//! and voted counts for nobody any more when its new log begins, since a membership without it is
//! committed by a majority of the others alone. The loss has a word, chosen here, so that each step
//! can be repeated whenever the host dies, and an answer to an earlier loss is no answer to this
//! one.
//!
//! Meanwhile the API's socket answers everything with what is being done, and with what to do if it
//! does not come about.

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use api::ApiError;
use api::ErrorKind;
use axum::Router;
use axum::response::IntoResponse;
use bytes::Bytes;
use cluster::raft::StartError;
use model::Actor;
use model::ClusterState;
use model::Command;
use model::Gone;
use model::NodeId;
use model::Proposal;
use peer::Method;
use peer::Refusal;
use peer::RefusalCode;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::app::App;
use crate::app::new_uuid;
use crate::app::now;
use crate::cluster::Peers;
use crate::cluster::Place;
use crate::cluster::PlaceDir;
use crate::cluster::join;
use crate::config::Config;
use crate::http;
use crate::truth::RaftTruth;
use crate::truth::Store;
use crate::truth::StoreError;
use crate::truth::Truth;

/// How long a member may take: it proposes a change.
const ASK_MAX: Duration = Duration::from_secs(12);

/// Between two rounds of questions.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// How often systemd is told that this takes time.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// For how long systemd shall wait then.
const TELL_FOR: Duration = Duration::from_secs(60);

/// Longest description of a damage that the state takes, with room to spare.
const PROBLEM_CHARS_MAX: usize = 400;

/// How far this node is with its new log; kept in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Names the loss.
    pub(crate) word: Uuid,
    /// What was damaged.
    pub(crate) problem: String,
    /// Whether the new log has begun.
    pub(crate) filling: bool,
}

/// What a member is asked.
#[derive(Serialize, Deserialize)]
struct Question {
    word: Uuid,
    problem: String,
}

/// What it answers.
#[derive(Serialize, Deserialize)]
struct Answer {
    /// How often this node has lost its log, when that loss is cleared.
    cleared: Option<u64>,
}

/// Why a state that did not open has to be made anew, if that is what helps.
pub(crate) fn cause(error: &anyhow::Error) -> Option<String> {
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return error.damage();
    }
    match error.downcast_ref::<StartError>() {
        Some(StartError::Log(problem)) => Some(problem.clone()),
        _ => None,
    }
}

/// A loss that is known before anything is opened: a log that was being made anew, or is not there.
/// For a node that is in a cluster.
pub(crate) fn known_loss(dir: &PlaceDir, store: &Path) -> anyhow::Result<Option<String>> {
    let note = match dir.rebuild() {
        Ok(note) => note,
        // How far it was is not known: as for a loss that nobody has been told of yet.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Ok(Some("the note on a loss before does not hold".to_owned()));
        }
        Err(error) => return Err(error).context("the note on a lost log cannot be read"),
    };
    if let Some(note) = note.filter(|note| !note.filling) {
        return Ok(Some(note.problem));
    }
    // An empty store made in its place would be a cluster of one, under the id of a voter.
    let gone = !store.try_exists().context("the state cannot be looked for")?;
    Ok(gone.then(|| "the file itself: it is gone".to_owned()))
}

/// Says on the API's socket and to systemd what is being done, until it is dropped.
pub(crate) struct Telling {
    said: watch::Sender<String>,
    socket: PathBuf,
    tasks: [JoinHandle<()>; 2],
}

impl Telling {
    pub(crate) fn start(config: &Config) -> anyhow::Result<Self> {
        let socket = config.socket_path();
        let listener = http::bind_unix(&socket, config)?;
        let said = watch::Sender::new("it begins".to_owned());
        let heard = said.subscribe();
        let router = Router::new().fallback(move || {
            let error = busy(&heard.borrow());
            async move {
                (axum::http::StatusCode::SERVICE_UNAVAILABLE, axum::Json(error)).into_response()
            }
        });
        let serving = tokio::spawn(http::serve_unix(listener, router, config.clone()));
        let heard = said.subscribe();
        let telling = tokio::spawn(async move {
            loop {
                let micros = u32::try_from(TELL_FOR.as_micros()).unwrap_or(u32::MAX);
                let status = format!("new log from the others: {}", *heard.borrow());
                let states = [
                    sd_notify::NotifyState::Status(&status),
                    sd_notify::NotifyState::ExtendTimeoutUsec(micros),
                ];
                // Not under systemd: then there is nobody to tell.
                let _ = sd_notify::notify(&states);
                tokio::time::sleep(TELL_EVERY).await;
            }
        });
        Ok(Self { said, socket, tasks: [serving, telling] })
    }

    fn say(&self, words: String) {
        self.said.send_if_modified(|said| {
            let news = *said != words;
            if news {
                tracing::warn!(words, "this node has lost its log");
                *said = words;
            }
            news
        });
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let _ = fs::remove_file(&self.socket);
    }
}

fn busy(said: &str) -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "rebuilding",
        format!(
            "this node has lost its log, does not vote, and gets a new log from the others: {said}"
        ),
        "ask another node: muster cluster status. If too few of them are left for a majority, bring \
         others back, or force the quorum there: muster cluster force-quorum",
    )
}

/// Gets leave to begin a new log, however long that takes, and begins it. Nothing of the log is
/// served before.
pub(crate) async fn begin(
    config: &Config,
    peers: &Peers,
    place: &Place,
    telling: &Telling,
    problem: String,
) -> anyhow::Result<()> {
    let (dir, node) = (peers.dir(), place.identity.node());
    let note = match dir.rebuild() {
        Ok(Some(note)) if !note.filling => note,
        Ok(_) | Err(_) => {
            let problem = problem.chars().take(PROBLEM_CHARS_MAX).collect();
            let note = Note { word: new_uuid(), problem, filling: false };
            dir.keep_rebuild(&note).context("that the log is lost cannot be noted")?;
            note
        }
    };
    tracing::error!(problem = note.problem, "this node has lost its log and asks for a new one");
    if peers.identity().is_none() {
        peers.bring_up(place.clone()).await?;
    }
    let count = ask(peers, place, telling, &note).await?;
    let path = config.data_dir.join("state.redb");
    put_aside(&config.data_dir).context("the damaged files cannot be put aside")?;
    tokio::task::spawn_blocking(move || Store::make_anew(&path, node, count)).await??;
    dir.keep_rebuild(&Note { filling: true, ..note }).context("the new log cannot be noted")
}

/// Asks until a member says that the loss is cleared; how often that has happened.
async fn ask(peers: &Peers, place: &Place, telling: &Telling, note: &Note) -> anyhow::Result<u64> {
    let own = place.identity.node();
    let others: Vec<_> = place.members.iter().filter(|member| member.node != own).collect();
    if others.is_empty() {
        bail!(
            "the state is damaged ({}), and no other node is known that could have it; put \
             state.redb and state.mark back from a backup",
            note.problem
        );
    }
    let question = Question { word: note.word, problem: note.problem.clone() };
    let gone = peers.gone();
    loop {
        let mut said = Vec::new();
        for member in &others {
            match peers.ask::<_, Answer>(member.node, Method::REBUILD, &question, ASK_MAX).await {
                Ok(Answer { cleared: Some(count) }) => return Ok(count),
                Ok(Answer { cleared: None }) => {
                    said = vec![format!("{} has taken it up", member.name)];
                    break;
                }
                Err(error) => said.push(format!("{}: {}", member.name, error.problem())),
            }
            if let Some(how) = *gone.borrow() {
                bail!(
                    "this node {} the cluster, and its state is damaged ({}); move the data \
                     directory away to begin anew (files of VMs are in it)",
                    if how == Gone::Left { "has left" } else { "was evicted from" },
                    note.problem
                );
            }
        }
        telling.say(said.join("; "));
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Keeps what is damaged for whoever wants to look at it. Repeated, it finds less to move.
fn put_aside(data_dir: &Path) -> io::Result<()> {
    let aside = data_dir.join("damaged");
    match fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for name in ["state.redb", "state.mark"] {
        match fs::rename(data_dir.join(name), aside.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    File::open(&aside)?.sync_all()?;
    File::open(data_dir)?.sync_all()
}

/// Waits, without asking for votes, until the new log has come as far as the old one must have been, if there is a new one.
/// Machines and leases wait for that: an empty state knows of none.
pub(crate) async fn fill(
    config: &Config,
    peers: &Peers,
    node: NodeId,
    truth: &RaftTruth,
    telling: Option<Telling>,
) -> anyhow::Result<()> {
    let Some(note) = peers.dir().rebuild().context("the note on a lost log")? else {
        return Ok(());
    };
    let telling = match telling {
        Some(telling) => telling,
        None => Telling::start(config)?,
    };
    telling.say("the others send it".to_owned());
    let mut states = truth.watch();
    let mut gone = peers.gone();
    tokio::select! {
        there = states.wait_for(|state| cleared(state, node, note.word).is_some()) => {
            there.context("the log has ended")?;
        }
        _ = gone.wait_for(Option::is_some) => bail!(
            "this node was taken out of the cluster while it got a new log; move the data \
             directory away to begin anew (files of VMs are in it)"
        ),
    }
    truth.replica().may_lead();
    peers.dir().forget_rebuild().context("the note on a lost log")?;
    tracing::warn!("this node has a new log from the others");
    Ok(())
}

/// How often a node has lost its log, if this loss is cleared.
pub(crate) fn cleared(state: &ClusterState, node: NodeId, word: Uuid) -> Option<u64> {
    let rebuilt = state.nodes.get(&node)?.rebuilt.as_ref()?;
    (rebuilt.word == word).then_some(rebuilt.count)
}

/// A member's side.
pub(crate) async fn serve(app: &App, from: NodeId, body: &[u8]) -> Result<Bytes, Refusal> {
    let question: Question = serde_json::from_slice(body)
        .map_err(|error| Refusal::new(RefusalCode::Malformed, error.to_string(), ""))?;
    let Question { word, problem } = question;
    let state = app.truth.state();
    let known = |state: &ClusterState| {
        let record = state.nodes.get(&from)?;
        record.rebuild.as_ref().filter(|it| it.word == word).map(drop)
    };
    let done = cleared(&state, from, word);
    if done.is_none() && known(&state).is_none() {
        let name =
            state.nodes.get(&from).map_or_else(|| from.to_string(), |it| it.name.to_string());
        let actor = Actor::new(&format!("node {name}"));
        let command = Command::NodeDamaged { node: from, word, problem };
        let told = app.truth.propose(Proposal { at: now(), actor, command }).await;
        told.map_err(|error| {
            let hint = "see why: muster cluster status on that node";
            Refusal::new(RefusalCode::Busy, error.to_string(), hint)
        })?;
    }
    let answer = serde_json::to_vec(&Answer { cleared: done });
    let failed = |error: serde_json::Error| {
        Refusal::new(RefusalCode::Failed, error.to_string(), "look at that node's log")
    };
    answer.map(Bytes::from).map_err(failed)
}

/// Keeps in the node's folder who the others are: without its log it has nobody else to ask.
pub(crate) async fn remember(app: Arc<App>) {
    let mut states = app.truth.watch();
    loop {
        let members = {
            let state = states.borrow_and_update();
            (state.cluster.is_some() && state.nodes.len() > 1).then(|| join::members(&state))
        };
        if let Some(members) = members
            && let Err(error) = app.peers.remember(members)
        {
            tracing::warn!(%error, "the other nodes' addresses cannot be noted");
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_known_from_the_note_and_from_a_file_that_is_gone() {
        let data = tempfile::tempdir().unwrap();
        let (dir, store) = (PlaceDir::new(data.path()), data.path().join("state.redb"));
        assert!(known_loss(&dir, &store).unwrap().unwrap().contains("gone"));
        fs::write(&store, "something").unwrap();
        assert_eq!(known_loss(&dir, &store).unwrap(), None);
        let note = Note { word: new_uuid(), problem: "torn".to_owned(), filling: false };
        dir.keep_rebuild(&note).unwrap();
        assert_eq!(known_loss(&dir, &store).unwrap().as_deref(), Some("torn"));
        dir.keep_rebuild(&Note { filling: true, ..note }).unwrap();
        assert_eq!(known_loss(&dir, &store).unwrap(), None, "the new log has begun");
        // A note that does not hold says at least that there was a loss.
        fs::write(data.path().join("cluster/rebuild.json"), "garbage").unwrap();
        assert!(known_loss(&dir, &store).unwrap().is_some());
        dir.forget_rebuild().unwrap();
        dir.forget_rebuild().unwrap();
        assert_eq!(known_loss(&dir, &store).unwrap(), None);
    }

    #[test]
    fn what_is_damaged_is_kept_and_a_repeated_attempt_keeps_the_first() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join("state.redb"), "bad").unwrap();
        fs::write(data.path().join("state.mark"), "mark").unwrap();
        put_aside(data.path()).unwrap();
        put_aside(data.path()).unwrap();
        assert!(!data.path().join("state.redb").exists());
        assert_eq!(fs::read(data.path().join("damaged/state.redb")).unwrap(), b"bad");
        assert_eq!(fs::read(data.path().join("damaged/state.mark")).unwrap(), b"mark");
    }

    #[test]
    fn only_damage_is_a_cause() {
        let damaged = StoreError::Damaged {
            path: "state.redb".into(),
            place: "log/7".to_owned(),
            problem: "torn".to_owned(),
        };
        let cause = super::cause(&anyhow::Error::from(damaged).context("the state"));
        assert_eq!(cause.as_deref(), Some("log/7: torn"));
        let newer = StoreError::TooNew { path: "state.redb".into(), found: 99 };
        assert_eq!(super::cause(&newer.into()), None);
        assert_eq!(super::cause(&anyhow::anyhow!("the port is taken")), None);
    }
}
