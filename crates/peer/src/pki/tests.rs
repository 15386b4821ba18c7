//! Certificates that hold, and every way in which they may not.

use model::ClusterId;
use model::NodeId;
use model::UnixMillis;
use proptest::prelude::any;
use proptest::prelude::proptest;
use uuid::Uuid;

use super::CaPublic;
use super::CertificateFacts;
use super::ClusterCa;
use super::Identity;
use super::NodeKey;
use super::PkiError;

const CLUSTER: ClusterId = ClusterId::new(Uuid::from_u128(1));
const NODE: NodeId = NodeId::new(Uuid::from_u128(2));
/// 2026-11-21 06:16 UTC.
const NOW: UnixMillis = UnixMillis::new(1_795_241_760_000);
const DAY_MS: u64 = 86_400_000;

fn after(days: u64) -> UnixMillis {
    UnixMillis::new(NOW.get() + days * DAY_MS)
}

fn ca() -> ClusterCa {
    ClusterCa::create(CLUSTER, "lab", NOW).unwrap()
}

fn identity(ca: &ClusterCa) -> Identity {
    Identity::first((CLUSTER, "lab"), NODE, ca, NOW).unwrap()
}

fn leaf(identity: &Identity) -> Vec<u8> {
    identity.chain()[0].to_vec()
}

#[test]
fn a_node_is_issued_a_certificate_for_its_own_key() {
    let ca = ca();
    let key = NodeKey::create().unwrap();
    let pem = ca.issue(CLUSTER, NODE, &key.request().unwrap(), NOW).unwrap();
    let identity = Identity::new((CLUSTER, "lab"), NODE, ca.public(), &pem, &key, NOW).unwrap();
    let facts = ca.public().check(&leaf(&identity), NOW).unwrap();
    assert_eq!((facts.node, facts.cluster), (Some(NODE), Some(CLUSTER)));
    assert_eq!(facts.issuer, "lab");
    assert_eq!((facts.not_after.get() - NOW.get()) / DAY_MS, 90);

    let other = NodeId::new(Uuid::from_u128(3));
    let error = Identity::new((CLUSTER, "lab"), other, ca.public(), &pem, &key, NOW).unwrap_err();
    assert_eq!(error, PkiError::WrongNode { wanted: other, found: NODE });
}

#[test]
fn a_request_that_somebody_else_signed_is_refused() {
    let ca = ca();
    let mut request = NodeKey::create().unwrap().request().unwrap();
    let last = request.len() - 8;
    request[last] ^= 1;
    let error = ca.issue(CLUSTER, NODE, &request, NOW).unwrap_err();
    assert!(error.to_string().contains("request for a certificate"), "{error}");
}

#[test]
fn a_renewal_keeps_the_key_and_comes_in_time() {
    let ca = ca();
    let old = identity(&ca);
    let due = old.facts().renew_at();
    assert!(due > after(59) && due < after(61), "two thirds of ninety days");
    let new = old.renewed(&ca, due).unwrap();
    assert_eq!(new.key_digest(), old.key_digest());
    assert_ne!(new.facts().serial, old.facts().serial);
    ca.public().check(&leaf(&new), after(149)).unwrap();
    // A node that slept for a year can still come back by itself.
    let late = old.renewed(&ca, after(365)).unwrap();
    ca.public().check(&leaf(&late), after(400)).unwrap();
}

#[test]
fn wrong_clocks_and_ended_certificates_come_with_advice() {
    let ca = ca();
    let der = leaf(&identity(&ca));
    ca.public().check(&der, after(89)).unwrap();
    let expired = ca.public().check(&der, after(91)).unwrap_err();
    assert!(matches!(expired, PkiError::Expired { .. }));
    assert_eq!(
        expired.to_string(),
        "the certificate of node 00000000-0000-0000-0000-000000000002 ended at 2027-02-19 06:16 \
         UTC, and it is 2027-02-20 06:16 UTC here; if this host's clock is right, restart that \
         node's daemon so that it renews, else set the clock (timedatectl)"
    );
    // Half an hour behind is fine, a day is not.
    ca.public().check(&der, UnixMillis::new(NOW.get() - 1_800_000)).unwrap();
    let early = ca.public().check(&der, UnixMillis::new(NOW.get() - DAY_MS)).unwrap_err();
    assert!(matches!(early, PkiError::NotYetValid { .. }));
    assert!(early.to_string().contains("one of the two clocks is wrong"), "{early}");
}

