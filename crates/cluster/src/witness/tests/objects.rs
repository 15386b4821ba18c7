//! Object stores: the suite against a small S3 in this process, and against real ones that the
//! environment names (`MUSTER_WITNESS_STORES`: for each line an address and its options, as
//! `az://box azure_storage_account_name=... ...`).

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use super::stores::conforms;
use super::stores::race;
use crate::witness::Object;
use crate::witness::WitnessStore;
use crate::witness::probe::Unfit;
use crate::witness::probe::probe;

type Objects = Arc<Mutex<HashMap<String, Vec<u8>>>>;

fn etag(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("\"{}\"", hex::encode(&sha2::Sha256::digest(bytes)[..16]))
}

/// Answers one request after another; `None` at the end of the connection.
async fn request(
    stream: &mut BufReader<TcpStream>,
    objects: &Objects,
    looks: bool,
) -> Option<(&'static str, String, Vec<u8>)> {
    let mut line = String::new();
    if stream.read_line(&mut line).await.ok()? == 0 {
        return None;
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let mut objects = objects.lock().unwrap();
    let there = objects.get(&path).map(|bytes| etag(bytes));
    Some(match method.as_str() {
        "GET" => match objects.get(&path) {
            Some(bytes) => ("200 OK", etag(bytes), bytes.clone()),
            None => ("404 Not Found", String::new(), b"<Error/>".to_vec()),
        },
        "PUT" => match (headers.get("if-match"), headers.get("if-none-match"), &there) {
            (Some(_), _, None) if looks => ("404 Not Found", String::new(), Vec::new()),
            (Some(wanted), _, Some(there)) if looks && wanted != there => {
                ("412 Precondition Failed", String::new(), Vec::new())
            }
            (_, Some(_), Some(_)) if looks => {
                ("412 Precondition Failed", String::new(), Vec::new())
            }
            _ => {
                let tag = etag(&body);
                objects.insert(path, body);
                ("200 OK", tag, Vec::new())
            }
        },
        // Several objects at once, by name.
        "POST" if path.ends_with("?delete") => {
            let text = String::from_utf8_lossy(&body).into_owned();
            let key = text.split("<Key>").nth(1)?.split("</Key>").next()?;
            objects.remove(&format!("/box/{key}"));
            let done = format!("<DeleteResult><Deleted><Key>{key}</Key></Deleted></DeleteResult>");
            ("200 OK", String::new(), done.into_bytes())
        }
        _ => ("405 Method Not Allowed", String::new(), Vec::new()),
    })
}

/// A small S3. One that does not look at conditions is what some gateways are.
async fn small_s3(looks: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let objects = Objects::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let objects = objects.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while let Some((status, tag, body)) = request(&mut stream, &objects, looks).await {
                    let tag = if tag.is_empty() { tag } else { format!("ETag: {tag}\r\n") };
                    let head = format!(
                        "HTTP/1.1 {status}\r\n{tag}Last-Modified: Sat, 21 Nov 2026 10:00:00 GMT\r\n\
                         Content-Length: {}\r\n\r\n",
                        body.len()
                    );
                    let out = [head.into_bytes(), body].concat();
                    if stream.get_mut().write_all(&out).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!(
        "s3://box/a/folder aws_access_key_id=a aws_secret_access_key=b aws_region=us-east-1 \
         aws_endpoint=http://{address}"
    )
}

fn open(line: &str) -> Object {
    let mut words = line.split_whitespace();
    let url = words.next().unwrap();
    let options: BTreeMap<String, String> = words
        .map(|word| word.split_once('=').unwrap())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Object::new(url, &options, "witness-test").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn object_stores_conform() {
    let mut stores = vec![small_s3(true).await];
    let named = std::env::var("MUSTER_WITNESS_STORES").unwrap_or_default();
    stores.extend(named.lines().map(str::to_owned));
    for line in &stores {
        let store = open(line);
        println!("{}", store.place());
        let ways = || Arc::new(open(line)) as Arc<dyn WitnessStore>;
        store.remove().await.unwrap();
        conforms(&ways).await;
        store.remove().await.unwrap();
        for (writers, wins) in [(2, 5), (32, 2)] {
            race(&ways, writers, wins).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_that_does_not_look_at_conditions_is_refused() {
    let store = open(&small_s3(false).await);
    let refused = probe(&store).await;
    assert!(matches!(refused, Err(Unfit::BreaksItsWord { .. })), "{refused:?}");
}

#[test]
fn addresses_that_are_none_are_refused_with_advice() {
    let none = BTreeMap::new();
    for url in ["", "box", "ftp://box/a", "s3://box/a//b"] {
        let refused = Object::new(url, &none, "w").map(drop).unwrap_err().to_string();
        assert!(refused.contains("s3://BUCKET/FOLDER"), "{url}: {refused}");
    }
    let odd = BTreeMap::from([("colour".to_owned(), "red".to_owned())]);
    assert!(Object::new("s3://box/a", &odd, "w").is_err());
}
