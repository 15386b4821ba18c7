//! How results reach people and programs: tables, sheets, JSON, times, colours.

pub(crate) mod sheet;
pub(crate) mod table;
pub(crate) mod time;

use std::io::IsTerminal;
use std::io::Write;

use clap::ColorChoice;
use clap::builder::styling::AnsiColor;
use clap::builder::styling::Style;
use serde::Serialize;

use crate::cli::GlobalArgs;
use crate::context::Reply;
use crate::error::CliError;

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// The API's JSON instead of text.
    pub(crate) json: bool,
    /// Neither progress nor notes.
    pub(crate) quiet: bool,
    /// Colours on standard output.
    pub(crate) color: bool,
    /// Colours on standard error.
    color_error: bool,
    /// Standard output is a terminal.
    pub(crate) terminal: bool,
    /// Standard error is a terminal.
    pub(crate) terminal_error: bool,
}

/// What a word means, and thereby its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// Under way, or to be looked at.
    Busy,
    /// Wrong.
    Bad,
    /// Not important.
    Faint,
    /// Nothing special.
    Plain,
}

impl Output {
    /// Reads the global options and looks at the terminal.
    pub(crate) fn new(global: &GlobalArgs) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let terminal_error = std::io::stderr().is_terminal();
        // https://no-color.org: set and not empty.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = |terminal: bool| match global.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !plain,
        };
        Self {
            json: global.json,
            quiet: global.quiet,
            color: color(terminal),
            color_error: color(terminal_error),
            terminal,
            terminal_error,
        }
    }

    /// For files: neither colours nor a terminal's width.
    pub(crate) const fn plain() -> Self {
        Self {
            json: false,
            quiet: false,
            color: false,
            color_error: false,
            terminal: false,
            terminal_error: false,
        }
    }

    /// Prints to standard output, with a line end.
    pub(crate) fn text(&self, text: &str) -> Result<(), CliError> {
        let mut line = text.to_owned();
        line.push('\n');
        self.bytes(line.as_bytes())
    }

    /// Prints bytes as they are to standard output.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<(), CliError> {
        let mut stdout = std::io::stdout().lock();
        let result = stdout.write_all(bytes).and_then(|()| stdout.flush());
        result.map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => CliError::reader_gone(),
            _ => CliError::failed(format!("cannot write the output: {error}"), ""),
        })
    }

    /// Prints JSON as the daemon wrote it; indented on a terminal.
    pub(crate) fn raw_json(&self, raw: &[u8]) -> Result<(), CliError> {
        let pretty = if self.terminal {
            serde_json::from_slice::<serde_json::Value>(raw)
                .and_then(|value| serde_json::to_string_pretty(&value))
                .ok()
        } else {
            None
        };
        let text = pretty.unwrap_or_else(|| String::from_utf8_lossy(raw).trim_end().to_owned());
        self.text(&text)
    }

    /// Prints one field of an answer as JSON.
    pub(crate) fn part(&self, raw: &[u8], field: &str) -> Result<(), CliError> {
        let value: serde_json::Value = serde_json::from_slice(raw).unwrap_or_default();
        self.raw_json(value[field].to_string().as_bytes())
    }

    /// Prints an answer: its JSON, or the text that is made of it.
    pub(crate) fn reply<T>(
        &self,
        reply: &Reply<T>,
        render: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        if self.json { self.raw_json(&reply.raw) } else { self.text(&render(&reply.value)) }
    }

    /// A result in one line: text only, since JSON has the answer itself.
    pub(crate) fn done(&self, text: &str) -> Result<(), CliError> {
        if self.quiet || self.json { Ok(()) } else { self.text(&clean(text)) }
    }

    /// Says something beside the result, on standard error.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            // Nobody listens: nothing is lost.
            let _ = writeln!(std::io::stderr(), "{}", clean(text));
        }
    }

    /// Says why it did not work.
    pub(crate) fn error(&self, error: &CliError) {
        if error.is_silent() {
            return;
        }
        let mut stderr = std::io::stderr().lock();
        if self.json {
            let _ = writeln!(stderr, "{}", error.to_json());
            return;
        }
        let label = paint(self.color_error, Tone::Bad, "error:");
        let _ = writeln!(stderr, "{label} {}", clean(&error.error().message));
        if !error.error().hint.is_empty() {
            let label = paint(self.color_error, Tone::Busy, "hint:");
            let _ = writeln!(stderr, "{label} {}", clean(&error.error().hint));
        }
    }

    /// Colours a word of standard output.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.color, tone, text)
    }
}

fn paint(color: bool, tone: Tone, text: &str) -> String {
    let style = match tone {
        _ if !color => return text.to_owned(),
        Tone::Plain => return text.to_owned(),
        Tone::Good => Style::new().fg_color(Some(AnsiColor::Green.into())),
        Tone::Busy => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
        Tone::Bad => Style::new().bold().fg_color(Some(AnsiColor::Red.into())),
        Tone::Faint => Style::new().dimmed(),
    };
    format!("{style}{text}{style:#}")
}

/// Takes out what could steer a terminal or reorder its text: control characters (line ends and
/// tabs stay) and marks of writing direction. Words of guests and of other users pass through here.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                '\u{fffd}'
            }
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// As [`clean`], on a single line.
pub(crate) fn clean_line(text: &str) -> String {
    clean(text).replace(['\n', '\t'], " ")
}

/// The wire's word for a value of an enum, with blanks for underscores: `no contact`.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use api::types::Heartbeat;

    use super::*;

    #[test]
    fn a_guest_cannot_steer_the_terminal() {
        assert_eq!(
            clean("a\u{1b}[2Jb\u{9b}c\r\u{202e}d"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\u{fffd}d"
        );
        assert_eq!(clean("två ord\n日本"), "två ord\n日本");
        assert_eq!(clean_line("a\nb"), "a b");
    }

    #[test]
    fn words_are_those_of_the_wire() {
        assert_eq!(word(&Heartbeat::NoContact), "no contact");
    }
}
