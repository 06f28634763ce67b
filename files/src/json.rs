//! Responses of Kraken's REST interface, one or several in a file:
//! `{"error":[],"result":{"XXBTZUSD":[[...],...],"last":"..."}}`.
//!
//! Each inner array is returned as a line of fields. The document is read as a stream, so the longest array bounds the
//! memory.

use std::io::{self, BufRead as _};

use crate::lines::{Line, MAX_LINE_BYTES, TOO_LONG};
use crate::unpack::Bytes;

/// The maximum nesting depth.
const MAX_DEPTH: usize = 8;

/// Reads inner arrays into one buffer.
pub(crate) struct Arrays {
    bytes: Bytes,
    open: Vec<u8>,
    /// The last string, which is the key of the value after a colon.
    string: String,
    key: String,
    /// The key of the outer array: the pair. Every response in the document has this pair.
    pub(crate) pair: String,
    /// The array that was returned last, and an array that was read after it.
    buffer: String,
    held: Option<String>,
    /// True if the last array is held until the key `last`, because it may be a candle that has not ended.
    holds: bool,
    pub(crate) number: u64,
}

impl Arrays {
    pub(crate) fn new(bytes: Bytes, holds: bool) -> Self {
        Self {
            bytes,
            open: Vec::new(),
            string: String::new(),
            key: String::new(),
            pair: String::new(),
            buffer: String::new(),
            held: None,
            holds,
            number: 0,
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.buffer
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.bytes.fill_buf()?.first().copied();
        self.bytes.consume(usize::from(byte.is_some()));
        Ok(byte)
    }

    /// Reads to the end of a string or an array after its first byte. Returns None if the text is too long.
    fn capture(&mut self, ends: u8) -> io::Result<Option<String>> {
        let (mut text, mut quoted, mut escaped, mut fits) = (Vec::new(), ends == b'"', false, true);
        let mut skipped = 0usize;
        loop {
            let Some(byte) = self.byte()? else { return Err(invalid("the document ends too early")) };
            if !quoted && matches!(byte, b'[' | b'{' | b'}') {
                return Err(invalid("an array with more than numbers and strings"));
            }
            if byte == ends && !escaped && (!quoted || ends == b'"') {
                break;
            }
            quoted ^= byte == b'"' && !escaped;
            escaped = quoted && byte == b'\\' && !escaped;
            fits &= text.len() < MAX_LINE_BYTES;
            if fits {
                text.push(byte);
            } else {
                skipped += 1;
                if skipped > 16 << 20 {
                    return Err(invalid("an array of more than 16 MiB"));
                }
            }
        }
        Ok(fits.then(|| String::from_utf8_lossy(&text).into_owned()))
    }

    /// Returns an array. If the last array must be held, returns the array before it.
    fn array(&mut self, array: String) -> Option<Line> {
        let array = if self.holds { self.held.replace(array)? } else { array };
        self.number += 1;
        self.buffer = array;
        Some(Line::Text)
    }

    /// Reads the next array.
    pub(crate) fn next(&mut self) -> io::Result<Line> {
        loop {
            let Some(byte) = self.byte()? else {
                if !self.open.is_empty() {
                    return Err(invalid("the document ends too early"));
                }
                let Some(held) = self.held.take() else { return Ok(Line::End) };
                self.number += 1;
                self.buffer = held;
                return Ok(Line::Text);
            };
            match byte {
                b'"' => {
                    self.string = self.capture(b'"')?.unwrap_or_default();
                    if self.open == *b"{[" && self.key == "error" {
                        self.number += 1;
                        return Ok(Line::Bad("is an error response of the exchange", self.string.clone()));
                    }
                    if let Some(line) = self.last() {
                        return Ok(line);
                    }
                }
                b':' => self.key = std::mem::take(&mut self.string),
                b'[' if self.open == *b"{{[" => {
                    let Some(array) = self.capture(b']')? else {
                        self.number += 1;
                        return Ok(Line::Bad(TOO_LONG, String::new()));
                    };
                    if let Some(line) = self.array(array) {
                        return Ok(line);
                    }
                }
                b'[' | b'{' => {
                    if self.open.len() == MAX_DEPTH {
                        return Err(invalid("nested too deeply"));
                    }
                    if byte == b'[' && self.open == *b"{{" {
                        if self.pair.is_empty() {
                            self.pair.clone_from(&self.key);
                        } else if self.pair != self.key {
                            return Err(invalid("responses for several pairs in one file"));
                        }
                    }
                    self.open.push(byte);
                }
                b']' | b'}' => {
                    // In ASCII, a closing bracket is two code points after its opening bracket.
                    if self.open.pop().is_none_or(|open| open.abs_diff(byte) != 2) {
                        return Err(invalid("brackets that do not match"));
                    }
                    self.key.clear();
                }
                b'0'..=b'9' => {
                    self.string.clear();
                    self.string.push(char::from(byte));
                    while let Some(digit) = self.bytes.fill_buf()?.first().copied().filter(u8::is_ascii_digit)
                    {
                        if self.string.len() < 40 {
                            self.string.push(char::from(digit));
                        }
                        self.bytes.consume(1);
                    }
                    if let Some(line) = self.last() {
                        return Ok(line);
                    }
                }
                _ => {}
            }
        }
    }

    /// Releases the held array when the value of the key `last` was read. A candle after this time has not ended.
    fn last(&mut self) -> Option<Line> {
        if self.open != *b"{{" || self.key != "last" {
            return None;
        }
        let last = self.string.parse::<u64>().ok()?;
        let held = self.held.take()?;
        self.number += 1;
        let begins = held.split(',').next().and_then(|time| time.trim().parse::<u64>().ok());
        if begins.is_some_and(|begins| begins > last) {
            return Some(Line::Bad("is an incomplete candle", held));
        }
        self.buffer = held;
        Some(Line::Text)
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    fn read(text: &str, holds: bool) -> (Vec<String>, Vec<&'static str>, bool) {
        let mut arrays = Arrays::new(Box::new(io::Cursor::new(text.as_bytes().to_vec())), holds);
        let (mut lines, mut bad) = (Vec::new(), Vec::new());
        loop {
            match arrays.next() {
                Ok(Line::Text) => lines.push(arrays.text().to_owned()),
                Ok(Line::Bad(rule, _)) => bad.push(rule),
                Ok(Line::End) => return (lines, bad, true),
                Err(_) => return (lines, bad, false),
            }
        }
    }

    #[test]
    fn json_arrays_are_read_as_lines() {
        let text =
            r#"{"error":[],"result":{"XXBTZUSD":[["1.5","2",3.25,"b","m","",4], ["a]b"]],"last":"9"}}"#;
        let (lines, bad, ended) = read(text, false);
        assert_eq!(lines, [r#""1.5","2",3.25,"b","m","",4"#, r#""a]b""#]);
        assert!(bad.is_empty() && ended);
        let (lines, bad, _) = read(&format!("{text}\n{text}"), false);
        assert_eq!((lines.len(), bad.len()), (4, 0), "several responses in one file");
    }

    #[test]
    fn an_answer_of_another_pair_ends_the_document_with_an_error() {
        let text = |pair: &str| format!(r#"{{"error":[],"result":{{"{pair}":[["1","2"]],"last":"9"}}}}"#);
        for holds in [false, true] {
            let (lines, _, ended) = read(&format!("{}{}", text("XXBTZUSD"), text("XETHZUSD")), holds);
            assert_eq!((lines.len(), ended), (1, false), "holds: {holds}");
            let (lines, _, ended) = read(&format!("{}{}", text("XXBTZUSD"), text("XXBTZUSD")), holds);
            assert_eq!((lines.len(), ended), (2, true), "holds: {holds}");
        }
    }

    #[test]
    fn an_unfinished_candle_is_a_bad_line() {
        let text =
            |last: &str| format!(r#"{{"error":[],"result":{{"X":[[60,"1"],[120,"2"]],"last":{last}}}}}"#);
        assert_eq!(
            read(&text("60"), true),
            (vec![r#"60,"1""#.to_owned()], vec!["is an incomplete candle"], true)
        );
        assert_eq!(read(&text("120"), true).0.len(), 2);
    }

    #[test]
    fn an_error_of_the_exchange_is_shown() {
        let (lines, bad, ended) = read(r#"{"error":["EQuery:Unknown asset pair"]}"#, false);
        assert_eq!((lines.len(), bad, ended), (0, vec!["is an error response of the exchange"], true));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_documents_do_not_panic(text in "[\\[\\]{}\",:a1\\\\ ]{0,60}", holds in proptest::bool::ANY) {
            read(&text, holds);
        }
    }
}
