//! Checks of poison messages: each becomes a dead letter, and the group continues.

use bytes::Bytes;
use qi_core::bus::{
    Batch, DeadLetters, DeliveryError, Encoding, GroupId, HeaderName, Message, MessageBus, MessageBusExt,
    Offsets, PublishOptions, ReceivedMessage, Subscription, TopicName, TopicSpec, encode_message, header,
};
use qi_core::{ErrorKind, Instrument, PriceTick, Timestamp};

use super::chapter;
use crate::bus::contract::{CheckResult, TestContext, ensure, ensure_eq};

chapter! { "dead_letters":
    dead_letters_are_sent_before_the_commit [],
    duplicates_have_the_same_origin [],
    json_content_type_variants_are_decoded [],
    null_payload_is_rejected [],
    deeply_nested_json_is_rejected [],
    one_mebibyte_string_as_a_number_is_rejected [Admin],
    payload_timestamps_out_of_range_are_rejected [],
    empty_and_long_header_names_are_readable [],
    hundred_thousand_headers_do_not_stop_the_group [Admin],
    dead_letter_of_a_message_at_the_limit_is_complete [Admin],
    dead_letter_above_the_limit_is_truncated [Admin],
    dead_letter_with_too_many_headers_is_truncated [Admin],
    dead_letter_with_a_large_header_is_truncated [Admin],
    rejected_dead_letters_do_not_stop_the_group [Admin],
    too_large_messages_have_one_error_code [Admin],
}

/// A topic, its dead letter topic, and a group that reads the topic.
struct DeadLetterTest<'a> {
    context: &'a TestContext,
    bus: std::sync::Arc<dyn MessageBus>,
    topic: TopicName,
    dead: TopicName,
    group: GroupId,
}

impl<'a> DeadLetterTest<'a> {
    /// Creates both topics. Dead letters have at most `max_message_bytes`.
    async fn new(context: &'a TestContext, max_message_bytes: usize) -> CheckResult<Self> {
        let bus = context.bus().await?;
        let topic = context.create_topic(&*bus, 1).await?;
        let spec = TopicSpec::new(context.unused_topic_name()?, 1)?.with_max_message_bytes(max_message_bytes);
        let dead = context.create_topic_from(&*bus, spec).await?;
        Ok(Self { group: context.new_group()?, context, bus, topic, dead })
    }

    fn good(&self, seq: u64) -> CheckResult<Message> {
        Ok(encode_message(&Encoding::Json, &tick(seq)?, Some(&self.topic))?)
    }

    fn with_payload(&self, payload: impl Into<Bytes>) -> CheckResult<Message> {
        let mut message = self.good(2)?;
        message.payload = Some(payload.into());
        Ok(message)
    }

    async fn member(&self) -> CheckResult<Box<dyn Subscription>> {
        Ok(self.bus.subscribe(self.context.subscribe_request(&self.group, &self.topic)?).await?)
    }

    /// Receives `count` messages with a member.
    async fn batch(&self, member: &mut dyn Subscription, count: usize) -> CheckResult<Batch> {
        let messages = self.context.receive(member, count).await?;
        let mut positions = Offsets::new();
        for message in &messages {
            positions.mark_processed(message);
        }
        Ok(Batch::new(messages, positions, Vec::new()))
    }

    async fn letters(&self, count: usize) -> CheckResult<Vec<ReceivedMessage>> {
        self.context.read_all(&*self.bus, &self.dead, 1, count).await
    }

    /// Publishes messages between two valid records and processes all of them as a member. The records must arrive, the
    /// messages must be rejected with `code`, and the group must have committed all of them.
    async fn rejects(&self, poison: &[Message], code: &str) -> CheckResult {
        let all = [&[self.good(1)?], poison, &[self.good(3)?]].concat();
        self.bus.send(&all).await?;
        let mut member = self.member().await?;
        let batch = self.batch(&mut *member, all.len()).await?;
        let decoded = batch.decode::<PriceTick>();
        ensure_eq!(decoded.records, [tick(1)?, tick(3)?], "the valid records");
        ensure_eq!(decoded.rejected.len(), poison.len(), "the number of rejected messages");
        for rejected in &decoded.rejected {
            let error = &rejected.error;
            ensure_eq!(
                (error.kind(), error.code()),
                (ErrorKind::CorruptData, code),
                "the error of a rejected message"
            );
        }
        self.bus.send_dead_letters(&decoded.rejected, &DeadLetters::to(self.dead.clone())).await?;
        member.commit(batch.offsets()).await?;
        member.close().await?;
        let mut next = self.member().await?;
        self.context.expect_no_message(&mut *next).await?;
        next.close().await?;
        Ok(())
    }
}

