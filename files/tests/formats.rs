//! One sample of each format. The count, the first and last record, the sum and the bars are compared with an
//! independent computation by `check_files.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use qi_core::datasets::resample;
use qi_core::store::{BarQuery, BarSource};
use qi_core::{
    Bar, Decimal, Error, Instrument, Interval, PriceStore, PriceStoreExt as _, PriceTick, Quantity, TimeRange,
};
use qi_files::{Data, FileOptions, Files, Format, Input, Source, open};
use qi_testkit::store::MemoryStore;

struct Sample {
    file: &'static str,
    /// The arguments of `check_files.py` after the file.
    check: [&'static str; 5],
    instrument: &'static str,
    /// True if the name or the lines of the file contain the instrument.
    names_itself: bool,
    columns: Option<&'static str>,
    /// True if the file has other instruments too.
    is_mixed: bool,
}

const fn sample(file: &'static str, check: [&'static str; 5], instrument: &'static str) -> Sample {
    Sample { file, check, instrument, names_itself: true, columns: None, is_mixed: false }
}

const fn anonymous(file: &'static str, check: [&'static str; 5]) -> Sample {
    Sample { file, check, instrument: "x:Y", names_itself: false, columns: None, is_mixed: false }
}

const MS: &str = "1000";
const US: &str = "1000000";
const NS: &str = "1000000000";
const MIXED: Sample = sample(
    "binance-futures_trades_2025-01-02_PERPETUALS.csv",
    ["trades", ",", "1", US, "2,6,7,5,4"],
    "binance-futures:BTCUSDT",
);

const SAMPLES: &[Sample] = &[
    sample("BTCUSDT-trades-2024-12-31.csv", ["trades", ",", "0", MS, "4,1,2,5,0"], "binance:BTCUSDT"),
    sample("BTCUSDT-trades-2025-01-01.csv", ["trades", ",", "0", US, "4,1,2,5,0"], "binance:BTCUSDT"),
    sample("BTCUSDT-aggTrades-2025-01-01.csv", ["trades", ",", "0", US, "5,1,2,6,0"], "binance:BTCUSDT"),
    sample("ETHUSDT-trades-2025-01-02.csv", ["trades", ",", "1", MS, "4,1,2,5,0"], "binance-futures:ETHUSDT"),
    sample(
        "BTCUSD_PERP-aggTrades-2025-01-02.csv",
        ["trades", ",", "1", MS, "5,1,2,6,0"],
        "binance-delivery:BTCUSD_PERP",
    ),
    anonymous("BTCUSDT-1m-2025-01-01.csv", ["candles", ",", "0", US, "0,1,2,3,4,5,8"]),
    anonymous("ETHUSDT-1h-2025-01.csv", ["candles", ",", "1", MS, "0,1,2,3,4,5,8"]),
    sample("XBTEUR.csv", ["trades", ",", "0", "1", "0,1,2,-,-"], "kraken:XBTEUR"),
    sample("XBTEUR_60.csv", ["candles", ",", "0", "1", "0,1,2,3,4,5,6"], "kraken:XBTEUR"),
    sample("kraken-trades.json", ["trades", ",", "0", "1", "2,0,1,3,6"], "kraken:XXBTZUSD"),
    sample("kraken-ohlc.json", ["candles", ",", "0", "1", "0,1,2,3,4,6,7"], "kraken:XXBTZUSD"),
    sample("BTCUSDT_2025-01-01.csv", ["trades", ",", "1", MS, "1,2,3,4,0"], "bybit-spot:BTCUSDT"),
    sample("BTCUSDT2025-01-01.csv", ["trades", ",", "1", "1", "0,4,3,2,-"], "bybit:BTCUSDT"),
    sample("BTC-USDT-SWAP-trades-2025-01-01.csv", ["trades", ",", "1", MS, "5,3,4,2,1"], "okx:BTC-USDT-SWAP"),
    sample("BTC-USDT-trades-2022-01-01.csv", ["trades", ",", "1", MS, "4,3,2,1,0"], "okx:BTC-USDT"),
    sample(
        "binance-futures_trades_2025-01-01_BTCUSDT.csv",
        ["trades", ",", "1", US, "2,6,7,5,4"],
        "binance-futures:BTCUSDT",
    ),
    Sample {
        columns: Some("time=0,price=1,quantity=2"),
        ..anonymous("quirks.csv", ["trades", ";", "1", US, "0,1,2,-,-"])
    },
    Sample {
        columns: Some("time_us=when,price=last,quantity=amount traded"),
        ..anonymous("quirks.csv", ["trades", ";", "1", US, "0,1,2,-,-"])
    },
    anonymous("pandas.csv", ["candles", ",", "1", "date", "0,1,2,3,4,5,-"]),
    anonymous("seconds.csv", ["candles", ",", "1", "1", "0,1,2,3,4,5,-"]),
    anonymous("millis.csv", ["candles", ",", "1", MS, "0,1,2,3,4,5,-"]),
    anonymous("micros.csv", ["candles", ",", "1", US, "0,1,2,3,4,5,-"]),
    sample("ADAUSDT-trades-2025-02-01.csv", ["trades", ",", "1", US, "4,1,2,5,0"], "binance:ADAUSDT"),
    sample("ADAUSDT-aggTrades-2024-02-01.csv", ["trades", ",", "0", MS, "5,1,2,6,0"], "binance:ADAUSDT"),
    sample("SOLUSDT-trades-2020-10-01.csv", ["trades", ",", "0", MS, "4,1,2,5,0"], "binance-futures:SOLUSDT"),
    sample(
        "SOLUSDT-aggTrades-2020-10-01.csv",
        ["trades", ",", "0", MS, "5,1,2,6,0"],
        "binance-futures:SOLUSDT",
    ),
    anonymous("SOLUSDT-5m-2020-10-01.csv", ["candles", ",", "0", MS, "0,1,2,3,4,5,8"]),
    anonymous("kraken-rest.csv", ["trades", ",", "0", "1", "2,0,1,3,5"]),
    anonymous("nanos.csv", ["trades", ",", "1", NS, "0,1,2,3,4"]),
    anonymous("tabs.tsv", ["trades", "\t", "1", "date", "0,1,2,-,-"]),
    anonymous("ohlcvt-millis.csv", ["candles", ",", "0", MS, "0,1,2,3,4,5,6"]),
    Sample { is_mixed: true, ..MIXED },
    Sample { is_mixed: true, instrument: "binance-futures:ETHUSDT", ..MIXED },
    Sample { is_mixed: true, instrument: "binance-futures:1000SHIBUSDT", ..MIXED },
];

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

fn options(sample: &Sample) -> FileOptions {
    let instrument = (!sample.names_itself).then(|| sample.instrument.parse::<Instrument>().unwrap());
    let columns = sample.columns.map(|columns| columns.parse::<qi_files::ColumnMap>().unwrap());
    FileOptions::default().instrument(instrument).columns(columns)
}

/// Returns the records, the bad lines, and the error that ended the source.
fn read<T>(source: Source<T>) -> (Vec<T>, Vec<Error>, Option<Error>) {
    let (mut records, mut bad) = (Vec::new(), Vec::new());
    for record in source {
        match record {
            Ok(record) => records.push(record),
            Err(Input::BadLine(error)) => bad.push(error),
            Err(Input::Fatal(error)) => return (records, bad, Some(error)),
            Err(_) => {}
        }
    }
    (records, bad, None)
}

fn complete<T>(source: Source<T>) -> Vec<T> {
    let (records, bad, broken) = read(source);
    assert!(bad.is_empty() && broken.is_none(), "{bad:?} {broken:?}");
    records
}

