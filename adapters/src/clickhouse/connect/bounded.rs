//! A connection that bounds the body of an error response.
//!
//! The driver collects the body of an error response without a limit and offers no hook for it. Therefore the
//! connection collects that body up to [`MAX_ERROR_BYTES`] and passes on a response of that length. Every other response
//! passes unchanged, and [`super::fetch`] bounds it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The maximum number of bytes read from the body of an error response.
pub(super) const MAX_ERROR_BYTES: usize = 64 * 1024;

/// The maximum size of an inspected head, in bytes. The HTTP client rejects a longer head.
const MAX_HEAD_BYTES: usize = 64 * 1024;

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A connection whose error responses are bounded.
pub(super) struct Bounded<T> {
    io: T,
    state: State,
    /// The bytes to return before any further data.
    ready: Vec<u8>,
}

enum State {
    /// The bytes of an incomplete response head.
    Head(Vec<u8>),
    /// A response that passes unchanged.
    Pass,
    /// An error response whose body is being collected.
    Collect(Collector),
    /// A truncated response. The connection returns no further data.
    Truncated,
}

impl<T> Bounded<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, state: State::Head(Vec::new()), ready: Vec::new() }
    }

    /// Processes bytes that were read. An empty slice marks the end of the connection.
    fn take(&mut self, bytes: &[u8]) {
        self.state = match std::mem::replace(&mut self.state, State::Pass) {
            State::Head(mut seen) => {
                seen.extend_from_slice(bytes);
                self.head(seen, bytes.is_empty())
            }
            State::Collect(collector) => self.collect(collector, bytes, bytes.is_empty()),
            other => other,
        };
    }

    fn head(&mut self, seen: Vec<u8>, ended: bool) -> State {
        let end = seen.windows(END_OF_HEAD.len()).position(|part| part == END_OF_HEAD);
        let Some(end) = end.map(|at| at + END_OF_HEAD.len()) else {
            let begins = seen.len().min(PROTOCOL.len());
            if ended || seen.len() > MAX_HEAD_BYTES || seen[..begins] != PROTOCOL[..begins] {
                self.ready = seen;
                return State::Pass;
            }
            return State::Head(seen);
        };
        match Collector::of_error(&seen[..end]) {
            Some(collector) => self.collect(collector, &seen[end..], ended),
            // An informational response precedes the final response.
            None if seen.starts_with(b"HTTP/1.1 1") => {
                let rest = seen[end..].to_vec();
                self.ready.extend_from_slice(&seen[..end]);
                if rest.is_empty() { State::Head(rest) } else { self.head(rest, ended) }
            }
            None => {
                self.ready.extend(seen);
                State::Pass
            }
        }
    }

    fn collect(&mut self, mut collector: Collector, bytes: &[u8], ended: bool) -> State {
        let complete = collector.take(bytes);
        let truncated = collector.body.len() > MAX_ERROR_BYTES;
        if !complete && !truncated && !ended {
            return State::Collect(collector);
        }
        self.ready.extend(collector.response(truncated));
        if complete && !truncated { State::Pass } else { State::Truncated }
    }
}

const PROTOCOL: &[u8] = b"HTTP/1.";

/// An error response as it arrives.
struct Collector {
    /// The lines of the head, without the lines that frame the body.
    head: String,
    framing: Framing,
    body: Vec<u8>,
}

/// The framing of a body, and the progress in it.
enum Framing {
    /// The number of remaining bytes of the body.
    Length(usize),
    /// The line of a chunk's size, as far as it was received.
    ChunkSize(Vec<u8>),
    /// The number of remaining bytes of a chunk, including its line end.
    Chunk(usize),
    /// The line of a trailer, as far as it was received.
    Trailer(Vec<u8>),
    /// The end of the connection ends the body.
    Close,
}

