//! One suite for each store, and the probe against stores that are wrong.

use std::sync::Arc;

use tempfile::TempDir;

use crate::witness::Directory;
use crate::witness::Remote;
use crate::witness::Server;
use crate::witness::StoreError;
use crate::witness::Tag;
use crate::witness::WitnessStore;
use crate::witness::WitnessToken;
use crate::witness::Written;
use crate::witness::memory::MemoryStore;
use crate::witness::memory::Wrong;
use crate::witness::probe::Unfit;
use crate::witness::probe::probe;

/// Ways to the same record, as of several nodes.
pub(in crate::witness) type Ways<'a> = &'a dyn Fn() -> Arc<dyn WitnessStore>;

/// What every store must do.
pub(in crate::witness) async fn conforms(ways: Ways<'_>) {
    let (a, b) = (ways(), ways());
    assert_eq!(a.read().await, Ok(None));
    let absent = Tag("12".to_owned());
    assert_eq!(a.write_if(Some(&absent), b"no".to_vec()).await, Ok(Written::No));
    assert_eq!(a.read().await, Ok(None), "what is refused is not stored");
    let Ok(Written::Yes(one)) = a.write_if(None, b"one".to_vec()).await else { panic!("first") };
    assert_eq!(b.write_if(None, b"no".to_vec()).await, Ok(Written::No));
    assert_eq!(b.read().await, Ok(Some((b"one".to_vec(), one.clone()))));
    let Ok(Written::Yes(two)) = b.write_if(Some(&one), b"two".to_vec()).await else { panic!("b") };
    assert_ne!(one, two);
    assert_eq!(a.write_if(Some(&one), b"no".to_vec()).await, Ok(Written::No));
    assert_eq!(a.read().await, Ok(Some((b"two".to_vec(), two.clone()))));
    let Ok(Written::Yes(three)) = a.write_if(Some(&two), b"three".to_vec()).await else {
        panic!("a")
    };
    assert_eq!(b.write_if(Some(&one), b"no".to_vec()).await, Ok(Written::No));
    let large = vec![7; 3 << 20];
    let Ok(Written::Yes(last)) = b.write_if(Some(&three), large.clone()).await else {
        panic!("large")
    };
    assert_eq!(a.read().await, Ok(Some((large, last))));
    let beside = a.beside("other");
    assert_eq!(beside.read().await, Ok(None), "records are apart");
    beside.write_if(None, b"x".to_vec()).await.unwrap();
    beside.remove().await.unwrap();
    beside.remove().await.unwrap();
    assert_eq!(beside.read().await, Ok(None));
    assert!(a.read().await.unwrap().is_some());
    assert_eq!(probe(&*a).await, Ok(()));
}

