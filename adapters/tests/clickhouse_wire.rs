//! Invalid responses: truncated, late, misplaced, or not from a ClickHouse server at all. A local port sends them, so
//! no server is needed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clickhouse_fake;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qi_adapters::clickhouse::config::Compression;
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_core::store::{DeleteQuery, PriceStoreExt as _, RangeQuery, StatsQuery};
use qi_core::{Error, ErrorKind, PriceStore, PriceTick, Result, Selection, TimeRange, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// The reaction of the server to a request.
#[derive(Debug, Clone)]
enum Reaction {
    /// Reads the entire request and sends these bytes.
    Respond(Vec<u8>),
    /// Sends these bytes after the headers, and disconnects without reading the rest.
    RespondEarly(Vec<u8>),
    /// Disconnects without a response.
    Disconnect,
}

/// Starts a server that performs the reactions in order, each on a separate connection. It repeats the last reaction
/// indefinitely.
async fn server(reactions: Vec<Reaction>) -> ClickHouseStore {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for n in 0.. {
            let (client, _) = listener.accept().await.unwrap();
            let reaction = reactions[n.min(reactions.len() - 1)].clone();
            tokio::spawn(serve(client, reaction));
        }
    });
    let mut config = ClickHouseConfig::from_url(format!("http://qi:qi@127.0.0.1:{port}"));
    config.write.max_request_records = 1_000_000;
    ClickHouseStore::open(config).unwrap()
}

