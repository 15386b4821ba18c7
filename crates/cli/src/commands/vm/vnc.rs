//! A bridge from a VNC viewer on this machine to a guest's screen.
//!
//! Trust boundary: the screen needs no password, so nobody but the user who opened the bridge (and
//! root) may use it. A Unix socket is made with mode 0600; on TCP, the kernel's table says whose
//! connection it is, and others are refused.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use api::client::Socket;
use api::endpoint::VmVnc;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::UnixListener;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::context::Context;
use crate::error::CliError;

/// Bytes read from the viewer at once.
const CHUNK: usize = 16 * 1024;

/// A viewer's connection of either kind.
trait Viewer: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Viewer for T {}

/// Where viewers connect.
enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, Removed),
}

/// A socket file that goes with the bridge.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Somebody else may have removed it; then it is gone as it should be.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves one viewer after the other until Ctrl-C.
///
/// # Errors
/// Where nothing can listen there, or the machine has no screen now.
pub(crate) async fn serve(context: &Context, vm: &str, listen: &str) -> Result<(), CliError> {
    // Before anything is there that has to be removed again.
    let watch = |kind| {
        signal(kind).map_err(|error| CliError::failed(format!("cannot watch signals: {error}"), ""))
    };
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    tokio::select! {
        ended = serve_for_ever(context, vm, listen) => ended,
        _ = interrupt.recv() => Err(CliError::interrupted_silently()),
        _ = terminate.recv() => Err(CliError::interrupted_silently()),
    }
}

async fn serve_for_ever(context: &Context, vm: &str, listen: &str) -> Result<(), CliError> {
    // What is wrong with the machine is told now, not when a viewer comes.
    context.client.socket::<VmVnc>(&[vm]).await?.close().await;
    let door = open(listen).await.map_err(|error| {
        CliError::failed(
            format!("cannot listen on {listen}: {error}"),
            "name another port or socket with --listen",
        )
    })?;
    let address = match &door {
        Door::Tcp(listener) => listener
            .local_addr()
            .map(|address| address.to_string())
            .map_err(|error| CliError::failed(error.to_string(), ""))?,
        Door::Unix(_, path) => path.0.display().to_string(),
    };
    if context.out.json {
        context.out.text(&serde_json::json!({ "vnc": address }).to_string())?;
    } else {
        context.out.text(&address)?;
        context.out.note(&format!(
            "the screen of {vm} is there for one viewer at a time: vncviewer {address}\n\
             Ctrl-C ends it; the guest goes on"
        ));
    }
    loop {
        let viewer = door.accept().await?;
        let socket = context.client.socket::<VmVnc>(&[vm]).await?;
        bridge(viewer, socket).await;
    }
}

async fn open(listen: &str) -> std::io::Result<Door> {
    if let Ok(address) = listen.parse::<SocketAddr>() {
        if !address.ip().is_loopback() {
            let message = "only addresses of this machine itself (127.0.0.1) can be used";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
        }
        return Ok(Door::Tcp(TcpListener::bind(address).await?));
    }
    let path = Path::new(listen);
    // In a folder of our own until its mode is right: nobody can connect in between.
    let folder = path.with_file_name(format!(".muster-vnc-{}", std::process::id()));
    std::fs::DirBuilder::new().create(&folder)?;
    let made = make_private(&folder, path);
    // Empty, or left over by the failure that is told.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(Door::Unix(made?, Removed(path.to_owned())))
}

fn make_private(folder: &Path, path: &Path) -> std::io::Result<UnixListener> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    let inner = folder.join("s");
    let listener = UnixListener::bind(&inner)?;
    std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o600))?;
    // Unlike a rename, a link never takes the place of a file that exists.
    std::fs::hard_link(&inner, path)?;
    Ok(listener)
}

impl Door {
    /// The next viewer that may look.
    async fn accept(&self) -> Result<Box<dyn Viewer>, CliError> {
        let failed =
            |error: std::io::Error| CliError::failed(format!("no viewer can come: {error}"), "");
        loop {
            match self {
                Self::Unix(listener, _) => {
                    let (stream, _) = listener.accept().await.map_err(failed)?;
                    return Ok(Box::new(stream));
                }
                Self::Tcp(listener) => {
                    let (stream, peer) = listener.accept().await.map_err(failed)?;
                    if is_ours(peer) {
                        return Ok(Box::new(stream));
                    }
                }
            }
        }
    }
}

/// Whether a connection on this machine comes from this user or root.
fn is_ours(peer: SocketAddr) -> bool {
    let table = if peer.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let Ok(us) = std::fs::metadata("/proc/self") else { return false };
    let Ok(table) = std::fs::read_to_string(table) else { return false };
    owner(&table, peer).is_some_and(|uid| uid == us.uid() || uid == 0)
}

/// The user who owns the connection with that local address, by the kernel's table.
fn owner(table: &str, address: SocketAddr) -> Option<u32> {
    let octets: Vec<u8> = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // The kernel prints each word of four bytes in the machine's order.
    let mut wanted = String::new();
    for word in octets.chunks_exact(4) {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        wanted.push_str(&format!("{word:08X}"));
    }
    wanted.push_str(&format!(":{:04X}", address.port()));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.nth(1)? == wanted).then(|| fields.nth(5)?.parse().ok()).flatten()
    })
}

/// Carries bytes both ways until either side ends.
async fn bridge(mut viewer: Box<dyn Viewer>, mut socket: Socket) {
    let mut chunk = vec![0_u8; CHUNK];
    loop {
        tokio::select! {
            received = socket.receive() => {
                let Ok(Some(bytes)) = received else { return };
                if viewer.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            read = viewer.read(&mut chunk) => {
                let count = read.unwrap_or(0);
                if count == 0 || socket.send(chunk[..count].to_vec().into()).await.is_err() {
                    break;
                }
            }
        }
    }
    socket.close().await;
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn the_owner_of_a_connection_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode\n   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 \
                     00:00000000 00000000  1000        0 12345 1 0000000000000000\n";
        assert_eq!(owner(table, "127.0.0.1:8080".parse().unwrap()), Some(1000));
        assert_eq!(owner(table, "127.0.0.1:8081".parse().unwrap()), None);
    }
}
