//! Checks of published messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, TryFutureExt};
use qi_core::bus::{
    Delivery, DeliveryState, HeaderName, Headers, Message, MessageBus, MessageBusExt, PublishOptions,
    ReaderRequest, ReceivedMessage, SeekTo, Subscription, TopicName, TopicPartition, TopicSpec,
};
use qi_core::{ErrorKind, Timestamp};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::context::{message_in_partition, message_with_key, parse_payload, text};
use crate::bus::contract::{CheckResult, Failure, TestContext, ensure, ensure_eq};

chapter! { "publish":
    empty_batch_returns_an_empty_report [],
    reported_offsets_match_the_log [],
    messages_of_one_key_keep_their_order [],
    keys_map_to_partitions_like_the_java_client [],
    empty_key_differs_from_no_key [],
    explicit_partition_overrides_the_key [],
    messages_without_key_reach_all_partitions [],
    batches_without_keys_stay_in_one_partition [],
    headers_keep_order_and_duplicates [],
    options_add_headers [],
    null_empty_and_large_payloads_are_delivered [Admin],
    timestamps_are_truncated_to_milliseconds [],
    too_large_message_fails_alone [Admin],
    unknown_partition_fails_alone [],
    unknown_topic_fails_immediately [Admin],
    sixteen_concurrent_publishers_lose_no_message [],
    hundred_thousand_messages_are_delivered_once [],
    small_send_buffer_loses_no_message [],
    full_log_makes_publish_wait [BoundedLog],
    dropped_publish_does_not_affect_later_publishes [],
}

/// The capacity of a small client, in bytes.
const SMALL: usize = 256 << 10;

async fn empty_batch_returns_an_empty_report(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let report = bus.publish(&[], PublishOptions::NONE).await?;
    ensure!(report.is_empty(), "an empty batch has outcomes");
    Ok(())
}

async fn reported_offsets_match_the_log(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 4).await?;
    let mut sent = Vec::new();
    for round in 0..5 {
        let batch: Vec<_> =
            (0..40).map(|n| message_with_key(&topic, &format!("k{}", n % 7), round * 40 + n)).collect();
        let deliveries = bus.send(&batch).await?;
        ensure_eq!(deliveries.len(), batch.len(), "the number of deliveries");
        sent.extend(deliveries.into_iter().zip(batch));
    }
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    for (delivery, _) in &sent {
        if let Some(before) = last.insert(delivery.partition, delivery.offset) {
            ensure!(
                delivery.offset > before,
                "offset {} was assigned after offset {before}",
                delivery.offset
            );
        }
    }
    let all = context.read_all(&*bus, &topic, 4, sent.len()).await?;
    for (delivery, message) in &sent {
        let there = all.iter().find(|r| r.partition == delivery.partition && r.offset == delivery.offset);
        ensure_eq!(there.map(text), Some(body(message)), "the message at {delivery:?}");
    }
    let (delivery, message) = &sent[sent.len() / 2];
    let place = TopicPartition::new(topic, delivery.partition);
    let mut reader = bus.open_reader(ReaderRequest::new([(place, SeekTo::Offset(delivery.offset))])?).await?;
    let found = context.receive(&mut *reader, 1).await?;
    ensure_eq!(text(&found[0]), body(message), "the first message of a reader that starts at the offset");
    Ok(())
}

fn body(message: &Message) -> String {
    String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()).into_owned()
}

async fn messages_of_one_key_keep_their_order(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 6).await?;
    for round in 0..10 {
        let batch: Vec<_> =
            (0..120).map(|n| message_with_key(&topic, &format!("k{}", n % 4), round * 30 + n / 4)).collect();
        bus.send(&batch).await?;
    }
    let all = context.read_all(&*bus, &topic, 6, 1_200).await?;
    each_key_is_complete_and_ordered(&all, 4, 300)
}