async fn serve(mut client: TcpStream, reaction: Reaction) {
    let mut seen = Vec::new();
    let head = loop {
        if let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            break String::from_utf8_lossy(&seen[..at]).to_lowercase();
        }
        if client.read_buf(&mut seen).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let is_complete = |seen: &[u8]| {
        let body = seen.len() - head.len() - 4;
        match head.split("content-length: ").nth(1) {
            Some(rest) => body >= rest.lines().next().unwrap().trim().parse().unwrap(),
            None => seen.ends_with(b"\r\n0\r\n\r\n"),
        }
    };
    match reaction {
        Reaction::Disconnect => (),
        Reaction::RespondEarly(bytes) => {
            let _ = client.write_all(&bytes).await;
            let _ = client.shutdown().await;
        }
        Reaction::Respond(bytes) => {
            while !is_complete(&seen) {
                if client.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let _ = client.write_all(&bytes).await;
            let _ = client.shutdown().await;
        }
    }
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Returns a chunked response, as the server streams it. The end is missing if `cut` is true.
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

/// Returns the error of a page of ticks for this response.
async fn read(reaction: Reaction) -> Error {
    let store = server(vec![reaction]).await;
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    let result = tokio::time::timeout(Duration::from_secs(10), store.ticks(&query)).await.unwrap();
    let error = result.expect_err("the page must fail");
    let stats = StatsQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    store.stats(&stats).await.expect_err("the statistics must fail");
    error
}

fn kind_code_retry(error: &Error) -> (ErrorKind, &str, bool) {
    (error.kind(), error.code(), error.retry().is_retryable())
}

/// Returns one row of a requested page: the flag for a full page, the time, the sequence number, the price, and no
/// quantity and no side.
fn row(seq: u64, full: bool) -> Vec<u8> {
    let price = 1_500_000_000_000_000_000_i128;
    let time = 1_700_000_000_000_000_i64;
    [&[u8::from(full)], &time.to_le_bytes()[..], &seq.to_le_bytes(), &price.to_le_bytes(), &[1, 1]].concat()
}

#[tokio::test]
async fn a_valid_response_is_a_page() {
    let rows = [row(1, false), row(2, false)].concat();
    let store = server(vec![Reaction::Respond(streamed("", &[&rows], false))]).await;
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    assert_eq!(store.ticks(&query).await.unwrap().items, ticks(3)[1..]);
}

/// The walk along the key and the rows are read at different times. A page that became short in between is not
/// necessarily the last page.
#[tokio::test]
async fn a_page_with_concurrent_deletions_is_read_again() {
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL).with_limit(2).unwrap();
    let rows = |rows: &[Vec<u8>]| Reaction::Respond(streamed("", &[&rows.concat()], false));
    let [short, whole, last] =
        [&[row(1, true)][..], &[row(1, true), row(2, true), row(3, true)], &[row(1, false)]].map(rows);
    // The retries are limited.
    let error = server(vec![short.clone()]).await.ticks(&query).await.unwrap_err();
    assert_eq!(kind_code_retry(&error), (ErrorKind::Conflict, "store.clickhouse.changing", true));
    let store = server(vec![short, whole.clone()]).await;
    let page = store.ticks(&query).await.unwrap();
    assert!(page.items == ticks(3)[1..] && page.next.is_some());
    // All rows of the page were deleted, but further rows follow.
    let (none, more) =
        (Reaction::Respond(streamed("", &[], false)), Reaction::Respond(streamed("", &[&[1]], false)));
    let store = server(vec![none.clone(), more, whole]).await;
    let page = store.ticks(&query).await.unwrap();
    assert!(page.items == ticks(3)[1..] && page.next.is_some());
    // A page is also short if no further rows exist.
    let page = server(vec![last]).await.ticks(&query).await.unwrap();
    assert!(page.items == ticks(2)[1..] && page.next.is_none());
    let page = server(vec![none]).await.ticks(&query).await.unwrap();
    assert!(page.items.is_empty() && page.next.is_none());
}

#[tokio::test]
async fn an_error_inside_a_response_is_an_error() {
    let text = "Code: 159. DB::Exception: Timeout exceeded: elapsed 9 s. (TIMEOUT_EXCEEDED) (version 25.8.2.29 (official build))\n";
    let rows = row(1, false);
    let after = streamed("", &[&rows, text.as_bytes()], false);
    assert_eq!(
        kind_code_retry(&read(Reaction::Respond(after)).await),
        (ErrorKind::Timeout, "store.clickhouse.timeout", true)
    );
    // The format since version 25.11.
    let tag = "rnywyenlaeqynhmu";
    let tagged = format!("\r\n__exception__\r\n{tag}\r\n{text}{} {tag}\r\n__exception__\r\n", text.len());
    let after =
        streamed(&format!("X-ClickHouse-Exception-Tag: {tag}\r\n"), &[&rows, tagged.as_bytes()], false);
    assert_eq!(
        kind_code_retry(&read(Reaction::Respond(after)).await),
        (ErrorKind::Timeout, "store.clickhouse.timeout", true)
    );
    // Only the header contains the code.
    let header = response("500 Internal Server Error", "X-ClickHouse-Exception-Code: 60\r\n", b"");
    assert_eq!(
        kind_code_retry(&read(Reaction::Respond(header)).await),
        (ErrorKind::SchemaMismatch, "store.clickhouse.no_table", false)
    );
}

#[tokio::test]
async fn a_truncated_response_is_an_error() {
    let rows = row(1, false);
    for reaction in [
        Reaction::Disconnect,
        Reaction::Respond(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()),
        Reaction::Respond(streamed("", &[&rows], true)),
        Reaction::Respond(response("200 OK", "", &rows).split_last_chunk::<20>().unwrap().0.to_vec()),
    ] {
        assert_eq!(
            kind_code_retry(&read(reaction).await),
            (ErrorKind::Unavailable, "store.clickhouse.network", true)
        );
    }
    // Complete as an HTTP response, but truncated within a row.
    let part = streamed("", &[&rows[..30]], false);
    assert_eq!(
        kind_code_retry(&read(Reaction::Respond(part)).await),
        (ErrorKind::CorruptData, "store.clickhouse.value", false)
    );
    for encoding in ["lz4", "gzip", "zstd"] {
        let packed = streamed(&format!("Content-Encoding: {encoding}\r\n"), &[&rows], false);
        let error = read(Reaction::Respond(packed)).await;
        assert_eq!(
            kind_code_retry(&error),
            (ErrorKind::Unavailable, "store.clickhouse.decompression", true),
            "{encoding}"
        );
    }
}

#[tokio::test]
async fn another_http_server_is_rejected() {
    let page = b"<html><head><title>502 Bad Gateway</title></head><body>Error Code: 502. Code: 60. Sorry.</body></html>";
    let error =
        read(Reaction::Respond(response("502 Bad Gateway", "Content-Type: text/html\r\n", page))).await;
    assert_eq!(
        kind_code_retry(&error),
        (ErrorKind::Unavailable, "store.clickhouse.response", true),
        "{}",
        error.report()
    );
    let error = read(Reaction::Respond(response("200 OK", "Content-Type: text/html\r\n", page))).await;
    assert_eq!(kind_code_retry(&error), (ErrorKind::CorruptData, "store.clickhouse.value", false));
    let error = read(Reaction::Respond(b"220 smtp.example.com ready\r\n".to_vec())).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // A server that accepts every request has stored nothing.
    for body in [&b""[..], page] {
        let store = server(vec![Reaction::Respond(response("200 OK", "", body))]).await;
        let result: Result<_> = store.insert_ticks(&ticks(10)).await;
        let error = result.expect_err("nobody has these ticks");
        assert_eq!(error.kind(), ErrorKind::CorruptData, "{}", error.report());
    }
}

#[tokio::test]
async fn an_insert_rejected_early_returns_the_server_error() {
    let text = b"Code: 60. DB::Exception: Table qi.ticks does not exist. (UNKNOWN_TABLE) (version 25.8.2.29 (official build))\n";
    let rejection = response("404 Not Found", "X-ClickHouse-Exception-Code: 60\r\n", text);
    for count in [1, 300_000] {
        let probe = Reaction::Respond(response("200 OK", "", &1_u64.to_le_bytes()));
        let no_bars = Reaction::Respond(rejection.clone());
        let store = server(vec![no_bars, probe, Reaction::RespondEarly(rejection.clone())]).await;
        let error = store.insert_ticks(&ticks(count)).await.unwrap_err();
        assert_eq!(
            kind_code_retry(&error),
            (ErrorKind::SchemaMismatch, "store.clickhouse.no_table", false),
            "{count}: {}",
            error.report()
        );
    }
}

/// Starts a server that responds to a request with this head, and then sends this part repeatedly while the client
/// reads. The receiver gets the number of sent parts after the client disconnects.
async fn endless(head: &str, part: Vec<u8>) -> (ClickHouseStore, tokio::sync::oneshot::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (done, sent) = tokio::sync::oneshot::channel();
    let head = head.to_owned();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 64 * 1024];
        let _ = client.read(&mut request).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        let mut parts = 0;
        while client.write_all(&part).await.is_ok() {
            parts += 1;
        }
        let _ = done.send(parts);
    });
    let mut config = ClickHouseConfig::from_url(format!("http://qi:qi@{address}"));
    config.compression = Compression::None;
    (ClickHouseStore::open(config).unwrap(), sent)
}

