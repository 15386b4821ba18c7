//! The files of a machine that stands still, as they go from one node to another.
//!
//! ```text
//!   source                                                         target
//!     "MUSTPCL1"
//!     1, length of name (u8), name, size (u64)       a file ---->  made, of that size, empty
//!     2, offset (u64), length (u32), bytes           data  ----->  written; what is not sent is a hole
//!     3, files (u32), SHA-256 of all before          end  ------>  compared; all of it made durable
//!                                                    <-----------  4, the same SHA-256
//! ```
//!
//! Numbers are big-endian. Version 1, in the last letter of the first word: there is no other.
//!
//! Trust boundary: what comes is another node's word. A name is one of a short list of forms, a file is
//! made new below the directory that was opened before (so that a stream that is late writes into
//! nothing when that directory has been replaced), and no data lies outside of its file.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sha2::Digest;
use sha2::Sha256;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;

use super::pace::Pace;
use crate::lifecycle::storage::data_from;

const MAGIC: &[u8; 8] = b"MUSTPCL1";

const FILE: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const RECEIVED: u8 = 4;

/// Most bytes of data in one piece: few enough that a copy can be stopped soon.
const PIECE_MAX: usize = 1 << 20;

/// Most files of one machine: its disks and some small ones.
const FILES_MAX: u32 = 4_096;

/// Largest file: the largest disk.
const SIZE_MAX: u64 = 64 << 40;

/// A file that goes.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Its name below the machine's directory at the target.
    pub(super) name: String,
    /// Where its bytes are.
    pub(super) from: PathBuf,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Whether a file of that name may come: `name` or `disks/name`, of plain letters, hidden ones and those
/// with a meaning for a directory that is being made excepted.
fn is_plain(name: &str) -> bool {
    let last = name.strip_prefix("disks/").unwrap_or(name);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=128).contains(&last.len())
        && last.chars().all(plain)
        && !last.starts_with('.')
        && !super::super::storage::stays_behind(last)
}

/// Sends files; adds to `done` what was sent of them. Ends when the other side has all of it, durable.
pub(super) async fn send(
    wire: &mut (impl AsyncRead + AsyncWrite + Unpin + ?Sized),
    pieces: &[Piece],
    done: &AtomicU64,
    pace: &Pace,
) -> io::Result<()> {
    let mut hash = Sha256::new();
    put(wire, &mut hash, MAGIC).await?;
    for piece in pieces {
        if !is_plain(&piece.name) {
            return Err(bad("a file of the machine has a name that is not sent"));
        }
        let path = piece.from.clone();
        let open = move || File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = blocking(open).await?;
        let mut head = vec![FILE, u8::try_from(piece.name.len()).map_err(io::Error::other)?];
        head.extend(piece.name.as_bytes());
        head.extend(size.to_be_bytes());
        put(wire, &mut hash, &head).await?;
        send_data(wire, &mut hash, (Arc::new(file), size), done, pace).await?;
    }
    let count = u32::try_from(pieces.len()).map_err(io::Error::other)?;
    let mut end = vec![END];
    end.extend(count.to_be_bytes());
    put(wire, &mut hash, &end).await?;
    let digest: [u8; 32] = hash.finalize().into();
    wire.write_all(&digest).await?;
    wire.flush().await?;
    let mut answer = [0; 33];
    wire.read_exact(&mut answer).await?;
    if answer[0] != RECEIVED || answer[1..] != digest {
        return Err(bad("the other node has received something else"));
    }
    Ok(())
}

async fn send_data(
    wire: &mut (impl AsyncWrite + Unpin + ?Sized),
    hash: &mut Sha256,
    (file, size): (Arc<File>, u64),
    done: &AtomicU64,
    pace: &Pace,
) -> io::Result<()> {
    let mut at = 0;
    loop {
        let from = file.clone();
        let read = move || {
            let Some((begin, end)) = data_from(&from, at, size)? else { return Ok(None) };
            let most = usize::try_from(end - begin).map_or(PIECE_MAX, |left| left.min(PIECE_MAX));
            let mut bytes = vec![0; most];
            from.read_exact_at(&mut bytes, begin)?;
            Ok(Some((begin, bytes)))
        };
        let Some((begin, bytes)) = blocking(read).await? else { return Ok(()) };
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        pace.take(bytes.len()).await;
        let mut head = vec![DATA];
        head.extend(begin.to_be_bytes());
        head.extend(length.to_be_bytes());
        put(wire, hash, &head).await?;
        put(wire, hash, &bytes).await?;
        done.fetch_add(u64::from(length), Ordering::Relaxed);
        at = begin + u64::from(length);
    }
}