/// Returns the records in the output format of `check_files.py`.
async fn report(files: Files, instrument: &Instrument, is_mixed: bool) -> String {
    let mut text = String::new();
    let (count, ends, sum, bars) = match files.data {
        Data::Trades(source) => {
            let mut trades = complete(source);
            if is_mixed {
                trades.retain(|trade| trade.instrument() == instrument);
            }
            let show = |trade: &PriceTick| {
                let side = trade.side().map(|side| side.to_string()).unwrap_or_default();
                let (time, seq) = (trade.ts().as_micros(), trade.seq());
                format!("{time} {seq} {} {} {side}", trade.price(), trade.quantity().unwrap())
            };
            let sum = trades.iter().fold(Decimal::ZERO, |sum, trade| {
                sum.checked_add(trade.quantity().unwrap().decimal()).unwrap()
            });
            assert!(trades.iter().all(|trade| trade.instrument() == instrument));
            let store = Arc::new(MemoryStore::default());
            store.ensure_schema().await.unwrap();
            store.insert_ticks(&trades).await.unwrap();
            let query = BarQuery::new(instrument.clone(), Interval::M1, TimeRange::ALL);
            let bars: Vec<Bar> =
                futures::TryStreamExt::try_collect(store.bar_stream(query, BarSource::Derived))
                    .await
                    .unwrap();
            let ends = [show(&trades[0]), show(trades.last().unwrap())];
            (trades.len(), ends, sum, bars)
        }
        Data::Candles(source, _) => {
            let candles = complete(source);
            let show = |candle: &Bar| {
                let values = candle.values();
                let count = values.count.map(|count| count.to_string()).unwrap_or_default();
                let (open, high, low, close) = (values.open, values.high, values.low, values.close);
                let time = candle.open_time().as_micros();
                format!("{time} {open} {high} {low} {close} {} {count}", values.volume.unwrap())
            };
            let sum = candles.iter().fold(Decimal::ZERO, |sum, candle| {
                sum.checked_add(candle.values().volume.unwrap().decimal()).unwrap()
            });
            assert!(candles.iter().all(|candle| candle.instrument() == instrument));
            let ends = [show(&candles[0]), show(candles.last().unwrap())];
            (candles.len(), ends, sum, resample(&candles, Interval::H1).unwrap())
        }
    };
    let [first, last] = ends;
    writeln!(text, "{count}\n{first}\n{last}\n{sum}").unwrap();
    for bar in bars {
        let values = bar.values();
        let (open, high, low, close) = (values.open, values.high, values.low, values.close);
        let count = values.count.map(|count| count.to_string()).unwrap_or_default();
        let (time, volume) = (bar.open_time().as_micros(), values.volume.unwrap());
        writeln!(text, "{time} {open} {high} {low} {close} {volume} {count}").unwrap();
    }
    text
}

async fn compare(sample: &Sample, path: &Path) {
    let instrument: Instrument = sample.instrument.parse().unwrap();
    let check = Command::new("python3")
        .arg(folder().join("check_files.py"))
        .arg(folder().join("samples").join(sample.file))
        .args(sample.check)
        .args(sample.is_mixed.then(|| instrument.symbol().as_str()))
        .output()
        .unwrap();
    assert!(check.status.success(), "{}: {}", sample.file, String::from_utf8_lossy(&check.stderr));
    let files = open(&[path.to_owned()], &options(sample)).unwrap();
    if !sample.is_mixed {
        assert_eq!(files.instruments, std::slice::from_ref(&instrument), "{}", sample.file);
    }
    let (progress, found) = (files.progress.clone(), report(files, &instrument, sample.is_mixed).await);
    assert_eq!(found, String::from_utf8(check.stdout).unwrap(), "{}", path.display());
    let size = std::fs::metadata(path).unwrap().len();
    assert!(progress.total() <= size && progress.read() == progress.total(), "{progress:?} of {size}");
}

#[tokio::test]
async fn every_format_equals_an_independent_computation() {
    for sample in SAMPLES {
        compare(sample, &folder().join("samples").join(sample.file)).await;
    }
}

#[tokio::test]
async fn every_compression_is_recognised_by_its_content() {
    let script = "import gzip, sys, zipfile\n\
        data = open(sys.argv[1], 'rb').read(); name = sys.argv[2]; half = len(data) // 2\n\
        open('members', 'wb').write(gzip.compress(data[:half]) + bytes(7) + gzip.compress(data[half:]) + bytes(5000))\n\
        zipfile.ZipFile('deflated', 'w', zipfile.ZIP_DEFLATED).write(sys.argv[1], name)\n\
        zipfile.ZipFile('stored', 'w').write(sys.argv[1], name)\n\
        inner = zipfile.ZipFile('inner', 'w'); inner.writestr(name + '.gz', gzip.compress(data))\n\
        inner.writestr('__MACOSX/._x', 'junk')\n";
    for sample in SAMPLES {
        let (work, path) = (tempfile::tempdir().unwrap(), folder().join("samples").join(sample.file));
        let made = Command::new("python3")
            .current_dir(&work)
            .args(["-c", script])
            .args([path.as_os_str(), sample.file.as_ref()])
            .status();
        assert!(made.unwrap().success());
        for archive in ["deflated", "stored", "inner"] {
            compare(sample, &work.path().join(archive)).await;
        }
        if sample.names_itself && !sample.file.contains(".json") {
            std::fs::rename(work.path().join("members"), work.path().join(format!("{}.gz", sample.file)))
                .unwrap();
            compare(sample, &work.path().join(format!("{}.gz", sample.file))).await;
        } else {
            compare(sample, &work.path().join("members")).await;
        }
        let content = std::fs::read(&path).unwrap();
        let (one, two) = content.split_at(content.len() / 2);
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let mut frames = ruzstd::encoding::compress_to_vec(one, level);
        // A skippable frame, as pzstd writes it.
        frames.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        frames.extend(ruzstd::encoding::compress_to_vec(two, level));
        let packed = work.path().join(format!("{}.zst", sample.file));
        std::fs::write(&packed, frames).unwrap();
        compare(sample, &packed).await;
    }
}

fn file(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_ref()).unwrap();
    file
}

fn named() -> FileOptions {
    FileOptions::default().instrument("x:Y".parse::<Instrument>().unwrap())
}

fn trades(content: impl AsRef<[u8]>, options: &FileOptions) -> (Vec<PriceTick>, Vec<Error>, Option<Error>) {
    let file = file(content);
    match open(&[file.path().to_owned()], options).unwrap().data {
        Data::Trades(source) => read(source),
        Data::Candles(..) => panic!("trades"),
    }
}

#[test]
fn bad_lines_are_named_and_the_others_continue() {
    let content = b"trade_id,price,quantity,time_ms,buyer_maker\n1,5,1,1610064000278,true\n\nx,5,1,1,true\n2,0,1,1610064000278,true\r\n\xff\xfe\n3,5,1,1610064000279,no\n4,5,1,1610064000280,false";
    let (found, bad, _) = trades(content, &named());
    assert_eq!(found.iter().map(PriceTick::seq).collect::<Vec<_>>(), [1, 4]);
    let lines: Vec<_> = bad.iter().map(|e| e.context_value("line").unwrap()).collect();
    assert_eq!(lines, ["4", "5", "6", "7"]);
}

#[test]
fn a_unit_that_differs_from_the_header_is_a_bad_line() {
    for time in ["1735689600012345", "1735689600", "1735689600012345678"] {
        let content = format!("trade_id,price,quantity,time_ms,buyer_maker\n1,93576.0,0.00012,{time},true\n");
        let (found, bad, _) = trades(content, &named());
        assert!(found.is_empty() && bad[0].report().contains("milliseconds"), "{bad:?}");
    }
    let native = "1,93576.0,0.00012,11.2,1735689600,True,True\n";
    let (found, bad, _) = trades(native, &named());
    assert!(found.is_empty() && bad[0].report().contains("milliseconds"), "{bad:?}");
}