/// Returns a chunk of a chunked body.
fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

#[tokio::test]
async fn an_error_page_is_bounded_and_truncated() {
    const MIB: usize = 1024 * 1024;
    let text = "Code: 60. DB::Exception: Table qi.ticks does not exist. (UNKNOWN_TABLE) é".repeat(100_000);
    let exception = "X-ClickHouse-Exception-Code: 60\r\n";
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    let missing = (ErrorKind::SchemaMismatch, "store.clickhouse.no_table", false);
    // Several MiB with a length, both with and without the header of the code.
    for headers in ["", exception] {
        let error = read(Reaction::Respond(response("404 Not Found", headers, text.as_bytes()))).await;
        assert_eq!(kind_code_retry(&error), missing, "{}", error.report());
        let source = error.find_source::<clickhouse::error::Error>().unwrap().to_string();
        assert!(
            source.len() < 8 * 1024 && source.ends_with("(truncated after 4096 bytes)"),
            "{} bytes",
            source.len()
        );
    }
    // Without an end, the client reads a limited part and disconnects.
    let part = &text[..text.floor_char_boundary(64 * 1024)];
    for (head, part) in [
        (
            format!("HTTP/1.1 404 Not Found\r\n{exception}Transfer-Encoding: chunked\r\n\r\n"),
            chunk(part.as_bytes()),
        ),
        (
            "HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            chunk(part.as_bytes()),
        ),
        (
            "HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n".to_owned(),
            part.as_bytes().to_vec(),
        ),
    ] {
        let (store, sent) = endless(&head, part).await;
        assert_eq!(kind_code_retry(&store.ticks(&query).await.unwrap_err()), missing);
        assert!(sent.await.unwrap() * 64 * 1024 < 32 * MIB, "what fits into the buffers of the sockets");
    }
    // The error page of a proxy.
    let page = "<html>".repeat(MIB);
    let error =
        read(Reaction::Respond(response("502 Bad Gateway", "Content-Type: text/html\r\n", page.as_bytes())))
            .await;
    assert_eq!(kind_code_retry(&error), (ErrorKind::Unavailable, "store.clickhouse.response", true));
    assert!(error.find_source::<clickhouse::error::Error>().unwrap().to_string().len() < 8 * 1024);
}

