//! The dead letter commands, in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bus_rig;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_rig::{BusWithoutLeader, LeaderLoss, TransactionMarkers};
use futures::future::BoxFuture;
use qi_cli::dlq::{self, Plan, RedriveReport, Selection, View};
use qi_cli::output::Format;
use qi_core::bus::{
    DeadLetters, DeliveryError, Encoding, HeaderName, Message, MessageBus, MessageBusExt, PublishOptions,
    PublishReport, ReaderRequest, ReceivedMessage, RejectedMessage, SeekTo, SubscribeRequest, TopicCatalogue,
    TopicName, TopicPartition, TopicSpec, encode_message, header,
};
use qi_core::layer::{Layer, Layered};
use qi_core::{Error, ErrorKind, Operation, PriceStore, PriceStoreExt as _, PriceTick, Result, Timestamp};
use qi_testkit::ManualClock;
use qi_testkit::bus::{MemoryBus, MemoryBusConfig};
use qi_testkit::chaos::{Chaos, Fault, Rule};
use qi_testkit::market::{Market, MarketConfig};
use qi_testkit::store::MemoryStore;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn origin() -> TopicName {
    topic("crypto-prices")
}

fn dead_letter_topic() -> TopicName {
    topic("crypto-prices.dlq")
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + seconds).unwrap()
}

async fn bus() -> MemoryBus {
    // The retention of the topics must keep the dead letters.
    let clock = ManualClock::new(time(100));
    let bus = MemoryBus::new(MemoryBusConfig::default(), Arc::new(clock)).unwrap();
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    bus
}

/// A rejected message at an offset of the origin topic.
fn rejected(offset: u64, code: &'static str) -> RejectedMessage {
    let mut message = ReceivedMessage::new(origin(), 3, offset);
    message.timestamp = Some(time(-100));
    message.key = Some(format!("key {offset}").into());
    message.payload = Some(format!("payload {offset}").into());
    message.headers.push(HeaderName::new("trace").unwrap(), bytes::Bytes::from_static(b"1"));
    RejectedMessage::new(message, Error::new(ErrorKind::CorruptData, code, "decode"))
}

/// The dead letter of a rejected message, with a message time.
fn dead_letter(rejected: &RejectedMessage, seconds: i64) -> Message {
    DeadLetters::default().dead_letter(rejected, usize::MAX).unwrap().with_timestamp(time(seconds))
}

fn plan() -> Plan {
    Plan {
        topic: dead_letter_topic(),
        to: None,
        selection: Selection::default(),
        max_redrives: 3,
        progress: None,
        dry_run: false,
    }
}

async fn redrive(bus: &dyn MessageBus, plan: &Plan) -> Result<RedriveReport> {
    dlq::redrive(bus, plan, &CancellationToken::new(), |_| {}).await
}

/// The numbers of a summary, without zeros.
fn numbers(redriven: &RedriveReport) -> Vec<(String, u64)> {
    let listing = redriven.listing();
    let rows =
        listing.rows().iter().map(|row| (row[0].as_str().unwrap().to_owned(), row[2].as_u64().unwrap()));
    rows.filter(|(_, number)| *number > 0).collect()
}

fn number(redriven: &RedriveReport, result: &str) -> u64 {
    numbers(redriven).iter().filter(|(name, _)| name == result).map(|(_, number)| number).sum()
}

/// Every message of a topic, by partition and offset.
async fn messages(bus: &dyn MessageBus, topic: &TopicName) -> Vec<ReceivedMessage> {
    let info = bus.topics().await.unwrap().into_iter().find(|info| info.name == *topic).unwrap();
    let end: u64 = info.partitions.iter().map(|p| p.high - p.low).sum();
    let from = info.partitions.iter().map(|p| (TopicPartition::new(topic.clone(), p.id), SeekTo::Earliest));
    let mut reader = bus.open_reader(ReaderRequest::new(from).unwrap()).await.unwrap();
    let mut all = Vec::new();
    while all.len() < usize::try_from(end).unwrap() {
        all.extend(reader.recv(1_000, Duration::from_secs(1)).await.unwrap().into_messages());
    }
    all.sort_by_key(|message| (message.partition, message.offset));
    all
}

