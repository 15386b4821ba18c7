//! Certificates of people: what a browser shows at the TLS port, and whom that signs in.
//!
//! Such a certificate is another proof of a token's right (decision 0033): a token names the SHA-256 of its
//! public key instead of that of a secret. So it does not matter who issued it, a token's role, end and
//! revocation are those of the certificate, and there is no second list of who may what. The
//! handshake proves that the browser has the key; everything else is looked at when it signs in.
//! A certificate signs in and does nothing else: no other request is anybody's because of it, so no
//! other page can use it.

use api::ApiError;
use api::ErrorKind;
use model::Actor;
use peer::pki::CertificateFacts;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::app::App;
use crate::app::now;
use crate::http::Caller;
use crate::http::Proof;

/// Reads a certificate that shall sign in.
pub(crate) fn read(pem: &str) -> Result<CertificateFacts, ApiError> {
    let refused = |problem: String| {
        ApiError::new(
            ErrorKind::BadRequest,
            "bad_certificate",
            format!("this is not a certificate that can sign in: {problem}"),
            "give one certificate as PEM, such as: openssl req -x509 -newkey ec -pkeyopt \
             ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=NAME -keyout key.pem -out cert.pem",
        )
    };
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| refused(error.to_string()))?;
    let facts = CertificateFacts::read(&der).map_err(|error| refused(error.to_string()))?;
    if facts.node.is_some() {
        return Err(refused("it is the certificate of a node".to_owned()));
    }
    if facts.not_after <= now() {
        return Err(refused("it has ended".to_owned()));
    }
    Ok(facts)
}

/// Whether any certificate signs anybody in: only then browsers are asked for one.
pub(crate) fn any(app: &App) -> bool {
    app.truth.state().tokens.values().any(|token| token.certificate.is_some())
}

/// Whom the certificate that a browser showed signs in.
pub(crate) fn caller(app: &App, shown: Option<&[u8]>) -> Result<Caller, ApiError> {
    let unknown = |message: &str, hint: &str| {
        ApiError::new(ErrorKind::Unauthenticated, "unknown_certificate", message, hint)
    };
    let Some(der) = shown else {
        return Err(unknown(
            "the browser showed no certificate",
            "import one into the browser, make it known (muster token create NAME --certificate \
             FILE), and open the console in a new window",
        ));
    };
    let facts = CertificateFacts::read(der)
        .map_err(|_| unknown("the browser's certificate cannot be read", "show another one"))?;
    if facts.node.is_some() {
        return Err(unknown(
            "a node's certificate signs nobody in",
            "make one of your own known: muster token create NAME --certificate FILE",
        ));
    }
    let now = now();
    if now < facts.not_before || facts.not_after <= now {
        return Err(unknown("the browser's certificate is not valid now", "show another one"));
    }
    let key = facts.key.to_string();
    let state = app.truth.state();
    let known = |token: &&std::sync::Arc<model::TokenRecord>| {
        token.certificate.as_deref() == Some(&key) && token.expires.is_none_or(|end| now < end)
    };
    let token = state.tokens.values().find(known).ok_or_else(|| {
        unknown(
            "the browser's certificate is nobody's here",
            "make it known (muster token create NAME --certificate FILE), or show another one",
        )
    })?;
    let actor = Actor::new(&format!("certificate {}", token.name));
    Ok(Caller { actor, role: token.role, proof: Proof::Token(token.id) })
}