#[tokio::test]
async fn an_endless_response_is_an_error() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    let too_large = (ErrorKind::CorruptData, "store.clickhouse.response_too_large", false);
    let part = chunk(&row(1, false).repeat(10_000));
    let (store, sent) = endless(head, part.clone()).await;
    assert_eq!(kind_code_retry(&store.ticks(&query).await.unwrap_err()), too_large);
    assert!(sent.await.unwrap() > 0);
    // The same applies to a statement that returns no rows.
    let (store, _sent) = endless(head, part).await;
    let error = store.delete_range(&DeleteQuery::ticks(Selection::All, TimeRange::ALL)).await.unwrap_err();
    assert_eq!(kind_code_retry(&error), too_large);
}

/// Starts a server that responds to statements by their text, and logs the address and the text of each request. It
/// keeps a connection open unless the response closes it.
async fn scripted(
    reply: impl Fn(&str, &str) -> Vec<u8> + Send + 'static,
) -> (ClickHouseConfig, Arc<Mutex<Vec<(String, String)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = ClickHouseConfig::from_url(format!("http://qi:qi@{}", listener.local_addr().unwrap()));
    let log = Arc::<Mutex<Vec<(String, String)>>>::default();
    let kept = log.clone();
    tokio::spawn(async move {
        let mut open = None;
        loop {
            let mut client = match open.take() {
                Some(client) => client,
                None => listener.accept().await.unwrap().0,
            };
            let mut seen = Vec::new();
            let (address, body) = loop {
                client.read_buf(&mut seen).await.unwrap();
                let text = String::from_utf8_lossy(&seen).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let whole = match length {
                    Some(length) => body.len() >= length.parse().unwrap(),
                    None => seen.ends_with(b"\r\n0\r\n\r\n"),
                };
                if whole {
                    break (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned());
                }
            };
            let bytes = reply(&address, &body);
            kept.lock().unwrap().push((address, body));
            let _ = client.write_all(&bytes).await;
            open = Some(client).filter(|_| !String::from_utf8_lossy(&bytes).contains("Connection: close"));
        }
    });
    (config, log)
}

fn is_insert(address: &str) -> bool {
    address.contains("query=INSERT")
}

