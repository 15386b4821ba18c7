//! Lists: a header and lines, without borders, readable without colour.

use comfy_table::Attribute;
use comfy_table::Cell;
use comfy_table::Color;
use comfy_table::ContentArrangement;
use comfy_table::Table;
use comfy_table::presets;

use crate::output::Output;
use crate::output::Tone;
use crate::output::clean_line;

/// A list under construction.
pub(crate) struct List {
    table: Table,
    columns: usize,
    empty: bool,
}

/// A cell: text and what it means.
pub(crate) struct Field {
    text: String,
    tone: Tone,
}

impl Field {
    /// A cell with a meaning.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: ToString> From<T> for Field {
    fn from(text: T) -> Self {
        Self { text: text.to_string(), tone: Tone::Plain }
    }
}

impl List {
    /// A list with its header.
    pub(crate) fn new(out: &Output, header: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if out.terminal {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        if out.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(|title| {
            let cell = Cell::new(title);
            if out.color { cell.add_attribute(Attribute::Bold) } else { cell }
        }));
        Self { table, columns: header.len(), empty: true }
    }

    /// Adds a line, with as many fields as the header has.
    pub(crate) fn row(&mut self, fields: Vec<Field>) {
        assert_eq!(fields.len(), self.columns, "fields of a line");
        self.empty = false;
        self.table.add_row(fields.into_iter().map(|field| {
            let text = clean_line(&field.text);
            let cell = Cell::new(if text.is_empty() { "-".to_owned() } else { text });
            match field.tone {
                Tone::Good => cell.fg(Color::Green),
                Tone::Busy => cell.fg(Color::Yellow),
                Tone::Bad => cell.fg(Color::Red),
                Tone::Faint => cell.fg(Color::DarkGrey),
                Tone::Plain => cell,
            }
        }));
    }

    /// The list as text; `nothing` where it has no lines.
    pub(crate) fn render(mut self, nothing: &str) -> String {
        if self.empty {
            return nothing.to_owned();
        }
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }
}
