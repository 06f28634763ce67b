//! A brief, repeatable run of the fuzz targets. Each target decodes mutations of valid inputs. `QI_FUZZ_RUNS` sets the
//! number of mutations for each target, 20,000 by default. libFuzzer searches longer; see `fuzz/README.md`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cap::Cap;
use qi_adapters::fuzzing;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Prevents other tests from running concurrently, because allocations are counted per process.
fn lock_memory_count() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes that a decoder may allocate for any input, and for each byte of the input.
const ALLOWED_BYTES: usize = 1 << 20;
const ALLOWED_PER_BYTE: usize = 4_096;

/// A xorshift generator, so that every run is the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }

    fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len())]
    }
}

/// Significant parts of the formats: lengths and counts at their limits, signs, and syntax characters.
const FRAGMENTS: [&[u8]; 24] = [
    &[0],
    &[0xFF],
    &[0x7F],
    &[0x80],
    &[0x7F, 0xFF],
    &[0x80, 0],
    &[0xFF; 4],
    &[0x7F, 0xFF, 0xFF, 0xFF],
    &[0x80, 0, 0, 0],
    &[0xFF; 8],
    &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F],
    &[0xC0, 0],
    b"9223372036854775808",
    b"-1",
    b"1e400",
    b"\"",
    b"{\"a\":",
    b"[[[[[[[[[[[[[[[[",
    b"null",
    b".",
    b"=",
    b"\n",
    b"\\u0000",
    "é".as_bytes(),
];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = random.pick(seeds).clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(16)).min(bytes.len());
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at..end, random.pick(&FRAGMENTS).iter().copied())),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            5 => {
                let other = random.pick(seeds);
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => bytes.insert(at, u8::try_from(random.below(256)).unwrap()),
        }
    }
    bytes
}

/// Prints the input of a panic.
struct PrintOnPanic<'a>(&'a [u8]);

impl Drop for PrintOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("input: {}", self.0.escape_ascii());
        }
    }
}

fn run(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    let runs = std::env::var("QI_FUZZ_RUNS").map_or(20_000, |runs| runs.parse().unwrap());
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mutations = (0..runs).map(|_| mutate(&mut random, seeds));
    for input in seeds.iter().cloned().chain(mutations) {
        let shown = PrintOnPanic(&input);
        let before = ALLOCATOR.total_allocated();
        target(shown.0);
        let allocated = ALLOCATOR.total_allocated() - before;
        assert!(allocated <= ALLOWED_BYTES + ALLOWED_PER_BYTE * input.len(), "{allocated} bytes");
    }
}

