//! A producer of poison messages.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use qi_testkit::kafka::{RawMessage, produce};

use super::TOPIC;

/// The partitions of the topic in the standard catalogue.
const PARTITIONS: usize = 12;
/// The `max.message.bytes` of the topic.
const MAX_MESSAGE_BYTES: usize = 2 << 20;
/// The maximum overhead of a record batch with one uncompressed record without headers.
const BATCH_OVERHEAD: usize = 100;

/// Returns one message of every kind of poison.
fn kinds() -> Vec<RawMessage> {
    let valid = r#"{"instrument":"sim:POISON","ts":1700000000000000,"seq":1,"price":"1"}"#;
    let number = "9".repeat(1 << 20);
    let long_number =
        format!(r#"{{"instrument":"sim:POISON","ts":1700000000000000,"seq":1,"price":"{number}"}}"#);
    vec![
        RawMessage::new(r#"{"instrument":"#),
        RawMessage::new([0xff, 0xfe, 0x00]),
        RawMessage::new(long_number),
        RawMessage::new("x".repeat(MAX_MESSAGE_BYTES - BATCH_OVERHEAD)),
        RawMessage { gzip: true, ..RawMessage::new(vec![0; 4 << 20]) },
        RawMessage { payload: None, ..RawMessage::new("") },
        RawMessage::new(format!(r#"{{"a":{}"#, "[".repeat(100_000))),
        RawMessage::new(r#"{"instrument":"sim:POISON","ts":-1,"seq":1,"price":"1"}"#),
        RawMessage::new(r#"{"instrument":"sim:POISON","ts":9000000000000000000,"seq":1,"price":"1"}"#),
        RawMessage { timestamp: Some(-1), ..RawMessage::new("without a time") },
        RawMessage { timestamp: Some(0), ..RawMessage::new("a time before the domain") },
        RawMessage::new("a header with an empty name").with_header("", "v"),
        RawMessage::new("a header with a long name").with_header("n".repeat(5_000), "v"),
        RawMessage::new(valid).with_header([0xc3, 0x28], "v"),
        RawMessage { headers: vec![(b"h".to_vec(), Vec::new()); 100_000], ..RawMessage::new("many headers") },
        RawMessage::new(valid).with_header("content-type", "application/x-unknown"),
        RawMessage::new(valid).with_header("qi-type", "quote"),
        RawMessage::new(valid).with_header("qi-version", "65535"),
    ]
}

/// A thread that sends every kind of poison in turn, while servers and consumers are killed.
pub(crate) struct PoisonProducer {
    stop: Arc<AtomicBool>,
    wanted: Arc<AtomicU64>,
    thread: JoinHandle<Sent>,
}

/// The acknowledged messages, and the messages that may be in the log.
#[derive(Default)]
pub(crate) struct Sent {
    /// The partition and offset of every acknowledged message.
    pub(crate) acknowledged: BTreeSet<(u32, u64)>,
    /// The number of messages of each kind.
    pub(crate) by_kind: Vec<u64>,
    /// The number of messages without a response.
    pub(crate) unknown: u64,
}

impl PoisonProducer {
    pub(crate) fn start(broker: String) -> Self {
        let (stop, wanted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, target) = (stop.clone(), wanted.clone());
        let thread = std::thread::spawn(move || {
            let batches: Vec<_> = kinds().iter().map(|message| message.encode().unwrap()).collect();
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
                let partition = u32::try_from(next / batches.len() % PARTITIONS).unwrap();
                let kind = next % batches.len();
                if let Ok(offset) = produce(&broker, TOPIC, partition, &batches[kind]) {
                    sent.acknowledged.insert((partition, offset));
                    sent.by_kind[kind] += 1;
                    next += 1;
                } else {
                    // The broker is down or starting, or the topic does not exist yet.
                    sent.unknown += 1;
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        });
        Self { stop, wanted, thread }
    }

    /// Sends messages until this many are acknowledged.
    pub(crate) fn send(&self, messages: u64) {
        self.wanted.fetch_max(messages, Ordering::SeqCst);
    }

    /// Sends the rest of the target, and ends.
    pub(crate) fn finish(self) -> Sent {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}
