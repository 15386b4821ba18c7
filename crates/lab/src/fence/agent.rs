//! The fence agent `fence_muster_lab`: the conventions of the package `fence-agents`.
//!
//! Options come as `name=value` lines on standard input. Exit code 0 is success, and "on" for
//! `status`; 2 is "off"; 1 is a failure. `off` is done only when the device says that the node is
//! off.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use super::PORT;
use super::words::LINE_MAX;

/// Longest standard input.
const INPUT_MAX: u64 = 64 * 1024;

/// Pause between two looks at the power state.
const POLL: Duration = Duration::from_millis(50);

/// What `metadata` prints.
const METADATA: &str = r#"<?xml version="1.0" ?>
<resource-agent name="fence_muster_lab" shortdesc="Pretend power switch of a Muster lab">
<longdesc>Talks to the pretend BMC of a lab that was made by muster lab up.</longdesc>
<parameters>
  <parameter name="action" required="1"><content type="string" default="reboot"/><shortdesc lang="en">off, on, reboot, status, monitor, list, metadata</shortdesc></parameter>
  <parameter name="plug" required="1"><content type="string"/><shortdesc lang="en">Name of the node</shortdesc></parameter>
  <parameter name="ip" required="0"><content type="string" default="10.90.0.1"/><shortdesc lang="en">Address of the BMC</shortdesc></parameter>
  <parameter name="ipport" required="0"><content type="integer" default="6230"/><shortdesc lang="en">Port of the BMC</shortdesc></parameter>
  <parameter name="power_timeout" required="0"><content type="second" default="20"/><shortdesc lang="en">Longest that a change of power may take</shortdesc></parameter>
</parameters>
<actions>
  <action name="on"/>
  <action name="off"/>
  <action name="reboot"/>
  <action name="status"/>
  <action name="monitor"/>
  <action name="list"/>
  <action name="metadata"/>
</actions>
</resource-agent>
"#;

/// How the agent ends.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const IS_OFF: u8 = 2;

/// Options as they are by default.
struct Options {
    action: String,
    plug: String,
    address: Ipv4Addr,
    port: u16,
    limit: Duration,
}

impl Options {
    /// Reads `name=value` lines; names that are not known are for other agents.
    fn parse(text: &str) -> Result<Self, String> {
        let mut this = Self {
            action: "reboot".to_owned(),
            plug: String::new(),
            address: Ipv4Addr::new(10, 90, 0, 1),
            port: PORT,
            limit: Duration::from_secs(20),
        };
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let bad = |_| format!("{name}={value} cannot be understood");
            match name.trim() {
                "action" | "option" => value.clone_into(&mut this.action),
                "plug" | "port" | "nodename" => value.clone_into(&mut this.plug),
                "ip" | "ipaddr" => this.address = value.parse().map_err(|_| bad(()))?,
                "ipport" => this.port = value.parse().map_err(|_| bad(()))?,
                "power_timeout" => {
                    this.limit = Duration::from_secs(value.parse().map_err(|_| bad(()))?);
                }
                _ => {}
            }
        }
        Ok(this)
    }
}

/// Runs the agent; returns its exit code. `action` is what was given on the command line, if
/// anything.
pub fn agent_main(action: Option<&str>) -> u8 {
    let mut text = String::new();
    // With an action on the command line there may be nobody who writes to standard input.
    let read = match action {
        Some("metadata") => Ok(0),
        _ => std::io::stdin().take(INPUT_MAX).read_to_string(&mut text),
    };
    let outcome = read.map_err(|error| error.to_string()).and_then(|_| {
        let mut options = Options::parse(&text)?;
        if let Some(action) = action {
            action.clone_into(&mut options.action);
        }
        act(&options)
    });
    outcome.unwrap_or_else(|why| {
        eprintln!("Failed: {why}");
        FAILED
    })
}

fn act(options: &Options) -> Result<u8, String> {
    match options.action.as_str() {
        "metadata" => {
            print!("{METADATA}");
            Ok(DONE)
        }
        "monitor" => ask(options, "list").map(|_| DONE),
        "list" => {
            for name in ask(options, "list")?.split(' ') {
                println!("{name},");
            }
            Ok(DONE)
        }
        "status" => {
            let on = is_on(options)?;
            println!("Status: {}", if on { "ON" } else { "OFF" });
            Ok(if on { DONE } else { IS_OFF })
        }
        "off" => set(options, false),
        "on" => set(options, true),
        "reboot" => {
            set(options, false)?;
            set(options, true)
        }
        other => Err(format!("there is no action '{other}'; see action=metadata")),
    }
}

fn set(options: &Options, on: bool) -> Result<u8, String> {
    let word = if on { "on" } else { "off" };
    let started = Instant::now();
    if is_on(options)? != on {
        ask(options, &format!("{word} {}", options.plug))?;
    }
    while is_on(options)? != on {
        if started.elapsed() > options.limit {
            return Err(format!("{} is not {word} after {:?}", options.plug, options.limit));
        }
        std::thread::sleep(POLL);
    }
    println!("Success: {} is {word}", options.plug);
    Ok(DONE)
}

fn is_on(options: &Options) -> Result<bool, String> {
    if options.plug.is_empty() {
        return Err("no node is named: plug=n1".to_owned());
    }
    match ask(options, &format!("status {}", options.plug))?.as_str() {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("the BMC says '{}'", other.escape_debug())),
    }
}

/// One request, one answer.
fn ask(options: &Options, request: &str) -> Result<String, String> {
    let address = SocketAddrV4::new(options.address, options.port);
    let why = |error: std::io::Error| format!("the BMC at {address}: {error}");
    let mut stream = TcpStream::connect_timeout(&address.into(), options.limit).map_err(why)?;
    stream.set_read_timeout(Some(options.limit)).map_err(why)?;
    stream.set_write_timeout(Some(options.limit)).map_err(why)?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(why)?;
    let mut line = String::new();
    let limit = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
    BufReader::new(stream.take(limit)).read_line(&mut line).map_err(why)?;
    let line = line.trim();
    match line.strip_prefix("error ") {
        Some(words) => Err(words.escape_debug().to_string()),
        None => Ok(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::METADATA;
    use super::Options;
    use super::act;

    #[test]
    fn options_as_fence_agents_take_them() {
        let text = "# a comment\naction=off\nplug=n2\nip=10.91.0.1\nipport=99\nlogin=x\n\njunk\n";
        let options = Options::parse(text).unwrap();
        assert_eq!((options.action.as_str(), options.plug.as_str()), ("off", "n2"));
        assert_eq!((options.address.to_string().as_str(), options.port), ("10.91.0.1", 99));
        assert!(Options::parse("ip=nowhere").is_err());
        assert_eq!(Options::parse("").unwrap().action, "reboot");
    }

    #[test]
    fn what_it_cannot_do_is_a_failure_with_words() {
        let options = |text: &str| Options::parse(text).unwrap();
        assert!(act(&options("action=explode")).unwrap_err().contains("metadata"));
        assert!(act(&options("action=off")).unwrap_err().contains("plug="));
        assert!(METADATA.contains("<action name=\"off\"/>"));
    }
}