impl Collector {
    /// Returns the collector for this head, if it belongs to an error response.
    fn of_error(head: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.trim_end().split("\r\n");
        let first = lines.next()?;
        let status = first.split(' ').nth(1)?;
        let (mut kept, mut framing, mut error) = (format!("{first}\r\n"), Framing::Close, status != "200");
        for line in lines {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                // Only the option `close` matters to the client. Other options may frame the body.
                "connection" => {
                    if value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")) {
                        kept.push_str("connection: close\r\n");
                    }
                    continue;
                }
                "content-length" => {
                    if matches!(framing, Framing::Close) {
                        framing = Framing::Length(value.parse().ok()?);
                    }
                    continue;
                }
                "transfer-encoding" => {
                    framing = Framing::ChunkSize(Vec::new());
                    continue;
                }
                "x-clickhouse-exception-code" => error = true,
                _ => {}
            }
            kept.push_str(line);
            kept.push_str("\r\n");
        }
        // Responses with these status codes have no body.
        let empty = status.starts_with('1') || matches!(status, "204" | "304");
        (error && !empty).then_some(Self { head: kept, framing, body: Vec::new() })
    }

    /// Processes bytes of the body. Returns true if the body is complete, or if a line is too long.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            match &mut self.framing {
                Framing::Close => {
                    self.body.extend_from_slice(bytes);
                    return false;
                }
                Framing::Length(left) => {
                    let count = bytes.len().min(*left);
                    self.body.extend_from_slice(&bytes[..count]);
                    *left -= count;
                    return *left == 0;
                }
                Framing::Chunk(left) => {
                    let count = bytes.len().min(*left);
                    // The last two bytes are the line end of the chunk.
                    let data = count.min(left.saturating_sub(2));
                    self.body.extend_from_slice(&bytes[..data]);
                    *left -= count;
                    bytes = &bytes[count..];
                    if *left > 0 {
                        return false;
                    }
                    self.framing = Framing::ChunkSize(Vec::new());
                }
                Framing::ChunkSize(line) => {
                    let Some(size) = take_line(line, &mut bytes) else { return line.len() > MAX_HEAD_BYTES };
                    let digits = size.split(';').next().unwrap_or_default().trim();
                    // An invalid size counts as 0, the size of the last chunk.
                    let size = usize::from_str_radix(digits, 16).unwrap_or(0);
                    self.framing = match size {
                        0 => Framing::Trailer(Vec::new()),
                        size => Framing::Chunk(size.saturating_add(2)),
                    };
                }
                Framing::Trailer(line) => match take_line(line, &mut bytes) {
                    None => return line.len() > MAX_HEAD_BYTES,
                    Some(line) if line.is_empty() => return true,
                    Some(_) => self.framing = Framing::Trailer(Vec::new()),
                },
            }
        }
    }

    /// Returns the response with the collected body. A truncated body ends at a character boundary.
    fn response(mut self, truncated: bool) -> Vec<u8> {
        if truncated {
            self.body.truncate(MAX_ERROR_BYTES);
            // Counts the continuation bytes at the end. The byte before them starts the character.
            let broken = self.body.iter().rev().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
            let first = self.body.len().checked_sub(broken + 1);
            if first.is_some_and(|at| std::str::from_utf8(&self.body[at..]).is_err()) {
                self.body.truncate(self.body.len() - broken - 1);
            }
        }
        let connection = if truncated { "connection: close\r\n" } else { "" };
        let frame = format!("{}content-length: {}\r\n{connection}\r\n", self.head, self.body.len());
        [frame.into_bytes(), self.body].concat()
    }
}

/// Takes a line from the bytes, without its line end. Returns None if the line is incomplete.
fn take_line(line: &mut Vec<u8>, bytes: &mut &[u8]) -> Option<String> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        line.extend_from_slice(bytes);
        *bytes = &[];
        return None;
    };
    line.extend_from_slice(&bytes[..end]);
    *bytes = &bytes[end + 1..];
    Some(String::from_utf8_lossy(line).trim().to_owned())
}

