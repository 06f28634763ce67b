//! Answers that no good server gives: cut, late, in the wrong place, or of something that is no ClickHouse at all.
//! They come from a port of the test's own, so that no server is needed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_core::store::{RangeQuery, StatsQuery};
use qi_core::{Error, ErrorKind, PriceStore, PriceTick, Result, TimeRange, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with a request.
#[derive(Debug, Clone)]
enum Turn {
    /// Reads the whole request, and sends these bytes.
    Answer(Vec<u8>),
    /// Sends these bytes when it has the headers, and goes away without reading the rest.
    Early(Vec<u8>),
    /// Goes away without a word.
    Gone,
}

/// A server that takes one turn after the other, each on a connection of its own; the last one again and again.
async fn server(turns: Vec<Turn>) -> ClickHouseStore {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for n in 0.. {
            let (client, _) = listener.accept().await.unwrap();
            let turn = turns[n.min(turns.len() - 1)].clone();
            tokio::spawn(serve(client, turn));
        }
    });
    let mut config = ClickHouseConfig::from_url(format!("http://qi:qi@127.0.0.1:{port}"));
    config.write.piece = 1_000_000;
    ClickHouseStore::open(config).unwrap()
}

async fn serve(mut client: TcpStream, turn: Turn) {
    let mut seen = Vec::new();
    let head = loop {
        if let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            break String::from_utf8_lossy(&seen[..at]).to_lowercase();
        }
        if client.read_buf(&mut seen).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let whole = |seen: &[u8]| {
        let body = seen.len() - head.len() - 4;
        match head.split("content-length: ").nth(1) {
            Some(rest) => body >= rest.lines().next().unwrap().trim().parse().unwrap(),
            None => seen.ends_with(b"\r\n0\r\n\r\n"),
        }
    };
    match turn {
        Turn::Gone => (),
        Turn::Early(bytes) => {
            let _ = client.write_all(&bytes).await;
            let _ = client.shutdown().await;
        }
        Turn::Answer(bytes) => {
            while !whole(&seen) {
                if client.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let _ = client.write_all(&bytes).await;
            let _ = client.shutdown().await;
        }
    }
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Chunked, as the server streams; without its end if it is cut.
fn streamed(headers: &str, chunks: &[&[u8]], cut: bool) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n{headers}\r\n");
    let mut out = head.into_bytes();
    for chunk in chunks {
        out.extend(format!("{:x}\r\n", chunk.len()).bytes());
        out.extend_from_slice(chunk);
        out.extend(b"\r\n");
    }
    if !cut {
        out.extend(b"0\r\n\r\n");
    }
    out
}

fn ticks(count: u64) -> Vec<PriceTick> {
    let time = Timestamp::from_secs(1_700_000_000).unwrap();
    let tick = |n| PriceTick::new("x:Y".parse().unwrap(), time, n, "1.5".parse().unwrap()).unwrap();
    (0..count).map(tick).collect()
}

/// What a page of ticks is for this answer.
async fn read(turn: Turn) -> Error {
    let store = server(vec![turn]).await;
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    let result = tokio::time::timeout(Duration::from_secs(10), store.ticks(&query)).await.unwrap();
    let error = result.expect_err("no page comes of such an answer");
    let stats = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    store.stats(&stats).await.expect_err("nor figures");
    error
}

fn of(error: &Error) -> (ErrorKind, &str, bool) {
    (error.kind(), error.code(), error.retry().is_retryable())
}

/// One row of a page as it is asked for: whether the walk along the key filled the page; time, sequence, price, no
/// quantity, no side.
fn row(seq: u64, full: bool) -> Vec<u8> {
    let price = 1_500_000_000_000_000_000_i128;
    let time = 1_700_000_000_000_000_i64;
    [&[u8::from(full)], &time.to_le_bytes()[..], &seq.to_le_bytes(), &price.to_le_bytes(), &[1, 1]].concat()
}

#[tokio::test]
async fn a_good_answer_is_a_page() {
    let rows = [row(1, false), row(2, false)].concat();
    let store = server(vec![Turn::Answer(streamed("", &[&rows], false))]).await;
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    assert_eq!(store.ticks(&query).await.unwrap().items, ticks(3)[1..]);
}

/// The walk along the key and the rows are two looks at the table. A page that got short in between does not say that
/// it is the last one.
#[tokio::test]
async fn a_page_that_was_deleted_from_under_way_is_read_again() {
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL).with_limit(2).unwrap();
    let rows = |rows: &[Vec<u8>]| Turn::Answer(streamed("", &[&rows.concat()], false));
    let [short, whole, last] =
        [&[row(1, true)][..], &[row(1, true), row(2, true), row(3, true)], &[row(1, false)]].map(rows);
    // Not for ever.
    let error = server(vec![short.clone()]).await.ticks(&query).await.unwrap_err();
    assert_eq!(of(&error), (ErrorKind::Conflict, "store.clickhouse.changing", true));
    let store = server(vec![short, whole.clone()]).await;
    let page = store.ticks(&query).await.unwrap();
    assert!(page.items == ticks(3)[1..] && page.next.is_some());
    // All of it is gone, and what comes behind it is there.
    let (none, more) = (Turn::Answer(streamed("", &[], false)), Turn::Answer(streamed("", &[&[1]], false)));
    let store = server(vec![none.clone(), more, whole]).await;
    let page = store.ticks(&query).await.unwrap();
    assert!(page.items == ticks(3)[1..] && page.next.is_some());
    // And what is short because there is no more.
    let page = server(vec![last]).await.ticks(&query).await.unwrap();
    assert!(page.items == ticks(2)[1..] && page.next.is_none());
    let page = server(vec![none]).await.ticks(&query).await.unwrap();
    assert!(page.items.is_empty() && page.next.is_none());
}

