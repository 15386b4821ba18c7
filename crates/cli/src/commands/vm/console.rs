//! `muster vm console`: the serial console.
//!
//! ```text
//!   terminal (raw)  --bytes, Ctrl-] ends-->  WebSocket --> serial port
//!   a pipe          --bytes to the end--->   WebSocket --> serial port, then --linger
//!   standard output <-------- bytes --------  WebSocket
//! ```
//!
//! What a guest prints goes to the terminal as it is: that is what a console is for.

use std::time::Duration;

use api::client::Socket;
use api::endpoint::VmSerial;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::time::Instant;

use crate::commands::vm::vnc;
use crate::complete;
use crate::context::Context;
use crate::error::CliError;
use crate::terminal::RawMode;

/// Ctrl-]: ends the session. The same as in telnet and virsh.
const ESCAPE: u8 = 0x1d;
/// Bytes read from the keyboard or a pipe at once.
const CHUNK: usize = 4096;

/// Open the serial console; Ctrl-] leaves it.
///
/// Input may come from a pipe: it is sent as it is, and the console stays open until the guest has
/// been silent for the time of --linger. With --vnc, a viewer on this machine gets the screen
/// instead.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  muster vm console web-1
  echo uptime | muster vm console web-1 --linger 3
  muster vm console web-1 --no-input > boot.log
  muster vm console web-1 --vnc
  muster vm console web-1 --vnc --listen /tmp/web-1.vnc")]
pub(crate) struct Args {
    /// Name or id of the machine.
    #[arg(value_name = "NAME", add = complete::vms())]
    vm: String,
    /// Only print; send nothing.
    #[arg(long, conflicts_with = "vnc")]
    no_input: bool,
    /// After the end of piped input, leave when the guest has been silent for so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, conflicts_with = "vnc")]
    linger: u64,
    /// Offer the screen, keyboard and pointer to a VNC viewer on this machine.
    #[arg(long)]
    vnc: bool,
    /// Where the viewer connects: 127.0.0.1:PORT (0 is any free port), or the path of a Unix
    /// socket.
    #[arg(long, value_name = "ADDRESS", requires = "vnc", default_value = "127.0.0.1:0")]
    listen: String,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<(), CliError> {
    if args.vnc {
        return vnc::serve(context, &args.vm, &args.listen).await;
    }
    let socket = context.client.socket::<VmSerial>(&[&args.vm]).await?;
    let raw = if args.no_input { None } else { Some(RawMode::enter()?) };
    let keys = raw.as_ref().is_some_and(RawMode::is_on);
    if keys {
        // In raw mode a line end needs its own carriage return.
        eprint!("connected to {}; Ctrl-] leaves the console\r\n", args.vm);
    }
    let mut session = Session {
        context,
        socket,
        input: if args.no_input { Input::Closed } else { Input::Open },
        keys,
        linger: Duration::from_secs(args.linger),
        leave_at: None,
    };
    let ended = session.run().await;
    // The terminal first: whatever is said now shall look right.
    drop(raw);
    match ended? {
        End::Left => {
            if keys {
                eprintln!("\nleft the console; the guest goes on");
            }
            session.socket.close().await;
            Ok(())
        }
        End::Closed => {
            context.out.note("the console was closed by the daemon: the machine is off");
            Ok(())
        }
        End::Interrupted => Err(CliError::interrupted_silently()),
    }
}

/// How a session ended.
enum End {
    /// By the user, or by the end of the input.
    Left,
    /// By the daemon.
    Closed,
    /// By a signal.
    Interrupted,
}

/// Whether more can come.
#[derive(PartialEq, Eq)]
enum Input {
    Open,
    Closed,
}

struct Session<'a> {
    context: &'a Context,
    socket: Socket,
    input: Input,
    keys: bool,
    linger: Duration,
    leave_at: Option<Instant>,
}

impl Session<'_> {
    async fn run(&mut self) -> Result<End, CliError> {
        let watch = |kind| {
            signal(kind)
                .map_err(|error| CliError::failed(format!("cannot watch signals: {error}"), ""))
        };
        let mut interrupt = watch(SignalKind::interrupt())?;
        let mut terminate = watch(SignalKind::terminate())?;
        let mut hang_up = watch(SignalKind::hangup())?;
        let mut stdin = tokio::io::stdin();
        let mut chunk = vec![0_u8; CHUNK];
        loop {
            let leave = self.leave_at;
            tokio::select! {
                received = self.socket.receive() => match received? {
                    None => return Ok(End::Closed),
                    Some(bytes) => {
                        self.context.out.bytes(&bytes)?;
                        self.rest();
                    }
                },
                read = stdin.read(&mut chunk), if self.input == Input::Open => {
                    let count = read.unwrap_or(0);
                    if count == 0 {
                        self.input = Input::Closed;
                        self.leave_at = Some(Instant::now() + self.linger);
                    } else if self.typed(&chunk[..count]).await? {
                        return Ok(End::Left);
                    }
                }
                () = tokio::time::sleep_until(leave.unwrap_or_else(Instant::now)),
                    if leave.is_some() => return Ok(End::Left),
                _ = interrupt.recv() => return Ok(End::Interrupted),
                _ = terminate.recv() => return Ok(End::Interrupted),
                _ = hang_up.recv() => return Ok(End::Interrupted),
            }
        }
    }

    /// The guest has said something: the silence begins anew.
    fn rest(&mut self) {
        if self.leave_at.is_some() {
            self.leave_at = Some(Instant::now() + self.linger);
        }
    }

    /// Sends what was typed up to the escape; whether the escape was there.
    async fn typed(&mut self, bytes: &[u8]) -> Result<bool, CliError> {
        let escape = if self.keys { bytes.iter().position(|byte| *byte == ESCAPE) } else { None };
        let bytes = &bytes[..escape.unwrap_or(bytes.len())];
        if !bytes.is_empty() {
            self.socket.send(bytes.to_vec().into()).await?;
        }
        Ok(escape.is_some())
    }
}