fn text_seeds(seeds: &[&str]) -> Vec<Vec<u8>> {
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

#[test]
fn any_message_is_decoded_or_rejected() {
    let _guard = lock_memory_count();
    let mut seeds = text_seeds(&[
        r#"{"instrument":"a:B","ts":1,"seq":1,"price":"1.5","quantity":"2","side":"buy"}"#,
        r#"{"instrument":"a:B","ts":1,"seq":1,"bid_price":"1.5","ask_size":"0.000000000000000001"}"#,
        r#"{"instrument":"a:B","interval":"1m","open_time":60000000,"open":"1","high":"2","low":"1","close":"2","volume":"3","count":4}"#,
        r#"{"scope":"global","ts":1,"market_cap_usd":"99999999999999999999","btc_dominance":"50","source":"x"}"#,
    ]);
    for seed in &mut seeds {
        seed.insert(0, 9);
    }
    seeds.push([&[0][..], b"application/json;charset=UTF-8\n", &seeds[0][1..]].concat());
    seeds.push([&[1][..], b"tick\n", &seeds[0][1..]].concat());
    seeds.push([&[2][..], b"1\n", &seeds[0][1..]].concat());
    // Too large for a mutation.
    for nested in ["[", r#"{"a":"#] {
        fuzzing::codecs(format!("\u{9}{}", nested.repeat(100_000)).as_bytes());
        seeds.push(format!("\u{9}{}", nested.repeat(200)).into_bytes());
    }
    run(fuzzing::codecs, &seeds);
}

#[test]
fn any_text_is_parsed_or_rejected() {
    let _guard = lock_memory_count();
    let seeds = [
        "1.5",
        "-99999999999999999999.999999999999999999",
        "2024-01-31T12:00:00.123456Z",
        "binance:BTC-USDT",
        "1m",
        "asset:BTC",
        "exchange:kraken",
        "global",
    ];
    run(fuzzing::texts, &text_seeds(&seeds));
}

#[test]
fn any_configuration_is_accepted_or_rejected() {
    let _guard = lock_memory_count();
    let files = [
        include_str!("../../examples/config/timescale.toml"),
        include_str!("../../examples/config/clickhouse.toml"),
        "[store]\nbackend = \"memory\"\n[store.retry]\nattempts = 5\n[bus]\nbackend = \"memory\"\n",
        "\0QI__STORE__TIMESCALE__PASSWORD=12345\nQI__BUS__REDPANDA__BROKERS=a:1,b:2\nQI__STORE__MEMORY__MAX_ROWS=1_000",
        "[bus.redpanda.properties]\n\"socket.timeout.ms\" = 1000\n[bus.topics.crypto-prices]\npartitions = 3\n",
    ];
    let mut seeds = text_seeds(&files);
    // Too large for a mutation. An environment variable has at most 128 KiB on Linux.
    for nested in [
        "[".repeat(10_000),
        format!("a = {}", "[".repeat(10_000)),
        format!("{}a = 1", "a.".repeat(10_000)),
        format!("\0QI__{}A=1", "A__".repeat(43_000)),
    ] {
        fuzzing::configuration(nested.as_bytes());
    }
    for nested in [format!("a = {}", "[".repeat(100)), format!("{}a = 1", "a.".repeat(100))] {
        seeds.push(nested.into_bytes());
    }
    run(fuzzing::configuration, &seeds);
}

#[test]
fn any_cursor_is_opened_or_rejected() {
    let _guard = lock_memory_count();
    let seeds =
        ["s", "p1700000000000000.7", "t-62135596800000000", "ibinance:BTC-USDT", "cglobal", "casset:BTC"];
    run(fuzzing::cursors, &text_seeds(&seeds));
}

#[test]
fn any_numeric_is_decoded_or_rejected() {
    let _guard = lock_memory_count();
    let forms: [&[u16]; 6] = [
        &[0, 0, 0, 18],
        &[1, 0, 0x4000, 18, 1],
        &[3, 1, 0, 18, 1, 2345, 5000],
        &[10, 4, 0, 18, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9900],
        &[1, 0x7FFF, 0, 0, 1],
        &[0, 0, 0xC000, 0],
    ];
    let bytes = |form: &&[u16]| form.iter().flat_map(|word| word.to_be_bytes()).collect();
    run(fuzzing::numeric, &forms.iter().map(bytes).collect::<Vec<_>>());
}

#[test]
fn any_rows_are_decoded_or_rejected() {
    let _guard = lock_memory_count();
    let time = 1_700_000_040_000_000_i64.to_le_bytes();
    let one = 1_000_000_000_000_000_000_i128.to_le_bytes();
    let (seq, none) = (7_u64.to_le_bytes(), [1_u8]);
    let present = [&[0][..], &one].concat();
    let tick = [&time[..], &seq, &one, &present, &[0, 1]].concat();
    let quote = [&time[..], &seq, &present, &none, &present, &none].concat();
    let bar = [&time[..], &one, &one, &one, &one, &present, &none, &[0], &seq].concat();
    let snapshot = [&time[..], &[1; 8], &[0, 3], b"src"].concat();
    run(fuzzing::row_binary, &[tick.repeat(2), quote, bar, snapshot]);
}

#[test]
fn any_assignment_is_decoded_or_rejected() {
    let _guard = lock_memory_count();
    let seed = [
        &[0, 1, 0, 0, 0, 2][..],
        &[0, 1, b'b', 0, 0, 0, 1, 0, 0, 0, 7],
        &[0, 1, b'a', 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1],
        &[255, 255, 255, 255],
    ]
    .concat();
    run(fuzzing::group_assignment, &[seed, vec![0, 1, 0x7F, 0xFF, 0xFF, 0xFF]]);
}
