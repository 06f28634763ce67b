//! Output of rows: a table for people, CSV or JSON for programs.
//!
//! A table is at most as wide as the terminal. Long text wraps. If the numbers and times do not fit, columns with equal
//! values in all rows are shown once above the table, or each row is shown as a block of lines.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use console::{Term, measure_text_width};
use serde_json::Map;
#[doc(no_inline)]
pub use serde_json::Value;

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

    /// Appends a row. Missing cells are null, and surplus cells are dropped.
    pub fn push(&mut self, cells: impl IntoIterator<Item = Value>) {
        let mut cells: Vec<Value> = cells.into_iter().collect();
        cells.resize(self.headers.len(), Value::Null);
        self.rows.push(cells);
    }

    /// Keeps the first `limit` rows, and returns true if there were more.
    pub(crate) fn truncate(&mut self, limit: usize) -> bool {
        let is_cut = self.rows.len() > limit;
        self.rows.truncate(limit);
        is_cut
    }

    /// Returns the rows.
    pub fn rows(&self) -> &[Vec<Value>] {
        &self.rows
    }

    /// Renders the rows as text that ends with a line break. A table is at most as wide as the variable `COLUMNS`,
    /// otherwise the terminal, otherwise 100 characters, and at least 40.
    pub fn render(&self, format: Format) -> String {
        self.render_within(format, terminal_width())
    }

    /// Renders the rows as text. A line of a table has at most `width` characters. A width below 40 counts as 40.
    pub fn render_within(&self, format: Format, width: u16) -> String {
        match format {
            Format::Table => self.table(width.max(MIN_WIDTH)),
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

    fn table(&self, width: u16) -> String {
        let cells: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|cell| printable(&plain(cell, "-"))).collect())
            .collect();
        let all: Vec<usize> = (0..self.headers.len()).collect();
        let least = |at: usize| least_width(self.headers[at], cells.iter().map(|row| &*row[at]));
        let least: Vec<u16> = all.iter().map(|at| least(*at)).collect();
        // Selects the widest padding with which the columns fit.
        let padding = |columns: &[usize]| {
            [(1, 1), (0, 1), (0, 0)].into_iter().find(|(left, right)| {
                let column = |at: &usize| usize::from(least[*at]) + left + right + 1;
                columns.iter().map(column).sum::<usize>() < usize::from(width)
            })
        };
        if let Some(padding) = padding(&all) {
            return self.grid(&cells, &all, (&least, padding), width);
        }
        // A value that all rows have is shown once, above the table.
        let is_common = |at: &usize| cells.len() > 1 && cells.iter().all(|row| row[*at] == cells[0][*at]);
        let (common, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_common);
        let above = |at: &usize| format!("{}: {}\n", self.headers[*at], cells[0][*at]);
        let above: String = if cells.is_empty() { String::new() } else { common.iter().map(above).collect() };
        let fits = above.lines().all(|line| measure_text_width(line) <= usize::from(width));
        match padding(&others) {
            Some(padding) if fits && !others.is_empty() => {
                above + &self.grid(&cells, &others, (&least, padding), width)
            }
            _ => self.blocks(&cells, width),
        }
    }

    /// Renders some columns side by side, with their minimum widths and a padding.
    fn grid(
        &self,
        cells: &[Vec<String>],
        columns: &[usize],
        (least, padding): (&[u16], (usize, usize)),
        width: u16,
    ) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        table.set_header(columns.iter().map(|at| self.headers[*at]));
        for row in cells {
            table.add_row(columns.iter().map(|at| &row[*at]));
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most one space")]
        let (left, right) = (padding.0 as u16, padding.1 as u16);
        for (column, at) in table.column_iter_mut().zip(columns) {
            column.set_padding((left, right));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least[*at] + left + right)));
            if self.rows.iter().any(|row| row[*at].is_number()) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{table}\n")
    }

    /// Renders a block of lines for each row: a line for each column.
    fn blocks(&self, cells: &[Vec<String>], width: u16) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        for (at, row) in cells.iter().enumerate() {
            if at > 0 {
                table.add_row(["", ""]);
            }
            for (header, cell) in self.headers.iter().zip(row) {
                table.add_row([*header, cell.as_str()]);
            }
        }
        if cells.is_empty() {
            for header in &self.headers {
                table.add_row([*header, ""]);
            }
        }
        format!("{table}\n")
    }

    /// Returns the rows as JSON objects.
    pub(crate) fn objects(&self) -> impl Iterator<Item = Value> + '_ {
        self.rows.iter().map(|row| {
            let pairs = self.headers.iter().map(|header| (*header).to_owned()).zip(row.iter().cloned());
            Value::Object(pairs.collect::<Map<_, _>>())
        })
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
        let array = Value::Array(self.objects().collect());
        format!("{array:#}\n")
    }
}