async fn put(
    wire: &mut (impl AsyncWrite + Unpin + ?Sized),
    hash: &mut Sha256,
    bytes: &[u8],
) -> io::Result<()> {
    hash.update(bytes);
    wire.write_all(bytes).await
}

/// Files that have come, and are durable; who sent them is still to be told.
pub(super) struct Received {
    digest: [u8; 32],
}

impl Received {
    /// Says so. What this side has to note of it is noted before: the next question may follow at once.
    pub(super) async fn tell(
        self,
        wire: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> io::Result<()> {
        let mut answer = vec![RECEIVED];
        answer.extend(self.digest);
        wire.write_all(&answer).await?;
        wire.flush().await
    }
}

/// Takes files into a directory, and makes them durable.
pub(super) async fn receive(
    wire: &mut (impl AsyncRead + Unpin + ?Sized),
    dir: Arc<OwnedFd>,
) -> io::Result<Received> {
    let mut hash = Sha256::new();
    if get::<8>(wire, &mut hash).await? != *MAGIC {
        return Err(bad("it is not a machine's files, or another version of them"));
    }
    let mut files: u32 = 0;
    let mut open: Option<(Arc<File>, u64)> = None;
    loop {
        let [kind] = get(wire, &mut hash).await?;
        match kind {
            FILE => {
                finish(open.take()).await?;
                files += 1;
                if files > FILES_MAX {
                    return Err(bad("there are too many files"));
                }
                open = Some(make(wire, &mut hash, &dir).await?);
            }
            DATA => {
                let Some((file, size)) = &open else { return Err(bad("data of no file")) };
                take_data(wire, &mut hash, file.clone(), *size).await?;
            }
            END => break,
            _ => return Err(bad("it is not understood")),
        }
    }
    finish(open.take()).await?;
    if u32::from_be_bytes(get(wire, &mut hash).await?) != files {
        return Err(bad("some files are missing"));
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut told = [0; 32];
    wire.read_exact(&mut told).await?;
    if told != digest {
        return Err(bad("it is not what was sent"));
    }
    let synced = dir.clone();
    blocking(move || sync_names(&synced)).await?;
    Ok(Received { digest })
}

async fn make(
    wire: &mut (impl AsyncRead + Unpin + ?Sized),
    hash: &mut Sha256,
    dir: &Arc<OwnedFd>,
) -> io::Result<(Arc<File>, u64)> {
    let [length] = get(wire, hash).await?;
    let mut name = vec![0; usize::from(length)];
    wire.read_exact(&mut name).await?;
    hash.update(&name);
    let size = u64::from_be_bytes(get(wire, hash).await?);
    let name = String::from_utf8(name).map_err(|_| bad("a name that is no text"))?;
    if !is_plain(&name) || size > SIZE_MAX {
        return Err(bad("a file that no machine has"));
    }
    let dir = dir.clone();
    let made = move || {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let flags = flags | OFlag::O_CLOEXEC;
        let file = File::from(nix::fcntl::openat(&*dir, name.as_str(), flags, mode)?);
        file.set_len(size)?;
        Ok((Arc::new(file), size))
    };
    blocking(made).await
}

async fn take_data(
    wire: &mut (impl AsyncRead + Unpin + ?Sized),
    hash: &mut Sha256,
    file: Arc<File>,
    size: u64,
) -> io::Result<()> {
    let offset = u64::from_be_bytes(get(wire, hash).await?);
    let length = u32::from_be_bytes(get(wire, hash).await?);
    let end = offset.checked_add(u64::from(length)).filter(|end| *end <= size);
    let length = usize::try_from(length).ok().filter(|length| *length <= PIECE_MAX);
    let (Some(_), Some(length)) = (end, length) else { return Err(bad("data outside its file")) };
    let mut bytes = vec![0; length];
    wire.read_exact(&mut bytes).await?;
    hash.update(&bytes);
    blocking(move || file.write_all_at(&bytes, offset)).await
}

async fn get<const N: usize>(
    wire: &mut (impl AsyncRead + Unpin + ?Sized),
    hash: &mut Sha256,
) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    wire.read_exact(&mut bytes).await?;
    hash.update(bytes);
    Ok(bytes)
}

async fn finish(open: Option<(Arc<File>, u64)>) -> io::Result<()> {
    match open {
        Some((file, _)) => blocking(move || file.sync_all()).await,
        None => Ok(()),
    }
}

fn sync_names(dir: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    File::from(nix::fcntl::openat(dir, "disks", flags, Mode::empty())?).sync_all()?;
    File::from(dir.try_clone()?).sync_all()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    async fn take(wire: &mut tokio::io::DuplexStream, dir: Arc<OwnedFd>) -> io::Result<()> {
        receive(wire, dir).await?.tell(wire).await
    }

    fn target(at: &Path) -> Arc<OwnedFd> {
        std::fs::create_dir_all(at.join("disks")).unwrap();
        Arc::new(File::open(at).unwrap().into())
    }

    #[tokio::test]
    async fn files_arrive_with_their_bytes_and_their_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, small) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&disk).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 3 << 20], 5 << 20).unwrap();
        file.write_all_at(&[9; 100], (64 << 20) - 100).unwrap();
        file.sync_all().unwrap();
        std::fs::write(&small, "{}").unwrap();
        let empty = dir.path().join("c");
        File::create(&empty).unwrap();
        let named = |name: &str, from: &Path| Piece { name: name.into(), from: from.into() };
        let pieces =
            [named("disks/x.raw", &disk), named("vm.json", &small), named("empty", &empty)];
        let there = dir.path().join("there");
        let (to, (mut near, mut far)) = (target(&there), tokio::io::duplex(1000));
        let (done, pace) = (AtomicU64::new(0), Pace::new(None));
        let (sent, received) =
            tokio::join!(send(&mut near, &pieces, &done, &pace), take(&mut far, to));
        sent.unwrap();
        received.unwrap();
        for (piece, name) in pieces.iter().zip(["disks/x.raw", "vm.json", "empty"]) {
            let come = there.join(name);
            assert_eq!(std::fs::read(&piece.from).unwrap(), std::fs::read(&come).unwrap());
            assert_eq!(std::fs::metadata(come).unwrap().mode() & 0o777, 0o600);
        }
        let taken = std::fs::metadata(there.join("disks/x.raw")).unwrap().blocks() * 512;
        assert!(taken < 8 << 20, "thin stays thin");
        assert!(done.load(Ordering::Relaxed) >= 3 << 20);
    }

    /// What a target says to bytes that no source of ours would send.
    async fn refused(bytes: &[u8]) -> io::ErrorKind {
        let dir = tempfile::tempdir().unwrap();
        let (to, (mut near, mut far)) = (target(dir.path()), tokio::io::duplex(1 << 16));
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        take(&mut far, to).await.unwrap_err().kind()
    }

    fn begun(name: &[u8], size: u64) -> Vec<u8> {
        let length = u8::try_from(name.len()).unwrap();
        [MAGIC, &[FILE, length][..], name, &size.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn what_is_no_machines_file_is_refused() {
        use io::ErrorKind::InvalidData;
        use io::ErrorKind::UnexpectedEof;
        assert_eq!(refused(b"MUSTPCL2").await, InvalidData);
        for name in
            ["../x", "/etc/passwd", "disks/../../x", ".hidden", "run", "coming", "x.new", ""]
        {
            assert_eq!(refused(&begun(name.as_bytes(), 1)).await, InvalidData, "{name}");
        }
        assert_eq!(refused(&begun(&[0xff, 0xfe], 1)).await, InvalidData);
        assert_eq!(refused(&begun(b"vm.json", u64::MAX)).await, InvalidData);
        let data = |offset: u64, length: u32| {
            let head = [&[DATA][..], &offset.to_be_bytes(), &length.to_be_bytes()].concat();
            [begun(b"vm.json", 10), head].concat()
        };
        assert_eq!(refused(&data(u64::MAX, 8)).await, InvalidData);
        assert_eq!(refused(&data(3, 8)).await, InvalidData);
        assert_eq!(refused(&data(2, 8)).await, UnexpectedEof, "cut off");
        let twice = [begun(b"vm.json", 1), begun(b"vm.json", 1)[8..].to_vec()].concat();
        assert_eq!(refused(&twice).await, io::ErrorKind::AlreadyExists);
        let end = [&MAGIC[..], &[END], &0_u32.to_be_bytes(), &[0; 32]].concat();
        assert_eq!(refused(&end).await, InvalidData, "another digest");
    }

    #[tokio::test]
    async fn a_late_stream_writes_nothing_into_a_directory_that_took_the_others_place() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("vm");
        let (old, (mut near, mut far)) = (target(&at), tokio::io::duplex(1 << 16));
        std::fs::remove_dir_all(&at).unwrap();
        let _new = target(&at);
        near.write_all(&begun(b"disks/x.raw", 10)).await.unwrap();
        near.shutdown().await.unwrap();
        assert!(take(&mut far, old).await.is_err());
        assert_eq!(std::fs::read_dir(at.join("disks")).unwrap().count(), 0);
    }
}