fn tick(seq: u64) -> CheckResult<PriceTick> {
    let instrument: Instrument = "binance:BTC-USDT".parse()?;
    Ok(PriceTick::new(instrument, Timestamp::from_secs(1_704_067_200)?, seq, "65000.5".parse()?)?)
}

fn header(message: &ReceivedMessage, name: &str) -> Option<String> {
    message.headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
}

fn origin(letter: &ReceivedMessage) -> [Option<String>; 4] {
    [header::ORIGIN_TOPIC, header::ORIGIN_PARTITION, header::ORIGIN_OFFSET, header::ORIGIN_TIMESTAMP]
        .map(|name| header(letter, name))
}

async fn dead_letters_are_sent_before_the_commit(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    test.bus.send(&[test.good(1)?, test.with_payload("no record")?]).await?;
    // The store fails twice. Decoding publishes nothing, and the messages are redelivered.
    for _ in 0..2 {
        let mut member = test.member().await?;
        let decoded = test.batch(&mut *member, 2).await?.decode::<PriceTick>();
        ensure_eq!((decoded.records.len(), decoded.rejected.len()), (1, 1), "records and rejected messages");
        member.close().await?;
        test.letters(0).await?;
    }
    let mut member = test.member().await?;
    let batch = test.batch(&mut *member, 2).await?;
    let decoded = batch.decode::<PriceTick>();
    let dead = DeadLetters::to(test.dead.clone());
    test.bus.send_dead_letters(&decoded.rejected, &dead).await?;
    // The dead letter exists before the commit.
    let letters = test.letters(1).await?;
    ensure_eq!(
        origin(&letters[0]),
        [
            Some(test.topic.to_string()),
            Some("0".to_owned()),
            Some("1".to_owned()),
            decoded.rejected[0].message.timestamp.map(|time| time.as_micros().to_string()),
        ],
        "the origin of the dead letter"
    );
    member.commit(batch.offsets()).await?;
    member.close().await?;
    let mut next = test.member().await?;
    context.expect_no_message(&mut *next).await
}

async fn duplicates_have_the_same_origin(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    test.bus.send(&[test.with_payload("no record")?]).await?;
    let dead = DeadLetters::to(test.dead.clone());
    // The member ends between the dead letters and the commit.
    for _ in 0..2 {
        let mut member = test.member().await?;
        let decoded = test.batch(&mut *member, 1).await?.decode::<PriceTick>();
        test.bus.send_dead_letters(&decoded.rejected, &dead).await?;
        member.close().await?;
    }
    let letters = test.letters(2).await?;
    ensure!(origin(&letters[0])[3].is_some(), "the origin has no timestamp");
    ensure_eq!(origin(&letters[0]), origin(&letters[1]), "the origins of two duplicates");
    Ok(())
}

async fn json_content_type_variants_are_decoded(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    let spelt = |test: &DeadLetterTest<'_>, value: &'static str| -> CheckResult<Message> {
        let mut message = test.good(1)?;
        message.headers.remove(header::CONTENT_TYPE);
        message.headers.push(HeaderName::new(header::CONTENT_TYPE)?, Bytes::from_static(value.as_bytes()));
        Ok(message)
    };
    let good = ["application/json;charset=UTF-8", "Application/JSON; charset=\"utf-8\"; v=1"];
    let good: Vec<_> = good.into_iter().map(|value| spelt(&test, value)).collect::<CheckResult<_>>()?;
    test.bus.send(&good).await?;
    let mut member = test.member().await?;
    let decoded = test.batch(&mut *member, good.len()).await?.decode::<PriceTick>();
    ensure_eq!(decoded.records.len(), good.len(), "the number of decoded messages");
    member.close().await?;
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    let bad = ["application/json;charset=latin1", "application/cbor"];
    let bad: Vec<_> = bad.into_iter().map(|value| spelt(&test, value)).collect::<CheckResult<_>>()?;
    test.rejects(&bad, "bus.codec.header").await
}

async fn null_payload_is_rejected(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    let mut message = test.good(2)?;
    message.payload = None;
    test.rejects(&[message], "bus.codec.tombstone").await?;
    ensure!(test.letters(1).await?[0].payload.is_none(), "the dead letter of a tombstone has a payload");
    Ok(())
}

async fn deeply_nested_json_is_rejected(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    let nested = [
        "[".repeat(100_000),
        "{\"a\":".repeat(100_000),
        format!("{{\"instrument\":{}", "[".repeat(100_000)),
        // The nesting is in a field that the record does not have.
        format!("{{\"other\":{}", "[".repeat(100_000)),
        format!("{{\"other\":{}", "{\"a\":".repeat(100_000)),
    ];
    let nested: Vec<_> =
        nested.into_iter().map(|text| test.with_payload(text)).collect::<CheckResult<_>>()?;
    test.rejects(&nested, "bus.codec.json").await
}