#[test]
fn another_clusters_certificate_is_refused_by_name() {
    let other = ClusterCa::create(CLUSTER, "office", NOW).unwrap();
    let der = leaf(&identity(&other));
    let error = ca().public().check(&der, NOW).unwrap_err();
    assert_eq!(error, PkiError::OtherCluster { theirs: "office".into(), ours: "lab".into() });
    // Also when its time is over: the cluster is what people must know.
    let error = ca().public().check(&der, after(200)).unwrap_err();
    assert!(matches!(error, PkiError::OtherCluster { .. }), "{error}");
    // Also when that CA has taken this one's name.
    let namesake = ClusterCa::create(CLUSTER, "lab", NOW).unwrap();
    let error = ca().public().check(&leaf(&identity(&namesake)), NOW).unwrap_err();
    assert!(matches!(error, PkiError::OtherCluster { .. }), "{error}");
}

#[test]
fn a_member_cannot_issue_and_the_ca_is_no_node() {
    let ca = ca();
    let error = ca.public().check(ca.public().der(), NOW).unwrap_err();
    assert!(matches!(error, PkiError::Invalid { .. } | PkiError::NoNode), "{error}");
    // A certificate below a member's certificate: there is no such chain.
    let member = identity(&ca);
    let below = ClusterCa::from_pem(
        ca.public().pem(),
        serde_json::to_value(&member).unwrap()["key"].as_str().unwrap(),
    )
    .unwrap();
    let error = Identity::first((CLUSTER, "lab"), NODE, &below, NOW).unwrap_err();
    assert!(matches!(error, PkiError::OtherCluster { .. }), "{error}");
}

#[test]
fn what_is_stored_is_read_again_and_shows_no_key() {
    let identity = identity(&ca());
    let json = serde_json::to_string(&identity).unwrap();
    let again: Identity = serde_json::from_str(&json).unwrap();
    assert_eq!(again, identity);
    assert!(!format!("{again:?}").contains("PRIVATE"));
    let newer = json.replace("\"version\":1", "\"version\":9");
    let error = serde_json::from_str::<Identity>(&newer).unwrap_err().to_string();
    assert!(error.contains("newer"), "{error}");
    let ca = ca();
    let again = ClusterCa::from_pem(ca.public().pem(), &ca.key_pem()).unwrap();
    assert_eq!(again.public(), ca.public());
    assert!(!format!("{ca:?}").contains("PRIVATE"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_as_a_certificate_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let _ = CertificateFacts::read(&bytes);
        let _ = CaPublic::from_pem(&String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn a_changed_byte_anywhere_in_a_certificate_or_request_is_refused_without_a_panic() {
    let ca = ca();
    let der = leaf(&identity(&ca));
    let key = NodeKey::create().unwrap();
    let request = key.request().unwrap();
    let issued = |request: &[u8]| ca.issue(CLUSTER, NODE, request, NOW);
    let key = {
        let pem = issued(&request).unwrap();
        Identity::new((CLUSTER, "lab"), NODE, ca.public(), &pem, &key, NOW).unwrap().key_digest()
    };
    for at in 0..der.len() {
        let mut bad = der.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(ca.public().check(&bad, NOW).is_err(), "byte {at}");
        assert!(ca.public().check(&der[..at], NOW).is_err(), "cut at {at}");
    }
    for at in 0..request.len() {
        let mut bad = request.clone();
        bad[at] ^= 1 << (at % 8);
        // Some bytes of the wrapping are not signed; the key always is.
        if let Ok(pem) = issued(&bad) {
            let der = super::authority::certificate_from_pem(&pem).unwrap();
            assert_eq!(CertificateFacts::read(&der).unwrap().key, key, "byte {at}");
        }
        assert!(issued(&request[..at]).is_err(), "cut at {at}");
    }
}
