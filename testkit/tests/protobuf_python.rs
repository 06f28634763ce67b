//! Python reads the Protobuf messages that this library writes, and writes messages that this library reads.
//!
//! `scripts/test` installs the runtime `protobuf` for Python into `target/python`. Without it, the trials are ignored.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Completion, Failed, run};
use qi_core::bus::{
    Codec as _, Encoding, HeaderName, ReceivedMessage, TopicName, decode_message, encode_message, header,
};
use qi_core::{
    Bar, BookSnapshot, FundingRate, Liquidation, MarkPrice, MarketSnapshot, OpenInterest, PriceTick, Quote,
    Timestamp,
};
use qi_testkit::presence;
use qi_testkit::store::contract::Sample;

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/protobuf_peer.py");
const PROTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../core/proto");

fn python() -> PathBuf {
    let installed = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/python/bin/python"));
    if installed.is_file() { installed } else { "python3".into() }
}

fn absent() -> Option<String> {
    let found = Command::new(python()).args(["-c", "import google.protobuf"]).output();
    let there = found.is_ok_and(|output| output.status.success());
    (!there).then(|| "python3 has no module google.protobuf".to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn unhex(text: &str) -> Result<Vec<u8>, Failed> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap_or_default());
    Ok(pairs.map(|pair| u8::from_str_radix(pair, 16)).collect::<Result<_, _>>()?)
}

fn round_trip<R: Sample>(message: &str) -> Result<Completion, Failed> {
    let time = Timestamp::from_secs(1_704_067_200)?;
    let records: Vec<R> = (0..50u32).map(|n| R::make(&R::series_no(n as usize), time, n.into(), n)).collect();
    let mut peer = Command::new(python())
        .args([PEER, PROTO])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = peer.stdin.take().ok_or("no standard input")?;
    for record in &records {
        let payload = encode_message(&Encoding::Protobuf, record, None)?.payload.unwrap_or_default();
        writeln!(input, "{message} {}", hex(&payload))?;
    }
    drop(input);
    let output = peer.wait_with_output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let text = String::from_utf8(output.stdout)?;
    if text.lines().count() != records.len() {
        return Err(format!("{} answers to {} records", text.lines().count(), records.len()).into());
    }
    for (line, record) in text.lines().zip(&records) {
        let (json, payload) = line.split_once('\t').ok_or("a line without a tab")?;
        let (mut found, wanted) =
            (serde_json::from_str::<serde_json::Value>(json)?, serde_json::to_value(record)?);
        // The global scope is an empty name in Protobuf.
        if found["scope"] == "" {
            found["scope"] = "global".into();
        }
        if found != wanted {
            return Err(format!("Python read {found}, not {wanted}").into());
        }
        let mut received = ReceivedMessage::new(TopicName::new("t")?, 0, 0);
        let content_type = Encoding::Protobuf.content_type().as_bytes();
        received
            .headers
            .push(HeaderName::new(header::CONTENT_TYPE)?, bytes::Bytes::from_static(content_type));
        received.payload = Some(unhex(payload)?.into());
        let back: R = decode_message(&received)?;
        if back != *record {
            return Err(format!("Python wrote {back:?}, not {record:?}").into());
        }
    }
    Ok(Completion::Completed)
}

fn main() -> ExitCode {
    let absent = absent();
    macro_rules! trials {
        ($($record:ident $message:literal),*) => {
            vec![$(presence::trial(
                format!("{}::python_reads_and_writes_the_message", $message), "python", absent.clone(),
                || round_trip::<$record>($message),
            )),*]
        };
    }
    let trials = trials![
        PriceTick "Tick", Quote "Quote", Bar "Bar", MarketSnapshot "Snapshot", FundingRate "FundingRate",
        OpenInterest "OpenInterest", Liquidation "Liquidation", MarkPrice "MarkPrice",
        BookSnapshot "BookSnapshot"
    ];
    run(&Arguments::from_args(), trials).exit_code()
}
