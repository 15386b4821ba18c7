//! What is said on the wire between agent and BMC: one line each way. Pure.
//!
//! `status n1` -> `on` | `off`; `off n1`, `on n1` -> `done`; `list` -> `n1 n2 n3`; and for all
//! `error WORDS`.

use crate::names::NodeName;

/// Longest line either way: 64 names fit.
pub(super) const LINE_MAX: usize = 512;

/// What the BMC can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Which nodes there are.
    List,
    /// Whether a node has power.
    Status(NodeName),
    /// Take its power.
    Off(NodeName),
    /// Give it power.
    On(NodeName),
}

impl Request {
    /// Reads a line; nothing where it is not one of ours.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next()?;
        let node = words.next().map(str::parse::<NodeName>).transpose().ok()?;
        if words.next().is_some() {
            return None;
        }
        match (verb, node) {
            ("list", None) => Some(Self::List),
            ("status", Some(node)) => Some(Self::Status(node)),
            ("off", Some(node)) => Some(Self::Off(node)),
            ("on", Some(node)) => Some(Self::On(node)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Request;

    #[test]
    fn lines_that_are_requests_and_lines_that_are_not() {
        let node = "n2".parse().unwrap();
        assert_eq!(Request::parse("list\n"), Some(Request::List));
        assert_eq!(Request::parse("off n2\n"), Some(Request::Off(node)));
        assert_eq!(Request::parse("status n2"), Some(Request::Status(node)));
        for bad in ["", "off", "list n2", "off n2 n3", "OFF n2", "off n99", "on ../n1", "\u{0}"] {
            assert_eq!(Request::parse(bad), None, "{bad:?}");
        }
    }
}