#[tokio::test]
async fn a_reconnect_queries_deduplicate_insert_again() {
    // True if the server knows the setting.
    let knows = Arc::new(AtomicBool::new(false));
    // True if the server is upgraded between the query and the insert.
    let upgrades = Arc::new(AtomicBool::new(false));
    let (now, upgrade) = (knows.clone(), upgrades.clone());
    let (config, log) = scripted(move |address, body| {
        if body.contains("system.settings") {
            let count = u64::from(now.load(Ordering::SeqCst));
            if upgrade.swap(false, Ordering::SeqCst) {
                now.fetch_xor(true, Ordering::SeqCst);
            }
            return response("200 OK", "", &count.to_le_bytes());
        }
        if address.contains("deduplicate_insert=disable") && !now.load(Ordering::SeqCst) {
            let text = b"Code: 115. DB::Exception: Setting deduplicate_insert is unknown. (UNKNOWN_SETTING)";
            return response("404 Not Found", "X-ClickHouse-Exception-Code: 115\r\n", text);
        }
        response("200 OK", "", b"")
    })
    .await;
    let store = ClickHouseStore::open(config).unwrap();
    let last_insert = || {
        let log = std::mem::take(&mut *log.lock().unwrap());
        let (address, _) = log.into_iter().rfind(|(address, _)| is_insert(address)).unwrap();
        address.contains("deduplicate_insert=disable")
    };
    store.insert_ticks(&ticks(1)).await.unwrap();
    assert!(!last_insert());
    // A restart with another version, in both directions. Each connection to this server is new.
    for version in [true, false, true, false] {
        knows.store(version, Ordering::SeqCst);
        store.insert_ticks(&ticks(1)).await.unwrap();
        assert_eq!(last_insert(), version);
    }
    for version in [true, false] {
        upgrades.store(true, Ordering::SeqCst);
        store.insert_ticks(&ticks(1)).await.unwrap();
        assert_eq!(last_insert(), version, "the insert was sent again as the new version needs it");
        assert_eq!(knows.load(Ordering::SeqCst), version);
    }
}

#[tokio::test]
async fn a_rejected_setting_is_queried_again_on_the_same_connection() {
    let knows = Arc::new(AtomicBool::new(true));
    let now = knows.clone();
    let kept = |status: &str, headers: &str, body: &[u8]| {
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        [text.as_bytes(), body].concat()
    };
    let (config, log) = scripted(move |address, body| {
        let knows = now.load(Ordering::SeqCst);
        if body.contains("system.settings") {
            return kept("200 OK", "", &u64::from(knows).to_le_bytes());
        }
        if address.contains("deduplicate_insert=disable") && !knows {
            let text = b"Code: 115. DB::Exception: Setting deduplicate_insert is unknown. (UNKNOWN_SETTING)";
            return kept("404 Not Found", "X-ClickHouse-Exception-Code: 115\r\n", text);
        }
        kept("200 OK", "", b"")
    })
    .await;
    let store = ClickHouseStore::open(config).unwrap();
    store.insert_ticks(&ticks(1)).await.unwrap();
    log.lock().unwrap().clear();
    // A proxy routes the open connection to an older server.
    knows.store(false, Ordering::SeqCst);
    store.insert_ticks(&ticks(1)).await.unwrap();
    let requests = || std::mem::take(&mut *log.lock().unwrap());
    let inserts =
        |log: &[(String, String)]| log.iter().map(|(address, _)| is_insert(address)).collect::<Vec<_>>();
    let seen = requests();
    assert_eq!(inserts(&seen), [true, false, true]);
    assert!(!seen[2].0.contains("deduplicate_insert=disable"));
    // The proxy routes back to a newer server, which rejects nothing. The answer expires after a minute.
    knows.store(true, Ordering::SeqCst);
    store.insert_ticks(&ticks(1)).await.unwrap();
    assert_eq!(inserts(&requests()), [true]);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    store.insert_ticks(&ticks(1)).await.unwrap();
    let seen = requests();
    assert_eq!(inserts(&seen), [false, true]);
    assert!(seen[1].0.contains("deduplicate_insert=disable"));
}