fn payloads(messages: &[ReceivedMessage]) -> Vec<String> {
    let text =
        |message: &ReceivedMessage| String::from_utf8(message.payload.clone().unwrap().to_vec()).unwrap();
    let mut all: Vec<_> = messages.iter().map(text).collect();
    all.sort();
    all
}

#[tokio::test]
async fn list_counts_dead_letters_and_duplicates_by_topic_origin_and_code() {
    let (bus, never) = (bus().await, CancellationToken::new());
    let mut of_quotes = rejected(1, "bus.codec.json");
    of_quotes.message.topic = topic("crypto-quotes");
    let all = [
        dead_letter(&rejected(1, "bus.codec.json"), 10),
        dead_letter(&rejected(2, "bus.codec.json"), 5),
        dead_letter(&rejected(1, "bus.codec.json"), 20),
        dead_letter(&rejected(3, "bus.codec.tombstone"), 30),
        dead_letter(&of_quotes, 40),
        Message::new(dead_letter_topic(), "foreign").with_timestamp(time(50)),
    ];
    bus.send(&all).await.unwrap();
    let rows = async |topic: Option<TopicName>, selection: Selection| {
        let listed = dlq::list(&bus, topic.as_ref(), &selection, &never).await.unwrap();
        assert!(listed.unread.is_empty() && !listed.interrupted);
        listed.listing().render(Format::Csv).lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let (json, tombstone) = (
        "crypto-prices.dlq,crypto-prices,bus.codec.json,2,1,2023-11-14T22:13:25Z,2023-11-14T22:13:40Z",
        "crypto-prices.dlq,crypto-prices,bus.codec.tombstone,1,0,2023-11-14T22:13:50Z,2023-11-14T22:13:50Z",
    );
    let quotes =
        "crypto-quotes.dlq,crypto-quotes,bus.codec.json,1,0,2023-11-14T22:14:00Z,2023-11-14T22:14:00Z";
    let foreign = "crypto-prices.dlq,,,1,0,2023-11-14T22:14:10Z,2023-11-14T22:14:10Z";
    assert_eq!(rows(None, Selection::default()).await, [foreign, json, tombstone, quotes]);
    assert_eq!(rows(Some(dead_letter_topic()), Selection::default()).await, [foreign, json, tombstone]);
    let codes = BTreeSet::from(["bus.codec.tombstone".to_owned(), "bus.codec".to_owned()]);
    assert_eq!(rows(None, Selection { codes, ..Selection::default() }).await, [tombstone]);
    let origins = BTreeSet::from([topic("crypto-quotes")]);
    assert_eq!(rows(None, Selection { origins, ..Selection::default() }).await, [quotes]);
    // The second dead letter has an earlier time than the first.
    let (since, until) = (Some(time(10)), Some(time(40)));
    let between = rows(None, Selection { since, until, ..Selection::default() }).await;
    assert_eq!(between.len(), 2);
    assert!(
        between[0].contains("bus.codec.json,1,1,2023-11-14T22:13:30Z,2023-11-14T22:13:40Z"),
        "{between:?}"
    );

    let error = dlq::list(&bus, Some(&topic("none")), &Selection::default(), &never).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let (since, until) = (Some(time(2)), Some(time(1)));
    let turned = Selection { since, until, ..Selection::default() };
    assert_eq!(dlq::list(&bus, None, &turned, &never).await.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn list_is_bounded_for_any_number_of_error_codes() {
    let (bus, never) = (bus().await, CancellationToken::new());
    let all: Vec<_> = (0..10_050)
        .map(|n| {
            let mut letter = dead_letter(&rejected(n, "a"), 1);
            letter.headers.remove(header::ERROR_CODE);
            let code = format!("{n} {}", "x".repeat(if n == 0 { 10_000 } else { 1 }));
            letter.with_header(HeaderName::new(header::ERROR_CODE).unwrap(), code)
        })
        .collect();
    bus.send(&all).await.unwrap();
    let listed = dlq::list(&bus, None, &Selection::default(), &never).await.unwrap().listing();
    assert_eq!(listed.rows().len(), 10_001);
    assert_eq!(listed.rows().iter().map(|row| row[3].as_u64().unwrap()).sum::<u64>(), 10_050);
    assert!(listed.rows().iter().all(|row| row[2].as_str().is_none_or(|code| code.len() < 250)));
}

#[tokio::test]
async fn show_orders_by_time_and_escapes_producer_text() {
    let (bus, never) = (bus().await, CancellationToken::new());
    let mut hostile = rejected(7, "bus.codec.json");
    hostile.message.payload = Some("\u{1b}[2J\u{9b}\n".repeat(1_000).into());
    hostile.message.key = Some(bytes::Bytes::from_static(b"\xff\0"));
    bus.send(&[
        dead_letter(&hostile, 30),
        dead_letter(&rejected(8, "b"), 20),
        dead_letter(&rejected(9, "c"), 10),
    ])
    .await
    .unwrap();
    let offsets = async |limit, newest| {
        let view = View { limit, newest, full: false };
        let shown = dlq::show(&bus, &dead_letter_topic(), &Selection::default(), view, &never).await.unwrap();
        let rows = shown.listing(Format::Csv).rows().to_vec();
        rows.iter().map(|row| row[5].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(offsets(20, false).await, [9, 8, 7]);
    assert_eq!(offsets(2, false).await, [9, 8]);
    assert_eq!(offsets(2, true).await, [7, 8]);
    for full in [false, true] {
        let view = View { limit: 1, newest: true, full };
        let shown = dlq::show(&bus, &dead_letter_topic(), &Selection::default(), view, &never).await.unwrap();
        for format in [Format::Table, Format::Csv, Format::Json] {
            let text = shown.listing(format).render(format);
            assert!(!text.contains(['\u{1b}', '\u{9b}', '\0']), "{format:?}");
            assert!(text.contains("crypto-prices") && text.contains("bus.codec.json"), "{text}");
        }
        let row = &shown.listing(Format::Json).rows()[0].clone();
        let payload = row[14].as_str().unwrap();
        assert_eq!(payload.contains("bytes more"), !full);
        assert_eq!((row[13].as_str(), row[12].as_str()), (Some(r"\xff\0"), Some("trace=1")));
        assert_eq!(row[10..12], [Value::Null, Value::Null], "neither truncated nor redriven");
        assert_eq!(
            (row[3].as_str(), row[4].as_u64(), row[5].as_u64()),
            (Some("crypto-prices"), Some(3), Some(7))
        );
        assert_eq!(row[6].as_str(), Some("2023-11-14T22:11:40Z"));
    }
}

#[tokio::test]
async fn redrive_publishes_the_message_without_the_dead_letter_headers() {
    let bus = bus().await;
    bus.send(&[dead_letter(&rejected(1, "a"), 1), dead_letter(&rejected(2, "b"), 2)]).await.unwrap();
    let dry = redrive(&bus, &Plan { dry_run: true, ..plan() }).await.unwrap();
    assert_eq!(numbers(&dry), [("redriven".to_owned(), 2)]);
    assert!(messages(&bus, &origin()).await.is_empty(), "a dry run publishes nothing");

    let codes = BTreeSet::from(["b".to_owned()]);
    let some = Plan { selection: Selection { codes, ..Selection::default() }, ..plan() };
    let redriven = redrive(&bus, &some).await.unwrap();
    assert!(redriven.is_complete());
    assert_eq!(numbers(&redriven), [("redriven".to_owned(), 1)]);
    let found = messages(&bus, &origin()).await;
    assert_eq!((found.len(), found[0].key.as_deref()), (1, Some(&b"key 2"[..])));
    assert_eq!(payloads(&found), ["payload 2"]);
    let headers: Vec<_> =
        found[0].headers.iter().map(|(name, value)| (name.as_str(), value.unwrap())).collect();
    assert_eq!(headers, [("trace", &bytes::Bytes::from("1")), (header::REDRIVES, &bytes::Bytes::from("1"))]);

    let other = Plan { to: Some(topic("crypto-quotes")), ..plan() };
    assert_eq!(numbers(&redrive(&bus, &other).await.unwrap()), [("redriven".to_owned(), 2)]);
    assert_eq!(payloads(&messages(&bus, &topic("crypto-quotes")).await), ["payload 1", "payload 2"]);
}

#[tokio::test]
async fn redrive_skips_and_counts_unpublishable_dead_letters() {
    let bus = bus().await;
    let truncated = DeadLetters::default().dead_letter(&rejected(2, "a"), 0).unwrap();
    let with_redrives = |offset, redrives: &'static str| {
        let mut rejected = rejected(offset, "a");
        rejected
            .message
            .headers
            .push(HeaderName::new(header::REDRIVES).unwrap(), bytes::Bytes::from(redrives));
        dead_letter(&rejected, 1)
    };
    let mut of_dead_letter_topic = rejected(6, "a");
    of_dead_letter_topic.message.topic = topic("other.dlq");
    let mut nested_dead_letter = dead_letter(&of_dead_letter_topic, 1);
    nested_dead_letter.topic = dead_letter_topic();
    let mut unknown = rejected(7, "a");
    unknown.message.topic = topic("deleted");
    let mut of_unknown = dead_letter(&unknown, 1);
    of_unknown.topic = dead_letter_topic();
    let not_a_number = Message::new(dead_letter_topic(), "loop")
        .with_header(HeaderName::new(header::REDRIVES).unwrap(), "many");
    let all = [
        dead_letter(&rejected(1, "a"), 1),
        dead_letter(&rejected(1, "a"), 2),
        truncated,
        // A complete copy of the truncated dead letter.
        dead_letter(&rejected(2, "a"), 1),
        with_redrives(3, "2"),
        with_redrives(4, "3"),
        nested_dead_letter,
        of_unknown,
        Message::new(dead_letter_topic(), "foreign"),
        not_a_number,
    ];
    bus.send(&all).await.unwrap();
    let redriven = redrive(&bus, &plan()).await.unwrap();
    let wanted = [
        ("redriven", 3),
        ("skipped: copy", 1),
        ("skipped: truncated", 1),
        ("skipped: redriven too often", 1),
        ("skipped: no origin", 2),
        ("skipped: origin is a dead letter topic", 1),
        ("failed", 1),
    ];
    assert_eq!(numbers(&redriven), wanted.map(|(name, number)| (name.to_owned(), number)));
    assert!(!redriven.is_complete(), "one redrive failed");
    assert!(
        redriven.counts.failures[0].contains("crypto-prices.dlq/")
            && redriven.counts.failures[0].contains("deleted")
    );
    let found = messages(&bus, &origin()).await;
    assert_eq!(payloads(&found), ["payload 1", "payload 2", "payload 3"]);
    let last = found.iter().find(|message| message.payload.as_deref() == Some(b"payload 3")).unwrap();
    assert_eq!(last.headers.get(header::REDRIVES).unwrap(), "3");

    // A target accepts messages without an origin, and messages of other dead letter topics.
    let other = Plan { to: Some(topic("crypto-quotes")), ..plan() };
    let redriven = redrive(&bus, &other).await.unwrap();
    assert!(redriven.is_complete());
    assert_eq!(number(&redriven, "redriven"), 6);
    assert_eq!(number(&redriven, "skipped: redriven too often"), 2, "a count that is no number");
}

#[tokio::test]
async fn redrive_target_that_causes_a_loop_is_rejected() {
    let bus = bus().await;
    for to in ["crypto-prices.dlq", "crypto-quotes.dlq", "absent.dlq"] {
        let error = redrive(&bus, &Plan { to: Some(topic(to)), ..plan() }).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, dlq::INVALID_TARGET));
    }
    let named = topic("rejects");
    bus.create_topics(&[TopicSpec::new(named.clone(), 1).unwrap()]).await.unwrap();
    let error = redrive(&bus, &Plan { topic: named.clone(), to: Some(named), ..plan() }).await.unwrap_err();
    assert_eq!(error.code(), dlq::INVALID_TARGET);
    let error = redrive(&bus, &Plan { to: Some(topic("absent")), ..plan() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn too_large_message_fails_and_the_others_are_redriven() {
    let bus = bus().await;
    let small = TopicSpec::new(topic("small"), 1).unwrap().with_max_message_bytes(1_000);
    bus.create_topics(&[small]).await.unwrap();
    let mut large = rejected(1, "a");
    large.message.payload = Some("x".repeat(2_000).into());
    bus.send(&[dead_letter(&large, 1), dead_letter(&rejected(2, "a"), 1)]).await.unwrap();
    let redriven = redrive(&bus, &Plan { to: Some(topic("small")), ..plan() }).await.unwrap();
    assert_eq!(numbers(&redriven), [("redriven".to_owned(), 1), ("failed".to_owned(), 1)]);
    assert!(!redriven.is_complete() && redriven.error.is_none());
    assert_eq!(payloads(&messages(&bus, &topic("small")).await), ["payload 2"]);

    let rejecting = Layered::new(bus.connect(), RejectsBatches);
    let redriven = redrive(&rejecting, &Plan { to: Some(topic("small")), ..plan() }).await.unwrap();
    assert_eq!(numbers(&redriven), [("redriven".to_owned(), 1), ("failed".to_owned(), 1)]);
}

/// Rejects each batch of several messages as too large.
#[derive(Debug)]
struct RejectsBatches;

impl Layer for RejectsBatches {
    fn name(&self) -> &'static str {
        "RejectsBatches"
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        if batch.len() == 1 {
            return bus.publish(batch, options);
        }
        let too_large = || Error::new(ErrorKind::InvalidInput, DeliveryError::TOO_LARGE, "publish");
        let outcomes = batch.iter().map(|_| Err(DeliveryError::not_sent(too_large()))).collect();
        Box::pin(async move { Ok(PublishReport::new(outcomes)) })
    }
}

#[tokio::test(start_paused = true)]
async fn transient_publish_failures_are_retried_and_unknown_outcomes_are_counted() {
    let (memory, chaos) = (bus().await, Chaos::seeded(1));
    let all: Vec<_> = (0..50).map(|offset| dead_letter(&rejected(offset, "a"), 1)).collect();
    memory.send(&all).await.unwrap();
    let bus = Layered::new(memory.connect(), chaos.clone());
    chaos.inject_next(Operation::Publish, Fault::Error);
    let redriven = redrive(&bus, &plan()).await.unwrap();
    assert_eq!((number(&redriven, "redriven"), redriven.counts.may_be_twice), (50, 0));
    assert_eq!(messages(&memory, &origin()).await.len(), 50, "each once");

    chaos.inject_next(Operation::Publish, Fault::LostResponse);
    let redriven = redrive(&bus, &plan()).await.unwrap();
    assert_eq!(number(&redriven, "redriven"), 50);
    let twice = usize::try_from(redriven.counts.may_be_twice).unwrap();
    assert!(twice > 0);
    assert_eq!(messages(&memory, &origin()).await.len(), 50 + 50 + twice);
}

#[tokio::test(start_paused = true)]
async fn duplicate_remains_until_its_letter_is_published() {
    for removed in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let (plan, _) = with_progress(&folder);
        let (memory, chaos) = (bus().await, Chaos::seeded(1));
        let copies = [1, 2].map(|seconds| dead_letter(&rejected(1, "a"), seconds).with_partition(0));
        memory.send(&copies).await.unwrap();
        let away = chaos.clone().on(Operation::Publish, Rule::new(1.0, [Fault::Error]));
        let bus = Layered::new(memory.connect(), chaos.clone());
        let failed = redrive(&bus, &plan).await.unwrap();
        assert!(failed.error.is_some() && numbers(&failed).is_empty());
        // Retention removes the dead letter, or also its copy, before the bus is available again.
        memory.delete_records(&TopicPartition::new(dead_letter_topic(), 0), removed).unwrap();
        away.set_enabled(false);
        let redriven = redrive(&bus, &plan).await.unwrap();
        assert!(redriven.is_complete());
        assert_eq!(number(&redriven, "redriven"), 2 - removed);
    }
}

#[tokio::test(start_paused = true)]
async fn run_killed_before_its_first_publish_keeps_its_end_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, _) = with_progress(&folder);
    let (memory, chaos) = (bus().await, Chaos::seeded(1));
    memory.send(&[dead_letter(&rejected(1, "a"), 1)]).await.unwrap();
    chaos.inject_next(Operation::Publish, Fault::Hang);
    let bus = Layered::new(memory.connect(), chaos);
    let killed = tokio::time::timeout(Duration::from_secs(1), redrive(&bus, &plan)).await;
    assert!(killed.is_err());
    memory.send(&[dead_letter(&rejected(2, "a"), 1)]).await.unwrap();
    assert_eq!(number(&redrive(&bus, &plan).await.unwrap(), "redriven"), 1);
    assert_eq!(payloads(&messages(&memory, &origin()).await), ["payload 1"]);
}

fn with_progress(folder: &tempfile::TempDir) -> (Plan, PathBuf) {
    let path = folder.path().join("redrive.json");
    (Plan { progress: Some(path.clone()), ..plan() }, path)
}

#[tokio::test(start_paused = true)]
async fn interrupted_redrive_continues_without_duplicates() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, path) = with_progress(&folder);
    let (memory, chaos) = (bus().await, Chaos::seeded(3));
    // The copies are far behind their originals: the second run must recognise copies of messages of the first run.
    let all: Vec<_> =
        (0..1_500).chain(0..1_500).map(|offset| dead_letter(&rejected(offset, "a"), 1)).collect();
    memory.send(&all).await.unwrap();
    let bus = Layered::new(memory.connect(), chaos.clone());

    // Stopped after the first batch.
    let stop = CancellationToken::new();
    let stopped = dlq::redrive(&bus, &plan, &stop, |_| stop.cancel()).await.unwrap();
    assert!(stopped.interrupted && !stopped.is_complete());
    let first = number(&stopped, "redriven");
    assert!(first > 0 && first < 1_500, "{first}");

    // Then the brokers are unavailable in the middle of a batch for more than a minute, so it is published in part.
    for _ in 0..100 {
        chaos.inject_next(Operation::Publish, Fault::Error);
    }
    let failed = redrive(&bus, &plan).await.unwrap();
    assert_eq!(failed.error.as_ref().map(Error::kind), Some(ErrorKind::Unavailable));
    let second = number(&failed, "redriven");
    assert_eq!(messages(&memory, &origin()).await.len() as u64, second);
    assert!(second > first && second < 1_500, "{second}");

    // New dead letters belong to another run, for example redriven messages that failed again.
    memory.send(&[dead_letter(&rejected(5_000, "a"), 1)]).await.unwrap();
    chaos.set_enabled(false);
    let published = AtomicU64::new(0);
    let never = CancellationToken::new();
    let rest = dlq::redrive(&bus, &plan, &never, |n| published.store(n, Ordering::Relaxed)).await.unwrap();
    assert!(rest.is_complete() && !rest.was_finished);
    assert_eq!(numbers(&rest), [("redriven".to_owned(), 1_500), ("skipped: copy".to_owned(), 1_500)]);
    assert_eq!(published.load(Ordering::Relaxed), 1_500 - second);
    let wanted: BTreeSet<_> = (0..1_500).map(|offset| format!("payload {offset}")).collect();
    let found = payloads(&messages(&memory, &origin()).await);
    assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (1_500, wanted));

    let again = redrive(&bus, &plan).await.unwrap();
    assert!(again.was_finished && again.is_complete());
    assert_eq!(messages(&memory, &origin()).await.len(), 1_500);

    let dry = Plan { dry_run: true, progress: Some(folder.path().join("none.json")), ..plan.clone() };
    assert_eq!(number(&redrive(&bus, &dry).await.unwrap(), "redriven"), 1_501);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a dry run writes no file");
    let other = Plan { max_redrives: 4, ..plan.clone() };
    let error = redrive(&bus, &other).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "dlq.progress"));
    for broken in ["", "[]", "{\"plan\": 7}"] {
        std::fs::write(&path, broken).unwrap();
        assert_eq!(redrive(&bus, &plan).await.unwrap_err().code(), "dlq.progress", "{broken}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), broken, "the file is unchanged");
    }
}

