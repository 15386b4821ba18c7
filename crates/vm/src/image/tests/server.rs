//! A small HTTP server that misbehaves on request.

use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

/// What the server does with one request after it has read it.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Serve the rest of the file from the offset asked for.
    Serve,
    /// As `Serve`, but close after this many bytes of body.
    CutAfter(usize),
    /// As `Serve`, but fall silent after this many bytes of body.
    HangAfter(usize),
    /// As `Serve`, but go on only as permits are given, 64 KiB each.
    Slow,
    /// Take no notice of `Range`.
    Whole,
    /// Send the body in chunks without saying how long it is.
    Chunked,
    /// Say this length and send the whole file.
    Lie(u64),
    /// Send this instead.
    Raw(String),
    /// Never answer.
    Silent,
}

pub(super) struct Served {
    pub(super) body: Vec<u8>,
    pub(super) etag: Option<String>,
    /// Acts for the next requests; `Serve` when they are used up.
    pub(super) acts: Vec<Act>,
    /// `Range` of each request seen, `-` for none.
    pub(super) ranges: Vec<String>,
}

#[derive(Clone)]
pub(super) struct Server {
    pub(super) port: u16,
    pub(super) state: Arc<Mutex<Served>>,
    pub(super) permits: Arc<tokio::sync::Semaphore>,
}

impl Server {
    pub(super) async fn start(body: Vec<u8>, acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let etag = Some("\"one\"".to_owned());
        let state = Arc::new(Mutex::new(Served { body, etag, acts, ranges: Vec::new() }));
        let permits = Arc::new(tokio::sync::Semaphore::new(0));
        let server = Self { port: listener.local_addr().unwrap().port(), state, permits };
        let own = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                tokio::spawn(async move {
                    let _ = own.answer(stream).await;
                });
            }
        });
        server
    }

    pub(super) fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }

    pub(super) fn ranges(&self) -> Vec<String> {
        self.state.lock().unwrap().ranges.clone()
    }

    async fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let (mut range, mut if_range) = (None, None);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            if let Some(value) = line.strip_prefix("range: ") {
                range = Some(value.trim().to_owned());
            }
            if let Some(value) = line.strip_prefix("if-range: ") {
                if_range = Some(value.trim().to_owned());
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let (body, etag, act) = {
            let mut state = self.state.lock().unwrap();
            state.ranges.push(range.clone().unwrap_or_else(|| "-".to_owned()));
            let act = if state.acts.is_empty() { Act::Serve } else { state.acts.remove(0) };
            (state.body.clone(), state.etag.clone(), act)
        };
        let asked = range.filter(|_| if_range == etag && !matches!(act, Act::Whole));
        let start: usize = asked
            .as_deref()
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
            .unwrap_or(0);
        let (total, rest) = (body.len(), &body[start.min(body.len())..]);
        let tag = etag.map(|tag| format!("ETag: {tag}\r\n")).unwrap_or_default();
        let length = match act {
            Act::Lie(length) => length,
            _ => rest.len() as u64,
        };
        let head = match (&act, asked) {
            (Act::Silent, _) => return std::future::pending().await,
            (Act::Raw(text), _) => return stream.write_all(text.as_bytes()).await,
            (Act::Chunked, _) => {
                format!("HTTP/1.1 200 OK\r\n{tag}Transfer-Encoding: chunked\r\n\r\n")
            }
            (_, Some(_)) => format!(
                "HTTP/1.1 206 Partial Content\r\n{tag}Content-Length: {length}\r\n\
                 Content-Range: bytes {start}-{}/{total}\r\n\r\n",
                total - 1
            ),
            (_, None) => format!("HTTP/1.1 200 OK\r\n{tag}Content-Length: {length}\r\n\r\n"),
        };
        stream.write_all(head.as_bytes()).await?;
        match act {
            Act::CutAfter(bytes) => stream.write_all(&rest[..bytes.min(rest.len())]).await?,
            Act::HangAfter(bytes) => {
                stream.write_all(&rest[..bytes.min(rest.len())]).await?;
                stream.flush().await?;
                return std::future::pending().await;
            }
            Act::Slow => {
                for piece in rest.chunks(64 << 10) {
                    self.permits.acquire().await.unwrap().forget();
                    stream.write_all(piece).await?;
                }
            }
            Act::Chunked => {
                for piece in rest.chunks(64 << 10) {
                    stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                    stream.write_all(piece).await?;
                    stream.write_all(b"\r\n").await?;
                }
                stream.write_all(b"0\r\n\r\n").await?;
            }
            _ => stream.write_all(rest).await?,
        }
        stream.shutdown().await
    }
}