/// Checks that every key has the numbers from 0, in order, each once, and in one partition.
fn each_key_is_complete_and_ordered(all: &[ReceivedMessage], keys: usize, each: usize) -> CheckResult {
    let mut next: BTreeMap<String, (usize, u32)> = BTreeMap::new();
    for message in all {
        let (key, n) = parse_payload(message)?;
        let (wanted, partition) = next.entry(key.clone()).or_insert((0, message.partition));
        ensure_eq!(n, *wanted, "the next message of key {key}");
        ensure_eq!(message.partition, *partition, "the partition of key {key}");
        *wanted += 1;
    }
    ensure_eq!(next.len(), keys, "the number of keys");
    for (key, (count, _)) in next {
        ensure_eq!(count, each, "the number of messages of key {key}");
    }
    Ok(())
}

/// Keys and hashes from Kafka's own tests (Java's `UtilsTest`, librdkafka's `rdmurmur2.c`). Several hashes, such as the
/// third, are negative in Java.
const MURMUR2: [(&str, u32); 9] = [
    ("", 0x106e_08d9),
    ("21", (-973_932_308_i32).cast_unsigned()),
    ("foobar", (-790_332_482_i32).cast_unsigned()),
    ("a-little-bit-long-string", (-985_981_536_i32).cast_unsigned()),
    ("a-little-bit-longer-string", (-1_486_304_829_i32).cast_unsigned()),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", (-58_897_971_i32).cast_unsigned()),
    ("abc", 479_470_107),
    ("kafka", 0xd067_cf64),
    ("1234", 0x9fc9_7b14),
];

async fn keys_map_to_partitions_like_the_java_client(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    for partitions in [12, 7] {
        let topic = context.create_topic(&*bus, partitions).await?;
        let batch: Vec<_> = MURMUR2.iter().map(|(key, _)| message_with_key(&topic, key, 0)).collect();
        for (delivery, (key, hash)) in bus.send(&batch).await?.iter().zip(MURMUR2) {
            // Java's `toPositive` clears the sign bit.
            ensure_eq!(delivery.partition, (hash & 0x7fff_ffff) % partitions, "the partition of key {key:?}");
        }
    }
    Ok(())
}

async fn empty_key_differs_from_no_key(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 16).await?;
    for _ in 0..20 {
        let delivery = bus.publish_one(&message_with_key(&topic, "", 0)).await?;
        ensure_eq!(delivery.partition, 0x106e_08d9 % 16, "the partition of the empty key");
        context.sleep(Duration::from_millis(15)).await;
    }
    let all = context.read_all(&*bus, &topic, 16, 20).await?;
    ensure!(all.iter().all(|m| m.key.as_ref().is_some_and(Bytes::is_empty)), "a message has no empty key");
    Ok(())
}

async fn explicit_partition_overrides_the_key(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 5).await?;
    let batch: Vec<_> = (0..50)
        .map(|n| message_in_partition(&topic, n % 5, n as usize / 5).with_key("the same for all"))
        .collect();
    for (delivery, message) in bus.send(&batch).await?.iter().zip(&batch) {
        ensure_eq!(
            Some(delivery.partition),
            message.partition,
            "the partition of a message with an explicit partition"
        );
    }
    let all = context.read_all(&*bus, &topic, 5, 50).await?;
    each_key_is_complete_and_ordered(&all, 5, 10)
}

async fn messages_without_key_reach_all_partitions(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 4).await?;
    let mut reached = BTreeSet::new();
    for n in 0..200 {
        let delivery = bus.publish_one(&Message::new(topic.clone(), format!("-#{n}"))).await?;
        reached.insert(delivery.partition);
        context.sleep(Duration::from_millis(5)).await;
    }
    ensure_eq!(reached.len(), 4, "the number of partitions with messages without a key");
    let all = context.read_all(&*bus, &topic, 4, 200).await?;
    ensure!(all.iter().all(|message| message.key.is_none()), "a message without a key has a key");
    Ok(())
}

async fn batches_without_keys_stay_in_one_partition(context: &TestContext) -> CheckResult {
    const ROUNDS: usize = 20;
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 6).await?;
    let batch: Vec<_> = (0..8).map(|n| Message::new(topic.clone(), format!("-#{n}"))).collect();
    let mut whole = 0;
    for _ in 0..ROUNDS {
        let deliveries = bus.send(&batch).await?;
        let reached: BTreeSet<_> = deliveries.iter().map(|delivery| delivery.partition).collect();
        whole += usize::from(reached.len() == 1);
        context.sleep(Duration::from_millis(5)).await;
    }
    // The partition may change within a batch, but not within most batches.
    ensure!(whole > ROUNDS / 2, "only {whole} of {ROUNDS} batches without keys are in one partition");
    Ok(())
}

