//! The interoperability with Kafka's tools, which must write, read and report the same data as this library.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod redpanda_rig;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use libtest_mimic::Arguments;
use qi_adapters::redpanda::RedpandaBus;
use qi_core::bus::{
    CleanupPolicy, DeadLetters, Delivery, GroupId, GroupInfo, GroupQuery, GroupState, HeaderName, Headers,
    Message, MessageBus, MessageBusExt, Offsets, ReaderRequest, ReceivedMessage, SeekTo, SubscribeRequest,
    Subscription, TopicInfo, TopicName, TopicPartition, TopicSpec, TopicState, header, partition_for_key,
};
use qi_core::{ErrorKind, PriceTick, Selection, Timestamp};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use redpanda_rig::Brokers;
use redpanda_rig::tools::{table, tool, tool_trial};
use servers::{Spare, namespace, spare_trial};

const SECOND: Duration = Duration::from_secs(1);

fn main() {
    let brokers = Brokers::redpanda().with_long_timeout();
    let trials = vec![
        tool_trial(&brokers, "messages_of_the_kafka_producer_are_received", messages_of_kafka_producer),
        tool_trial(
            &brokers,
            "published_messages_are_read_by_the_kafka_consumer",
            messages_for_kafka_consumer,
        ),
        tool_trial(&brokers, "keys_map_to_the_partitions_of_the_java_client", partitions_of_keys),
        tool_trial(&brokers, "topics_match_the_kafka_tools", topics),
        tool_trial(&brokers, "a_topic_of_the_kafka_tools_is_compared", topic_of_kafka_tool),
        tool_trial(&brokers, "groups_match_the_kafka_tools", groups),
        tool_trial(&brokers, "members_start_at_commits_of_the_kafka_tools", commits_of_kafka_tool),
        spare_trial(&brokers, "a_group_of_the_consumer_protocol_is_not_described", consumer_protocol),
        tool_trial(&brokers, "an_open_transaction_delays_no_group_query", open_transaction),
        tool_trial(&brokers, "a_gzip_batch_of_zeros_becomes_a_truncated_dead_letter", gzip_of_zeros),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// Runs a check with a bus and a new topic, which is deleted at the end.
async fn with_topic<R: Future<Output = ()>>(
    brokers: &Brokers,
    partitions: u32,
    check: impl FnOnce(std::sync::Arc<RedpandaBus>, TopicName) -> R,
) {
    let bus = std::sync::Arc::new(RedpandaBus::open(brokers.config()).unwrap());
    let topic = TopicName::new(namespace()).unwrap();
    let made = bus.create_topics(&[TopicSpec::new(topic.clone(), partitions).unwrap()]).await.unwrap();
    assert_eq!(made[0].result.as_ref().unwrap(), &TopicState::Created);
    check(bus.clone(), topic.clone()).await;
    bus.delete_topics(&[topic]).await.unwrap();
    bus.close().await.unwrap();
}

/// Returns all messages in a topic, by partition and offset.
async fn all_of(
    bus: &dyn MessageBus,
    topic: &TopicName,
    partitions: u32,
    count: usize,
) -> Vec<ReceivedMessage> {
    let from = (0..partitions).map(|p| (TopicPartition::new(topic.clone(), p), SeekTo::Earliest));
    let mut reader = bus.open_reader(ReaderRequest::new(from).unwrap()).await.unwrap();
    let all = drain(&mut *reader, count).await;
    reader.close().await.unwrap();
    all
}

async fn drain(reader: &mut dyn Subscription, count: usize) -> Vec<ReceivedMessage> {
    let mut all = Vec::new();
    let deadline = tokio::time::Instant::now() + 30 * SECOND;
    while all.len() < count {
        assert!(tokio::time::Instant::now() < deadline, "{} of {count} messages received", all.len());
        all.extend(reader.recv(1_000, SECOND).await.unwrap().into_messages());
    }
    assert!(reader.recv(1, SECOND / 4).await.unwrap().is_empty(), "more than {count} messages");
    all.sort_by_key(|message| (message.partition, message.offset));
    all
}

fn headers(pairs: &[(&str, Option<&str>)]) -> Headers {
    let pair = |(name, value): &(&str, Option<&str>)| {
        (HeaderName::new(*name).unwrap(), value.map(|value| Bytes::copy_from_slice(value.as_bytes())))
    };
    pairs.iter().map(pair).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "keys and payloads are options")]
fn bytes(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

/// The text that the console tools print for a null.
const NULL: &str = "NULL";

async fn messages_of_kafka_producer(brokers: Brokers) {
    with_topic(&brokers, 3, async |bus, topic| {
        let before = now();
        let lines = [
            // The headers, the key and the payload.
            ("source:binance,seq:7", "BTC", "1.5"),
            // A repeated name, an empty value and a null.
            ("a:1,b:,a:2,c:NULL", "ETH", "2.5"),
            (NULL, "ETH", NULL),
            (NULL, "ETH", ""),
            (NULL, "", "an empty key"),
            ("größe:süß", "ключ", "价格 😀"),
            (NULL, NULL, "no key"),
        ];
        let input: Vec<_> = lines.iter().map(|(h, k, v)| format!("{h}\t{k}\t{v}\n")).collect();
        let options = format!(
            "--topic {topic} --reader-property parse.headers=true --reader-property parse.key=true \
             --reader-property null.marker={NULL} --compression-codec lz4"
        );
        tool(&brokers, "ConsoleProducer", &options, &input.concat()).await;
        let mut got: Vec<_> = all_of(&*bus, &topic, 3, lines.len()).await;
        let after = now();
        assert!(got.iter().all(|m| m.timestamp.is_some_and(|ts| (before..=after).contains(&ts))), "{got:?}");
        let mut by_key: BTreeMap<Option<Bytes>, Vec<(Option<Bytes>, Headers)>> = BTreeMap::new();
        for message in got.drain(..) {
            by_key.entry(message.key).or_default().push((message.payload, message.headers));
        }
        let none = Headers::new();
        let wanted = BTreeMap::from([
            (bytes("BTC"), vec![(bytes("1.5"), headers(&[("source", Some("binance")), ("seq", Some("7"))]))]),
            (
                bytes("ETH"),
                vec![
                    (
                        bytes("2.5"),
                        headers(&[("a", Some("1")), ("b", Some("")), ("a", Some("2")), ("c", None)]),
                    ),
                    (None, none.clone()),
                    (bytes(""), none.clone()),
                ],
            ),
            (bytes(""), vec![(bytes("an empty key"), none.clone())]),
            (bytes("ключ"), vec![(bytes("价格 😀"), headers(&[("größe", Some("süß"))]))]),
            (None, vec![(bytes("no key"), none)]),
        ]);
        assert_eq!(by_key, wanted);
    })
    .await;
}

fn now() -> Timestamp {
    use qi_core::Clock as _;
    // Stored times are truncated to milliseconds.
    Timestamp::from_millis(qi_core::SystemClock.now().as_millis_floor()).unwrap()
}

async fn messages_for_kafka_consumer(brokers: Brokers) {
    with_topic(&brokers, 3, async |bus, topic| {
        let new = |key: Option<&str>, payload: Option<&str>, pairs: &[(&str, Option<&str>)]| {
            let mut message = Message::tombstone(topic.clone());
            (message.key, message.payload) = (key.and_then(bytes), payload.and_then(bytes));
            message.headers = headers(pairs);
            message
        };
        let batch = [
            new(Some("BTC"), Some("1.5"), &[("source", Some("binance")), ("seq", Some("7"))]),
            new(Some("ETH"), Some("2.5"), &[("a", Some("1")), ("b", Some("")), ("a", Some("2"))]),
            new(Some("ETH"), None, &[]),
            new(Some("ETH"), Some(""), &[]),
            new(Some(""), Some("an empty key"), &[]),
            new(Some("ключ"), Some("价格 😀"), &[("größe", Some("süß"))]),
            new(None, Some("no key"), &[]),
            new(Some("old"), Some("of another day"), &[])
                .with_timestamp(Timestamp::from_millis(now().as_millis_floor() - 86_400_000).unwrap()),
        ];
        let deliveries = bus.send(&batch).await.unwrap();
        let line = |message: &Message, delivery: &Delivery| {
            let text = |bytes: &Option<Bytes>| match bytes {
                Some(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
                None => NULL.to_owned(),
            };
            let pairs = message.headers.iter();
            let pairs: Vec<_> =
                pairs.map(|(name, value)| format!("{name}:{}", text(&value.cloned()))).collect();
            let pairs = if pairs.is_empty() { "NO_HEADERS".to_owned() } else { pairs.join(",") };
            let time = delivery.timestamp.unwrap().as_millis_floor();
            let Delivery { partition, offset, .. } = delivery;
            let (key, payload) = (text(&message.key), text(&message.payload));
            format!("CreateTime:{time}\tPartition:{partition}\tOffset:{offset}\t{pairs}\t{key}\t{payload}")
        };
        let wanted: BTreeSet<_> = batch.iter().zip(&deliveries).map(|(m, d)| line(m, d)).collect();
        let properties = ["timestamp", "partition", "offset", "headers", "key"]
            .map(|word| format!("--formatter-property print.{word}=true"))
            .join(" ");
        let options = format!(
            "--topic {topic} --from-beginning --max-messages {} --timeout-ms 15000 {properties} \
             --formatter-property null.literal={NULL} --group {topic}",
            batch.len()
        );
        let printed = tool(&brokers, "consumer.ConsoleConsumer", &options, "").await;
        let printed: BTreeSet<_> =
            printed.lines().filter(|line| line.starts_with("CreateTime")).map(str::to_owned).collect();
        assert_eq!(printed, wanted);
    })
    .await;
}

/// Another client publishes a message whose payload is 32 MiB, and about 32 KiB in the log.
async fn gzip_of_zeros(brokers: Brokers) {
    const SIZE: usize = 32 << 20;
    with_topic(&brokers, 1, async |bus, topic| {
        let dead = DeadLetters::default().topic_for(&topic).unwrap();
        let spec = TopicSpec::new(dead.clone(), 1).unwrap().with_max_message_bytes((2 << 20) + (64 << 10));
        bus.create_topics(&[spec]).await.unwrap().pop().unwrap().result.unwrap();
        let (addresses, name) = (brokers.addresses().to_owned(), topic.to_string());
        let other_client = tokio::task::spawn_blocking(move || {
            let producer: BaseProducer = ClientConfig::new()
                .set("bootstrap.servers", addresses)
                .set("compression.type", "gzip")
                .set("message.max.bytes", "100000000")
                .create()
                .unwrap();
            let payload = vec![b'0'; SIZE];
            producer.send(BaseRecord::<[u8], [u8]>::to(&name).payload(&payload)).map_err(|(e, _)| e).unwrap();
            producer.flush(30 * SECOND).unwrap();
        });
        other_client.await.unwrap();
        let time = Timestamp::from_secs(1_704_067_200).unwrap();
        let tick = PriceTick::new("a:B".parse().unwrap(), time, 1, "1".parse().unwrap()).unwrap();
        bus.send_records(std::slice::from_ref(&tick), Some(&topic)).await.unwrap();
        let group = GroupId::new(topic.as_str()).unwrap();
        let member =
            async || bus.subscribe(SubscribeRequest::new(group.clone(), [topic.clone()]).unwrap()).await;
        let mut reader = member().await.unwrap();
        let mut records = Vec::new();
        while records.is_empty() {
            let batch = reader.recv(10, 10 * SECOND).await.unwrap();
            let decoded = batch.decode::<PriceTick>();
            records.extend(decoded.records);
            bus.send_dead_letters(&decoded.rejected, &DeadLetters::default()).await.unwrap();
            reader.commit(batch.offsets()).await.unwrap();
        }
        assert_eq!(records, [tick]);
        reader.close().await.unwrap();
        assert!(member().await.unwrap().recv(1, 2 * SECOND).await.unwrap().is_empty());
        let letter = all_of(&*bus, &dead, 1, 1).await.swap_remove(0);
        let kept = letter.payload.as_ref().unwrap();
        assert!((1 << 20..3 << 20).contains(&kept.len()), "{} bytes kept", kept.len());
        let size = SIZE.to_string();
        assert_eq!(letter.headers.get(header::TRUNCATED).map(|v| &v[..]), Some(size.as_bytes()));
        bus.delete_topics(&[dead]).await.unwrap();
    })
    .await;
}

/// Returns keys of every kind that a line of text can contain.
fn keys() -> Vec<String> {
    let mut keys: Vec<_> = [
        "",
        " ",
        "a",
        "ab",
        "abc",
        "abcd",
        "abcde",
        "binance:BTC-USDT",
        "\u{1}\u{2}\u{7f}",
        "ключ",
        "鍵",
        "🔑",
        "é",
        "e\u{301}",
    ]
    .map(str::to_owned)
    .to_vec();
    keys.extend((0..50).map(|n| format!("instrument-{n}")));
    keys.extend((1..10).map(|n| "ü".repeat(n)));
    keys.extend([100, 1_000, 10_000].map(|length| "long".repeat(length)));
    keys
}

async fn partitions_of_keys(brokers: Brokers) {
    for partitions in [12, 7] {
        with_topic(&brokers, partitions, async |bus, topic| {
            let keys = keys();
            assert!(keys.len() >= 50);
            let input: Vec<_> = keys.iter().enumerate().map(|(n, key)| format!("{key}\t{n}\n")).collect();
            let options = format!("--topic {topic} --reader-property parse.key=true");
            tool(&brokers, "ConsoleProducer", &options, &input.concat()).await;
            let theirs: BTreeMap<String, u32> = all_of(&*bus, &topic, partitions, keys.len())
                .await
                .into_iter()
                .map(|m| (String::from_utf8(m.key.unwrap().to_vec()).unwrap(), m.partition))
                .collect();
            let batch: Vec<_> =
                keys.iter().map(|key| Message::new(topic.clone(), "x").with_key(key.clone())).collect();
            let ours = bus.send(&batch).await.unwrap();
            for (key, delivery) in keys.iter().zip(ours) {
                let shown: String = key.chars().take(20).collect();
                assert_eq!(Some(&delivery.partition), theirs.get(key), "{shown:?} of {partitions}");
                let known = partition_for_key(key.as_bytes(), NonZeroU32::new(partitions).unwrap());
                assert_eq!(
                    delivery.partition, known,
                    "{shown:?} of {partitions}, by the library's own function"
                );
            }
            let used: BTreeSet<_> = theirs.values().collect();
            assert_eq!(used.len(), partitions as usize, "every partition has a key");
        })
        .await;
    }
}

async fn info_of(bus: &dyn MessageBus, topic: &TopicName) -> TopicInfo {
    bus.topics().await.unwrap().into_iter().find(|info| info.name == *topic).unwrap()
}

/// Returns every setting of a topic, as printed by Kafka's tool.
async fn kafka_tool_settings(brokers: &Brokers, topic: &TopicName) -> BTreeMap<String, String> {
    let options = format!("--describe --entity-type topics --entity-name {topic} --all");
    let printed = tool(brokers, "kafka.admin.ConfigCommand", &options, "").await;
    let settings = printed.lines().filter_map(|line| {
        let (setting, _) = line.trim().split_once(" sensitive=")?;
        setting.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
    });
    settings.collect()
}

/// Returns the partitions of a topic as reported by Kafka's tool: leader, replicas and in-sync replicas.
async fn kafka_tool_partitions(
    brokers: &Brokers,
    topic: &TopicName,
) -> BTreeMap<u32, (i32, Vec<i32>, Vec<i32>)> {
    let printed = tool(brokers, "TopicCommand", &format!("--describe --topic {topic}"), "").await;
    let numbers = |text: &str| text.split(',').map(|n| n.trim().parse().unwrap()).collect::<Vec<i32>>();
    let partitions = printed.lines().filter(|line| line.contains("Leader: ")).map(|line| {
        let fields: BTreeMap<_, _> =
            line.trim().split('\t').filter_map(|field| field.split_once(": ")).collect();
        let described =
            (fields["Leader"].parse().unwrap(), numbers(fields["Replicas"]), numbers(fields["Isr"]));
        (fields["Partition"].parse().unwrap(), described)
    });
    partitions.collect()
}

/// Returns the low or the high watermarks of a topic, as printed by Kafka's tool.
async fn kafka_tool_offsets(brokers: &Brokers, topic: &TopicName, time: &str) -> BTreeMap<u32, u64> {
    let printed = tool(brokers, "GetOffsetShell", &format!("--topic {topic} --time {time}"), "").await;
    let offsets = printed.lines().filter_map(|line| {
        let mut fields = line.rsplit(':');
        let offset = fields.next()?.parse().ok()?;
        Some((fields.next()?.parse().ok()?, offset))
    });
    offsets.collect()
}

/// Asserts that Kafka's tools report the same topic.
async fn assert_same_topic(brokers: &Brokers, info: &TopicInfo) {
    let partitions = info.partitions.iter();
    let ours: BTreeMap<_, _> =
        partitions.map(|p| (p.id, (p.leader.unwrap(), p.replicas.clone(), p.in_sync.clone()))).collect();
    assert_eq!(ours, kafka_tool_partitions(brokers, &info.name).await);
    assert_eq!(info.settings, Some(kafka_tool_settings(brokers, &info.name).await));
    for (time, ours) in [("-2", watermarks(info, |p| p.low)), ("-1", watermarks(info, |p| p.high))] {
        assert_eq!(ours, kafka_tool_offsets(brokers, &info.name, time).await, "offsets at {time}");
    }
}

fn watermarks(info: &TopicInfo, watermark: fn(&qi_core::bus::PartitionInfo) -> u64) -> BTreeMap<u32, u64> {
    info.partitions.iter().map(|p| (p.id, watermark(p))).collect()
}

async fn topics(brokers: Brokers) {
    let bus = RedpandaBus::open(brokers.config()).unwrap();
    let topic = TopicName::new(namespace()).unwrap();
    let spec = TopicSpec::new(topic.clone(), 5)
        .unwrap()
        .with_replication(1)
        .with_retention(Duration::from_hours(48))
        .with_cleanup(CleanupPolicy::Compact)
        .with_max_message_bytes(123_456)
        .with_setting("segment.bytes", "2097152");
    bus.create_topics(&[spec]).await.unwrap().pop().unwrap().result.unwrap();
    let batch: Vec<_> = (0..40).map(|n| Message::new(topic.clone(), "x").with_key(format!("k{n}"))).collect();
    bus.send(&batch).await.unwrap();
    let info = info_of(&bus, &topic).await;
    assert_same_topic(&brokers, &info).await;
    for (name, value) in [
        ("retention.ms", "172800000"),
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "123456"),
        ("segment.bytes", "2097152"),
    ] {
        let settings = info.settings.as_ref().unwrap();
        assert_eq!(settings.get(name).map(String::as_str), Some(value));
    }
    assert_eq!(info.partitions.iter().map(|p| p.high).sum::<u64>(), 40);
    bus.delete_topics(std::slice::from_ref(&topic)).await.unwrap();
    let listed = tool(&brokers, "TopicCommand", "--list", "").await;
    assert!(!listed.lines().any(|line| line == topic.as_str()), "the group exists after its deletion");
    bus.close().await.unwrap();
}

async fn topic_of_kafka_tool(brokers: Brokers) {
    let bus = RedpandaBus::open(brokers.config()).unwrap();
    let topic = TopicName::new(namespace()).unwrap();
    let options = format!("--create --topic {topic} --partitions 4 --config retention.ms=86400000");
    tool(&brokers, "TopicCommand", &options, "").await;
    assert_same_topic(&brokers, &info_of(&bus, &topic).await).await;
    let day = TopicSpec::new(topic.clone(), 4).unwrap().with_retention(Duration::from_hours(24));
    let two_days = TopicSpec::new(topic.clone(), 4).unwrap().with_retention(Duration::from_hours(48));
    let more = TopicSpec::new(topic.clone(), 6).unwrap();
    let mut outcomes = Vec::new();
    for spec in [day, two_days, more] {
        outcomes.push(bus.create_topics(&[spec]).await.unwrap().pop().unwrap().result);
    }
    assert_eq!(
        outcomes[0].as_ref().unwrap(),
        &TopicState::Existed { differs: vec![], settings_hidden: false }
    );
    let TopicState::Existed { differs, .. } = outcomes[1].as_ref().unwrap() else { panic!("{outcomes:?}") };
    let differs: Vec<_> = differs.iter().map(|d| (&*d.name, &*d.wanted, &*d.found)).collect();
    assert_eq!(differs, [("retention.ms", "172800000", "86400000")]);
    assert_eq!(outcomes[2].as_ref().unwrap_err().kind(), ErrorKind::Conflict);
    // Partitions added by the tool are detected and used, even by clients that knew the topic before.
    bus.publish_one(&Message::new(topic.clone(), "before")).await.unwrap();
    tool(&brokers, "TopicCommand", &format!("--alter --topic {topic} --partitions 6"), "").await;
    assert_same_topic(&brokers, &info_of(&bus, &topic).await).await;
    let added = bus.publish_one(&Message::new(topic.clone(), "after").with_partition(5)).await.unwrap();
    assert_eq!((added.partition, added.offset), (5, 0));
    bus.delete_topics(&[topic]).await.unwrap();
    bus.close().await.unwrap();
}

async fn group_of(bus: &dyn MessageBus, group: &GroupId) -> GroupInfo {
    bus.groups(&GroupQuery::one(group.clone())).await.unwrap().pop().unwrap()
}

/// Asserts that Kafka's tools report the same group.
async fn assert_same_group(brokers: &Brokers, info: &GroupInfo, state: &str) {
    let ask = async |more: &str| {
        let options = format!("--describe --group {} {more}", info.id);
        table(&tool(brokers, "consumer.group.ConsumerGroupCommand", &options, "").await)
    };
    let described = ask("").await;
    let number = |text: &str| text.parse::<u64>().ok();
    let theirs: BTreeMap<_, _> = described
        .iter()
        .map(|row| {
            let place = (row["TOPIC"].clone(), row["PARTITION"].parse::<u32>().unwrap());
            let reported =
                (number(&row["CURRENT-OFFSET"]), number(&row["LOG-END-OFFSET"]), number(&row["LAG"]));
            (place, reported)
        })
        .collect();
    let ours: BTreeMap<_, _> = info
        .partitions
        .iter()
        .map(|p| {
            let place = (p.partition.topic.to_string(), p.partition.partition);
            (place, (p.committed, p.end, p.lag))
        })
        .collect();
    assert_eq!(ours, theirs);
    let owners: BTreeMap<_, _> = described
        .iter()
        .filter(|row| row["CONSUMER-ID"] != "-")
        .map(|row| {
            let place = (row["TOPIC"].clone(), row["PARTITION"].parse::<u32>().unwrap());
            (place, (row["CONSUMER-ID"].clone(), row["CLIENT-ID"].clone()))
        })
        .collect();
    let ours: BTreeMap<_, _> =
        info.members
            .iter()
            .flat_map(|member| {
                member.partitions.iter().map(|p| {
                    ((p.topic.to_string(), p.partition), (member.id.clone(), member.client_id.clone()))
                })
            })
            .collect();
    assert_eq!(ours, owners);
    let members = ask("--members --verbose").await;
    let theirs: BTreeMap<_, _> = members
        .iter()
        .map(|row| (row["CONSUMER-ID"].clone(), row["#PARTITIONS"].parse::<usize>().unwrap()))
        .collect();
    let ours: BTreeMap<_, _> = info.members.iter().map(|m| (m.id.clone(), m.partitions.len())).collect();
    assert_eq!(ours, theirs);
    let states = ask("--state").await;
    assert!(states[0].values().any(|word| word == state), "{states:?}");
}

async fn groups(brokers: Brokers) {
    with_topic(&brokers, 5, async |bus, topic| {
        let group = GroupId::new(topic.as_str()).unwrap();
        let batch: Vec<_> = (0..50).map(|n| Message::new(topic.clone(), "x").with_partition(n % 5)).collect();
        bus.send(&batch).await.unwrap();
        let other = RedpandaBus::open(brokers.config()).unwrap();
        let request = SubscribeRequest::new(group.clone(), [topic.clone()]).unwrap();
        let mut one = bus.subscribe(request.clone()).await.unwrap();
        let join = other.subscribe(request);
        tokio::pin!(join);
        let mut two = loop {
            tokio::select! {
                two = &mut join => break two.unwrap(),
                read = one.recv(3, SECOND / 10) => drop(read.unwrap()),
            }
        };
        // Waits until both members have their share.
        let mut shares = (0, 0);
        let deadline = tokio::time::Instant::now() + 30 * SECOND;
        while shares.0 + shares.1 != 5 || shares.0 < 2 || shares.1 < 2 {
            assert!(tokio::time::Instant::now() < deadline, "shares {shares:?}");
            for sub in [&mut one, &mut two] {
                let batch = sub.recv(3, SECOND / 5).await.unwrap();
                sub.commit(batch.offsets()).await.unwrap();
            }
            let owned =
                async |sub: &mut Box<dyn Subscription>| sub.assignment().await.unwrap().partitions.len();
            shares = (owned(&mut one).await, owned(&mut two).await);
        }
        let info = group_of(&*bus, &group).await;
        assert_eq!((info.state, info.members.len()), (GroupState::Stable, 2), "{info:?}");
        assert!(info.lag().is_none_or(|lag| lag < 50) && info.partitions.len() == 5, "{info:?}");
        assert_same_group(&brokers, &info, "Stable").await;
        for sub in [&mut one, &mut two] {
            sub.close().await.unwrap();
        }
        let info = group_of(&*bus, &group).await;
        assert_eq!((info.state, info.members.len()), (GroupState::Empty, 0), "{info:?}");
        assert_same_group(&brokers, &info, "Empty").await;
        other.close().await.unwrap();
        delete_group(&brokers, &group).await;
        assert!(bus.groups(&GroupQuery::one(group)).await.unwrap().is_empty());
    })
    .await;
}

async fn delete_group(brokers: &Brokers, group: &GroupId) {
    let options = format!("--delete --group {group}");
    tool(brokers, "consumer.group.ConsumerGroupCommand", &options, "").await;
}

async fn commits_of_kafka_tool(brokers: Brokers) {
    with_topic(&brokers, 2, async |bus, topic| {
        let group = GroupId::new(topic.as_str()).unwrap();
        let batch: Vec<_> =
            (0..20).map(|n| Message::new(topic.clone(), n.to_string()).with_partition(n % 2)).collect();
        bus.send(&batch).await.unwrap();
        let options = format!("--reset-offsets --group {group} --topic {topic} --to-offset 4 --execute");
        tool(&brokers, "consumer.group.ConsumerGroupCommand", &options, "").await;
        let info = group_of(&*bus, &group).await;
        let seen: Vec<_> = info.partitions.iter().map(|p| (p.committed, p.end, p.lag)).collect();
        assert_eq!(seen, [(Some(4), Some(10), Some(6)); 2]);
        let mut sub =
            bus.subscribe(SubscribeRequest::new(group.clone(), [topic.clone()]).unwrap()).await.unwrap();
        let got = drain(&mut *sub, 12).await;
        assert!(got.iter().all(|message| message.offset >= 4));
        // Kafka's consumer continues from the offsets that are committed here.
        let upto: Offsets = (0..2).map(|p| (TopicPartition::new(topic.clone(), p), 9)).collect();
        sub.commit(&upto).await.unwrap();
        sub.close().await.unwrap();
        let options = format!(
            "--topic {topic} --max-messages 2 --timeout-ms 15000 --group {group} \
             --formatter-property print.offset=true"
        );
        let printed = tool(&brokers, "consumer.ConsoleConsumer", &options, "").await;
        let printed: BTreeSet<_> = printed.lines().filter(|line| line.starts_with("Offset:")).collect();
        assert_eq!(printed, BTreeSet::from(["Offset:9\t18", "Offset:9\t19"]));
        assert_same_group(&brokers, &group_of(&*bus, &group).await, "Empty").await;
        delete_group(&brokers, &group).await;
    })
    .await;
}

async fn open_transaction(brokers: Brokers) {
    with_topic(&brokers, 1, async |bus, topic| {
        let group = GroupId::new(topic.as_str()).unwrap();
        bus.send(&[Message::new(topic.clone(), "x"), Message::new(topic.clone(), "y")]).await.unwrap();
        let mut sub =
            bus.subscribe(SubscribeRequest::new(group.clone(), [topic.clone()]).unwrap()).await.unwrap();
        let upto: Offsets = [(TopicPartition::new(topic.clone(), 0), 1)].into_iter().collect();
        drain(&mut *sub, 2).await;
        sub.commit(&upto).await.unwrap();
        sub.close().await.unwrap();
        let (mut client, name) = (brokers.client(), topic.clone());
        let producer = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.set("group.id", name.as_str()).create().unwrap();
            client.remove("group.id");
            let producer: BaseProducer = client.set("transactional.id", name.as_str()).create().unwrap();
            producer.init_transactions(20 * SECOND).unwrap();
            producer.begin_transaction().unwrap();
            let mut offsets = TopicPartitionList::new();
            offsets.add_partition_offset(name.as_str(), 0, Offset::Offset(2)).unwrap();
            let group = consumer.group_metadata().unwrap();
            producer.send_offsets_to_transaction(&offsets, &group, 20 * SECOND).unwrap();
            producer
        });
        let producer = producer.await.unwrap();
        let committed = async || group_of(&*bus, &group).await.partitions[0].committed;
        assert_eq!(committed().await, Some(1));
        tokio::task::spawn_blocking(move || producer.commit_transaction(20 * SECOND).unwrap()).await.unwrap();
        let deadline = tokio::time::Instant::now() + 20 * SECOND;
        while committed().await != Some(2) {
            assert!(tokio::time::Instant::now() < deadline, "the commit of the transaction is not seen");
        }
        delete_group(&brokers, &group).await;
    })
    .await;
}

