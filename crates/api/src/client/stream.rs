//! Long answers: server-sent events and WebSockets.

use std::marker::PhantomData;

use bytes::Bytes;
use bytes::BytesMut;
use futures::SinkExt;
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::Message;

use crate::ApiError;
use crate::ErrorKind;
use crate::client::Target;
use crate::client::error_of;
use crate::client::transport::Link;

/// Longest line of an event stream that is accepted.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Events of a stream, one after the other.
#[derive(Debug)]
pub struct EventStream<T> {
    body: Incoming,
    buffer: BytesMut,
    reply: PhantomData<fn() -> T>,
}

/// A WebSocket of binary messages.
pub struct Socket {
    stream: WebSocketStream<Box<dyn Link>>,
}

impl<T: DeserializeOwned> EventStream<T> {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new(), reply: PhantomData }
    }

    /// The next event; `None` when the server has ended the stream.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where the connection broke, [`ErrorKind::Failed`] where an event
    /// cannot be read.
    pub async fn next(&mut self) -> Result<Option<T>, ApiError> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                let Some(data) = line.strip_prefix(b"data:") else { continue };
                return serde_json::from_slice(data).map(Some).map_err(|error| {
                    ApiError::new(
                        ErrorKind::Failed,
                        "bad_reply",
                        format!("an event cannot be read: {error}"),
                        "use a client of the daemon's version: muster version",
                    )
                });
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                let message = "an event is longer than 1 MiB";
                return Err(ApiError::new(ErrorKind::Failed, "bad_reply", message, ""));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(lost(&error)),
            }
        }
    }
}

impl Socket {
    pub(crate) async fn open(target: &Target, path: &str) -> Result<Self, ApiError> {
        let link = target.connect().await?;
        let uri = format!("ws://{}{path}", target.host());
        let uri = uri.parse().map_err(|error| {
            ApiError::new(ErrorKind::BadRequest, "bad_request", format!("{uri}: {error}"), "")
        })?;
        let mut request = ClientRequestBuilder::new(uri);
        if let Some(token) = target.token() {
            request = request.with_header("authorization", format!("Bearer {token}"));
        }
        match tokio_tungstenite::client_async(request, link).await {
            Ok((stream, _)) => Ok(Self { stream }),
            Err(WsError::Http(response)) => {
                let (parts, body) = response.into_parts();
                Err(error_of(parts.status, &body.unwrap_or_default()))
            }
            Err(error) => Err(lost(&error)),
        }
    }

    /// The next bytes; `None` when the other side has closed.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where the connection broke.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match self.stream.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(data))) => return Ok(Some(data)),
                Some(Ok(Message::Text(text))) => return Ok(Some(Bytes::from(text))),
                Some(Ok(_)) => {}
                Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return Ok(None),
                Some(Err(error)) => return Err(lost(&error)),
            }
        }
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where the connection broke.
    pub async fn send(&mut self, data: Bytes) -> Result<(), ApiError> {
        self.stream.send(Message::Binary(data)).await.map_err(|error| lost(&error))
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        // The other side may be gone already; then there is nobody to say it to.
        let _ = self.stream.close(None).await;
    }
}

fn lost(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(
        ErrorKind::Unavailable,
        "cut_off",
        format!("the connection broke: {error}"),
        "see whether the daemon runs: systemctl status muster",
    )
}
