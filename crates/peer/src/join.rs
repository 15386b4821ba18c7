//! The exchange by which a host becomes a member.
//!
//! ```text
//!   host                                              member
//!   TLS, no certificate; the member's must be of the CA whose digest the token has
//!   Greeting { purpose: join, cluster } -->
//!                                        <-- Welcome
//!   Call JOIN { secret, request for a certificate, facts } -->
//!                                            the state takes the node in, or refuses
//!                                        <-- Reply { CA, certificate, members }
//! ```
//!
//! The secret goes only to a node that the token's CA vouches for.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::ClusterId;
use model::Name;
use model::NodeId;
use serde::Deserialize;
use serde::Serialize;
use tokio::time::timeout;
use uuid::Uuid;

use crate::clock::Clock;
use crate::error::CallError;
use crate::error::Refusal;
use crate::error::RefusalCode;
use crate::link::Dial;
use crate::link::DialError;
use crate::link::dial;
use crate::link::refusal;
use crate::method::Method;
use crate::pki::CaPublic;
use crate::pki::Identity;
use crate::pki::NodeKey;
use crate::pki::PkiError;
use crate::tls::Expect;
use crate::token::JoinToken;
use crate::wire::BODY_BYTES_MAX;
use crate::wire::Dialects;
use crate::wire::Frame;
use crate::wire::Greeting;
use crate::wire::Kind;
use crate::wire::Purpose;
use crate::wire::read_frame;
use crate::wire::write_frame;

/// How long the member may take: the state must accept the node, on a majority of disks.
pub(crate) const JOIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// What a host says of itself when it asks to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret in hexadecimal.
    pub secret: String,
    /// The node's new id.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Addresses of its peer port, one for each cluster network; where none is given, the address
    /// that it calls from counts, with `port`.
    #[serde(default)]
    pub addresses: Vec<SocketAddr>,
    /// Its peer port.
    pub port: u16,
    /// Its request for a certificate: PKCS #10, DER, in Base64.
    pub request: String,
    /// Version of its program.
    #[serde(default)]
    pub version: String,
}

/// What a host asks that thinks of joining. Nothing is changed by it, and the token stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookRequest {
    /// The token's secret in hexadecimal.
    pub secret: String,
    /// The question; whoever answers knows its form.
    pub question: serde_json::Value,
}

/// What a host gets that may join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name.
    pub cluster_name: String,
    /// The CA's certificate in PEM.
    pub ca: String,
    /// The node's certificate in PEM.
    pub certificate: String,
    /// The members, the new one among them.
    pub members: Vec<Member>,
}

/// A member, as a new one must know it until it has the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Addresses of its peer port.
    pub addresses: Vec<SocketAddr>,
}

impl JoinRequest {
    /// The request for a certificate, as bytes.
    ///
    /// # Errors
    /// [`RefusalCode::Malformed`].
    pub fn certificate_request(&self) -> Result<Vec<u8>, Refusal> {
        STANDARD
            .decode(&self.request)
            .map_err(|error| Refusal::malformed(format!("the request is not Base64: {error}")))
    }

    /// Puts the request for a certificate in.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn with_key(mut self, key: &NodeKey) -> Result<Self, PkiError> {
        self.request = STANDARD.encode(key.request()?);
        Ok(self)
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`RefusalCode::Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body)
            .map_err(|error| Refusal::malformed(format!("the request cannot be read: {error}")))
    }
}

impl LookRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// [`RefusalCode::Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(body)
            .map_err(|error| Refusal::malformed(format!("the request cannot be read: {error}")))
    }
}

/// Asks the members named in the token, one after the other, to take this host in. Answers with
/// the identity to keep and the members.
///
/// # Errors
/// [`CallError`]: of the last member that was tried; a refusal of any ends the search.
pub async fn join(
    token: &JoinToken,
    request: JoinRequest,
    key: &NodeKey,
    clock: &Clock,
    speaks: (Dialects, &str),
) -> Result<(Identity, Vec<Member>), CallError> {
    let nobody = NodeId::new(Uuid::nil());
    let request = request.with_key(key)?;
    let body = serde_json::to_vec(&request).map_err(|error| CallError::Unreachable {
        node: nobody,
        problem: format!("the request has no JSON form: {error}"),
    })?;
    let plan = newcomer(token, request.node, clock, speaks);
    let answer = ask_any(token, &plan, Method::JOIN, body.into()).await?;
    let reply = serde_json::from_slice(&answer).map_err(|error| CallError::Refused {
        node: nobody,
        refusal: Refusal::malformed(format!("the answer cannot be read: {error}")),
    })?;
    accept(token, reply, request.node, key, clock)
}