#[tokio::test]
async fn recreated_topic_with_fewer_messages_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, _) = with_progress(&folder);
    let bus = bus().await;
    bus.send(&[dead_letter(&rejected(1, "a"), 1)]).await.unwrap();
    redrive(&bus, &plan).await.unwrap();
    bus.delete_topics(&[dead_letter_topic()]).await.unwrap();
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    assert_eq!(redrive(&bus, &plan).await.unwrap_err().code(), "dlq.progress");
}

#[tokio::test]
async fn equal_offset_in_a_recreated_topic_is_not_a_duplicate() {
    let bus = bus().await;
    let mut later = rejected(1, "a");
    later.message.timestamp = Some(time(-50));
    later.message.payload = Some("later".into());
    let (first, later) = (dead_letter(&rejected(1, "a"), 1), dead_letter(&later, 2));
    bus.send(&[first.clone(), later.clone(), later, first]).await.unwrap();
    let listed = dlq::list(&bus, None, &Selection::default(), &CancellationToken::new()).await.unwrap();
    let row = &listed.listing().rows()[0].clone();
    assert_eq!((row[3].as_u64(), row[4].as_u64()), (Some(2), Some(2)), "dead letters and copies");
    let redriven = redrive(&bus, &plan()).await.unwrap();
    assert_eq!(numbers(&redriven), [("redriven".to_owned(), 2), ("skipped: copy".to_owned(), 2)]);
    assert_eq!(payloads(&messages(&bus, &origin()).await), ["later", "payload 1"]);
}