/// Writers that count up together: each number is given to one of them at most, none is left out,
/// and what a writer was told is in the history.
pub(in crate::witness) async fn race(ways: Ways<'_>, writers: u64, wins: usize) {
    let store = ways();
    let Ok(Written::Yes(_)) = store.write_if(None, b"0".to_vec()).await else { panic!("taken") };
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..writers {
        let store = ways();
        racers.spawn(async move {
            let mut won = Vec::new();
            while won.len() < wins {
                let (bytes, tag) = store.read().await.unwrap().unwrap();
                let number: u64 = String::from_utf8(bytes).unwrap().parse().unwrap();
                let next = (number + 1).to_string().into_bytes();
                if let Ok(Written::Yes(_)) = store.write_if(Some(&tag), next).await {
                    won.push(number + 1);
                }
            }
            won
        });
    }
    let mut all = Vec::new();
    while let Some(won) = racers.join_next().await {
        let won = won.unwrap();
        assert!(won.is_sorted(), "a number was given twice, or went back");
        all.extend(won);
    }
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    assert_eq!(all.len(), count, "two were told that they had won");
    let (last, _) = store.read().await.unwrap().unwrap();
    let last: u64 = String::from_utf8(last).unwrap().parse().unwrap();
    assert!(last >= count as u64 && all.last() <= Some(&last));
    store.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_memory_conforms() {
    let store = MemoryStore::new();
    let ways = || Arc::new(store.way()) as Arc<dyn WitnessStore>;
    conforms(&ways).await;
    ways().remove().await.unwrap();
    for writers in [2, 5, 32] {
        race(&ways, writers, 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_conforms() {
    let dir = TempDir::new().unwrap();
    let ways = || Arc::new(Directory::new(dir.path(), "witness")) as Arc<dyn WitnessStore>;
    conforms(&ways).await;
    ways().remove().await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left");
    for (writers, wins) in [(2, 20), (8, 10), (32, 3)] {
        race(&ways, writers, wins).await;
    }
}

/// A writer that saw the directory long ago finds its next number free again, and has lost.
#[tokio::test]
async fn a_writer_with_a_very_old_view_of_a_directory_loses() {
    let dir = TempDir::new().unwrap();
    let store = Directory::new(dir.path(), "witness");
    let Written::Yes(first) = store.write_if(None, b"0".to_vec()).await.unwrap() else { panic!() };
    let mut tag = first.clone();
    for n in 1..=100 {
        let written = store.write_if(Some(&tag), n.to_string().into_bytes()).await.unwrap();
        let Written::Yes(next) = written else { panic!("{n}") };
        tag = next;
    }
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert!(files < 70, "old versions are removed: {files}");
    assert_eq!(store.write_if(Some(&first), b"old".to_vec()).await, Ok(Written::No));
    // It has looked long ago, and links only now.
    let written = store.put(2, b"old");
    assert!(matches!(written, Err(StoreError::Unknown(_))), "{written:?}");
    assert_eq!(store.read().await.unwrap().unwrap().0, b"100".to_vec());
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let store = Directory::new("/nowhere/at/all", "witness");
    let error = store.read().await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
    assert!(matches!(probe(&store).await, Err(Unfit::Failed { .. })));
}

/// Each of them would let both halves of a cluster win, or forget a vote.
#[tokio::test(flavor = "multi_thread")]
async fn stores_that_do_not_keep_their_word_are_refused() {
    let mut text = String::new();
    for wrong in [
        Wrong::IgnoresCondition,
        Wrong::MatchesAbsent,
        Wrong::CreateReplaces,
        Wrong::StaleReads,
        Wrong::LosesWrites,
        Wrong::LooksThenWrites,
        Wrong::OneTag,
        Wrong::Cuts,
    ] {
        let store = MemoryStore::wrong(wrong);
        match probe(&store).await {
            Err(unfit @ Unfit::BreaksItsWord { .. }) => text += &format!("{wrong:?}: {unfit}\n"),
            other => panic!("{wrong:?} was not found: {other:?}"),
        }
        assert!(store.history().is_empty(), "the probe touched the record itself");
    }
    insta::assert_snapshot!(text);
}

async fn served(dir: &TempDir) -> (WitnessToken, tokio::task::JoinHandle<()>) {
    let listen = "127.0.0.1:0".parse().unwrap();
    let server = Server::open(dir.path(), listen, None).await.unwrap();
    (server.token().clone(), tokio::spawn(server.serve()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_process_conforms() {
    let dir = TempDir::new().unwrap();
    let (token, server) = served(&dir).await;
    let printed: WitnessToken = token.to_string().parse().unwrap();
    assert_eq!(printed, token);
    let ways = || Arc::new(Remote::new(token.clone(), "w1").unwrap()) as Arc<dyn WitnessStore>;
    conforms(&ways).await;
    ways().remove().await.unwrap();
    for (writers, wins) in [(2, 10), (32, 2)] {
        race(&ways, writers, wins).await;
    }
    // It is the same one after a restart, with what it kept.
    ways().write_if(None, b"kept".to_vec()).await.unwrap();
    server.abort();
    let _ = server.await;
    assert!(matches!(ways().read().await, Err(StoreError::Unavailable(_))));
    let (again, server) = served(&dir).await;
    assert_eq!(token.at(again.address), again, "certificate and secret are kept");
    let way = Remote::new(again, "w1").unwrap();
    assert_eq!(way.read().await.unwrap().unwrap().0, b"kept");
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_process_serves_only_whom_it_knows() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (token, _server) = served(&dir).await;
    let (stranger, _other) = served(&other).await;
    // The right place, and the certificate of another: not even asked.
    let false_server = stranger.at(token.address);
    let refused = Remote::new(false_server, "w1").unwrap().read().await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let json = serde_json::to_value(&token).unwrap();
    let mut json = json.as_object().unwrap().clone();
    json.insert("secret".to_owned(), "00".repeat(32).into());
    let false_secret: WitnessToken = serde_json::from_value(json.into()).unwrap();
    let refused = Remote::new(false_secret, "w1").unwrap().read().await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    for name in ["", "../secret", "a b", &"x".repeat(65)] {
        let refused = Remote::new(token.clone(), name).unwrap().read().await;
        assert!(matches!(refused, Err(StoreError::Refused(_))), "{name}: {refused:?}");
    }
    // Noise and silence on its port take nothing away from others.
    let mut open = Vec::new();
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4_096], &[]] {
        let mut stream = tokio::net::TcpStream::connect(token.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, noise).await.unwrap();
        open.push(stream);
    }
    assert_eq!(Remote::new(token.clone(), "w1").unwrap().read().await, Ok(None));
    assert_eq!(format!("{token:?}"), format!("WitnessToken({})", token.address), "no secret");
    for text in ["", "muster-witness-1.", "muster-witness-1.e30", "muster-witness-2.e30"] {
        assert!(text.parse::<WitnessToken>().is_err());
    }
}
