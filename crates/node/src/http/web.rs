//! The web console's files, as `cargo xtask web` built them, out of the program itself.
//!
//! They tell nothing of the cluster, so anybody may have them. Every page is the same small document;
//! what it shows comes from the API. A debug build reads them from the folder at each request. Without
//! them there is one page that says how to build them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::Request;
use axum::http::Method;
use axum::response::IntoResponse;
use axum::response::Response;
use rust_embed::Embed;

use crate::app::App;
use crate::http::Peer;

/// The folder that `cargo xtask web` fills; with `.br` beside what is worth compressing.
#[derive(Embed)]
#[folder = "../../web/dist"]
struct Files;

/// What is shown where the console was not built.
const STUB: &str = include_str!("web_stub.html");

/// What browsers let the pages do, but for whom they may talk to. Styles may stand in the page, since
/// the terminal makes its own; scripts may not.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data: blob:; font-src 'self'; manifest-src 'self'; \
    form-action 'self'; base-uri 'none'; frame-ancestors 'none'; connect-src 'self'";

/// A file that pages of other nodes may look at, to see whether a browser reaches this one.
const PROBE: &str = "icon.svg";

/// The document of all pages.
const INDEX: &str = "index.html";

/// A page or file of the console; nothing where the path or the caller is not one for it.
pub(super) fn answer(app: &App, request: &Request) -> Option<Response> {
    let path = request.uri().path().trim_start_matches('/');
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    let of_api = path.split('/').next() == Some(api::endpoint::API_VERSION);
    let from_member = matches!(request.extensions().get::<Peer>(), Some(Peer::Member(_)));
    if !looks || of_api || from_member || path.contains("..") || path.starts_with('.') {
        return None;
    }
    // Pages have names of things in their paths; what is below `assets` is a file or nothing.
    let file = match Files::get(path) {
        Some(_) if !path.ends_with(".br") => path,
        _ if path.starts_with("assets/") => return None,
        _ => INDEX,
    };
    let brotli = Files::get(&format!("{file}.br")).filter(|_| takes_brotli(request));
    let encoding = brotli.is_some().then_some("br");
    let bytes = brotli.or_else(|| Files::get(file)).map(|file| file.data.into_owned());
    let bytes = bytes.unwrap_or_else(|| STUB.as_bytes().to_vec());
    // Names of assets have a digest in them; everything else may be another one tomorrow.
    let cache = match file.starts_with("assets/") {
        true => "public, max-age=31536000, immutable",
        false => "no-cache",
    };
    let policy = format!("{POLICY}{}", others(app));
    let headers = [
        ("content-type", kind(file)),
        ("content-security-policy", policy.as_str()),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        (
            "cross-origin-resource-policy",
            if file == PROBE { "cross-origin" } else { "same-origin" },
        ),
        ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
        ("vary", "accept-encoding"),
        ("cache-control", cache),
    ];
    let body = match *request.method() == Method::HEAD {
        true => Body::empty(),
        false => Body::from(bytes),
    };
    let mut response = (headers, body).into_response();
    if let Some(encoding) = encoding {
        let value = axum::http::HeaderValue::from_static(encoding);
        response.headers_mut().insert("content-encoding", value);
    }
    Some(response)
}

/// The other nodes, as sources of a policy: a page whose node falls silent looks which of them its
/// browser reaches. An address of version 6 cannot stand there (CSP3, "host-source").
fn others(app: &App) -> String {
    let state = app.truth.state();
    let others = state.nodes.values().filter(|node| node.id != app.node);
    let addresses: BTreeSet<IpAddr> = others
        .flat_map(|node| &node.facts.addresses)
        .map(SocketAddr::ip)
        .filter(IpAddr::is_ipv4)
        .collect();
    addresses.iter().map(|address| format!(" https://{address}:*")).collect()
}

fn takes_brotli(request: &Request) -> bool {
    let header = request.headers().get("accept-encoding").and_then(|value| value.to_str().ok());
    header.is_some_and(|list| {
        list.split(',').any(|word| {
            let mut parts = word.split(';').map(str::trim);
            parts.next() == Some("br") && parts.all(|part| part != "q=0")
        })
    })
}

fn kind(file: &str) -> &'static str {
    match file.rsplit_once('.').map_or("", |(_, end)| end) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "json" | "webmanifest" => "application/json",
        "woff2" => "font/woff2",
        "png" => "image/png",
        _ => "application/octet-stream",
    }
}
