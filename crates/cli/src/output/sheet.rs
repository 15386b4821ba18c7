//! One thing in full: groups of keys and values.

use std::fmt::Write;

use crate::output::Output;
use crate::output::Tone;
use crate::output::clean_line;

/// Least width of the keys' column, so that short groups stand in line with each other.
const KEY_WIDTH: usize = 14;

/// A sheet under construction.
pub(crate) struct Sheet<'a> {
    out: &'a Output,
    text: String,
}

impl<'a> Sheet<'a> {
    /// A sheet that begins with a group without a title.
    pub(crate) const fn new(out: &'a Output) -> Self {
        Self { out, text: String::new() }
    }

    /// Begins a group.
    pub(crate) fn group(&mut self, title: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(title);
        self.text.push('\n');
    }

    /// A key and its value; left out where the value is empty.
    pub(crate) fn row(&mut self, key: &str, value: impl ToString) {
        self.toned(key, value, Tone::Plain);
    }

    /// A key and its value, where there is one.
    pub(crate) fn opt(&mut self, key: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.row(key, value);
        }
    }

    /// A key and a value with a meaning.
    pub(crate) fn toned(&mut self, key: &str, value: impl ToString, tone: Tone) {
        let value = clean_line(&value.to_string());
        if value.is_empty() {
            return;
        }
        let key = format!("{:KEY_WIDTH$}", clean_line(key));
        let key = self.out.paint(Tone::Faint, &key);
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "  {key}  {}", self.out.paint(tone, &value));
    }

    /// A list inside a group, indented.
    pub(crate) fn list(&mut self, list: &str) {
        for line in list.lines() {
            let _ = writeln!(self.text, "  {line}");
        }
    }

    /// The sheet as text.
    pub(crate) fn render(self) -> String {
        self.text.trim_end().to_owned()
    }
}