fn header(name: &str) -> CheckResult<HeaderName> {
    Ok(HeaderName::new(name)?)
}

async fn read_one(
    context: &TestContext,
    bus: &dyn MessageBus,
    topic: &TopicName,
) -> CheckResult<ReceivedMessage> {
    let mut all = context.read_all(bus, topic, 1, 1).await?;
    all.pop().ok_or_else(|| Failure::new("received no message"))
}

async fn headers_keep_order_and_duplicates(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let binary: &[u8] = &[0, 255, 128, 10, 13];
    let message = Message::new(topic.clone(), "x")
        .with_header(header("z")?, "last name first")
        .with_header(header("empty")?, "")
        .with_header(header("binary")?, binary)
        .with_header(header("z")?, "again")
        .with_header(header("z")?, "again")
        .with_header(header("a")?, "é");
    bus.publish_one(&message).await?;
    let received = read_one(context, &*bus, &topic).await?;
    ensure_eq!(received.headers, message.headers, "the headers");
    ensure_eq!(
        received.headers.get("z").map(|v| &v[..]),
        Some(&b"again"[..]),
        "the value of a repeated header"
    );
    Ok(())
}

async fn options_add_headers(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let mut added = Headers::new();
    added.push(header("trace")?, Bytes::from_static(b"t"));
    let message = Message::new(topic.clone(), "x").with_header(header("own")?, "o");
    let options = PublishOptions::with_headers(added.clone());
    bus.publish(std::slice::from_ref(&message), &options).await?.into_result()?;
    let mut wanted = message.headers.clone();
    wanted.extend(&added);
    ensure_eq!(
        read_one(context, &*bus, &topic).await?.headers,
        wanted,
        "the headers of the message, then of the options"
    );
    Ok(())
}