#[tokio::test(start_paused = true)]
async fn partition_without_a_leader_is_named_after_the_wait() {
    let (memory, never) = (bus().await, CancellationToken::new());
    let in_first = dead_letter(&rejected(1, "a"), 1).with_partition(0);
    memory.send(&[in_first, dead_letter(&rejected(2, "a"), 1).with_partition(1)]).await.unwrap();
    let away = BusWithoutLeader::new(memory.connect(), 0, usize::MAX);
    let listed = dlq::list(&away, Some(&dead_letter_topic()), &Selection::default(), &never).await.unwrap();
    let unread: Vec<_> = listed.unread.iter().map(ToString::to_string).collect();
    assert_eq!(unread, ["crypto-prices.dlq/0 was not read: no leader for 30 s"]);
    let folder = tempfile::tempdir().unwrap();
    let (plan, _) = with_progress(&folder);
    let redriven = redrive(&away, &plan).await.unwrap();
    assert_eq!((number(&redriven, "redriven"), redriven.unread.len()), (1, 1));
    assert!(!redriven.is_complete());

    let soon = BusWithoutLeader::new(memory.connect(), 0, 5);
    let redriven = redrive(&soon, &plan).await.unwrap();
    assert!(redriven.is_complete() && !redriven.was_finished);
    assert_eq!(payloads(&messages(&memory, &origin()).await), ["payload 1", "payload 2"]);
}

