//! Lines and their fields, in bounded memory.

use std::io::{self, BufRead as _, Read as _};

use crate::unpack::Bytes;

/// The maximum length of a line in bytes. A longer line is a bad line.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// The rule that a longer line violates.
pub(crate) const TOO_LONG: &str = "must be at most 65536 bytes long";
/// The maximum number of bytes that are skipped in search of a line break. A longer line is an error of the input.
const MAX_SKIP: usize = 16 << 20;
/// The maximum number of fields of a line.
pub(crate) const MAX_FIELDS: usize = 64;

/// The result of reading a line.
#[derive(Debug)]
pub(crate) enum Line {
    /// A line, whose text is in the buffer without its line break.
    Text,
    /// A bad line: the violated rule and the beginning of the line.
    Bad(&'static str, String),
    /// The end of the stream.
    End,
}

/// Reads lines into one buffer.
pub(crate) struct Lines {
    bytes: Bytes,
    buffer: Vec<u8>,
    /// The number of the line that was read last, from 1.
    pub(crate) number: u64,
}

impl Lines {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes, buffer: Vec::new(), number: 0 }
    }

    /// Returns the text of the line that was read last.
    pub(crate) fn text(&self) -> &str {
        // `next` has validated the bytes.
        std::str::from_utf8(&self.buffer).unwrap_or("")
    }

    /// Returns the bytes of the line that was read last.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads up to the end of the line, but not more than the maximum length. Returns true if the line has ended.
    fn part(&mut self) -> io::Result<bool> {
        self.buffer.clear();
        let read = (&mut self.bytes).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut self.buffer)?;
        Ok(self.buffer.ends_with(b"\n") || read < MAX_LINE_BYTES)
    }

    pub(crate) fn next(&mut self) -> io::Result<Line> {
        self.number += 1;
        if !self.part()? {
            let start = String::from_utf8_lossy(&self.buffer[..100]).into_owned();
            let mut skipped = 0;
            while !self.part()? {
                skipped += MAX_LINE_BYTES;
                if skipped > MAX_SKIP {
                    return Err(io::Error::other("line is longer than 16 MiB"));
                }
            }
            self.buffer.clear();
            return Ok(Line::Bad(TOO_LONG, start));
        }
        if self.buffer.is_empty() {
            return Ok(Line::End);
        }
        while matches!(self.buffer.last(), Some(b'\n' | b'\r')) {
            self.buffer.pop();
        }
        if self.number == 1 && self.buffer.starts_with(&[0xef, 0xbb, 0xbf]) {
            self.buffer.drain(..3);
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(_) => Ok(Line::Text),
            Err(_) => Ok(Line::Bad("must be UTF-8", String::from_utf8_lossy(&self.buffer).into_owned())),
        }
    }
}

/// The fields of a line. Quotes follow RFC 4180. Spaces at both ends of a field are removed, even inside its quotes.
#[derive(Default)]
pub(crate) struct Fields {
    unquoted: String,
    /// For each field, whether it is in `unquoted` instead of the line, its start and its end.
    ranges: Vec<(bool, usize, usize)>,
}

impl Fields {
    /// Splits a line into `out` and returns the number of fields. Returns None for too many fields, an unclosed quote,
    /// or text after a closing quote.
    pub(crate) fn split<'a>(
        &'a mut self,
        line: &'a str,
        delimiter: u8,
        out: &mut [&'a str; MAX_FIELDS],
    ) -> Option<usize> {
        let delimiter = char::from(delimiter);
        if !line.contains('"') {
            let mut count = 0;
            for field in line.split(delimiter) {
                *out.get_mut(count)? = field.trim();
                count += 1;
            }
            return Some(count);
        }
        self.unquoted.clear();
        self.ranges.clear();
        // The fields of a JSON array may be on lines of their own.
        let is_blank = |c: char| c != delimiter && (c.is_whitespace() || c == '\u{feff}');
        let mut at = 0;
        loop {
            let rest = &line[at..];
            let begin = at + (rest.len() - rest.trim_start_matches(is_blank).len());
            if line[begin..].starts_with('"') {
                let (start, end) = (self.unquoted.len(), self.unquote(line, begin + 1)?);
                self.ranges.push((true, start, self.unquoted.len()));
                at = end + (line[end..].len() - line[end..].trim_start_matches(is_blank).len());
                if at < line.len() && !line[at..].starts_with(delimiter) {
                    return None;
                }
            } else {
                let end = line[at..].find(delimiter).map_or(line.len(), |length| at + length);
                self.ranges.push((false, at, end));
                at = end;
            }
            if at == line.len() {
                break;
            }
            at += 1;
        }
        for (index, (is_unquoted, start, end)) in self.ranges.iter().enumerate() {
            let text = if *is_unquoted { self.unquoted.as_str() } else { line };
            *out.get_mut(index)? = text[*start..*end].trim();
        }
        Some(self.ranges.len())
    }

    /// Copies a quoted field from its first character, and returns the index after its closing quote.
    fn unquote(&mut self, line: &str, mut at: usize) -> Option<usize> {
        loop {
            let quote = at + line[at..].find('"')?;
            self.unquoted.push_str(&line[at..quote]);
            at = quote + 1;
            if !line[at..].starts_with('"') {
                return Some(at);
            }
            self.unquoted.push('"');
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    fn split(line: &str) -> Option<Vec<String>> {
        let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
        let count = fields.split(line, b',', &mut out)?;
        Some(out[..count].iter().map(|field| (*field).to_owned()).collect())
    }

    #[test]
    fn spaces_and_quotes_around_fields_are_removed() {
        assert_eq!(split(" a ,b,\tc ").unwrap(), ["a", "b", "c"]);
        assert_eq!(split("\"a,b\",\"c \"\"d\"\"\",e").unwrap(), ["a,b", "c \"d\"", "e"]);
        assert_eq!(split("").unwrap(), [""]);
        assert_eq!(split("a,").unwrap(), ["a", ""]);
        assert_eq!(split(" \"a\" ; ").unwrap_or_default(), [""; 0], "text after a quote");
        assert_eq!(split(" \"a\" , b").unwrap(), ["a", "b"]);
        assert_eq!(split("\n\t\"a\"\r\n,\n 1,\n\"b\"\n").unwrap(), ["a", "1", "b"]);
        let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
        let count = fields.split("\t \"a\"\t\t\"b\"", b'\t', &mut out).unwrap();
        assert_eq!(out[..count], ["", "a", "", "b"], "tabs as delimiters");
        assert_eq!(split("\"a"), None);
        assert_eq!(split(&",".repeat(MAX_FIELDS)), None);
        assert_eq!(split(&format!("\"\"{}", ",".repeat(MAX_FIELDS))), None);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_lines_do_not_panic(line in "[a,\" ]{0,30}|\\PC{0,60}") {
            let _ = split(&line);
        }

        #[test]
        fn every_line_of_arbitrary_bytes_is_counted(content in proptest::collection::vec(0u8..=255, 0..300)) {
            let mut lines = Lines::new(Box::new(io::Cursor::new(content.clone())));
            let mut count = 0;
            while !matches!(lines.next().unwrap(), Line::End) {
                count += 1;
            }
            let wanted = content.split_inclusive(|byte| *byte == b'\n').count();
            proptest::prop_assert_eq!(count, wanted);
        }
    }
}