async fn consumer_protocol(brokers: Brokers, spare: Spare) {
    with_topic(&brokers, 2, async |bus, topic| {
        let group = GroupId::new(topic.as_str()).unwrap();
        let batch = [Message::new(topic.clone(), "x"), Message::new(topic.clone(), "y")];
        bus.send(&batch).await.unwrap();
        let options = format!(
            "--topic {topic} --from-beginning --max-messages 2 --timeout-ms 15000 --group {group} \
             --command-property group.protocol=consumer"
        );
        let printed = tool(&brokers, "consumer.ConsoleConsumer", &options, "").await;
        assert_eq!(printed.lines().filter(|line| ["x", "y"].contains(line)).count(), 2, "{printed}");
        // A group without commits is not reported as unknown either.
        let silent = GroupId::new(format!("{topic}-silent")).unwrap();
        let options = format!(
            "--topic {topic} --from-beginning --timeout-ms 6000 --group {silent} \
             --command-property group.protocol=consumer --command-property enable.auto.commit=false"
        );
        let asking = async {
            let query = GroupQuery::one(silent.clone());
            let deadline = tokio::time::Instant::now() + 20 * SECOND;
            loop {
                if let Some(info) = bus.groups(&query).await.unwrap().pop() {
                    assert_eq!(
                        (info.state, info.partitions.len()),
                        (GroupState::NotDescribed, 0),
                        "{info:?}"
                    );
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "an active group is reported as unknown");
                tokio::time::sleep(SECOND / 5).await;
            }
        };
        tokio::join!(tool(&brokers, "consumer.ConsoleConsumer", &options, ""), asking);
        // A group of the classic protocol and a share group in the same cluster.
        let ours = GroupId::new(format!("{topic}-ours")).unwrap();
        let mut sub =
            bus.subscribe(SubscribeRequest::new(ours.clone(), [topic.clone()]).unwrap()).await.unwrap();
        let options = format!("--topic {topic} --timeout-ms 5000 --group {topic}-share");
        tool(&brokers, "consumer.ConsoleShareConsumer", &options, "").await;
        let one = GroupQuery::one(group.clone());
        let all = GroupQuery::new(Selection::All);
        for query in [&one, &one, &all] {
            let found = bus.groups(query).await.unwrap();
            let info = found.iter().find(|info| info.id == group).unwrap();
            assert_eq!((info.state, info.members.len(), info.lag()), (GroupState::NotDescribed, 0, None));
            let rows: Vec<_> = info.partitions.iter().map(|p| (p.committed == p.end, p.lag)).collect();
            assert_eq!(rows, [(true, Some(0)); 2], "{info:?}");
        }
        let found = bus.groups(&all).await.unwrap();
        let states: BTreeMap<_, _> = found.iter().map(|info| (info.id.as_str(), info.state)).collect();
        assert_eq!(states.get(ours.as_str()), Some(&GroupState::Stable), "{states:?}");
        assert_eq!(states.get(silent.as_str()), Some(&GroupState::NotDescribed), "{states:?}");
        sub.close().await.unwrap();
    })
    .await;
    drop(spare);
}
