//! Where a browser's request comes from.
//!
//! A browser sends the session's cookie with whatever page causes the request. What other pages
//! cause is kept out four times: by `SameSite=Strict` on the cookie, by the page's origin, which
//! browsers tell and no script can change, by the session's own word in a header, which only our page
//! can read, and by answers that allow no other origin to read them.

use api::ApiError;
use api::ErrorKind;
use api::session::CSRF_HEADER;
use axum::extract::Request;
use axum::http::Method;

/// Checks a request that came with a session's cookie.
pub(crate) fn check_session(request: &Request, csrf: &str) -> Result<(), ApiError> {
    let upgrades = request.headers().contains_key("upgrade");
    let looks = matches!(*request.method(), Method::GET | Method::HEAD) && !upgrades;
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if looks {
        // Browsers leave it out where a page of our own looks.
        let site = header("sec-fetch-site").unwrap_or("same-origin");
        if !matches!(site, "same-origin" | "none") {
            return Err(foreign());
        }
        return match request.headers().contains_key("origin") {
            true => check(request),
            false => Ok(()),
        };
    }
    check(request)?;
    // A WebSocket has no headers of the page's choice; its origin is always told.
    if upgrades || header(CSRF_HEADER) == Some(csrf) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorKind::Forbidden,
        "csrf",
        format!("the request does not show its session's word in the header {CSRF_HEADER}"),
        "load the page again; a program should use a token: muster token create",
    ))
}

/// Checks that the page that caused the request is one of this very host and port.
pub(crate) fn check(request: &Request) -> Result<(), ApiError> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (header("origin"), header("host")) else {
        return Err(foreign());
    };
    match origin.strip_prefix("https://").is_some_and(|rest| rest.eq_ignore_ascii_case(host)) {
        true => Ok(()),
        false => Err(foreign()),
    }
}

fn foreign() -> ApiError {
    ApiError::new(
        ErrorKind::Forbidden,
        "wrong_origin",
        "the request was caused by a page that is not this daemon's own",
        "open the web console by its address; behind a proxy, keep the Host header as it comes",
    )
}