/// Returns a tick as JSON with the given timestamp, sequence number and price.
fn json([ts, seq, price]: [&str; 3]) -> String {
    format!(r#"{{"instrument":"binance:BTC-USDT","ts":{ts},"seq":{seq},"price":{price}}}"#)
}

const TS: &str = "1704067200000000";

async fn one_mebibyte_string_as_a_number_is_rejected(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    let long = &format!("\"{}\"", "7".repeat(1 << 20));
    let poison = [[long, "2", "\"1\""], [TS, long, "\"1\""], [TS, "2", long]];
    let poison: Vec<_> =
        poison.into_iter().map(|of| test.with_payload(json(of))).collect::<CheckResult<_>>()?;
    test.rejects(&poison, "bus.codec.json").await?;
    for letter in test.letters(poison.len()).await? {
        let report = header(&letter, header::ERROR).unwrap_or_default();
        ensure!(!report.is_empty() && report.len() <= 1_024, "the error text has {} bytes", report.len());
    }
    Ok(())
}

async fn payload_timestamps_out_of_range_are_rejected(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    let mut poison = Vec::new();
    for time in [-1, 0, i64::MIN, i64::MAX, Timestamp::MAX.as_micros() + 1] {
        poison.push(test.with_payload(json([&time.to_string(), "2", "\"1\""]))?);
    }
    test.rejects(&poison, "bus.codec.json").await
}

async fn empty_and_long_header_names_are_readable(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    let mut message = test.good(1)?;
    for name in [String::new(), "n".repeat(5_000), "é".to_owned()] {
        message.headers.push(HeaderName::new(name)?, Bytes::from_static(b"v"));
    }
    test.bus.publish_one(&message).await?;
    let mut member = test.member().await?;
    let messages = context.receive(&mut *member, 1).await?;
    ensure!(!messages[0].headers_unreadable, "the headers are marked as unreadable");
    ensure!(messages[0].headers == message.headers, "the received headers differ from the sent headers");
    member.close().await?;
    // With a payload that is not a record, the headers are copied to the dead letter.
    message.payload = Some(Bytes::from_static(b"no record"));
    let test = DeadLetterTest::new(context, 2 << 20).await?;
    message.topic = test.topic.clone();
    test.rejects(std::slice::from_ref(&message), "bus.codec.json").await?;
    let letter = &test.letters(1).await?[0];
    for (name, value) in message.headers.iter() {
        ensure!(
            letter.headers.get(name.as_str()) == value,
            "the dead letter lacks a header name of {} bytes",
            name.as_str().len()
        );
    }
    Ok(())
}

/// The number of headers in a message. librdkafka reads no headers of a message with more than 100,000 headers, and a
/// layer may add headers.
const HEADERS: usize = 99_990;

/// Returns a message with [`HEADERS`] headers whose payload is not a record.
fn with_headers(test: &DeadLetterTest<'_>) -> CheckResult<Message> {
    let mut message = test.with_payload("no record")?;
    for n in message.headers.len()..HEADERS {
        message.headers.push(HeaderName::new(format!("{}", n % 10))?, Bytes::from_static(b"v"));
    }
    Ok(message)
}

/// Returns the number of original headers in a dead letter, and the number of dropped headers.
fn kept_and_dropped(letter: &ReceivedMessage) -> (usize, usize) {
    let dropped = header(letter, header::TRUNCATED_HEADERS).and_then(|text| text.parse().ok());
    let own = ["qi-origin-", "qi-error", "qi-truncated", "qi-digest"];
    let kept =
        letter.headers.iter().filter(|(name, _)| !own.iter().any(|own| name.as_str().starts_with(own)));
    (kept.count(), dropped.unwrap_or(0))
}

async fn hundred_thousand_headers_do_not_stop_the_group(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, (2 << 20) + (64 << 10)).await?;
    let message = with_headers(&test)?;
    let letter = truncated(&test, &message).await?;
    ensure_eq!(letter.payload, message.payload, "the payload of the dead letter");
    let (kept, dropped) = kept_and_dropped(&letter);
    ensure!(kept > 90_000 && kept + dropped == HEADERS, "{kept} headers kept, {dropped} dropped");
    Ok(())
}

