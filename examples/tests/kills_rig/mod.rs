//! A producer of poison messages. It speaks the Kafka protocol itself, because client libraries refuse to send most of
//! these messages.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::TOPIC;

/// The partitions of the topic in the standard catalogue.
const PARTITIONS: i32 = 12;
/// The `max.message.bytes` of that topic.
const MAX_MESSAGE_BYTES: usize = 2 << 20;
/// What a record batch of one uncompressed record without headers adds to the payload, at most.
const BATCH_OVERHEAD: usize = 100;
/// A time within the retention of the topic is that of sending.
const NOW: i64 = i64::MIN;

/// One message in a record batch.
struct Poison {
    payload: Option<Vec<u8>>,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    timestamp: i64,
    gzip: bool,
}

impl Poison {
    fn payload(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: Some(payload.into()), headers: Vec::new(), timestamp: NOW, gzip: false }
    }

    fn header(name: impl Into<Vec<u8>>, value: &str, payload: &str) -> Self {
        Self { headers: vec![(name.into(), value.into())], ..Self::payload(payload) }
    }

    /// Every kind once.
    fn kinds() -> Vec<Self> {
        let valid = r#"{"instrument":"sim:POISON","ts":1700000000000000,"seq":1,"price":"1"}"#;
        let number = "9".repeat(1 << 20);
        let long_number =
            format!(r#"{{"instrument":"sim:POISON","ts":1700000000000000,"seq":1,"price":"{number}"}}"#);
        vec![
            Self::payload(r#"{"instrument":"#),
            Self::payload([0xff, 0xfe, 0x00]),
            Self::payload(long_number),
            Self::payload("x".repeat(MAX_MESSAGE_BYTES - BATCH_OVERHEAD)),
            Self { gzip: true, ..Self::payload(vec![0; 4 << 20]) },
            Self { payload: None, ..Self::payload("") },
            Self::payload(format!(r#"{{"a":{}"#, "[".repeat(100_000))),
            Self::payload(r#"{"instrument":"sim:POISON","ts":-1,"seq":1,"price":"1"}"#),
            Self::payload(r#"{"instrument":"sim:POISON","ts":9000000000000000000,"seq":1,"price":"1"}"#),
            Self { timestamp: -1, ..Self::payload("without a time") },
            Self { timestamp: 0, ..Self::payload("a time before the domain") },
            Self::header("", "v", "a header with an empty name"),
            Self::header("n".repeat(5_000), "v", "a header with a long name"),
            Self::header([0xc3, 0x28], "v", valid),
            Self { headers: vec![(b"h".to_vec(), Vec::new()); 100_000], ..Self::payload("many headers") },
            Self::header("content-type", "application/x-unknown", valid),
            Self::header("qi-type", "quote", valid),
            Self::header("qi-version", "65535", valid),
        ]
    }

    /// The record batch that holds this message, in format 2.
    fn batch(&self) -> Vec<u8> {
        let mut record = vec![0];
        varint(&mut record, 0);
        varint(&mut record, 0);
        varint(&mut record, -1);
        match &self.payload {
            None => varint(&mut record, -1),
            Some(payload) => bytes(&mut record, payload),
        }
        varint(&mut record, i64::try_from(self.headers.len()).unwrap());
        for (name, value) in &self.headers {
            bytes(&mut record, name);
            bytes(&mut record, value);
        }
        let mut records = Vec::new();
        bytes(&mut records, &record);
        if self.gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&records).unwrap();
            records = encoder.finish().unwrap();
        }
        let timestamp = if self.timestamp == NOW {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            i64::try_from(now.as_millis()).unwrap()
        } else {
            self.timestamp
        };
        let mut summed = Vec::new();
        summed.extend(i16::from(self.gzip).to_be_bytes());
        summed.extend(0_i32.to_be_bytes());
        summed.extend(timestamp.to_be_bytes());
        summed.extend(timestamp.to_be_bytes());
        summed.extend((-1_i64).to_be_bytes());
        summed.extend((-1_i16).to_be_bytes());
        summed.extend((-1_i32).to_be_bytes());
        summed.extend(1_i32.to_be_bytes());
        summed.extend(records);
        let mut batch = Vec::new();
        batch.extend(0_i64.to_be_bytes());
        batch.extend(i32::try_from(summed.len() + 9).unwrap().to_be_bytes());
        batch.extend((-1_i32).to_be_bytes());
        batch.push(2);
        batch.extend(crc32c(&summed).to_be_bytes());
        batch.extend(summed);
        batch
    }
}

/// A zigzag variable-length integer.
fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap());
}

fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    varint(out, i64::try_from(value.len()).unwrap());
    out.extend(value);
}