#[tokio::test]
async fn every_request_uses_the_configured_database() {
    let (created, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let (config, log) = scripted(move |address, body| {
        if body.starts_with("CREATE DATABASE") {
            created.store(true, Ordering::SeqCst);
        } else if body.starts_with("INSERT INTO qi_migrations") {
            done.store(true, Ordering::SeqCst);
        } else if !address.contains("database=qi") || !created.load(Ordering::SeqCst) {
            let text = b"Code: 81. DB::Exception: Database does not exist. (UNKNOWN_DATABASE)";
            return response("404 Not Found", "X-ClickHouse-Exception-Code: 81\r\n", text);
        }
        match body {
            sql if sql.contains("system.settings") => response("200 OK", "", &1_u64.to_le_bytes()),
            sql if sql.contains("qi_migrations FINAL") && done.load(Ordering::SeqCst) => {
                response("200 OK", "", &1_u64.to_le_bytes())
            }
            sql if sql.contains("system.columns") && done.load(Ordering::SeqCst) => {
                response("200 OK", "", &clickhouse_fake::columns("", &[("", true)]))
            }
            sql if sql.contains("version()") => response("200 OK", "", b"\x0626.9.1"),
            _ => response("200 OK", "", b""),
        }
    })
    .await;
    let store = ClickHouseStore::open(config).unwrap();
    assert_eq!(store.ping().await.unwrap_err().kind(), ErrorKind::Config);
    let report = store.ensure_schema().await.unwrap();
    assert_eq!(report.applied[0], "database qi");
    assert_eq!(store.ping().await.unwrap().version.as_deref(), Some("26.9.1"));
    store.insert_ticks(&ticks(1)).await.unwrap();
    for (address, body) in log.lock().unwrap().iter() {
        if body.starts_with("CREATE DATABASE") {
            assert!(!address.contains("database="), "{address}");
        } else {
            assert!(address.contains("database=qi"), "{address}");
        }
    }
}

#[tokio::test]
async fn sequential_consistency_is_configurable_without_a_cluster() {
    let (mut config, log) = scripted(|_, body| {
        let answered: &[u8] = if body.contains("system.settings") { &[0; 8] } else { b"" };
        response("200 OK", "", answered)
    })
    .await;
    config.settings.insert("select_sequential_consistency".to_owned(), "1".to_owned());
    let store = ClickHouseStore::open(config).unwrap();
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL);
    assert!(store.ticks(&query).await.unwrap().items.is_empty());
    store.insert_ticks(&ticks(1)).await.unwrap();
    let log = log.lock().unwrap();
    assert!(log.iter().all(|(address, _)| address.contains("select_sequential_consistency=1")), "{log:?}");
}

/// Such a user can add no stale marks.
#[tokio::test]
async fn a_user_without_the_state_of_materialized_bars_changes_no_ticks_that_need_marks() {
    let definitions = [
        ("CREATE TABLE qi.ticks (a Int8, CONSTRAINT qi_bars_marked CHECK a) ENGINE = MergeTree", true),
        ("CREATE TABLE qi.ticks (a Int8) ENGINE = MergeTree", false),
    ];
    for (definition, is_denied) in definitions {
        let (config, log) = scripted(move |_, body| match body {
            sql if sql.contains("qi_bars_state") => {
                let text = b"Code: 497. DB::Exception: qi: Not enough privileges. (ACCESS_DENIED)";
                response("403 Forbidden", "X-ClickHouse-Exception-Code: 497\r\n", text)
            }
            sql if sql.contains("create_table_query") => {
                let length = u8::try_from(definition.len()).unwrap();
                response("200 OK", "", &[&[length][..], definition.as_bytes()].concat())
            }
            sql if sql.contains("system.settings") => response("200 OK", "", &1_u64.to_le_bytes()),
            _ => response("200 OK", "", b""),
        })
        .await;
        let store = ClickHouseStore::open(config).unwrap();
        let ticks = ticks(1);
        let changes = [
            store.insert_ticks(&ticks).await.map(drop),
            store.delete_range(&DeleteQuery::ticks(Selection::All, TimeRange::ALL)).await,
            store.purge_before(PriceTick::DATASET, ticks[0].ts()).await,
        ];
        for change in changes {
            if is_denied {
                let denied = (ErrorKind::Unauthorized, "store.clickhouse.permission", false);
                assert_eq!(kind_code_retry(&change.unwrap_err()), denied);
            } else {
                change.unwrap();
            }
        }
        let log = log.lock().unwrap();
        let is_change =
            |(address, body): &&(String, String)| is_insert(address) || body.starts_with("DELETE");
        let changes = log.iter().filter(is_change).count();
        assert_eq!(changes, if is_denied { 0 } else { 3 });
    }
}