async fn null_empty_and_large_payloads_are_delivered(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    // Incompressible data, because any codec would shrink a run of one byte.
    let large: Vec<u8> = (0..1_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let batch = [
        Message::tombstone(topic.clone()).with_key("k"),
        Message::new(topic.clone(), "").with_key("k"),
        Message::new(topic.clone(), large).with_key("k"),
    ];
    bus.send(&batch).await?;
    let all = context.read_all(&*bus, &topic, 1, 3).await?;
    ensure!(all[0].payload.is_none(), "the tombstone has a payload");
    ensure_eq!(all[1].payload.as_deref(), Some(&b""[..]), "the empty payload");
    ensure!(all[2].payload == batch[2].payload, "the payload of 1 MiB differs");
    Ok(())
}

async fn timestamps_are_truncated_to_milliseconds(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let before = context.now().floor_to_millis();
    let own = Timestamp::from_micros(before.as_micros() - 60_000_000 + 999)?;
    let batch = [Message::new(topic.clone(), "own").with_timestamp(own), Message::new(topic.clone(), "none")];
    let deliveries = bus.send(&batch).await?;
    let after = context.now();
    let all = context.read_all(&*bus, &topic, 1, 2).await?;
    ensure_eq!(all[0].timestamp, Some(own.floor_to_millis()), "the explicit timestamp");
    let stamped = all[1]
        .timestamp
        .ok_or_else(|| Failure::new("a message without a timestamp was stored without a timestamp"))?;
    ensure_eq!(stamped, stamped.floor_to_millis(), "the timestamp of the publish");
    // The clock of a broker on another machine may differ.
    let slack = Duration::from_secs(5);
    let (early, late) = (before.checked_sub(slack), after.checked_add(slack));
    ensure!(
        Some(stamped) >= early && Some(stamped) <= late,
        "the timestamp {stamped} is not the time of the publish"
    );
    for (delivery, message) in deliveries.iter().zip(&all) {
        ensure!(
            delivery.timestamp.is_none_or(|t| Some(t) == message.timestamp),
            "the report has another timestamp"
        );
    }
    Ok(())
}

async fn too_large_message_fails_alone(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let spec = TopicSpec::new(context.unused_topic_name()?, 1)?.with_max_message_bytes(10_000);
    let topic = context.create_topic_from(&*bus, spec).await?;
    let batch = [
        message_in_partition(&topic, 0, 0),
        Message::new(topic.clone(), vec![7; 50_000]),
        message_in_partition(&topic, 0, 1),
    ];
    second_message_fails_alone(context, &*bus, &topic, &batch).await
}

async fn unknown_partition_fails_alone(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let batch = [
        message_in_partition(&topic, 0, 0),
        message_in_partition(&topic, 1, 9),
        message_in_partition(&topic, 0, 1),
    ];
    second_message_fails_alone(context, &*bus, &topic, &batch).await
}

/// Checks that the second of three messages is rejected as invalid input and that the others arrive.
async fn second_message_fails_alone(
    context: &TestContext,
    bus: &dyn MessageBus,
    topic: &TopicName,
    batch: &[Message],
) -> CheckResult {
    let outcomes = bus.publish(batch, PublishOptions::NONE).await?.into_outcomes();
    ensure_eq!(outcomes.len(), 3, "the number of outcomes");
    ensure!(outcomes[0].is_ok() && outcomes[2].is_ok(), "the other messages are not delivered");
    match &outcomes[1] {
        Ok(delivery) => {
            return Err(Failure::new(format_args!("the invalid message was delivered: {delivery:?}")));
        }
        Err(failure) => {
            ensure_eq!(failure.error.kind(), ErrorKind::InvalidInput, "the error kind");
            ensure_eq!(failure.state, DeliveryState::NotSent, "the delivery state");
        }
    }
    let all = context.read_all(bus, topic, 1, 2).await?;
    each_key_is_complete_and_ordered(&all, 1, 2)
}

async fn unknown_topic_fails_immediately(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let (known, unknown) = (context.create_topic(&*bus, 1).await?, context.unused_topic_name()?);
    let began = Instant::now();
    let batch = [
        message_in_partition(&known, 0, 0),
        message_in_partition(&unknown, 0, 0),
        message_in_partition(&known, 0, 1),
    ];
    let outcomes = bus.publish(&batch, PublishOptions::NONE).await?.into_outcomes();
    ensure!(began.elapsed() < Duration::from_secs(10), "the publish took {:?}", began.elapsed());
    ensure!(outcomes[0].is_ok() && outcomes[2].is_ok(), "the other messages are not delivered");
    let failure = outcomes[1].as_ref().err();
    ensure_eq!(failure.map(|f| f.error.kind()), Some(ErrorKind::NotFound), "the error kind");
    ensure_eq!(failure.map(|f| f.state), Some(DeliveryState::NotSent), "the delivery state");
    let rejected = bus.subscribe(context.subscribe_request(&context.new_group()?, &unknown)?).await;
    ensure_eq!(rejected.err().map(|e| e.kind()), Some(ErrorKind::NotFound), "the error of subscribe");
    let names: Vec<_> = bus.topics().await?.into_iter().map(|topic| topic.name).collect();
    ensure!(names.contains(&known) && !names.contains(&unknown), "the unknown topic was created");
    Ok(())
}

async fn sixteen_concurrent_publishers_lose_no_message(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 6).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..16 {
        let (bus, topic) = (bus.clone(), topic.clone());
        tasks.spawn(async move {
            for round in 0..10 {
                let batch: Vec<_> =
                    (0..20).map(|n| message_with_key(&topic, &format!("t{task}"), round * 20 + n)).collect();
                bus.send(&batch).await?;
            }
            Ok::<_, qi_core::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|e| Failure::new(format_args!("a task failed: {e}")))??;
    }
    let all = context.read_all(&*bus, &topic, 6, 3_200).await?;
    each_key_is_complete_and_ordered(&all, 16, 200)
}

async fn hundred_thousand_messages_are_delivered_once(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 12).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    let sending = async {
        for round in 0..100 {
            let batch: Vec<_> = (0..1_000)
                .map(|n| message_with_key(&topic, &format!("k{}", n % 50), round * 20 + n / 50))
                .collect();
            bus.send(&batch).await?;
        }
        Ok::<_, Failure>(())
    };
    let receiving = context.receive(&mut *reader, 100_000);
    let ((), all) = futures::try_join!(sending, receiving)?;
    each_key_is_complete_and_ordered(&all, 50, 2_000)?;
    context.expect_no_message(&mut *reader).await
}

