//! Writing 1,000,000 new ticks, compared with a bare HTTP request of prepared rows.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use qi_adapters::clickhouse::config::Compression;
use qi_benches::{Ratio, ratio, timed};
use qi_core::{PriceTick, Side};

use crate::setup::{Setup, TargetStore};
use crate::ticks::MILLION;

pub(crate) fn run(setup: &Setup) {
    let ticks = setup.market.ticks(0..MILLION);
    let body = row_binary(&ticks);
    let baseline = || on(setup, |target| post(setup, &target.prefix, &body));
    for (compression, word) in [(Compression::None, "without compression"), (Compression::Lz4, "LZ4")] {
        for (batch, size) in [(MILLION, "1,000,000"), (100_000, "100,000")] {
            let ours = || {
                let target = setup.create(|config| config.compression = compression);
                let time = timed(|| {
                    for part in ticks.chunks(batch) {
                        setup
                            .block_on(qi_core::store::PriceStoreExt::insert_ticks(&target.store, part))
                            .expect("a write");
                    }
                });
                assert_eq!(target.count(), MILLION as u64);
                time
            };
            let goal = if batch == MILLION { "goal 0.9" } else { "no goal" };
            let times = ratio(setup.rounds, ours, baseline);
            print_rates(
                &format!("store, {word}, batches of {size} / a bare POST of prepared RowBinary"),
                goal,
                &times,
            );
        }
    }
}

fn on(setup: &Setup, work: impl FnOnce(&TargetStore<'_>)) -> Duration {
    let target = setup.create(|_| ());
    let time = timed(|| work(&target));
    assert_eq!(target.count(), MILLION as u64);
    time
}

/// Sends one request with all rows.
fn post(setup: &Setup, prefix: &str, body: &[u8]) {
    let rest = setup.url.split_once("://").expect("a URL").1;
    let (credentials, host) = rest.split_once('@').expect("credentials");
    let (user, password) = credentials.split_once(':').expect("a password");
    let query = format!("INSERT INTO qi.{prefix}ticks FORMAT RowBinary").replace(' ', "%20");
    let mut stream = TcpStream::connect(host.trim_end_matches('/')).expect("a connection");
    let head = format!(
        "POST /?query={query}&insert_deduplicate=0&max_partitions_per_insert_block=0 HTTP/1.1\r\nHost: {host}\r\n\
         X-ClickHouse-User: {user}\r\nX-ClickHouse-Key: {password}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("a request");
    stream.write_all(body).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Returns the rows in the format of the table.
fn row_binary(ticks: &[PriceTick]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ticks.len() * 80);
    for tick in ticks {
        for name in [tick.instrument().exchange().as_str(), tick.instrument().symbol().as_str()] {
            out.push(u8::try_from(name.len()).expect("a short name"));
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(&tick.ts().as_micros().to_le_bytes());
        out.extend_from_slice(&tick.seq().to_le_bytes());
        out.extend_from_slice(&tick.price().decimal().units().to_le_bytes());
        out.push(0);
        out.extend_from_slice(&tick.quantity().expect("a quantity").decimal().units().to_le_bytes());
        out.push(0);
        out.push(if tick.side() == Some(Side::Buy) { 1 } else { 2 });
    }
    out
}

fn print_rates(what: &str, goal: &str, times: &Ratio) {
    let rate = |time: Duration| MILLION as f64 / time.as_secs_f64();
    println!(
        "{what} ({goal}): {:.2} times its rate (ours {:.0} rows/s, baseline {:.0} rows/s, {} rounds, middle half {:.2} to {:.2})",
        1.0 / times.median,
        rate(times.ours),
        rate(times.baseline),
        times.rounds,
        1.0 / times.quartiles.1,
        1.0 / times.quartiles.0,
    );
}
