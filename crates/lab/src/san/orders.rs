//! The lab's side: asking the SAN.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::no_san;
use super::words::Answer;
use super::words::CacheFate;
use super::words::LINE_MAX;
use super::words::Order;
use super::words::SanStatus;
use crate::error::LabError;
use crate::layout::Lab;
use crate::names::NodeName;

/// How long an order may take; making a loop device takes the longest, a fraction of a second.
const ORDER_LIMIT: Duration = Duration::from_secs(20);

impl Lab {
    /// How the SAN of a lab that is up is.
    ///
    /// # Errors
    /// There is none; it does not answer.
    pub fn show_san(&self) -> Result<SanStatus, LabError> {
        if self.up_state()?.san.is_none() {
            return Err(no_san());
        }
        self.san_status()
    }

    pub(crate) fn san_status(&self) -> Result<SanStatus, LabError> {
        let answer = self.order(&Order::Status)?;
        answer.status.ok_or_else(|| dead("it said nothing"))
    }

    /// Cuts or mends the paths of a node to all LUNs; its commands fail at once.
    ///
    /// # Errors
    /// There is no SAN, or no such node.
    pub fn set_san_path(&self, node: NodeName, up: bool) -> Result<(), LabError> {
        self.order_up(&Order::Path { node, up }).map(drop)
    }

    /// Makes each command take longer by so many milliseconds; at most a minute.
    ///
    /// # Errors
    /// There is no SAN; too long.
    pub fn set_san_delay(&self, ms: u64) -> Result<(), LabError> {
        self.order_up(&Order::Delay { ms }).map(drop)
    }

    /// The SAN loses power and has it again: what was not flushed has the fate that is given.
    ///
    /// # Errors
    /// There is no SAN.
    pub fn san_power_loss(&self, cache: CacheFate) -> Result<(), LabError> {
        self.order_up(&Order::PowerLoss { cache }).map(drop)
    }

    pub(super) fn san_attach(&self, node: NodeName) -> Result<Vec<String>, LabError> {
        self.order(&Order::Attach { node })?.devices.ok_or_else(|| dead("it said nothing"))
    }

    pub(super) fn san_detach(&self, node: NodeName) -> Result<(), LabError> {
        self.order(&Order::Detach { node }).map(drop)
    }

    fn order_up(&self, order: &Order) -> Result<Answer, LabError> {
        if self.up_state()?.san.is_none() {
            return Err(no_san());
        }
        self.order(order)
    }

    fn order(&self, order: &Order) -> Result<Answer, LabError> {
        let ask = || -> io::Result<Answer> {
            let mut stream = UnixStream::connect(self.san_socket())?;
            stream.set_read_timeout(Some(ORDER_LIMIT))?;
            stream.set_write_timeout(Some(ORDER_LIMIT))?;
            stream.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes())?;
            let mut line = String::new();
            BufReader::new(stream.take(LINE_MAX)).read_line(&mut line)?;
            Ok(serde_json::from_str(&line)?)
        };
        let answer = ask().map_err(|error| dead(&error.to_string()))?;
        match answer.error {
            Some(error) => Err(LabError::failed(error, "see the SAN: muster lab san show")),
            None => Ok(answer),
        }
    }
}

fn dead(why: &str) -> LabError {
    LabError::failed(
        format!("the SAN does not answer: {why}"),
        "start it again: muster lab san restart",
    )
}