/// Returns messages of 2 MB with four keys, which exceed the capacity of a small client by far.
fn large_messages(topic: &TopicName) -> Vec<Message> {
    (0..2_000)
        .map(|n| {
            let mut payload = format!("k{}#", n % 4).into_bytes();
            payload.extend(vec![b'0'; 1_000]);
            payload.extend((n / 4).to_string().into_bytes());
            Message::new(topic.clone(), payload).with_key(format!("k{}", n % 4))
        })
        .collect()
}

async fn small_send_buffer_loses_no_message(context: &TestContext) -> CheckResult {
    let bus = context.client_with_capacity(SMALL).await?.bus;
    let topic = context.create_topic(&*bus, 2).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    let batch = large_messages(&topic);
    receive_while_sending(context, bus.send(&batch), &mut *reader, batch.len()).await
}

async fn full_log_makes_publish_wait(context: &TestContext) -> CheckResult {
    let bus = context.client_with_capacity(SMALL).await?.bus;
    let topic = context.create_topic(&*bus, 2).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    let batch = large_messages(&topic);
    let mut sending = Box::pin(bus.send(&batch));
    let early = tokio::time::timeout(context.timing().receive_timeout * 4, &mut sending).await;
    ensure!(early.is_err(), "2 MB were accepted by a log of {SMALL} bytes without a reader");
    receive_while_sending(context, sending, &mut *reader, batch.len()).await
}

/// Receives messages while they are sent, and commits each batch. Checks that all of them arrive in order.
async fn receive_while_sending(
    context: &TestContext,
    sending: impl Future<Output = qi_core::Result<Vec<Delivery>>>,
    reader: &mut dyn Subscription,
    count: usize,
) -> CheckResult {
    let receiving = async {
        let mut all = Vec::new();
        let deadline = Instant::now() + context.timing().effect_timeout;
        while all.len() < count {
            ensure!(Instant::now() < deadline, "received only {} messages", all.len());
            let received = reader.recv(50, context.timing().receive_timeout).await?;
            reader.commit(received.offsets()).await?;
            all.extend(received.into_messages());
            context.sleep(Duration::from_millis(1)).await;
        }
        Ok(all)
    };
    let (deliveries, all) = futures::try_join!(sending.map_err(Failure::from), receiving)?;
    ensure_eq!(deliveries.len(), count, "the number of deliveries");
    each_key_is_complete_and_ordered(&all, 4, count / 4)
}

async fn dropped_publish_does_not_affect_later_publishes(context: &TestContext) -> CheckResult {
    let client = context.client().await?;
    let (bus, topic) = (Arc::clone(&client.bus), context.create_topic(&*client.bus, 3).await?);
    for n in 0..40 {
        let batch: Vec<_> = (0..10).map(|k| message_with_key(&topic, &format!("k{k}"), n)).collect();
        // The future is polled a few times and then dropped. Messages under way may arrive, each at most once.
        let mut publish = Box::pin(bus.publish(&batch, PublishOptions::NONE));
        for _ in 0..n % 4 {
            if (&mut publish).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    // Messages of dropped futures have time to arrive before the next batch.
    context.short_sleep().await;
    let last: Vec<_> = (0..10).map(|k| message_with_key(&topic, &format!("k{k}"), 40)).collect();
    bus.send(&last).await?;
    let from = (0..3).map(|p| (TopicPartition::new(topic.clone(), p), SeekTo::Earliest));
    let mut reader = bus.open_reader(ReaderRequest::new(from)?).await?;
    let mut reached: BTreeMap<String, usize> = BTreeMap::new();
    let deadline = Instant::now() + context.timing().effect_timeout;
    while reached.values().filter(|n| **n == 40).count() < 10 {
        ensure!(Instant::now() < deadline, "the bus does not continue after dropped futures: {reached:?}");
        for message in reader.recv(1_000, context.timing().receive_timeout).await?.messages() {
            let (key, n) = parse_payload(message)?;
            if let Some(before) = reached.insert(key.clone(), n) {
                ensure!(n > before, "message {n} of key {key} follows message {before}");
            }
        }
    }
    Ok(())
}