#[tokio::test(start_paused = true)]
async fn partition_that_loses_its_leader_is_named_after_the_wait() {
    let (memory, never) = (bus().await, CancellationToken::new());
    let all: Vec<_> = (0..150).map(|n| dead_letter(&rejected(n, "a"), 1).with_partition(0)).collect();
    memory.send(&all).await.unwrap();
    let lost = |until| {
        Layered::new(memory.connect(), LeaderLoss::new(TopicPartition::new(dead_letter_topic(), 0), until))
    };
    let read = dlq::list(&lost(50), None, &Selection::default(), &never).await.unwrap();
    assert!(read.unread.is_empty());
    let redriven = redrive(&lost(usize::MAX), &plan()).await.unwrap();
    let unread: Vec<_> = redriven.unread.iter().map(ToString::to_string).collect();
    assert_eq!(unread, ["crypto-prices.dlq/0 was read up to offset 100 of 150: no message for 30 s"]);
    assert_eq!(number(&redriven, "redriven"), 100);
    assert!(!redriven.is_complete());
}

#[tokio::test(start_paused = true)]
async fn transaction_markers_at_the_end_of_a_partition_are_read() {
    let memory = bus().await;
    let all: Vec<_> = (0..5).map(|n| dead_letter(&rejected(n, "a"), 1).with_partition(0)).collect();
    memory.send(&all).await.unwrap();
    let bus = Layered::new(memory, TransactionMarkers(2));
    let listed = dlq::list(&bus, None, &Selection::default(), &CancellationToken::new()).await.unwrap();
    assert!(listed.unread.is_empty());
    assert_eq!(listed.listing().rows()[0][3], 2);
}