fn string(out: &mut Vec<u8>, value: &str) {
    out.extend(i16::try_from(value.len()).unwrap().to_be_bytes());
    out.extend(value.as_bytes());
}

fn crc32c(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256_u32)
        .map(|n| (0..8).fold(n, |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }))
        .collect();
    !bytes.iter().fold(!0, |crc: u32, byte| (crc >> 8) ^ table[usize::from(crc.to_le_bytes()[0] ^ byte)])
}

/// Sends a batch with `acks=all`, and returns the offset of its message.
fn produce(broker: &str, partition: i32, batch: &[u8]) -> io::Result<u64> {
    let mut request = Vec::new();
    // Produce, version 7; correlation id 1.
    request.extend([0, 0, 0, 7, 0, 0, 0, 1]);
    string(&mut request, "poison");
    request.extend((-1_i16).to_be_bytes());
    request.extend((-1_i16).to_be_bytes());
    request.extend(10_000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    string(&mut request, TOPIC);
    request.extend(1_i32.to_be_bytes());
    request.extend(partition.to_be_bytes());
    request.extend(i32::try_from(batch.len()).unwrap().to_be_bytes());
    request.extend(batch);
    let address = broker.parse().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    stream.write_all(&i32::try_from(request.len()).unwrap().to_be_bytes())?;
    stream.write_all(&request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).map_err(io::Error::other)?];
    stream.read_exact(&mut answer)?;
    // Correlation id, number of topics, name, number of partitions, partition; then the error code and the offset.
    let at = 4 + 4 + 2 + TOPIC.len() + 4 + 4;
    let code = i16::from_be_bytes(answer[at..at + 2].try_into().unwrap());
    if code != 0 {
        return Err(io::Error::other(format!("error code {code}")));
    }
    Ok(i64::from_be_bytes(answer[at + 2..at + 10].try_into().unwrap()).cast_unsigned())
}

/// A thread that sends every kind of poison in turn, while servers and consumers are killed.
pub(crate) struct Poisoner {
    stop: Arc<AtomicBool>,
    wanted: Arc<AtomicU64>,
    thread: JoinHandle<Sent>,
}

/// What was acknowledged, and what may be in the log.
#[derive(Default)]
pub(crate) struct Sent {
    /// Partition and offset of every acknowledged message.
    pub(crate) acknowledged: BTreeSet<(u32, u64)>,
    /// Messages by kind.
    pub(crate) by_kind: Vec<u64>,
    /// Messages without an answer.
    pub(crate) unknown: u64,
}

impl Poisoner {
    pub(crate) fn start(broker: String) -> Self {
        let (stop, wanted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, target) = (stop.clone(), wanted.clone());
        let thread = std::thread::spawn(move || {
            let batches: Vec<_> = Poison::kinds().iter().map(Poison::batch).collect();
            let mut sent = Sent { by_kind: vec![0; batches.len()], ..Sent::default() };
            let mut next = 0;
            loop {
                let enough = sent.acknowledged.len() as u64 >= target.load(Ordering::SeqCst);
                if enough && stopped.load(Ordering::SeqCst) {
                    return sent;
                }
                if enough {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                let partition = i32::try_from(next / batches.len()).unwrap() % PARTITIONS;
                let kind = next % batches.len();
                if let Ok(offset) = produce(&broker, partition, &batches[kind]) {
                    sent.acknowledged.insert((partition.cast_unsigned(), offset));
                    sent.by_kind[kind] += 1;
                    next += 1;
                } else {
                    // The broker is down or starts, or the topic is not there yet.
                    sent.unknown += 1;
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        });
        Self { stop, wanted, thread }
    }

    /// Sends until this many messages are acknowledged.
    pub(crate) fn send(&self, messages: u64) {
        self.wanted.fetch_max(messages, Ordering::SeqCst);
    }

    /// Sends what is left of the target, and ends.
    pub(crate) fn finish(self) -> Sent {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}