/// The width of a table without a terminal.
const DEFAULT_WIDTH: u16 = 100;
const MIN_WIDTH: u16 = 40;
/// The longest number or time that is not wrapped.
const MAX_NUMBER: usize = 40;
/// The width to which a column of long text can shrink.
const MIN_TEXT: usize = 20;

/// Returns the variable `COLUMNS`, otherwise the width of the terminal, otherwise [`DEFAULT_WIDTH`].
fn terminal_width() -> u16 {
    let variable = std::env::var("COLUMNS").ok().and_then(|columns| columns.trim().parse().ok());
    let terminal = || Term::stdout().size_checked().map(|(_, columns)| columns);
    variable.filter(|columns| *columns > 0).or_else(terminal).unwrap_or(DEFAULT_WIDTH)
}

/// Returns the minimum width of a column at which it can be read: numbers and times do not wrap, other text wraps.
fn least_width<'a>(header: &str, cells: impl Iterator<Item = &'a str>) -> u16 {
    let header = header.split(' ').map(measure_text_width).max().unwrap_or(0);
    let cell = |cell: &str| {
        let is_number = cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
            && cell.len() <= MAX_NUMBER
            && !cell.contains(char::is_whitespace);
        let width = measure_text_width(cell);
        if is_number { width } else { width.min(MIN_TEXT) }
    };
    u16::try_from(cells.map(cell).fold(header, usize::max)).unwrap_or(u16::MAX)
}

/// Returns the text of a cell, or `nothing` for null.
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

    fn longest(text: &str) -> usize {
        text.lines().map(measure_text_width).max().unwrap_or(0)
    }

    #[test]
    fn tables_wrap_text_and_keep_numbers_and_times() {
        let mut listing = Listing::new(["target", "time", "number", "detail"]);
        let (time, number) = ("2024-01-31T12:00:00.123456Z", "12345678901234567890.123456789012345678");
        listing.push([text("store timescale"), text(time), text(number), text("word ".repeat(60))]);
        listing.push([text("a"), text(time), text(number), text("x".repeat(300))]);
        for width in [109, 120, 130, 200, 1_000] {
            let table = listing.render_within(Format::Table, width);
            assert!(longest(&table) <= usize::from(width) && table.starts_with('┌'), "{table}");
            assert!(table.contains(time) && table.contains(number), "{table}");
        }
        for width in [0, 40, 80, 98] {
            let blocks = listing.render_within(Format::Table, width);
            assert!(longest(&blocks) <= usize::from(width.max(40)), "{blocks}");
            assert!(blocks.contains("target") && blocks.contains(time), "{blocks}");
        }
    }

    #[test]
    fn a_table_with_many_columns_becomes_blocks() {
        let headers = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        let mut listing = Listing::new(headers);
        for _ in 0..2 {
            listing.push(headers.map(|_| text("1234567890.123")));
        }
        let blocks = listing.render_within(Format::Table, 80);
        assert!(longest(&blocks) <= 80 && blocks.matches("1234567890.123").count() == 20, "{blocks}");
        for width in [200, 151] {
            let table = listing.render_within(Format::Table, width);
            assert!(table.lines().count() == 6 && longest(&table) <= usize::from(width), "{table}");
        }
    }

    #[test]
    fn a_value_of_all_rows_is_shown_once_if_the_table_is_too_wide() {
        let mut listing = Listing::new(["instrument", "time", "price"]);
        for second in 0..3 {
            let time = format!("2024-01-31T12:00:0{second}.123456Z");
            listing.push([text("exchange:INSTRUMENT"), text(time), text("12345678901234567890.12345")]);
        }
        let table = listing.render_within(Format::Table, 60);
        assert!(
            table.starts_with("instrument: exchange:INSTRUMENT\nprice: 12345678901234567890.12345\n┌"),
            "{table}"
        );
        assert_eq!((table.matches("exchange").count(), table.lines().count()), (1, 2 + 7), "{table}");
        assert_eq!(listing.render_within(Format::Table, 100).matches("exchange").count(), 3);
    }

    #[test]
    fn tables_show_absent_values_as_a_dash() {
        let table = listing().render(Format::Table);
        assert!(table.contains("name") && table.contains(" 7 ") && table.contains(" - "), "{table}");
    }
}