impl<T: AsyncRead + Unpin> AsyncRead for Bounded<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                let count = this.ready.len().min(out.remaining());
                out.put_slice(&this.ready[..count]);
                this.ready.drain(..count);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                State::Pass => return Pin::new(&mut this.io).poll_read(cx, out),
                State::Truncated => return Poll::Ready(Ok(())),
                State::Head(_) | State::Collect(_) => {
                    let mut bytes = [0; 8 * 1024];
                    let mut read = ReadBuf::new(&mut bytes);
                    ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
                    let filled = read.filled();
                    this.take(filled);
                    if filled.is_empty() && this.ready.is_empty() {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

impl<T> Bounded<T> {
    /// Prepares for the response to a request that is being written.
    fn expect(&mut self) {
        if matches!(self.state, State::Pass) && self.ready.is_empty() {
            self.state = State::Head(Vec::new());
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Bounded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.expect();
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.expect();
        Pin::new(&mut this.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<T: Connection> Connection for Bounded<T> {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bytes that pass for a response that arrives in parts of `size` bytes, and whether it was truncated.
    fn passed(response: &[u8], size: usize) -> (Vec<u8>, bool) {
        let mut bounded = Bounded::new(());
        let mut out = Vec::new();
        for part in response.chunks(size) {
            match bounded.state {
                State::Pass => out.extend_from_slice(part),
                State::Truncated => break,
                _ => bounded.take(part),
            }
            out.append(&mut bounded.ready);
        }
        (out, matches!(bounded.state, State::Truncated))
    }

    #[test]
    fn a_successful_response_passes_unchanged() {
        let body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for response in [&body[..], b"220 smtp.example.com ready\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"] {
            for size in [1, 7, 1000] {
                assert_eq!(passed(response, size), (response.to_vec(), false));
            }
        }
    }

    #[test]
    fn a_short_error_keeps_the_connection_open() {
        let length = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nX-A: b\r\n\r\nabc";
        let chunked = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\nT: u\r\n\r\n";
        let wanted = b"HTTP/1.1 404 Not Found\r\nX-A: b\r\ncontent-length: 3\r\n\r\nabc";
        for size in [1, 7, 1000] {
            for response in [&length[..], chunked] {
                assert_eq!(passed(response, size), (wanted.to_vec(), false));
            }
        }
        let closing = b"HTTP/1.1 404 Not Found\r\nConnection: TE, Close\r\nContent-Length: 0\r\n\r\n";
        let wanted = b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(passed(closing, 7), (wanted.to_vec(), false));
        let early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        let (out, truncated) = passed(early, 9);
        assert!(
            out.ends_with(b"content-length: 0\r\n\r\n") && !truncated,
            "{}",
            String::from_utf8_lossy(&out)
        );
    }

    #[test]
    fn a_long_error_is_truncated_at_a_character_boundary() {
        for text in ["x", "é", "€", "🦀", "x€"] {
            let body = text.repeat(2 * MAX_ERROR_BYTES);
            let heads = [
                format!("HTTP/1.1 500 No\r\nContent-Length: {}\r\n\r\n", body.len()),
                "HTTP/1.1 500 No\r\n\r\n".to_owned(),
                format!(
                    "HTTP/1.1 200 OK\r\nX-ClickHouse-Exception-Code: 60\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                ),
                format!("HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len()),
            ];
            for head in heads {
                let response = [head.as_bytes(), body.as_bytes(), b"more"].concat();
                let (out, truncated) = passed(&response, 8 * 1024);
                let out = String::from_utf8(out).expect("whole characters");
                let (_, kept) = out.split_once("\r\n\r\n").unwrap();
                assert!(
                    kept.len() <= MAX_ERROR_BYTES && kept.len() + 4 > MAX_ERROR_BYTES,
                    "{} bytes of {text}",
                    kept.len()
                );
                assert!(truncated, "the rest of the body is not read");
            }
        }
    }
}