#[test]
fn the_longest_line_bounds_the_memory() {
    let mut content = b"1700000000,5,1\n".to_vec();
    content.extend(vec![b'9'; 200_000]);
    content.extend_from_slice(b"\n1700000001,5,1\n");
    let (found, bad, broken) = trades(&content, &named());
    assert_eq!((found.len(), bad.len(), broken.is_none()), (2, 1, true));
    let mut endless = b"1700000000,5,1\n".to_vec();
    endless.extend(vec![0; 20 << 20]);
    let (found, bad, broken) = trades(&endless, &named());
    assert_eq!((found.len(), bad.len(), broken.unwrap().code()), (1, 0, "files.broken"));
}

#[test]
fn a_damaged_file_ends_with_an_error() {
    let mut content = String::new();
    for n in 0..50_000 {
        writeln!(content, "{},{},1", 1_700_000_000 + n, n * 7_919 % 100_003 + 1).unwrap();
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(content.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd =
        ruzstd::encoding::compress_to_vec(content.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    let mut garbage = gzip.clone();
    garbage.extend_from_slice(b"garbage");
    for (damaged, complete) in
        [(&gzip[..gzip.len() / 2], false), (&garbage[..], true), (&zstd[..zstd.len() / 2], false)]
    {
        let (found, bad, broken) = trades(damaged, &named());
        assert!(found.len() > 100 && (found.len() == 50_000) == complete, "{}", found.len());
        assert!(bad.len() <= 1 && broken.unwrap().code() == "files.broken");
    }
}

#[test]
fn checksum_file_in_the_same_folder_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("XBTEUR.csv");
    std::fs::write(&path, "1700000000,5,1\n").unwrap();
    let checksum = folder.path().join("XBTEUR.csv.CHECKSUM");
    let verified = |options: &FileOptions| {
        let Data::Trades(mut source) = open(std::slice::from_ref(&path), options)?.data else {
            panic!("trades")
        };
        let Some(Err(Input::File(start))) = source.next() else { panic!("the start of the file") };
        Ok::<_, Error>(start.is_verified)
    };
    let options = FileOptions::default();
    assert!(!verified(&options).unwrap());
    let sum = Command::new("sha256sum").arg(&path).output().unwrap().stdout;
    std::fs::write(&checksum, sum).unwrap();
    assert!(verified(&options).unwrap());
    std::fs::write(&path, "1700000000,5,2\n").unwrap();
    assert_eq!(verified(&options).unwrap_err().code(), "files.checksum");
    std::fs::write(&checksum, "no checksum").unwrap();
    assert_eq!(verified(&options).unwrap_err().code(), "files.checksum");
}

#[test]
fn candles_of_unknown_interval_are_rejected_with_a_hint() {
    let header = "timestamp,open,high,low,close,volume\n";
    let at = |times: &[&str]| {
        times.iter().fold(header.to_owned(), |text, time| format!("{text}2024-03-01 {time},1,1,1,1,1\n"))
    };
    let aligned = file(at(&["00:00:00", "00:15:00", "00:45:00", "01:30:00"]));
    let path = [aligned.path().to_owned()];
    let error = open(&path, &named()).unwrap_err();
    assert!(error.report().contains("--input-interval"), "{}", error.report());
    let Data::Candles(source, interval) = open(&path, &named().interval(Interval::M1)).unwrap().data else {
        panic!("candles")
    };
    assert_eq!((complete(source).len(), interval), (4, Interval::M1));
    let sparse = file(at(&["00:00:00", "00:15:00", "00:45:00", "01:31:00", "02:30:30", "03:17:00"]));
    let Data::Candles(source, interval) = open(&[sparse.path().to_owned()], &named()).unwrap().data else {
        panic!("candles")
    };
    let (found, bad, _) = read(source);
    assert_eq!((found.len(), bad.len(), interval), (5, 1, Interval::M1), "a row off the grid is a bad line");
}

#[test]
fn several_files_are_read_in_their_order() {
    let files = [file("1700000000,5,1\n"), file(""), file("1700000001,6,1\n1700000001,7,1\n")];
    let paths = files.each_ref().map(|file| file.path().to_owned());
    let Data::Trades(source) = open(&paths, &named()).unwrap().data else { panic!("trades") };
    let found = complete(source);
    assert_eq!(found.iter().map(PriceTick::seq).collect::<Vec<_>>(), [0, 0, 1]);
    let candles = file("2024-03-01 00:00:00,1,1,1,1,1\n2024-03-01 00:01:00,1,1,1,1,1\n");
    let error = open(&[paths[0].clone(), candles.path().to_owned()], &named()).unwrap_err();
    assert_eq!(error.code(), "files.kind");
}

#[test]
fn unknown_file_is_rejected_or_read_as_the_given_format() {
    let unknown = file("hello\nworld\n");
    let path = [unknown.path().to_owned()];
    assert_eq!(open(&path, &named()).unwrap_err().code(), "files.format");
    let Data::Trades(source) = open(&path, &named().format(Format::Kraken)).unwrap().data else {
        panic!("trades")
    };
    assert_eq!(read(source).1.len(), 2);
    let anonymous = file("1700000000,5,1\n");
    let error = open(&[anonymous.path().to_owned()], &FileOptions::default()).unwrap_err();
    assert!(error.report().contains("--instrument"), "{}", error.report());
}

#[test]
fn the_arrays_of_a_json_document_determine_the_kind_of_records() {
    let path = [folder().join("samples/kraken-ohlc.json")];
    let files = open(&path, &FileOptions::default().format(Format::Candles)).unwrap();
    assert!(matches!(files.data, Data::Candles(..)), "{files:?}");
    let files = open(&path, &FileOptions::default().format(Format::KrakenRest)).unwrap();
    assert!(matches!(files.data, Data::Candles(..)), "{files:?}");
}

#[test]
fn a_format_reads_the_candles_of_its_publisher_and_rejects_others() {
    let sample = |name: &str| folder().join("samples").join(name);
    for (name, format) in [
        ("BTCUSDT-1m-2025-01-01.csv", Format::Binance),
        ("ETHUSDT-1h-2025-01.csv", Format::Binance),
        ("XBTEUR_60.csv", Format::Kraken),
        ("kraken-ohlc.json", Format::KrakenRest),
        ("kraken-ohlc.json", Format::Kraken),
        ("seconds.csv", Format::Candles),
    ] {
        let files = open(&[sample(name)], &named().format(format)).unwrap();
        let Data::Candles(source, _) = files.data else { panic!("{name}") };
        assert!(complete(source).len() > 20, "{name}");
    }
    for (name, format, kind) in [
        ("XBTEUR_60.csv", Format::Binance, "candles"),
        ("BTCUSDT-1m-2025-01-01.csv", Format::Kraken, "candles"),
        ("kraken-ohlc.json", Format::Binance, "candles"),
        ("seconds.csv", Format::Okx, "candles"),
        ("XBTEUR.csv", Format::Candles, "trades"),
        ("SOLUSDT-trades-2020-10-01.csv", Format::Candles, "trades"),
        ("nanos.csv", Format::Candles, "trades"),
        ("kraken-trades.json", Format::Candles, "trades"),
    ] {
        let error = open(&[sample(name)], &named().format(format)).unwrap_err();
        assert_eq!(error.code(), "files.kind", "{name}");
        assert!(error.report().contains(&format!("the file contains {kind}")), "{}", error.report());
    }
    // Seven numbers are candles without the option.
    let (found, bad, _) = trades("1,5,2,10,1735689600000,0,1\n", &named().format(Format::Binance));
    assert_eq!((found.len(), bad.len()), (1, 0));
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

fn answer(pair: &str, trades: u32) -> String {
    let trades: Vec<_> = (1..=trades)
        .map(|n| {
            format!(
                r#"["30244.87000","0.97224000",{}.0000007,"s","m","",{}]"#,
                1_735_689_600 + n,
                61_000_000 + n
            )
        })
        .collect();
    format!(r#"{{"error":[],"result":{{"{pair}":[{}],"last":"1735689700000000000"}}}}"#, trades.join(","))
}

/// Writes a file with this name and opens it.
fn open_named(
    name: &str,
    content: &[u8],
    options: &FileOptions,
) -> (tempfile::TempDir, Result<Files, Error>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    let files = open(&[path], options);
    (folder, files)
}

#[test]
fn a_json_document_in_one_long_line_is_read() {
    let text = answer("XXBTZUSD", 1_000);
    assert!(text.len() > 64 << 10);
    let csv = file("1700000000,5,1\n");
    let kraken = "kraken:XXBTZUSD".parse::<Instrument>().unwrap();
    for content in
        [text.clone().into_bytes(), gzip(text.as_bytes()), format!("\u{feff}\n\n{text}").into_bytes()]
    {
        let json = file(content);
        let alone = open(&[json.path().to_owned()], &FileOptions::default()).unwrap();
        assert_eq!(alone.instruments, std::slice::from_ref(&kraken));
        let Data::Trades(source) = alone.data else { panic!("trades") };
        let found = complete(source);
        assert_eq!((found.len(), found[999].seq()), (1_000, 61_001_000));
        assert!(found.iter().all(|trade| *trade.instrument() == kraken));
        for paths in [[csv.path(), json.path()], [json.path(), csv.path()]] {
            let files = open(&paths.map(Path::to_owned), &named()).unwrap();
            let Data::Trades(source) = files.data else { panic!("trades") };
            assert_eq!(complete(source).len(), 1_001);
        }
    }
}

#[test]
fn a_json_document_over_several_lines_is_read() {
    let read = |content: String| {
        let file = file(content);
        let options = FileOptions::default().interval(Interval::M1);
        let files = open(&[file.path().to_owned()], &options).unwrap();
        match files.data {
            Data::Trades(source) => format!("{:?} {:?}", files.instruments, complete(source)),
            Data::Candles(source, _) => format!("{:?} {:?}", files.instruments, complete(source)),
        }
    };
    for name in ["kraken-trades.json", "kraken-ohlc.json"] {
        let text = std::fs::read_to_string(folder().join("samples").join(name)).unwrap();
        let indented =
            text.replace('[', "[\n\t  ").replace(',', ",\r\n    ").replace(']', "\n]").replace(':', " : ");
        assert_eq!(read(indented), read(text), "{name}");
    }
}

#[test]
fn file_with_a_long_first_line_is_rejected() {
    let rows = "1700000000,5,1\r".repeat(10_000);
    for content in
        [rows.clone(), format!("time,price,quantity\r{rows}"), format!("\n{rows}\n1700000000,5,1\n")]
    {
        for content in [content.as_bytes().to_vec(), gzip(content.as_bytes())] {
            let file = file(content);
            for columns in [None, Some("time=0,price=1"), Some("time=time,price=price")] {
                let columns = columns.map(|columns| columns.parse::<qi_files::ColumnMap>().unwrap());
                for format in [None, Some(Format::Kraken)] {
                    let options = named().format(format).columns(columns.clone());
                    let error = open(&[file.path().to_owned()], &options).unwrap_err();
                    assert_eq!(error.code(), "files.format", "{}", error.report());
                }
            }
        }
    }
    let blank = format!("{}1700000000,5,1\n", "\n".repeat(100));
    assert_eq!(trades(blank, &named()).0.len(), 1, "lines after empty lines");
}

#[test]
fn a_date_and_a_time_of_day_are_joined() {
    let times = |content: &str| -> Vec<String> {
        let file = file(content);
        match open(&[file.path().to_owned()], &named().interval(Interval::M1)).unwrap().data {
            Data::Trades(source) => complete(source).iter().map(|trade| trade.ts().to_string()).collect(),
            Data::Candles(source, _) => {
                complete(source).iter().map(|bar| bar.open_time().to_string()).collect()
            }
        }
    };
    let wanted = ["2025-01-02T00:01:00Z", "2025-01-02T13:02:00Z"]
        .map(|t| t.parse::<qi_core::Timestamp>().unwrap().to_string());
    for content in [
        "date,time,open,high,low,close,volume\n2025-01-02,00:01,1,1,1,1,1\n2025-01-02,13:02:00,1,1,1,1,1\n",
        "Time;Date;Open;High;Low;Close\n00:01:00;2025-01-02;1;1;1;1\n13:02:00;2025-01-02;1;1;1;1\n",
        "date,time,price,quantity\n2025-01-02,00:01:00.000,5,1\n2025-01-02,13:02:00.000,5,1\n",
        // A complete time does not need the date.
        "unix,date,open,high,low,close\n1735776060,2025-01-02,1,1,1,1\n1735822920,2025-01-02,1,1,1,1\n",
        "date,timestamp,price,quantity\n2025-01-02,1735776060,5,1\n2025-01-02,1735822920,5,1\n",
        "date,time,price\n2025-01-02,2025-01-02 00:01:00,5\n2025-01-02,2025-01-02 13:02,5\n",
        "date,price\n2025-01-02 00:01:00,5\n2025-01-02 13:02:00,5\n",
    ] {
        assert_eq!(times(content), wanted, "{content}");
    }
    let options = named().columns("date=0,time=1,price=2".parse::<qi_files::ColumnMap>().unwrap());
    let (found, ..) = trades("2025-01-02,00:01,5\n", &options);
    assert_eq!(found[0].ts().to_string(), wanted[0]);
    let (found, bad, _) = trades("date,time,price\n2025-01-02,930,5\n2025-01-02 01:00,00:01,5\n", &named());
    assert_eq!((found.len(), bad.len()), (0, 2), "other notations are bad lines");
}

#[test]
fn answers_of_several_pairs_in_one_file_are_an_error() {
    let text = answer("XXBTZUSD", 60) + &answer("XETHZUSD", 60);
    for options in [FileOptions::default(), named()] {
        let (found, bad, broken) = trades(&text, &options);
        assert_eq!((found.len(), bad.len()), (60, 0));
        assert!(broken.unwrap().report().contains("several pairs"));
    }
}

#[test]
fn only_a_complete_published_header_determines_the_exchange() {
    let bitmex =
        "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional";
    let rest = "XBTUSD,Buy,1,5,PlusTick,x,1,1,1";
    for (content, is_known) in [
        (format!("{bitmex}\n1735689600.0,{rest}\n"), true),
        (format!("{bitmex},RPI\n1735689600.0,{rest},0\n"), true),
        (format!("{bitmex}\n2025-01-01T00:00:00.000Z,{rest}\n"), false),
        (format!("{bitmex},trdType\n2025-01-01T00:00:00.000Z,{rest},Regular\n"), false),
        ("created_time,symbol,price\n1735689600000,XBTUSD,5\n".to_owned(), false),
        ("time,symbol,price,order_type\n1735689600000,XBTUSD,5,limit\n".to_owned(), false),
        ("id,timestamp,symbol,price,volume,side\n1,1735689600000,XBTUSD,5,1,buy\n".to_owned(), false),
        (
            "instrument_name,trade_id,side,price,size,created_time\nA-B,1,buy,5,1,1735689600000\n".to_owned(),
            true,
        ),
        ("A-B,1,buy,5,1,1735689600000\n".to_owned(), false),
    ] {
        for name in ["x.csv", "BTCUSDT2025-01-01.csv"] {
            match open_named(name, content.as_bytes(), &FileOptions::default()).1 {
                Ok(files) => assert!(is_known, "{content} {:?}", files.instruments),
                Err(error) => {
                    assert!(!is_known && error.report().contains("--instrument"), "{content} {error:?}");
                }
            }
        }
        assert_eq!(trades(&content, &named()).0.len(), 1, "{content}");
    }
    let (found, ..) = trades("A-B,1,buy,5,1,1735689600000\n", &FileOptions::default().format(Format::Okx));
    assert_eq!(found[0].instrument().to_string(), "okx:A-B", "the option determines the exchange");
}

#[test]
fn an_index_of_row_numbers_is_not_the_time() {
    let (found, bad, _) = trades(",timestamp,price\n0,1735689600,5\n1,1735689601,5\n", &named());
    assert_eq!((found.len(), bad.len(), found[1].ts().as_micros()), (2, 0, 1_735_689_601_000_000));
    let candles = ",date,open,high,low,close\n0,2025-01-01 00:00:00,1,1,1,1\n1,2025-01-01 00:01:00,1,1,1,1\n";
    let (_folder, files) = open_named("x-1m.csv", candles.as_bytes(), &named());
    let Data::Candles(source, _) = files.unwrap().data else { panic!("candles") };
    assert_eq!(complete(source)[1].open_time().as_micros(), 1_735_689_660_000_000);
}

#[test]
fn a_year_in_the_name_of_a_kraken_file_is_not_part_of_the_symbol() {
    let content = gzip(b"1700000000,5,1\n");
    let (_folder, files) = open_named("XBTEUR-2025.csv.gz", &content, &FileOptions::default());
    assert_eq!(files.unwrap().instruments[0].to_string(), "kraken:XBTEUR");
    for name in ["BTC-250328.csv.gz", "XBT-EUR.csv.gz"] {
        assert!(open_named(name, &content, &FileOptions::default()).1.is_err(), "{name}");
    }
}

#[test]
fn columns_are_applied_to_the_first_line_with_text() {
    for columns in ["time=when,price=last", "time=0,price=1"] {
        let options = named().columns(columns.parse::<qi_files::ColumnMap>().unwrap());
        let (found, bad, _) = trades("\r\n \nwhen;last\n1700000000;5\n", &options);
        assert_eq!((found.len(), bad.len()), (1, 0), "{columns}");
    }
}

/// Writes a file with candles at these minutes of a day and opens it.
fn candles_at(
    name: &str,
    minutes: impl IntoIterator<Item = u32>,
    options: &FileOptions,
) -> Result<(usize, usize, Interval), Error> {
    let rows: String = minutes
        .into_iter()
        .map(|m| format!("{},1,1,1,1,1\n", 1_709_510_400 + 60 * m))
        .collect::<Vec<_>>()
        .concat();
    let (_folder, files) = open_named(name, rows.as_bytes(), options);
    let Data::Candles(source, interval) = files?.data else { panic!("candles") };
    let (found, bad, _) = read(source);
    Ok((found.len(), bad.len(), interval))
}

#[test]
fn a_row_off_the_grid_of_candles_is_a_bad_line() {
    for (interval, step, rows) in [(Interval::H1, 60, 24), (Interval::M5, 5, 12), (Interval::D1, 1_440, 27)] {
        for off in [1, 7, 30, step / 2].into_iter().filter(|off| off % step != 0) {
            let minutes = (0..rows).map(|n| n * step + if n == 3 { off } else { 0 });
            let mut minutes: Vec<u32> = minutes.chain([3 * step]).collect();
            minutes.sort_unstable();
            let found = candles_at("x.csv", minutes, &named());
            match &found {
                Ok(found) => {
                    assert_eq!(*found, (usize::try_from(rows).unwrap(), 1, interval));
                }
                Err(error) => assert!(error.report().contains("--input-interval"), "{error:?}"),
            }
        }
    }
    let day = (0..24).map(|n| n * 60).chain([607]);
    assert_eq!(candles_at("x.csv", day, &named()).unwrap(), (24, 1, Interval::H1));
}

#[test]
fn an_interval_that_contradicts_the_file_is_rejected() {
    let kline = |length: u64| {
        format!("1735689600000,1,1,1,1,1,{},1,1,1,1,0\n", 1_735_689_600_000 + length * 1_000 - 1)
    };
    let ohlcvt = "1735689600,1,1,1,1,1,1\n".to_owned();
    let generic = "1735689600,1,1,1,1,1\n".to_owned();
    for (name, content, is_rejected) in [
        ("XBTUSD_5.csv", &ohlcvt, true),
        ("XBTUSD_21600.csv", &ohlcvt, true),
        ("XBTUSD_1.csv", &ohlcvt, false),
        ("XBTUSD_7.csv", &ohlcvt, false),
        ("x.csv", &kline(300), true),
        ("BTCUSDT-1m-2025-01.csv", &kline(300), true),
        ("BTCUSDT-5m-2025-01.csv", &kline(60), false),
        ("BTCUSDT-5m-2025-01.csv", &generic, true),
        ("BTCUSDT-1mo-2025-01-01.csv", &generic, true),
        // One day of candles of one minute.
        ("BTC-1d.csv", &generic, false),
    ] {
        let (_folder, files) = open_named(name, content.as_bytes(), &named().interval(Interval::M1));
        match files {
            Ok(files) => {
                assert!(!is_rejected && matches!(files.data, Data::Candles(_, Interval::M1)), "{name}");
            }
            Err(error) => {
                assert!(is_rejected && error.code() == "files.interval", "{name}: {}", error.report());
                assert!(error.report().contains("--input-interval"), "{name}: {}", error.report());
            }
        }
    }
}

#[test]
fn candles_of_an_interval_that_the_library_lacks_are_rejected_by_its_name() {
    for (name, days, says) in
        [("BTCUSDT-3d-2025-01.csv", 3, "not of 3 days"), ("BTCUSDT-1mo-2025-01.csv", 31, "not of 31 days")]
    {
        let row =
            format!("1735689600000,1,1,1,1,1,{},1,1,1,1,0\n", 1_735_689_600_000u64 + days * 86_400_000 - 1);
        let error = open_named(name, row.as_bytes(), &named()).1.unwrap_err();
        assert!(error.report().contains(says) && error.report().contains("12h 1d 1w"), "{}", error.report());
    }
    let error = open_named("XBTUSD_21600.csv", b"1735689600,1,1,1,1,1,1\n", &named()).1.unwrap_err();
    assert!(error.report().contains("not of 15d"), "{}", error.report());
}

#[test]
fn weeks_that_do_not_begin_on_monday_are_rejected_with_the_reason() {
    let json = |first: u64| {
        let row = |week: u64| format!(r#"[{},"1","1","1","1","1","2",3]"#, first + week * 7 * 86_400);
        let rows: Vec<_> = (0..12).map(row).collect();
        format!(
            r#"{{"error":[],"result":{{"XXBTZUSD":[{}],"last":{}}}}}"#,
            rows.join(","),
            first + 12 * 604_800
        )
    };
    let rows = |first: u64| format!("{first},1,1,1,1,2,3\n{},1,1,1,1,2,3\n", first + 14 * 86_400);
    // 2025-01-02 is a Thursday, and 2025-01-06 a Monday.
    let (thursday, monday) = (1_735_776_000, 1_736_121_600);
    for (name, content) in [
        ("x.json", json(thursday)),
        ("XBTEUR_10080.csv", rows(thursday)),
        ("XBTEUR_10080.csv", rows(thursday).repeat(2)),
    ] {
        for interval in [None, Some(Interval::W1)] {
            let (_folder, files) = open_named(name, content.as_bytes(), &named().interval(interval));
            let error = files.unwrap_err();
            assert_eq!(error.code(), "files.interval", "{name}");
            assert!(error.report().contains("begin on Monday"), "{}", error.report());
        }
    }
    for (name, content, count) in
        [("x.json", json(monday), 12), ("XBTEUR_10080.csv", rows(monday), 2), ("x.csv", rows(thursday), 2)]
    {
        let interval = if name == "x.csv" { Interval::D1 } else { Interval::W1 };
        let (_folder, files) = open_named(name, content.as_bytes(), &named().interval(interval));
        let Data::Candles(source, _) = files.unwrap().data else { panic!("{name}") };
        assert_eq!(complete(source).len(), count, "{name}");
    }
}

#[test]
fn an_unknown_header_is_rejected() {
    for content in [
        "timestamp,volume,last\n1700000000,34000,5\n",
        "when,low,high,first,last,turnover\n1700000000,1,2,1,2,5\n",
        "when;what;how many\n1700000000;34000;5\n",
        "# an export, all times in UTC\ntimestamp,volume,last\n1700000000,34000,5\n",
    ] {
        for format in [None, Some(Format::Kraken), Some(Format::Candles)] {
            let (_folder, files) = open_named("XBTEUR.csv", content.as_bytes(), &named().format(format));
            let error = files.unwrap_err();
            assert_eq!(error.code(), "files.format", "{content}");
            assert!(error.report().contains("must have known columns"), "{}", error.report());
            assert!(error.report().contains("--columns"), "{}", error.report());
        }
    }
    let options =
        named().columns("time=timestamp,price=last,quantity=volume".parse::<qi_files::ColumnMap>().unwrap());
    let (found, ..) = trades("timestamp,volume,last\n1700000000,34000,5\n", &options);
    assert_eq!(found[0].price().to_string(), "5");
    for title in ["https://example.com", "https://www.CryptoDataDownload.com,,,,,,,,,", "an export;;"] {
        let content = format!("{title}\nunix,side,price\n1700000000,buy,5\n");
        let (found, bad, _) = trades(content, &named());
        assert_eq!((found.len(), bad.len()), (1, 0), "a known header after {title}");
    }
    let (found, bad, _) =
        trades("# an export, all times in UTC\nunix,side,price\n1700000000,buy,5\n", &named());
    assert_eq!((found.len(), bad.len()), (1, 1), "a known header after a comment");
}

#[test]
fn the_volumes_of_candles_are_found_by_their_names() {
    let url = "https://www.CryptoDataDownload.com\n";
    let prices = "1735689600000,2025-01-01 00:00:00,BTC/USDT,5,5,5,5";
    let download = |one: &str, other: &str| {
        format!("{url}unix,date,symbol,open,high,low,close,{one},{other},tradecount\n")
    };
    let kaggle = "Timestamp,Open,High,Low,Close,Volume_(BTC),Volume_(Currency),Weighted_Price\n";
    let compare = "time,high,low,open,volumefrom,volumeto,close\n";
    for (symbol, content, count) in [
        ("X-Y", format!("{}{prices},2.5,12.5,7\n", download("Volume BTC", "Volume USDT")), Some(7)),
        ("X-Y", format!("{}{prices},12.5,2.5,7\n", download("Volume USDT", "Volume BTC")), Some(7)),
        ("BTC-USD", format!("{kaggle}1735689600,5,5,5,5,2.5,12.5,5\n"), None),
        ("TON-USD", format!("{compare}1735689600,5,5,5,2.5,12.5,5\n"), None),
        ("XBT-USD", "time,open,high,low,close,Vol USD,Vol BTC\n1735689600,5,5,5,5,12.5,2.5\n".into(), None),
        ("BTC-USD", "time,open,high,low,close,volume\n1735689600,5,5,5,5,2.5\n".into(), None),
        ("BTC-USD", "time,open,high,low,close,Volume USD\n1735689600,5,5,5,5,12.5\n".into(), None),
    ] {
        let instrument: Instrument = format!("x:{symbol}").parse().unwrap();
        let row = content.lines().last().unwrap();
        // The second row has the same volumes.
        let content = format!("{content}{}\n", row.replacen("17356896", "17356932", 1));
        let (_folder, files) = open_named("x-1h.csv", content.as_bytes(), &named().instrument(instrument));
        let Data::Candles(source, Interval::H1) = files.unwrap().data else { panic!("{content}") };
        let candles = complete(source);
        let sum = |amounts: Vec<Option<Quantity>>| {
            let add = |sum: Decimal, amount: Option<Quantity>| sum.checked_add(amount?.decimal());
            amounts.into_iter().try_fold(Decimal::ZERO, add)
        };
        let base = sum(candles.iter().map(|bar| bar.values().volume).collect());
        let quote = sum(candles.iter().map(|bar| bar.values().quote_volume).collect());
        let decimal = |text: &str| text.parse::<Decimal>().unwrap();
        assert_eq!((candles.len(), candles[0].values().count), (2, count), "{content}");
        assert_eq!(base, content.contains(",2.5").then(|| decimal("5")), "{content}");
        assert_eq!(quote, content.contains(",12.5").then(|| decimal("25")), "{content}");
    }
}

#[test]
fn a_volume_of_the_quote_asset_or_of_a_change_is_no_base_volume() {
    let volumes = |names: &str, symbol: &str, columns: Option<&str>| {
        let fields = names.split(',').count();
        let row = format!("1735689600,5,5,5,5,{}\n", ["2.5", "12.5"][..fields].join(","));
        let content = format!("time,open,high,low,close,{names}\n{row}");
        let instrument: Instrument = format!("x:{symbol}").parse().unwrap();
        let columns = columns.map(|columns| columns.parse::<qi_files::ColumnMap>().unwrap());
        let options = FileOptions::default().instrument(instrument).columns(columns);
        let (_folder, files) = open_named("x-1h.csv", content.as_bytes(), &options.interval(Interval::H1));
        let Data::Candles(source, _) = files.unwrap().data else { panic!("{content}") };
        let values = *complete(source)[0].values();
        [values.volume, values.quote_volume].map(|volume| volume.map_or("-".to_owned(), |v| v.to_string()))
    };
    for (names, symbol, wanted) in [
        ("volume_usd", "BTC-USDT", ["-", "2.5"]),
        ("volume_usd", "BTCUSDC", ["-", "2.5"]),
        ("volumeUsd", "BTC-USD", ["-", "2.5"]),
        ("volume_quote", "BTC-USD", ["-", "2.5"]),
        ("volumeto", "TON-USD", ["-", "2.5"]),
        ("volume_quote,volume_base", "BTC-USD", ["12.5", "2.5"]),
        ("volumeUsd,volumeBtc", "BTC-USD", ["12.5", "2.5"]),
        ("volume_usd,turnover", "BTC-USDT", ["-", "12.5"]),
        ("volume_usd,volume_usdt", "BTC-USDT", ["-", "12.5"]),
        ("volume_delta", "BTC-USD", ["-", "-"]),
        ("volume_change", "BTC-USD", ["-", "-"]),
        ("Volume BTC", "XXBTZUSD", ["-", "-"]),
        ("volume_btc", "BTC-USDT", ["2.5", "-"]),
        ("volume_base,turnover", "BTC-USD", ["2.5", "12.5"]),
        ("volumefrom,volumeto", "X-Y", ["2.5", "12.5"]),
        ("Volume_(XBT),Volume_(Currency)", "BTC-USD", ["2.5", "12.5"]),
        ("volume,volume_usd", "BTC-USDT", ["2.5", "-"]),
    ] {
        assert_eq!(volumes(names, symbol, None), wanted, "{names} {symbol}");
    }
    let columns = "time=time,open=open,high=high,low=low,close=close,volume=volume_usd";
    assert_eq!(volumes("volume_usd", "BTC-USD", Some(columns)), ["2.5", "-"], "the option decides");
}

#[test]
fn the_size_of_a_time_determines_its_unit_without_a_header() {
    let micros = 1_735_689_600_000_000i64;
    for time in [micros / 1_000_000, micros / 1_000, micros, micros * 1_000].map(|time| time.to_string()) {
        let (found, bad, _) = trades(format!("{time},5,1\n"), &named());
        assert_eq!((found[0].ts().as_micros(), bad.len()), (micros, 0), "{time}");
        for last in ["17", "93.5"] {
            let file = file(format!("{time},1,1,1,1,2,{last}\n"));
            let files = open(&[file.path().to_owned()], &named().interval(Interval::M1)).unwrap();
            let Data::Candles(source, _) = files.data else { panic!("candles") };
            let found = complete(source);
            let count = (last == "17").then_some(17);
            assert_eq!(
                (found[0].open_time().as_micros(), found[0].values().count),
                (micros, count),
                "{time}"
            );
        }
    }
    let kraken = named().format(Format::Kraken);
    let (found, bad, _) = trades("1735689600000,5,1\n", &kraken);
    assert!(found.is_empty() && bad[0].report().contains("as seconds"), "the format determines the unit");
}

#[test]
fn a_quote_volume_in_the_seventh_column_is_no_number_of_trades() {
    for scale in [1, 1_000] {
        let row = |n: i64, last: &str| format!("{},1,1,1,1,2,{last}\n", (1_735_689_600 + 60 * n) * scale);
        for whole in [0, 1, 60] {
            let rows = |last: &str| (0..100).map(|n| row(n, if n < whole { "1250" } else { last })).collect();
            let counts = |last: &str, options: &FileOptions| -> Vec<Option<u64>> {
                let content: String = rows(last);
                let (_folder, files) = open_named("XBTEUR_1.csv", content.as_bytes(), options);
                let Data::Candles(source, Interval::M1) = files.unwrap().data else { panic!("{content}") };
                complete(source).iter().map(|candle| candle.values().count).collect()
            };
            let found = counts("1256.25", &named());
            assert_eq!(found.len(), 100, "{whole}");
            assert!(found[60..].iter().all(Option::is_none), "{whole} {found:?}");
            // Whole numbers in more lines than the recognition reads are counts.
            assert!(whole == 60 || found.iter().all(Option::is_none), "{whole} {found:?}");
            assert!(counts("17", &named())[60..].iter().all(|count| *count == Some(17)));
        }
    }
    for (last, count) in [("17", Some(17)), ("17.5", None)] {
        let row = format!("2025-01-01 00:00:00,1,1,1,1,2,{last}\n");
        let (_folder, files) = open_named("x-1m.csv", row.as_bytes(), &named());
        let Data::Candles(source, _) = files.unwrap().data else { panic!("{row}") };
        assert_eq!(complete(source)[0].values().count, count);
    }
    for damaged in [0, 1, 29] {
        let row = |n: usize| {
            let last = if n == damaged { "17.5" } else { "17" };
            format!("{},1,1,1,1,2,{last}\n", 1_735_689_600 + 3_600 * n)
        };
        let content: String = (0..30).map(row).collect();
        let (_folder, files) = open_named("XBTEUR_60.csv", content.as_bytes(), &FileOptions::default());
        let files = files.unwrap();
        assert_eq!(files.instruments[0].to_string(), "kraken:XBTEUR", "{damaged}");
        let Data::Candles(source, _) = files.data else { panic!("candles") };
        for (n, candle) in complete(source).iter().enumerate() {
            assert_eq!(candle.values().count, (n != damaged).then_some(17), "{damaged} {n}");
        }
    }
    // Candles without trades have no quote volume.
    let quiet = "1735689600,1,1,1,1,0,0\n1735689660,1,1,1,1,0,0\n1735689720,1,1,1,1,2,12.5\n";
    let (_folder, files) = open_named("XBTEUR_1.csv", quiet.as_bytes(), &named());
    let Data::Candles(source, _) = files.unwrap().data else { panic!("candles") };
    assert!(complete(source).iter().all(|candle| candle.values().count.is_none()));
    let kraken = b"1735689600,1,1,1,1,2,17\n1735689660,1,1,1,1,2,x\n1735689720,1,1,1,1,2,18\n";
    let (_folder, files) = open_named("XBTEUR_1.csv", kraken, &FileOptions::default());
    let files = files.unwrap();
    assert_eq!(files.instruments[0].to_string(), "kraken:XBTEUR");
    let Data::Candles(source, _) = files.data else { panic!("candles") };
    let (found, bad, _) = read(source);
    assert_eq!((found.len(), bad.len(), found[1].values().count), (2, 1, Some(18)));
    let columns =
        "time=0,open=1,high=2,low=3,close=4,volume=5,count=6".parse::<qi_files::ColumnMap>().unwrap();
    let options = named().columns(columns).interval(Interval::M1);
    let (_folder, files) = open_named("x.csv", b"1735689600,1,1,1,1,2,1256.25\n", &options);
    let Data::Candles(source, _) = files.unwrap().data else { panic!("candles") };
    assert_eq!(read(source).1.len(), 1, "a declared count must be a whole number");
}

#[test]
fn names_of_files_have_the_symbols_of_exchanges() {
    let spot = b"1,5,1,5,1735689600000000,True,True\n";
    for (name, content, wanted) in [
        ("币安人生USDT-trades-2025-10-10.csv", &spot[..], "binance:币安人生USDT"),
        ("AAPLxUSD.csv", b"1700000000,5,1\n", "kraken:AAPLxUSD"),
        ("AAPLxUSD_60.csv", b"1700002800,5,5,5,5,1,1\n", "kraken:AAPLxUSD"),
        (
            "币安人生USDT_2025-01-01.csv",
            b"id,timestamp,price,volume,side\n1,1735689600000,5,1,buy\n",
            "bybit-spot:币安人生USDT",
        ),
    ] {
        let (_folder, files) = open_named(name, content, &FileOptions::default());
        assert_eq!(files.unwrap().instruments[0].to_string(), wanted);
    }
    for name in ["trades.csv", "Trades_2025.csv", "my-trades-2025-01-01.csv", "bitstampUSD.csv"] {
        let error = open_named(name, b"1700000000,5,1\n", &FileOptions::default()).1.unwrap_err();
        assert!(error.report().contains("--instrument"), "{name}");
    }
}

#[test]
fn a_header_of_binance_spot_determines_the_exchange() {
    for (header, row) in [
        ("id,price,qty,quote_qty,time,is_buyer_maker,is_best_match", "1,5,1,5,1735689600000000,True,True"),
        ("trade Id,price,qty,quoteQty,time,isBuyerMaker,isBestMatch", "1,5,1,5,1735689600000,True,True"),
        (
            "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker,is_best_match",
            "1,5,1,7,8,1735689600000000,True,True",
        ),
    ] {
        let content = format!("{header}\n{row}\n");
        let (_folder, files) =
            open_named("BTCUSDT-x-2025-01-01.csv", content.as_bytes(), &FileOptions::default());
        assert_eq!(files.unwrap().instruments[0].to_string(), "binance:BTCUSDT", "{header}");
    }
}

/// Writes an archive with these entries.
fn archive(folder: &Path, name: &str, entries: &[(&str, &str)]) -> PathBuf {
    let script = "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1], 'w')\n\
        [z.writestr(n, d) for n, d in zip(sys.argv[2::2], sys.argv[3::2])]\n";
    let path = folder.join(name);
    let entries = entries.iter().flat_map(|(name, content)| [name, content]);
    let made = Command::new("python3").args(["-c", script]).arg(&path).args(entries).status();
    assert!(made.unwrap().success());
    path
}

#[test]
fn trades_without_a_column_of_quantities_have_a_note() {
    let options = FileOptions::default().instrument(Some(Instrument::from_static("x:Y")));
    for (quantity, notes) in [("trade_size", 1), ("size", 0)] {
        let trades = file(format!("timestamp,price,{quantity}\n1709251200,100,1\n"));
        let files = open(&[trades.path().to_owned()], &options).unwrap();
        assert_eq!(files.skipped.len(), notes, "{:?}", files.skipped);
        assert!(files.skipped.iter().all(|note| note.contains("--columns")), "{:?}", files.skipped);
    }
}

#[test]
fn documents_and_checksums_beside_the_data_are_skipped_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let entries = [
        ("README.txt", "These are trades, of Kraken.\n"),
        ("notes.md", "time and price\n"),
        ("XBTEUR.txt", "1700000000,5,1\n"),
        ("XBTEUR.csv.CHECKSUM", "0  XBTEUR.csv\n"),
    ];
    let path = archive(folder.path(), "trades.zip", &entries);
    let sum = Command::new("sha256sum").arg(&path).output().unwrap().stdout;
    let checksum = folder.path().join("trades.zip.CHECKSUM");
    std::fs::write(&checksum, sum).unwrap();
    let columns = "time=0,price=1".parse::<qi_files::ColumnMap>().unwrap();
    for options in [FileOptions::default(), named(), named().columns(columns), named().format(Format::Kraken)]
    {
        let files = open(&[path.clone(), checksum.clone()], &options).unwrap();
        assert_eq!(files.skipped.len(), 4, "{:?}", files.skipped);
        let Data::Trades(source) = files.data else { panic!("trades") };
        assert_eq!(complete(source).len(), 1);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(open(&[checksum], &named()).is_err(), "a checksum without its file");
}

#[test]
fn the_instrument_option_applies_to_files_of_one_instrument() {
    const KLINE: &str = "1735689600000,1,1,1,1,1,1735689659999,1,1,1,1,0\n";
    let folder = tempfile::tempdir().unwrap();
    let row = "1700000000,5,1\n";
    let symbols = |symbol: &str| format!("time,symbol,price\n1700000000,{symbol},5\n");
    for (entries, is_read) in [
        (vec![("XBTEUR.csv", row), ("XBTEUR-2025.csv", row)], true),
        (vec![("XBTEUR.csv", row), ("part 2.csv", row)], true),
        (vec![("part 1.csv", row), ("part 2.csv", row)], true),
        (vec![("XBTEUR.csv", row), ("ETHEUR.csv", row)], false),
        (vec![("BTCUSDT-1m-2025-01.csv", KLINE), ("ETHUSDT-1m-2025-01.csv", KLINE)], false),
        (vec![("BTCUSDT-1m-2025-01.csv", KLINE), ("BTCUSDT-1m-2025-02.csv", KLINE)], true),
        (vec![("1.csv", &*symbols("A")), ("2.csv", &*symbols("A"))], true),
        (vec![("1.csv", &*symbols("A")), ("2.csv", &*symbols("B"))], false),
        (vec![("1.csv", &*symbols("BTC/USDT")), ("2.csv", &*symbols("BTCUSDT"))], true),
        (vec![("1.csv", &*symbols("BTC/USDT")), ("2.csv", &*symbols("ETHUSDT"))], false),
        (vec![("XBTEUR.csv", row), ("rest.json", &*answer("XXBTZEUR", 1))], true),
    ] {
        let path = archive(folder.path(), "several.zip", &entries);
        let beside = tempfile::tempdir().unwrap();
        let parts: Vec<PathBuf> = entries
            .iter()
            .map(|(name, content)| {
                let part = beside.path().join(name);
                std::fs::write(&part, content).unwrap();
                part
            })
            .collect();
        for paths in [vec![path], parts] {
            match open(&paths, &named()) {
                Ok(files) => assert!(is_read && files.instruments.len() == 1, "{entries:?}"),
                Err(error) => {
                    assert!(!is_read && error.code() == "files.instrument", "{entries:?} {error:?}");
                }
            }
        }
    }
}

#[test]
fn the_interval_option_selects_the_entries_of_an_archive() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |length: u64| -> String {
        let row = |n| format!("{},1,1,1,1,1,1\n", 1_735_689_600 + n * length);
        (0..30).map(row).collect::<Vec<_>>().concat()
    };
    let (one, five) = (rows(60), rows(300));
    let entries = [
        ("OHLCVT/XBTEUR_1.csv", &*one),
        ("OHLCVT/XBTEUR_5.csv", &*five),
        ("OHLCVT/ETHEUR_1.csv", &*one),
        ("OHLCVT/ETHEUR_5.csv", &*five),
        ("OHLCVT/ETHEUR_21600.csv", &*five),
    ];
    let path = [archive(folder.path(), "Kraken_OHLCVT.zip", &entries)];
    for (interval, skipped) in [(Interval::M1, 3), (Interval::M5, 3)] {
        let files = open(&path, &FileOptions::default().interval(interval)).unwrap();
        let instruments: Vec<_> = files.instruments.iter().map(ToString::to_string).collect();
        assert_eq!(instruments, ["kraken:XBTEUR", "kraken:ETHEUR"]);
        assert!(files.skipped[0].starts_with(&format!("{skipped} entries")), "{:?}", files.skipped);
        let Data::Candles(source, found) = files.data else { panic!("candles") };
        assert_eq!((complete(source).len(), found), (60, interval));
    }
    for options in [FileOptions::default(), FileOptions::default().interval(Interval::H1)] {
        let error = open(&path, &options).unwrap_err();
        assert_eq!(error.code(), "files.interval");
        assert!(error.report().contains("--input-interval"), "{}", error.report());
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn arbitrary_bytes_do_not_panic(content in proptest::collection::vec(0u8..=255, 0..400), start in 0usize..6) {
        let starts: [&[u8]; 6] = [b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"{\"result\":{\"X\":[[", b"1,2,3\n"];
        let file = file([starts[start], &content].concat());
        for format in [None, Some(Format::Kraken), Some(Format::Candles)] {
            if let Ok(files) = open(&[file.path().to_owned()], &named().format(format)) {
                match files.data {
                    Data::Trades(source) => drop(read(source)),
                    Data::Candles(source, _) => drop(read(source)),
                }
            }
        }
    }

    #[test]
    fn arbitrary_fields_do_not_panic(lines in proptest::collection::vec("[-0-9.,eE:TZ \"truefalsebuy]{0,60}", 1..20), head in 0usize..4) {
        let heads = ["", "time,price,quantity\n", "time,open,high,low,close,volume\n", "exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n"];
        let file = file(format!("{}{}", heads[head], lines.join("\n")));
        if let Ok(files) = open(&[file.path().to_owned()], &FileOptions::default().instrument("x:Y".parse::<Instrument>().unwrap())) {
            match files.data {
                Data::Trades(source) => drop(read(source)),
                Data::Candles(source, _) => drop(read(source)),
            }
        }
    }
}
