//! Signing in with a browser: what a cookie opens, what it does not, and when it ends.

use api::endpoint as ep;
use api::endpoint::Access;
use api::endpoint::ReplyKind;
use api::endpoint::TABLE;
use api::session::COOKIE;
use api::session::CSRF_HEADER;
use api::session::WebLinkCreateBody;
use api::types::TokenCreateBody;
use api::types::TokenSecretView;
use axum::http::StatusCode;
use model::Command;
use model::Role;
use model::SessionId;
use model::SessionRecord;
use model::SessionStage;
use serde_json::Value;
use serde_json::json;
use tower::ServiceExt;

use crate::app::new_uuid;
use crate::app::now;
use crate::http::Peer;
use crate::http::tests::Daemon;
use crate::http::tests::daemon;
use crate::http::tests::daemon_with;

const HOST: &str = "h1:7443";
const ORIGIN: &str = "https://h1:7443";

/// What a browser got when it signed in.
#[derive(Clone)]
struct Browser {
    cookie: String,
    csrf: String,
    id: String,
}

struct Answer {
    status: StatusCode,
    cache: String,
    set_cookie: String,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// Sends a request as a browser would, with these headers on top.
async fn send(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Value,
) -> Answer {
    let mut request = axum::extract::Request::builder()
        .method(method)
        .uri(path)
        .header("host", HOST)
        .extension(Peer::Tls(None));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = request.body(axum::body::Body::from(body)).unwrap();
    let answer = daemon.router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let set_cookie = answer.headers().get("set-cookie");
    let set_cookie = set_cookie.map_or("", |value| value.to_str().unwrap()).to_owned();
    let cache = answer.headers().get("cache-control");
    let cache = cache.map_or("", |value| value.to_str().unwrap()).to_owned();
    let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    Answer { status, cache, set_cookie, body: serde_json::from_slice(&bytes).unwrap_or_default() }
}

async fn sign_in(daemon: &Daemon, body: Value) -> Result<Browser, Answer> {
    let answer = send(daemon, "POST", "/v1/sessions", &[("origin", ORIGIN)], body).await;
    if answer.status != StatusCode::OK {
        return Err(answer);
    }
    let (cookie, rest) = answer.set_cookie.split_once(';').unwrap();
    for part in ["Secure", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="] {
        assert!(rest.contains(part), "{part} in {rest}");
    }
    assert!(!rest.contains("Domain"), "{rest}");
    let text = |key: &str| answer.body["session"][key].as_str().unwrap().to_owned();
    Ok(Browser { cookie: cookie.to_owned(), csrf: text("csrf"), id: text("id") })
}

async fn token(daemon: &Daemon, name: &str, role: Role) -> String {
    let body =
        TokenCreateBody { name: name.parse().unwrap(), role, valid_s: None, certificate: None };
    daemon.admin.send::<ep::TokenCreate>(&[], &body).await.unwrap().secret
}

async fn link(daemon: &Daemon) -> String {
    let body = WebLinkCreateBody::default();
    let url = daemon.admin.send::<ep::WebLinkCreate>(&[], &body).await.unwrap().url;
    url.split_once("/sign-in#").unwrap().1.to_owned()
}

impl Browser {
    async fn look(&self, daemon: &Daemon, path: &str) -> Answer {
        let headers = [("cookie", self.cookie.as_str()), ("sec-fetch-site", "same-origin")];
        send(daemon, "GET", path, &headers, Value::Null).await
    }