#[tokio::test]
async fn redriven_messages_are_stored_and_a_poison_message_stops_after_three_redrives() {
    let (bus, store) = (bus().await, MemoryStore::default());
    store.ensure_schema().await.unwrap();
    let tick: PriceTick = Market::new(MarketConfig::new(7, 1).unwrap()).unwrap().next().unwrap();
    let mut mistyped = encode_message(&Encoding::Json, &tick, None).unwrap();
    mistyped.headers.remove(header::TYPE);
    let mistyped = mistyped.with_header(HeaderName::new(header::TYPE).unwrap(), "trade");
    bus.send(&[mistyped, Message::new(origin(), "no record").with_key("k")]).await.unwrap();
    let mut reader =
        bus.subscribe(SubscribeRequest::new("writer".parse().unwrap(), [origin()]).unwrap()).await.unwrap();
    let mut write = async |wanted: usize, is_fixed: bool| {
        let mut handled = 0;
        while handled < wanted {
            let mut batch = reader.recv(100, Duration::from_secs(1)).await.unwrap();
            // The fixed writer accepts the other type.
            if is_fixed {
                batch.messages_mut().iter_mut().for_each(|message| message.headers.remove(header::TYPE));
            }
            let decoded = batch.decode::<PriceTick>();
            store.insert_ticks(&decoded.records).await.unwrap();
            bus.send_dead_letters(&decoded.rejected, &DeadLetters::default()).await.unwrap();
            reader.commit(batch.offsets()).await.unwrap();
            handled += batch.len();
        }
    };
    write(2, false).await;
    // Without a progress file, each round redrives the dead letters of all rounds before it.
    let mut redriven = Vec::new();
    for round in 0..5 {
        let run = redrive(&bus, &plan()).await.unwrap();
        let number = usize::try_from(number(&run, "redriven")).unwrap();
        write(number, true).await;
        redriven.push((round, number, run.counts.redriven_too_often));
    }
    assert_eq!(redriven[0], (0, 2, 0));
    let stored = qi_cli::query::latest(&store, PriceTick::DATASET, vec![], None, 10).await.unwrap();
    assert_eq!(stored.rows().len(), 1, "the fixed writer stores the tick");
    assert!(redriven[3..].iter().all(|(_, _, too_often)| *too_often > 0), "{redriven:?}");
    let most = messages(&bus, &dead_letter_topic()).await;
    let most = most.iter().filter_map(|letter| letter.headers.get(header::REDRIVES)).max().unwrap();
    assert_eq!(most, "3");
}