#[tokio::test]
async fn an_error_in_the_middle_of_an_answer_is_an_error() {
    let text = "Code: 159. DB::Exception: Timeout exceeded: elapsed 9 s. (TIMEOUT_EXCEEDED) (version 25.8.2.29 (official build))\n";
    let rows = row(1, false);
    let after = streamed("", &[&rows, text.as_bytes()], false);
    assert_eq!(of(&read(Turn::Answer(after)).await), (ErrorKind::Timeout, "store.clickhouse.timeout", true));
    // As the server has it since 25.11.
    let tag = "rnywyenlaeqynhmu";
    let tagged = format!("\r\n__exception__\r\n{tag}\r\n{text}{} {tag}\r\n__exception__\r\n", text.len());
    let after =
        streamed(&format!("X-ClickHouse-Exception-Tag: {tag}\r\n"), &[&rows, tagged.as_bytes()], false);
    assert_eq!(of(&read(Turn::Answer(after)).await), (ErrorKind::Timeout, "store.clickhouse.timeout", true));
    // And where only the header has it.
    let header = answer("500 Internal Server Error", "X-ClickHouse-Exception-Code: 60\r\n", b"");
    assert_eq!(
        of(&read(Turn::Answer(header)).await),
        (ErrorKind::SchemaMismatch, "store.clickhouse.no_table", false)
    );
}

#[tokio::test]
async fn an_answer_that_is_cut_is_no_shorter_page() {
    let rows = row(1, false);
    for turn in [
        Turn::Gone,
        Turn::Answer(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        Turn::Answer(streamed("", &[&rows], true)),
        Turn::Answer(answer("200 OK", "", &rows).split_last_chunk::<20>().unwrap().0.to_vec()),
    ] {
        assert_eq!(of(&read(turn).await), (ErrorKind::Unavailable, "store.clickhouse.network", true));
    }
    // Whole for HTTP, and not for its rows.
    let part = streamed("", &[&rows[..30]], false);
    assert_eq!(
        of(&read(Turn::Answer(part)).await),
        (ErrorKind::CorruptData, "store.clickhouse.value", false)
    );
    for encoding in ["lz4", "gzip", "zstd"] {
        let packed = streamed(&format!("Content-Encoding: {encoding}\r\n"), &[&rows], false);
        let error = read(Turn::Answer(packed)).await;
        assert_eq!(
            of(&error),
            (ErrorKind::Unavailable, "store.clickhouse.decompression", true),
            "{encoding}"
        );
    }
}

#[tokio::test]
async fn what_is_no_clickhouse_is_told_from_it() {
    let page = b"<html><head><title>502 Bad Gateway</title></head><body>Error Code: 502. Code: 60. Sorry.</body></html>";
    let error = read(Turn::Answer(answer("502 Bad Gateway", "Content-Type: text/html\r\n", page))).await;
    assert_eq!(of(&error), (ErrorKind::Unavailable, "store.clickhouse.response", true), "{}", error.report());
    let error = read(Turn::Answer(answer("200 OK", "Content-Type: text/html\r\n", page))).await;
    assert_eq!(of(&error), (ErrorKind::CorruptData, "store.clickhouse.value", false));
    let error = read(Turn::Answer(b"220 smtp.example.com ready\r\n".to_vec())).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // Who says yes to everything has stored nothing.
    for body in [&b""[..], page] {
        let store = server(vec![Turn::Answer(answer("200 OK", "", body))]).await;
        let result: Result<_> = store.insert_ticks(&ticks(10)).await;
        let error = result.expect_err("nobody has these ticks");
        assert_eq!(error.kind(), ErrorKind::CorruptData, "{}", error.report());
    }
}

#[tokio::test]
async fn an_insert_that_is_refused_under_way_is_told_why() {
    let text = b"Code: 60. DB::Exception: Table qi.ticks does not exist. (UNKNOWN_TABLE) (version 25.8.2.29 (official build))\n";
    let refusal = answer("404 Not Found", "X-ClickHouse-Exception-Code: 60\r\n", text);
    for count in [1, 300_000] {
        let probe = Turn::Answer(answer("200 OK", "", &1_u64.to_le_bytes()));
        let store = server(vec![probe, Turn::Early(refusal.clone())]).await;
        let error = store.insert_ticks(&ticks(count)).await.unwrap_err();
        assert_eq!(
            of(&error),
            (ErrorKind::SchemaMismatch, "store.clickhouse.no_table", false),
            "{count}: {}",
            error.report()
        );
    }
}
