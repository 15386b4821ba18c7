//! How a host becomes a member, and how it does not.

use std::sync::atomic::Ordering;

use super::CLUSTER;
use super::NOW;
use super::World;
use super::node;
use crate::CallError;
use crate::JoinRequest;
use crate::JoinToken;
use crate::RefusalCode;
use crate::Secret;
use crate::pki::NodeKey;
use crate::pki::PkiError;
use crate::wire::Dialects;

fn token(world: &World, addresses: Vec<std::net::SocketAddr>) -> JoinToken {
    JoinToken {
        cluster: CLUSTER,
        ca: world.ca.public().digest(),
        secret: Secret::create().unwrap(),
        addresses,
    }
}

fn request(secret: &str) -> JoinRequest {
    JoinRequest {
        secret: secret.to_owned(),
        node: node(9),
        name: "h9".parse().unwrap(),
        addresses: Vec::new(),
        port: 1,
        request: String::new(),
        version: "0.1.0".to_owned(),
    }
}

async fn join(
    world: &World,
    token: &JoinToken,
    request: JoinRequest,
) -> Result<crate::pki::Identity, CallError> {
    let key = NodeKey::create().unwrap();
    let version = (Dialects::default(), "0.1.0");
    crate::join(token, request, &key, &world.hands.clock(), version).await.map(|(own, _)| own)
}

#[tokio::test]
async fn a_host_joins_and_is_then_a_member_that_others_believe() {
    let world = World::new();
    let b = world.peer(3).await;
    // The first address is of a member that is off.
    let token = token(&world, vec!["127.0.0.1:1".parse().unwrap(), b.address]);
    let own = join(&world, &token, request("right")).await.unwrap();
    assert_eq!((own.node(), own.cluster_name()), (node(9), "lab"));
    let new = world.peer_with(own, Dialects::default(), crate::Patience::default()).await;
    new.speaks_with(&b).await;
    b.speaks_with(&new).await;
}

#[tokio::test]
async fn a_wrong_or_old_secret_is_refused() {
    let world = World::new();
    let b = world.peer(3).await;
    let error = join(&world, &token(&world, vec![b.address]), request("wrong")).await.unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::Token));
    assert_eq!(b.seen.joins.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_false_cluster_never_sees_the_secret() {
    let (world, false_world) = (World::new(), World::new());
    let b = false_world.peer(3).await;
    let error = join(&world, &token(&world, vec![b.address]), request("right")).await.unwrap_err();
    assert!(matches!(&error, CallError::Pki(PkiError::OtherCluster { .. })), "{error}");
    assert_eq!(b.seen.joins.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused_by_name() {
    let world = World::new();
    let b = world.peer(3).await;
    let mut token = token(&world, vec![b.address]);
    token.cluster = model::ClusterId::new(uuid::Uuid::from_u128(55));
    let error = join(&world, &token, request("right")).await.unwrap_err();
    assert_eq!(error.code(), Some(RefusalCode::WrongCluster));
    assert!(error.to_string().contains("this is 'lab'"), "{error}");
    assert_eq!(b.seen.joins.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_host_whose_clock_is_wrong_is_told_so() {
    let world = World::new();
    let b = world.peer(3).await;
    let hands = super::Hands::new();
    hands.0.store(NOW.get() - 400 * super::DAY_MS, Ordering::Relaxed);
    let key = NodeKey::create().unwrap();
    let token = token(&world, vec![b.address]);
    let version = (Dialects::default(), "0.1.0");
    let error =
        crate::join(&token, request("right"), &key, &hands.clock(), version).await.unwrap_err();
    assert!(matches!(&error, CallError::Pki(PkiError::NotYetValid { .. })), "{error}");
    assert!(error.to_string().contains("timedatectl"), "{error}");
}

#[tokio::test]
async fn a_host_with_a_token_may_look_before_it_joins() {
    let world = World::new();
    let b = world.peer(3).await;
    let token = token(&world, vec!["127.0.0.1:1".parse().unwrap(), b.address]);
    let question = serde_json::json!({ "how": "are you" });
    let version = (Dialects::default(), "0.1.0");
    let answer =
        crate::look(&token, question.clone(), &world.hands.clock(), version).await.unwrap();
    assert_eq!(answer, question.to_string());
    // A member of another CA is not even asked: it would learn the secret.
    let mut other = token.clone();
    other.ca = [7; 32];
    assert!(crate::look(&other, question, &world.hands.clock(), version).await.is_err());
}
