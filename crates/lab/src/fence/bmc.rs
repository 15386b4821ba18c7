//! The pretend BMC: runs in the world, does to nodes what it is asked and their moods say.
//!
//! Trust boundary: nodes send it lines. Each is short, has a deadline, and there are few at a time.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::bmc_address;
use super::words::LINE_MAX;
use super::words::Request;
use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;
use crate::state::FenceMood;
use crate::up::Cancel;

/// Most requests at a time: each of 64 nodes may ask twice.
const CONNECTIONS_MAX: usize = 128;

/// How long a request may take to arrive, and an answer to go.
const LINE_LIMIT: Duration = Duration::from_secs(5);

/// How long a hanging device keeps a caller: longer than any caller's patience.
const HANG: Duration = Duration::from_secs(600);

/// How long a slow device takes.
const SLOW: Duration = Duration::from_secs(10);

/// Answers until it is killed.
///
/// # Errors
/// The lab is not there; the address is taken.
pub fn serve(lab: &Lab) -> Result<(), LabError> {
    let address = bmc_address(&lab.state()?);
    let listener = TcpListener::bind(address).map_err(|error| {
        LabError::failed(
            format!("the BMC cannot use {address}: {error}"),
            "it is started by 'muster lab up', in the lab's own network",
        )
    })?;
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming().flatten() {
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (lab, open) = (lab.clone(), open.clone());
        std::thread::spawn(move || {
            // The caller went away: nobody is to be told.
            let _ = converse(&lab, stream);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

fn converse(lab: &Lab, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LINE_LIMIT))?;
    stream.set_write_timeout(Some(LINE_LIMIT))?;
    let mut line = String::new();
    let limit = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
    BufReader::new(stream.try_clone()?.take(limit)).read_line(&mut line)?;
    let answer = match Request::parse(&line) {
        Some(request) => match answer(lab, request) {
            Ok(answer) => answer,
            Err(error) => format!("error {}", error.message.replace('\n', " ")),
        },
        None => "error no such request".to_owned(),
    };
    println!("{}: {answer}", line.trim().escape_debug());
    stream.write_all(format!("{answer}\n").as_bytes())
}

fn answer(lab: &Lab, request: Request) -> Result<String, LabError> {
    let state = lab.state()?;
    let (Request::Status(node) | Request::Off(node) | Request::On(node)) = request else {
        let names: Vec<_> = state.nodes.keys().map(NodeName::to_string).collect();
        return Ok(names.join(" "));
    };
    let mood = state.node(node)?.fence;
    match mood {
        FenceMood::Fails => return Ok("error the device is out of order".to_owned()),
        FenceMood::Hangs => std::thread::sleep(HANG),
        FenceMood::Slow => std::thread::sleep(SLOW),
        FenceMood::Works | FenceMood::Lies => {}
    }
    // Read again: it may have changed while a slow device was at it.
    let on = lab.state()?.node(node)?.on;
    let done = || "done".to_owned();
    match (request, mood) {
        // What it says after a lie, too: it says off as soon as anybody asks.
        (Request::Status(_), FenceMood::Lies) => Ok("off".to_owned()),
        (Request::Off(_) | Request::On(_), FenceMood::Lies) => Ok(done()),
        (Request::Off(_), _) if on => lab.power_off(node).map(|_| done()),
        (Request::On(_), _) if !on => {
            lab.power_on(node, false, &Cancel::default()).map(|()| done())
        }
        (Request::Status(_), _) => Ok(if on { "on" } else { "off" }.to_owned()),
        (Request::Off(_) | Request::On(_) | Request::List, _) => Ok(done()),
    }
}