    async fn act(&self, daemon: &Daemon, method: &str, path: &str) -> Answer {
        let headers =
            [("cookie", self.cookie.as_str()), ("origin", ORIGIN), (CSRF_HEADER, &self.csrf)];
        send(daemon, method, path, &headers, Value::Null).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_do_what_its_token_can_and_no_more() {
    let daemon = daemon().await;
    for role in [Role::Viewer, Role::Operator, Role::Administrator] {
        let secret = token(&daemon, role.as_str(), role).await;
        let browser = sign_in(&daemon, json!({ "token": secret })).await.ok().unwrap();
        let me = browser.look(&daemon, "/v1/whoami").await;
        assert_eq!(me.body["actor"], format!("token {role}"));
        assert_eq!(me.body["session"]["csrf"], browser.csrf);
        for info in TABLE.iter().filter(|info| info.reply != ReplyKind::EventStream) {
            let path: Vec<&str> = info.parameters().map(|_| "no-such-thing").collect();
            let answer = browser.act(&daemon, info.method.as_str(), &info.fill(&path)).await;
            assert_eq!(answer.cache, "no-store", "{}", info.id);
            let denied = matches!(answer.status.as_u16(), 401 | 403);
            let needed = match info.access {
                Access::Anyone => None,
                Access::Needs(role) => Some(role),
            };
            let expected = needed.is_some_and(|needed| role < needed);
            assert_eq!(denied, expected, "{} as {role}: {}", info.id, answer.body);
        }
    }
}

/// Every way in which another page could make a browser do something.
#[tokio::test(flavor = "multi_thread")]
async fn what_other_pages_cause_is_refused() {
    let daemon = daemon().await;
    let browser = sign_in(&daemon, json!({ "link": link(&daemon).await })).await.ok().unwrap();
    let cookie = ("cookie", browser.cookie.as_str());
    let csrf = (CSRF_HEADER, browser.csrf.as_str());
    let origin = ("origin", ORIGIN);
    let foreign = ("origin", "https://evil.example");
    let other_port = ("origin", "https://h1:9443");
    let plain = ("origin", "http://h1:7443");
    let none = ("origin", "null");
    for info in TABLE.iter().filter(|info| matches!(info.access, Access::Needs(_))) {
        let path: Vec<&str> = info.parameters().map(|_| "no-such-thing").collect();
        let (method, path) = (info.method.as_str(), info.fill(&path));
        let upgrade = [("upgrade", "websocket"), ("connection", "upgrade")];
        let mut tries: Vec<(Vec<_>, &str)> = [foreign, other_port, plain, none]
            .into_iter()
            .map(|origin| (vec![cookie, origin, csrf], "wrong_origin"))
            .collect();
        match (info.reply, method) {
            (ReplyKind::WebSocket, _) => {
                tries.push((vec![cookie, csrf], "wrong_origin"));
                for (headers, _) in &mut tries {
                    headers.extend(upgrade);
                }
            }
            (_, "GET") => {
                tries.push((vec![cookie, ("sec-fetch-site", "cross-site")], "wrong_origin"));
                tries.push((vec![cookie, ("sec-fetch-site", "same-site")], "wrong_origin"));
            }
            _ => {
                tries.push((vec![cookie, csrf], "wrong_origin"));
                tries.push((vec![cookie, origin], "csrf"));
                tries.push((vec![cookie, origin, (CSRF_HEADER, "")], "csrf"));
                tries.push((vec![cookie, origin, (CSRF_HEADER, &browser.id)], "csrf"));
            }
        }
        for (headers, code) in tries {
            let answer = send(&daemon, method, &path, &headers, Value::Null).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{} {headers:?}", info.id);
            assert_eq!(answer.code(), code, "{} {headers:?}", info.id);
        }
    }
    let body = json!({ "link": link(&daemon).await });
    let answer = send(&daemon, "POST", "/v1/sessions", &[foreign], body.clone()).await;
    assert_eq!(answer.code(), "wrong_origin", "nobody is signed in by another page");
    sign_in(&daemon, body).await.ok().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_signs_in_once_with_the_rights_of_whoever_made_it() {
    let daemon = daemon().await;
    let secret = link(&daemon).await;
    // Many at the same moment: one of them wins.
    let body = json!({ "link": secret });
    let tries = (0..8).map(|_| sign_in(&daemon, body.clone()));
    let won = futures::future::join_all(tries).await;
    assert_eq!(won.iter().filter(|one| one.is_ok()).count(), 1);
    for lost in won.iter().filter_map(|one| one.as_ref().err()) {
        assert_eq!((lost.status, lost.code()), (StatusCode::UNAUTHORIZED, "link_used"));
        assert!(lost.body["hint"].as_str().unwrap().contains("muster web"));
    }
    // A link is no session, and a session is no link.
    let as_cookie = format!("{COOKIE}={}", link(&daemon).await);
    let answer = send(&daemon, "GET", "/v1/whoami", &[("cookie", &as_cookie)], Value::Null).await;
    assert_eq!(answer.code(), "session_ended");
    let browser = won.into_iter().find_map(Result::ok).unwrap();
    let session = browser.cookie.split_once('=').unwrap().1;
    assert!(sign_in(&daemon, json!({ "link": session })).await.is_err());

    let viewer = daemon.with_token(&token(&daemon, "viewer", Role::Viewer).await);
    let more = WebLinkCreateBody { role: Some(Role::Administrator), valid_s: None };
    let error = viewer.send::<ep::WebLinkCreate>(&[], &more).await.unwrap_err();
    assert_eq!(error.kind, api::ErrorKind::BadRequest);
    for valid_s in [0, 9, 901] {
        let body = WebLinkCreateBody { role: None, valid_s: Some(valid_s) };
        assert!(daemon.admin.send::<ep::WebLinkCreate>(&[], &body).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_ways_to_sign_in_are_refused() {
    let daemon = daemon().await;
    let secret = token(&daemon, "a", Role::Viewer).await;
    for (body, status) in [
        (json!({ "token": "wrong" }), 401),
        (json!({ "token": "x".repeat(5_000) }), 401),
        (json!({ "link": "wrong" }), 401),
        (json!({}), 400),
        (json!({ "token": secret, "link": "x" }), 400),
        (json!({ "password": "x" }), 400),
    ] {
        let answer = sign_in(&daemon, body.clone()).await.err().unwrap();
        assert_eq!(answer.status.as_u16(), status, "{body}");
        assert!(answer.set_cookie.is_empty());
        assert!(!answer.body["hint"].as_str().unwrap().is_empty());
    }
    for cookie in ["", "x", &format!("{COOKIE}="), &format!("{COOKIE}={}", "y".repeat(70))] {
        let answer = send(&daemon, "GET", "/v1/whoami", &[("cookie", cookie)], Value::Null).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{cookie}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_by_signing_out_with_its_token_and_by_time() {
    let daemon = daemon().await;
    let secret = token(&daemon, "ci", Role::Operator).await;
    let first = sign_in(&daemon, json!({ "token": secret })).await.ok().unwrap();
    let second = sign_in(&daemon, json!({ "token": secret })).await.ok().unwrap();
    // Nobody but an administrator ends another one's.
    let path = format!("/v1/sessions/{}", second.id);
    assert_eq!(first.act(&daemon, "DELETE", &path).await.status, StatusCode::NOT_FOUND);
    let out = second.act(&daemon, "DELETE", &path).await;
    assert_eq!(out.status, StatusCode::OK);
    assert!(out.set_cookie.contains("Max-Age=0"), "{}", out.set_cookie);
    assert_eq!(second.look(&daemon, "/v1/whoami").await.code(), "session_ended");
    assert_eq!(first.look(&daemon, "/v1/whoami").await.status, StatusCode::OK);

    daemon.admin.get::<ep::TokenRevoke>(&["ci"]).await.unwrap();
    assert_eq!(first.look(&daemon, "/v1/whoami").await.code(), "session_ended");
    assert!(daemon.admin.get::<ep::SessionList>(&[]).await.unwrap().is_empty());

    // One that is over in a moment.
    let secret = "5".repeat(64);
    let record = SessionRecord {
        id: SessionId::new(new_uuid()),
        stage: SessionStage::Open,
        digest: crate::http::auth::digest(&secret),
        actor: "user brief".to_owned(),
        role: Role::Viewer,
        token: None,
        created: now(),
        expires: now().plus(model::Millis::new(1_500)),
        onward: None,
    };
    let command = Command::SessionCreate { record: Box::new(record) };
    daemon.app.propose(&model::Actor::new("test"), command).await.unwrap();
    let brief =
        Browser { cookie: format!("{COOKIE}={secret}"), csrf: String::new(), id: String::new() };
    assert_eq!(brief.look(&daemon, "/v1/whoami").await.status, StatusCode::OK);
    let over = async {
        while brief.look(&daemon, "/v1/whoami").await.status == StatusCode::OK {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), over).await.unwrap();
    assert_eq!(brief.look(&daemon, "/v1/whoami").await.code(), "session_ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_elsewhere_once_and_its_old_cookie_is_worth_nothing() {
    let daemon = daemon().await;
    let secret = token(&daemon, "ci", Role::Operator).await;
    let first = sign_in(&daemon, json!({ "token": secret })).await.ok().unwrap();
    let word = first.look(&daemon, "/v1/whoami").await.body["session"]["onward"].clone();
    let word = word.as_str().unwrap().to_owned();
    let second = sign_in(&daemon, json!({ "onward": word })).await.ok().unwrap();
    assert_eq!((&second.id, second.cookie == first.cookie), (&first.id, false));
    assert_eq!(second.look(&daemon, "/v1/whoami").await.body["role"], "operator");
    assert_eq!(first.look(&daemon, "/v1/whoami").await.code(), "session_ended");
    // Neither the old word nor one that is none; and no page of another site.
    for bad in [word.as_str(), "", "x"] {
        let refused = sign_in(&daemon, json!({ "onward": bad })).await.err().unwrap();
        assert_eq!(refused.code(), "session_ended");
    }
    let next = second.look(&daemon, "/v1/whoami").await.body["session"]["onward"].clone();
    let foreign = [("origin", "https://elsewhere:7443")];
    let body = json!({ "onward": next });
    let refused = send(&daemon, "POST", "/v1/sessions", &foreign, body.clone()).await;
    assert_eq!(refused.code(), "wrong_origin");
    // With its token it is gone, and so is its word.
    daemon.admin.get::<ep::TokenRevoke>(&["ci"]).await.unwrap();
    assert_eq!(sign_in(&daemon, body).await.err().unwrap().code(), "session_ended");
    let kinds: Vec<_> = daemon.admin.get::<ep::SessionList>(&[]).await.unwrap();
    assert!(kinds.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_stop_when_the_session_ends() {
    use http_body_util::BodyExt;

    let daemon = daemon().await;
    let browser = sign_in(&daemon, json!({ "link": link(&daemon).await })).await.ok().unwrap();
    let request = axum::extract::Request::builder()
        .uri("/v1/events/stream")
        .header("cookie", &browser.cookie)
        .header("host", HOST)
        .extension(Peer::Tls(None))
        .body(axum::body::Body::empty())
        .unwrap();
    let mut stream = daemon.router.clone().oneshot(request).await.unwrap().into_body();
    stream.frame().await.unwrap().unwrap();
    daemon.admin.get::<ep::SessionEnd>(&[&browser.id]).await.unwrap();
    let rest = async {
        let mut text = String::new();
        while let Some(Ok(frame)) = stream.frame().await {
            text.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
        }
        text
    };
    let rest = tokio::time::timeout(std::time::Duration::from_secs(10), rest).await.unwrap();
    assert!(!rest.contains("session.ended"), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_served_to_anybody_with_a_policy_and_tell_nothing() {
    let daemon = daemon().await;
    let page = async |path: &str, method: &str| {
        let request = axum::extract::Request::builder()
            .method(method)
            .uri(path)
            .extension(Peer::Tls(None))
            .body(axum::body::Body::empty())
            .unwrap();
        daemon.router.clone().oneshot(request).await.unwrap()
    };
    for path in ["/", "/sign-in", "/vms/web-1.example"] {
        let answer = page(path, "GET").await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self';"));
        assert!(!policy.contains("http"), "no other host: {policy}");
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        assert!(String::from_utf8_lossy(&bytes).contains("<title>Muster"), "{path}");
    }
    let nothing = [
        ("/v1/nothing", "GET"),
        ("/assets/nothing.js", "GET"),
        ("/..%2f..%2fx", "GET"),
        ("/.gitignore", "GET"),
        ("/", "POST"),
    ];
    for (path, method) in nothing {
        assert_eq!(page(path, method).await.status(), StatusCode::NOT_FOUND, "{method} {path}");
    }
    let member = axum::extract::Request::builder()
        .uri("/")
        .extension(Peer::Member(model::NodeId::new(uuid::Uuid::from_u128(7))))
        .body(axum::body::Body::empty())
        .unwrap();
    let answer = daemon.router.clone().oneshot(member).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

/// A certificate of one's own, and what a browser shows of it.
fn own_certificate() -> (String, Peer) {
    let made = rcgen::generate_simple_self_signed(vec!["anna".to_owned()]).unwrap();
    (made.cert.pem(), Peer::Tls(Some(std::sync::Arc::new(made.cert.der().clone()))))
}

async fn known_certificate(daemon: &Daemon, name: &str, role: Role, pem: &str) -> TokenSecretView {
    let body = TokenCreateBody {
        name: name.parse().unwrap(),
        role,
        valid_s: None,
        certificate: Some(pem.to_owned()),
    };
    daemon.admin.send::<ep::TokenCreate>(&[], &body).await.unwrap()
}

/// Signs in by certificate, as a page of that origin does.
async fn shown(daemon: &Daemon, peer: &Peer, origin: &str) -> (StatusCode, String, Value) {
    let request = axum::http::Request::builder()
        .method("POST")
        .uri("/v1/sessions")
        .header("host", HOST)
        .header("origin", origin)
        .header("content-type", "application/json")
        .extension(peer.clone())
        .body(axum::body::Body::from(json!({ "certificate": true }).to_string()))
        .unwrap();
    let answer = daemon.router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let cookie = answer.headers().get("set-cookie");
    let cookie = cookie.map_or("", |value| value.to_str().unwrap());
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, cookie, serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_signs_in_with_the_rights_of_its_token_until_that_is_revoked() {
    let daemon = daemon().await;
    let (pem, peer) = own_certificate();
    let (status, _, body) = shown(&daemon, &peer, ORIGIN).await;
    assert_eq!((status, &body["code"]), (StatusCode::UNAUTHORIZED, &"unknown_certificate".into()));
    let made = known_certificate(&daemon, "anna", Role::Operator, &pem).await;
    assert_eq!(made.secret, "", "there is no secret beside the certificate");
    assert!(made.token.expires.is_some(), "no longer than the certificate");
    let (status, cookie, body) = shown(&daemon, &peer, ORIGIN).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!((&body["actor"], &body["role"]), (&"certificate anna".into(), &"operator".into()));
    let csrf = body["session"]["csrf"].as_str().unwrap().to_owned();
    let id = body["session"]["id"].as_str().unwrap().to_owned();
    let browser = Browser { cookie, csrf, id };
    assert_eq!(browser.look(&daemon, "/v1/vms").await.status, StatusCode::OK);

    // Another page cannot use what the browser shows by itself.
    for origin in ["https://evil.example", "null"] {
        let (status, _, body) = shown(&daemon, &peer, origin).await;
        let expected = (StatusCode::FORBIDDEN, &Value::from("wrong_origin"));
        assert_eq!((status, &body["code"]), expected);
    }
    // It signs in and does nothing else; and whoever only knows it has nothing.
    let request = axum::http::Request::builder()
        .uri("/v1/vms")
        .header("host", HOST)
        .extension(peer.clone())
        .body(axum::body::Body::empty())
        .unwrap();
    let answer = daemon.router.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let key = made.token.certificate.clone().unwrap();
    for word in [pem.as_str(), key.as_str(), ""] {
        assert!(sign_in(&daemon, json!({ "token": word })).await.is_err());
    }
    let (status, _, _) = shown(&daemon, &Peer::Tls(None), ORIGIN).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (_, other) = own_certificate();
    assert_eq!(shown(&daemon, &other, ORIGIN).await.0, StatusCode::UNAUTHORIZED);

    daemon.admin.get::<ep::TokenRevoke>(&["anna"]).await.unwrap();
    assert_eq!(browser.look(&daemon, "/v1/vms").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(shown(&daemon, &peer, ORIGIN).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_node_or_of_nobody_is_refused() {
    let daemon = daemon().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let node = format!("urn:muster:node:{}", daemon.app.node);
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(node.as_str().try_into().unwrap()));
    let cert = params.self_signed(&key).unwrap();
    let mut old = rcgen::CertificateParams::new(vec!["old".to_owned()]).unwrap();
    old.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let old = old.self_signed(&key).unwrap();
    let of_node = cert.pem();
    for (pem, said) in [
        (of_node.as_str(), "certificate of a node"),
        (old.pem().as_str(), "it has ended"),
        ("nonsense", "not a certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate"),
    ] {
        let body = TokenCreateBody {
            name: "anna".parse().unwrap(),
            role: Role::Administrator,
            valid_s: None,
            certificate: Some(pem.to_owned()),
        };
        let refused = daemon.admin.send::<ep::TokenCreate>(&[], &body).await.unwrap_err();
        assert!(format!("{refused:?}").contains(said), "{refused:?}");
    }
    let peer = Peer::Tls(Some(std::sync::Arc::new(cert.der().clone())));
    let (status, _, body) = shown(&daemon, &peer, ORIGIN).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(body["message"], "a node's certificate signs nobody in");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_nobody_uses_ends_and_what_a_page_asks_by_itself_is_no_use() {
    let daemon = daemon_with(|config| config.session_idle_s = 2).await;
    let secret = token(&daemon, "anna", Role::Viewer).await;
    let used = sign_in(&daemon, json!({ "token": secret })).await.ok().unwrap();
    let left = sign_in(&daemon, json!({ "token": secret })).await.ok().unwrap();
    let me = used.look(&daemon, "/v1/whoami").await;
    assert_eq!(me.body["session"]["idle_s"], 2);
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let touched = [
            ("cookie", used.cookie.as_str()),
            ("sec-fetch-site", "same-origin"),
            (api::session::IDLE_HEADER, "0"),
        ];
        let answer = send(&daemon, "GET", "/v1/vms", &touched, Value::Null).await;
        assert_eq!(answer.status, StatusCode::OK, "somebody uses it");
        // Without the header, and with one that says that nobody is there.
        let alone = left.look(&daemon, "/v1/vms").await;
        let idle = [
            ("cookie", left.cookie.as_str()),
            ("sec-fetch-site", "same-origin"),
            (api::session::IDLE_HEADER, "100"),
        ];
        send(&daemon, "GET", "/v1/vms", &idle, Value::Null).await;
        if alone.status == StatusCode::UNAUTHORIZED {
            assert_eq!(alone.code(), "session_ended");
            break;
        }
        assert!(tokio::time::Instant::now() < until, "it has not ended");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(used.look(&daemon, "/v1/vms").await.status, StatusCode::OK);
}

/// Over a real handshake: a browser is asked for a certificate only where one signs somebody in.
#[tokio::test(flavor = "multi_thread")]
async fn the_port_asks_for_certificates_once_one_is_known_and_takes_only_their_holder() {
    let daemon = daemon().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["anna".to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let (told, asked) = browser_of(&daemon, &cert, &key).await.unwrap();
    assert!(told.contains("401") && told.contains("showed no certificate"), "{told}");
    assert!(!asked, "no browser is bothered for nothing");
    known_certificate(&daemon, "anna", Role::Administrator, &cert.pem()).await;
    let (told, asked) = browser_of(&daemon, &cert, &key).await.unwrap();
    assert!(asked && told.contains("200 OK") && told.contains("certificate anna"), "{told}");
    // The same certificate with another key: who only has seen it has nothing.
    let other = rcgen::KeyPair::generate().unwrap();
    let stolen = browser_of(&daemon, &cert, &other).await;
    assert!(!stolen.as_ref().is_ok_and(|(told, _)| told.contains("200 OK")), "{stolen:?}");
    // Whoever has none comes in as ever.
    let secret = token(&daemon, "bert", Role::Viewer).await;
    assert!(daemon.with_token(&secret).get::<ep::VmList>(&[]).await.is_ok());
}

/// Shows the certificate if asked, and says whether it was; keeps whatever key it is given.
#[derive(Debug)]
struct Shows {
    certified: std::sync::Arc<rustls::sign::CertifiedKey>,
    asked: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl rustls::client::ResolvesClientCert for Shows {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        self.asked.store(true, std::sync::atomic::Ordering::SeqCst);
        Some(self.certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Signs in by certificate over the TLS port; the answer, and whether the certificate was asked for.
async fn browser_of(
    daemon: &Daemon,
    cert: &rcgen::Certificate,
    key: &rcgen::KeyPair,
) -> anyhow::Result<(String, bool)> {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|problem| anyhow::anyhow!(problem))?;
    let signer = provider.key_provider.load_private_key(der)?;
    let certified = rustls::sign::CertifiedKey::new(vec![cert.der().clone()], signer);
    let asked = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
    let shows = Shows { certified: certified.into(), asked: asked.clone() };
    let server = std::fs::read(daemon.app.config.data_dir.join("tls/cert.pem"))?;
    let server = <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>
        ::from_pem_slice(&server)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server)?;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_cert_resolver(std::sync::Arc::new(shows));
    let tls = daemon.app.tls.as_ref().map(|tls| tls.address).unwrap();
    let stream = tokio::net::TcpStream::connect(tls).await?;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = connector.connect("localhost".try_into()?, stream).await?;
    let body = json!({ "certificate": true }).to_string();
    let head = format!(
        "POST /v1/sessions HTTP/1.1\r\nhost: {HOST}\r\norigin: {ORIGIN}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    // The port ends the connection without a last word of TLS.
    let _ = stream.read_to_end(&mut answer).await;
    let asked = asked.load(std::sync::atomic::Ordering::SeqCst);
    Ok((String::from_utf8_lossy(&answer).into_owned(), asked))
}
