//! Output of rows: a table for people, CSV or JSON for programs.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value};

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// Comma-separated values with a header, quoted where necessary.
    Csv,
    /// A JSON array of objects.
    Json,
}

/// Rows with headers. A cell is a text, a number, a boolean or null.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    headers: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
}

impl Listing {
    /// Creates a listing without rows.
    pub fn new(headers: impl IntoIterator<Item = &'static str>) -> Self {
        Self { headers: headers.into_iter().collect(), rows: Vec::new() }
    }

    /// Appends a row with a cell for every header.
    pub fn push(&mut self, cells: impl IntoIterator<Item = Value>) {
        let mut cells: Vec<Value> = cells.into_iter().collect();
        cells.resize(self.headers.len(), Value::Null);
        self.rows.push(cells);
    }

    /// Returns the rows.
    pub fn rows(&self) -> &[Vec<Value>] {
        &self.rows
    }

    /// Renders the rows as text that ends with a line break.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Table => self.table(),
            Format::Csv => self.csv(),
            Format::Json => self.json(),
        }
    }

    /// Writes the rows. A closed pipe, for example to `head`, is not an error.
    ///
    /// # Errors
    /// Errors of the writer.
    pub fn write(&self, format: Format, out: &mut impl Write) -> io::Result<()> {
        match out.write_all(self.render(format).as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            outcome => outcome,
        }
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_header(self.headers.iter().copied());
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| printable(&plain(cell, "-"))));
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            if self.rows.iter().any(|row| row[at].is_number()) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{table}\n")
    }

    fn csv(&self) -> String {
        let mut text = self.headers.join(",");
        text.push('\n');
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(|cell| quoted(&plain(cell, ""))).collect();
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{}", cells.join(","));
        }
        text
    }

    fn json(&self) -> String {
        let object = |row: &Vec<Value>| {
            let pairs = self.headers.iter().map(|header| (*header).to_owned()).zip(row.iter().cloned());
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        let array = Value::Array(self.rows.iter().map(object).collect());
        format!("{array:#}\n")
    }
}

/// Returns a cell as text for people.
fn plain(cell: &Value, nothing: &str) -> String {
    match cell {
        Value::Null => nothing.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Escapes control characters, because names and errors may contain text of a server.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Quotes text as RFC 4180 requires.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Returns a text cell.
#[expect(clippy::needless_pass_by_value, reason = "cells are written from values and references alike")]
pub(crate) fn text(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

/// Returns a text cell, or null.
pub(crate) fn maybe(value: Option<impl ToString>) -> Value {
    value.map_or(Value::Null, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> Listing {
        let mut listing = Listing::new(["name", "count"]);
        listing.push([text("a,\"b\""), 7.into()]);
        listing.push([Value::Null, Value::Null]);
        listing
    }

    #[test]
    fn csv_quotes_special_characters() {
        assert_eq!(listing().render(Format::Csv), "name,count\n\"a,\"\"b\"\"\",7\n,\n");
    }

    #[test]
    fn json_is_an_array_of_objects() {
        let json: Value = serde_json::from_str(&listing().render(Format::Json)).unwrap();
        assert_eq!(json, serde_json::json!([{"name": "a,\"b\"", "count": 7}, {"name": null, "count": null}]));
    }

    #[test]
    fn tables_escape_control_characters() {
        let mut listing = Listing::new(["name"]);
        listing.push([text("one\u{1b}[31m\rtwo\nthree\u{9b}")]);
        let table = listing.render(Format::Table);
        assert!(!table.contains(['\u{1b}', '\r', '\u{9b}']), "{table:?}");
        assert!(table.contains("one\\u{1b}[31m\\rtwo") && table.contains("three"), "{table}");
        assert!(listing.render(Format::Csv).contains('\u{1b}'), "programs get what is there");
    }

    #[test]
    fn tables_show_absent_values_as_a_dash() {
        let table = listing().render(Format::Table);
        assert!(table.contains("name") && table.contains(" 7 ") && table.contains(" - "), "{table}");
    }
}