/// Asks the members named in the token, one after the other, what a host may know that thinks of
/// joining.
///
/// # Errors
/// [`CallError`]: of the last member that was tried; a refusal of any ends the search.
pub async fn look(
    token: &JoinToken,
    question: serde_json::Value,
    clock: &Clock,
    speaks: (Dialects, &str),
) -> Result<bytes::Bytes, CallError> {
    let nobody = NodeId::new(Uuid::nil());
    let request = LookRequest { secret: token.secret.to_hex(), question };
    let body = serde_json::to_vec(&request).map_err(|error| CallError::Unreachable {
        node: nobody,
        problem: format!("the question has no JSON form: {error}"),
    })?;
    let plan = newcomer(token, nobody, clock, speaks);
    ask_any(token, &plan, Method::LOOK, body.into()).await
}

/// How a host dials that has nothing of the cluster's but its token.
fn newcomer(
    token: &JoinToken,
    node: NodeId,
    clock: &Clock,
    (dialects, version): (Dialects, &str),
) -> Dial {
    Dial {
        expect: Expect::Pinned(token.ca),
        own: None,
        greeting: Greeting {
            dialects,
            version: version.to_owned(),
            cluster: token.cluster,
            cluster_name: String::new(),
            node,
            purpose: Purpose::Join,
        },
        clock: clock.clone(),
    }
}

async fn ask_any(
    token: &JoinToken,
    plan: &Dial,
    method: Method,
    body: bytes::Bytes,
) -> Result<bytes::Bytes, CallError> {
    let nobody = NodeId::new(Uuid::nil());
    let mut unreachable = Vec::new();
    for address in &token.addresses {
        match exchange(plan, *address, method, body.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(DialError::Unreachable(problem)) => unreachable.push(problem),
            Err(error) => return Err(error.call_error(nobody)),
        }
    }
    Err(CallError::Unreachable { node: nobody, problem: unreachable.join(", ") })
}

async fn exchange(
    plan: &Dial,
    address: SocketAddr,
    method: Method,
    body: bytes::Bytes,
) -> Result<bytes::Bytes, DialError> {
    let broken =
        |error: &dyn std::fmt::Display| DialError::Unreachable(format!("{address}: {error}"));
    let (mut stream, _, _) = dial(plan, address).await?;
    let mut call = Frame::new(Kind::Call, method.0, 1, body);
    call.header.deadline_ms = u32::try_from(JOIN_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let answer = timeout(JOIN_TIMEOUT, async {
        write_frame(&mut stream, &call).await.map_err(|error| broken(&error))?;
        read_frame(&mut stream, BODY_BYTES_MAX, JOIN_TIMEOUT, async |_: &_| ())
            .await
            .map_err(|error| broken(&error))
    });
    let (answer, ()) = answer.await.map_err(|_| broken(&"no answer in time"))??;
    match answer.header.kind {
        Kind::Reply => Ok(answer.body),
        Kind::Refused => Err(DialError::Refused(refusal(&answer.body))),
        kind => Err(broken(&format!("an unexpected frame came: {kind:?}"))),
    }
}

/// Believes nothing that the token does not vouch for.
fn accept(
    token: &JoinToken,
    reply: JoinReply,
    node: NodeId,
    key: &NodeKey,
    clock: &Clock,
) -> Result<(Identity, Vec<Member>), CallError> {
    let ca = CaPublic::from_pem(&reply.ca)?;
    if ca.digest() != token.ca || reply.cluster != token.cluster {
        return Err(CallError::Refused {
            node,
            refusal: Refusal::new(
                RefusalCode::WrongCluster,
                "the answer is of another cluster than the token",
                "make a new token on the cluster you mean: muster cluster token",
            ),
        });
    }
    let cluster = (reply.cluster, reply.cluster_name.as_str());
    let identity = Identity::new(cluster, node, &ca, &reply.certificate, key, clock.now())?;
    if identity.private_key().is_err() {
        return Err(PkiError::NoNode.into());
    }
    Ok((identity, reply.members))
}