async fn dead_letter_of_a_message_at_the_limit_is_complete(context: &TestContext) -> CheckResult {
    // The same sizes as in the catalogue: the limit of the dead letter topic exceeds the 2 MiB of the origin by 64 KiB.
    let test = DeadLetterTest::new(context, (2 << 20) + (64 << 10)).await?;
    let mut message = test.with_payload(Bytes::new())?;
    // Data that no codec compresses. Kafka also counts the framing.
    let room = (2 << 20) - message.size() - 200;
    let payload: Vec<u8> = (0..u32::try_from(room).unwrap_or_default())
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    message.payload = Some(payload.into());
    test.rejects(std::slice::from_ref(&message), "bus.codec.json").await?;
    let letter = &test.letters(1).await?[0];
    ensure!(letter.payload == message.payload, "the payload of the dead letter is not complete");
    ensure_eq!(header(letter, header::TRUNCATED), None, "the truncation header");
    Ok(())
}

/// Rejects a message that is too large for the dead letter topic, and returns its truncated dead letter.
async fn truncated(test: &DeadLetterTest<'_>, message: &Message) -> CheckResult<ReceivedMessage> {
    test.rejects(std::slice::from_ref(message), "bus.codec.json").await?;
    let letter = test.letters(1).await?.swap_remove(0);
    let size = message.size().to_string();
    ensure_eq!(header(&letter, header::TRUNCATED), Some(size), "the size of the original message");
    let digest = header(&letter, header::DIGEST).unwrap_or_default();
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    ensure!(hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()), "invalid digest {digest:?}");
    ensure_eq!(origin(&letter)[2].as_deref(), Some("1"), "the origin of the dead letter");
    ensure_eq!(header(&letter, header::ERROR_CODE).as_deref(), Some("bus.codec.json"), "the error code");
    let (kept, whole) = (letter.payload.as_deref(), message.payload.as_deref());
    ensure!(
        kept.zip(whole).is_some_and(|(kept, whole)| whole.starts_with(kept)),
        "the payload is not a prefix of the original payload"
    );
    Ok(letter)
}

async fn dead_letter_above_the_limit_is_truncated(context: &TestContext) -> CheckResult {
    for limit in [600, 5_000, 100_000] {
        let test = DeadLetterTest::new(context, limit).await?;
        let message = test.with_payload(vec![b'x'; 1 << 20])?;
        let letter = truncated(&test, &message).await?;
        let kept = letter.payload.map_or(0, |payload| payload.len());
        ensure!(
            kept < limit && (limit < 10_000 || kept > limit / 4),
            "{kept} payload bytes kept, limit is {limit} bytes"
        );
    }
    Ok(())
}

async fn dead_letter_with_too_many_headers_is_truncated(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 20_000).await?;
    let letter = truncated(&test, &with_headers(&test)?).await?;
    let (kept, dropped) = kept_and_dropped(&letter);
    ensure!(kept > 100 && kept + dropped == HEADERS, "{kept} headers kept, {dropped} dropped");
    Ok(())
}

async fn dead_letter_with_a_large_header_is_truncated(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 20_000).await?;
    let mut message = test.with_payload("no record")?;
    message.headers.push(HeaderName::new("giant")?, Bytes::from(vec![b'x'; 1 << 20]));
    let letter = truncated(&test, &message).await?;
    ensure_eq!(
        header(&letter, header::TRUNCATED_HEADERS).as_deref(),
        Some("1"),
        "the number of dropped headers"
    );
    ensure!(letter.headers.get("giant").is_none(), "the large header is not dropped");
    ensure_eq!(letter.payload, message.payload, "the payload of the dead letter");
    Ok(())
}

async fn rejected_dead_letters_do_not_stop_the_group(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 150).await?;
    let poison = [test.with_payload("no record")?, test.with_payload(vec![b'x'; 1 << 20])?];
    test.rejects(&poison, "bus.codec.json").await?;
    test.letters(0).await?;
    Ok(())
}

async fn too_large_messages_have_one_error_code(context: &TestContext) -> CheckResult {
    let test = DeadLetterTest::new(context, 10_000).await?;
    let client = test.bus.info().max_message_bytes;
    // The first message is too large for the topic, the second for the client.
    for size in [50_000, client + 1] {
        let message = Message::new(test.dead.clone(), vec![b'x'; size]);
        let outcomes = test.bus.publish(&[message], PublishOptions::NONE).await?.into_outcomes();
        let failure = outcomes.into_iter().next().and_then(Result::err);
        let found = failure.as_ref().map(|failure| (failure.error.kind(), failure.error.code().to_owned()));
        let wanted = (ErrorKind::InvalidInput, DeliveryError::TOO_LARGE.to_owned());
        ensure_eq!(found, Some(wanted), "the error of a message of {size} bytes");
    }
    Ok(())
}
