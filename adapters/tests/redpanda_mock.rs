//! The adapter on librdkafka's mock cluster, which needs no installation. The tests run the part of the contract that
//! the mock supports, and every error that the mock can inject. Other contract trials are ignored with a reason.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod redpanda_rig;
mod servers;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use libtest_mimic::{Arguments, Trial};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use qi_adapters::redpanda::RedpandaBus;
use qi_core::bus::{
    DeliveryState, GroupId, Message, MessageBus, MessageBusExt, Offsets, PublishOptions, ReaderRequest,
    ReceivedMessage, SeekTo, SubscribeRequest, Subscription, SubscriptionEvent, TopicName, TopicPartition,
};
use qi_core::{ErrorKind, RetryAdvice};
use qi_testkit::bus::contract::{BusFactory, Wrapper, trials};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCoordinator;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::RDKafkaApiKey as Api;
use rdkafka::types::RDKafkaRespErr as Code;
use redpanda_rig::mock::{Mock, MockFactory};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The metrics of all clients in this process.
static METRICS: OnceLock<Snapshotter> = OnceLock::new();
/// The log lines of librdkafka from all trials.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A subscriber that collects the log lines of librdkafka.
struct Listener;

impl<S: tracing::Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Words(String);
        impl tracing::field::Visit for Words {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                let _ = write!(self.0, "{}={value:?} ", field.name());
            }
        }
        if event.metadata().target() == "librdkafka" {
            let mut words = Words(String::new());
            event.record(&mut words);
            LOG.lock().unwrap().push(words.0);
        }
    }
}

fn main() -> ExitCode {
    let recorder = DebuggingRecorder::new();
    METRICS.set(recorder.snapshotter()).ok().unwrap();
    recorder.install().unwrap();
    tracing_subscriber::registry().with(Listener).init();
    let mut arguments = Arguments::from_args();
    // Most of the time of a trial is spent waiting for joins.
    arguments.test_threads = arguments.test_threads.or(Some(6));
    let mock: Arc<dyn BusFactory> = Arc::new(MockFactory);
    let mut all = trials(&mock, &[Wrapper::PLAIN]);
    all.extend([
        fault("produce_errors_that_pass_lose_and_double_nothing", |lab| Box::pin(passing_errors(lab))),
        fault("produce_errors_that_stay_say_why", |lab| Box::pin(staying_errors(lab))),
        fault("a_right_that_is_taken_away_leaves_it_open", |lab| Box::pin(right_taken_away(lab))),
        fault("a_fatal_error_is_survived", |lab| Box::pin(fatal_error(lab))),
        fault("a_producer_that_is_not_let_in_is_unauthorized", |lab| Box::pin(not_let_in(lab))),
        fault("a_publish_without_an_answer_in_time_is_unknown", |lab| Box::pin(no_answer(lab))),
        fault("a_broker_that_is_away_for_a_while_delays_a_publish", |lab| Box::pin(away_for_a_while(lab))),
        fault("leaders_that_move_keep_the_order", |lab| Box::pin(moving_leaders(lab))),
        fault("slow_round_trips_are_only_slow", |lab| Box::pin(slow_trips(lab))),
        fault("fetch_errors_end_no_reader", |lab| Box::pin(fetch_errors(lab))),
        fault("receiving_without_brokers_is_unavailable_and_goes_on", |lab| Box::pin(receiving(lab))),
        fault("commits_are_tried_again_where_that_helps", |lab| Box::pin(commit_errors(lab))),
        fault("a_coordinator_that_moves_loses_nothing", |lab| Box::pin(moving_coordinator(lab))),
        fault("close_reports_what_is_unknown_within_its_limit", |lab| Box::pin(close_without_brokers(lab))),
        fault("dropping_never_blocks", |lab| Box::pin(dropping(lab))),
        fault("a_header_with_any_name_stops_no_reader", |lab| Box::pin(header_names(lab))),
        fault("many_short_headers_stay_within_the_buffer", |lab| Box::pin(many_headers(lab))),
        fault("null_payloads_and_invalid_times_are_messages", |lab| Box::pin(odd_messages(lab))),
        fault("a_batch_of_zeros_stays_within_the_buffer", |lab| Box::pin(zeros(lab))),
        fault("statistics_become_metrics_and_the_log_is_traced", |lab| Box::pin(observed(lab))),
        fault("a_member_that_nobody_reads_leaves_and_is_heard", |lab| Box::pin(member_at_rest(lab))),
        fault("a_reader_that_nobody_reads_is_heard_and_keeps_its_place", |lab| Box::pin(reader_at_rest(lab))),
    ]);
    libtest_mimic::run(&arguments, all).exit_code()
}

/// A cluster of three brokers, a client, and a topic of four partitions.
struct Lab {
    mock: Arc<Mock>,
    bus: RedpandaBus,
    topic: TopicName,
}

fn fault(name: &str, run: fn(Lab) -> BoxFuture<'static, ()>) -> Trial {
    Trial::test(format!("mock/faults::{name}"), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mock = Mock::start(3);
        let (bus, topic) = (RedpandaBus::open(mock.config())?, TopicName::new("faults")?);
        mock.topic(&topic, 4);
        runtime.block_on(run(Lab { mock, bus, topic }));
        Ok(())
    })
}

impl Lab {
    /// Replaces the next `count` responses to requests of this kind with this error.
    fn inject(&self, api: Api, code: Code, count: usize) {
        self.mock.with(move |cluster| cluster.request_errors(api, &vec![code; count]));
    }

    /// Returns message `n` of each of eight keys.
    fn messages(&self, from: usize, count: usize) -> Vec<Message> {
        let each = (from..from + count).flat_map(|n| (0..8).map(move |key| (key, n)));
        each.map(|(key, n)| Message::new(self.topic.clone(), n.to_string()).with_key(format!("k{key}")))
            .collect()
    }

    /// Returns the contents of the topic, by key.
    async fn stored(&self, count: usize) -> BTreeMap<String, Vec<usize>> {
        let from = (0..4).map(|p| (TopicPartition::new(self.topic.clone(), p), SeekTo::Earliest));
        let mut reader = self.bus.open_reader(ReaderRequest::new(from).unwrap()).await.unwrap();
        let (mut found, mut came) = (BTreeMap::<String, Vec<usize>>::new(), 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let wait = if came < count { Duration::from_secs(1) } else { Duration::from_millis(500) };
            let batch = reader.recv(1_000, wait).await.unwrap();
            if batch.is_empty() && came >= count {
                reader.close().await.unwrap();
                return found;
            }
            came += batch.len();
            for message in &batch {
                let text = |bytes: &Option<bytes::Bytes>| {
                    String::from_utf8(bytes.as_ref().unwrap().to_vec()).unwrap()
                };
                found.entry(text(&message.key)).or_default().push(text(&message.payload).parse().unwrap());
            }
            assert!(Instant::now() < deadline, "only {came} of {count} came");
        }
    }

    async fn each_once_in_order(&self, count: usize) {
        let found = self.stored(8 * count).await;
        assert_eq!(found.len(), 8, "keys");
        for (key, numbers) in found {
            assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "what came of {key}");
        }
    }

    async fn member(&self, group: &str) -> Box<dyn Subscription> {
        let request = SubscribeRequest::new(GroupId::new(group).unwrap(), [self.topic.clone()]).unwrap();
        let request = request.with_timeouts(Duration::from_secs(4), Duration::from_secs(30)).unwrap();
        self.bus.subscribe(request).await.unwrap()
    }

    /// Waits until the log has a line about the cluster's first broker from this client.
    async fn heard(&self, client: &str) {
        let broker = self.mock.addresses.split(',').next().unwrap();
        let deadline = Instant::now() + Duration::from_secs(15);
        let said = |line: &String| line.contains(client) && line.contains(broker);
        while !LOG.lock().unwrap().iter().any(said) {
            assert!(Instant::now() < deadline, "nothing was heard of {client}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn drain(&self, reader: &mut dyn Subscription, count: usize) -> Offsets {
        let mut positions = Offsets::new();
        let mut came = 0;
        let deadline = Instant::now() + Duration::from_secs(30);
        while came < count {
            match reader.recv(1_000, Duration::from_secs(1)).await {
                Ok(batch) => {
                    came += batch.len();
                    positions.merge(batch.offsets());
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
            assert!(Instant::now() < deadline, "only {came} of {count} came");
        }
        assert_eq!(came, count);
        positions
    }
}

async fn passing_errors(lab: Lab) {
    let codes = [
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
    ];
    for (round, code) in codes.into_iter().enumerate() {
        lab.inject(Api::Produce, code, 2);
        let sent = lab.bus.send(&lab.messages(round * 25, 25)).await;
        assert_eq!(sent.unwrap_or_else(|e| panic!("{code:?}: {}", e.report())).len(), 200);
    }
    lab.each_once_in_order(25 * codes.len()).await;
}

async fn staying_errors(lab: Lab) {
    let rows = [
        (Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, ErrorKind::InvalidInput),
        (Code::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, ErrorKind::InvalidInput),
        (Code::RD_KAFKA_RESP_ERR_INVALID_RECORD, ErrorKind::InvalidInput),
        (Code::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, ErrorKind::InvalidInput),
        (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, ErrorKind::Unauthorized),
    ];
    for (round, (code, kind)) in rows.into_iter().enumerate() {
        lab.inject(Api::Produce, code, 1);
        // A topic without any known metadata, so that the client never had a permission.
        let topic = TopicName::new(format!("refusing-{round}")).unwrap();
        lab.mock.topic(&topic, 1);
        let refused = lab.bus.publish(&[Message::new(topic, "x")], PublishOptions::NONE).await.unwrap();
        let failure = refused.into_outcomes().pop().unwrap().unwrap_err();
        assert_eq!(
            (failure.error.kind(), failure.state),
            (kind, DeliveryState::NotSent),
            "{code:?}: {}",
            failure.error
        );
        assert_eq!(failure.error.retry(), RetryAdvice::Never, "{code:?}");
        // The error affected only this message.
        lab.bus.send(&lab.messages(round, 1)).await.unwrap();
    }
    // A connection that broke before the response leaves the outcome unknown.
    lab.inject(Api::Produce, Code::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION, 1);
    let report = lab.bus.publish(&lab.messages(1_000, 1)[..1], PublishOptions::NONE).await.unwrap();
    let failure = report.into_outcomes().pop().unwrap().unwrap_err();
    assert_eq!((failure.error.kind(), failure.state), (ErrorKind::Unavailable, DeliveryState::Unknown));
    lab.each_once_in_order(rows.len()).await;
}

async fn right_taken_away(lab: Lab) {
    lab.bus.send(&lab.messages(0, 1)).await.unwrap();
    // The message is in the log, but there were too few replicas at first. The retry then fails because the
    // user lacks the permission.
    lab.mock.with(|cluster| {
        cluster.request_errors(
            Api::Produce,
            &[
                Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
                Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            ],
        );
    });
    let report = lab.bus.publish(&lab.messages(1_000, 1)[..1], PublishOptions::NONE).await.unwrap();
    let failure = report.into_outcomes().pop().unwrap().unwrap_err();
    assert_eq!((failure.error.kind(), failure.state), (ErrorKind::Unauthorized, DeliveryState::Unknown));
}

async fn fatal_error(lab: Lab) {
    lab.bus.send(&lab.messages(0, 1)).await.unwrap();
    for round in 0..2 {
        lab.inject(Api::Produce, Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 1);
        let report = lab.bus.publish(&lab.messages(1_000, 1)[..1], PublishOptions::NONE).await.unwrap();
        let failure = report.into_outcomes().pop().unwrap().unwrap_err();
        assert_eq!(failure.state, DeliveryState::Unknown, "in flight at a fatal error: {}", failure.error);
        // The next message has a new producer. A message with an unknown outcome is not sent again.
        let began = Instant::now();
        lab.bus.send(&lab.messages(round + 1, 1)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    }
    lab.each_once_in_order(3).await;
}

async fn not_let_in(lab: Lab) {
    lab.inject(Api::InitProducerId, Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, 1_000);
    for _ in 0..2 {
        let report = lab.bus.publish(&lab.messages(0, 1), PublishOptions::NONE).await.unwrap();
        for failure in report.into_outcomes().into_iter().map(Result::unwrap_err) {
            assert_eq!(failure.error.kind(), ErrorKind::Unauthorized, "{}", failure.error);
            assert_eq!(failure.state, DeliveryState::NotSent, "{}", failure.error);
        }
    }
    assert!(lab.stored(0).await.is_empty());
}

async fn no_answer(lab: Lab) {
    lab.bus.send(&lab.messages(0, 1)).await.unwrap();
    for broker in 1..=3 {
        lab.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    let report = lab.bus.publish(&lab.messages(1, 1), PublishOptions::NONE).await.unwrap();
    for failure in report.into_outcomes().into_iter().map(Result::unwrap_err) {
        assert_eq!((failure.error.kind(), failure.state), (ErrorKind::Timeout, DeliveryState::Unknown));
    }
    for broker in 1..=3 {
        lab.mock.with(move |cluster| cluster.broker_up(broker)).unwrap();
    }
    lab.bus.send(&lab.messages(1, 1)).await.unwrap();
    lab.each_once_in_order(2).await;
}

async fn away_for_a_while(lab: Lab) {
    lab.bus.send(&lab.messages(0, 1)).await.unwrap();
    let down = async {
        for broker in [1, 2, 3] {
            lab.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
            lab.mock.with(move |cluster| cluster.broker_up(broker)).unwrap();
        }
    };
    let sending = async {
        for round in 1..40 {
            lab.bus.send(&lab.messages(round, 1)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(down, sending);
    lab.each_once_in_order(40).await;
}

async fn moving_leaders(lab: Lab) {
    for round in 0..30 {
        let (topic, leader) = (lab.topic.to_string(), round % 3 + 1);
        lab.mock.with(move |cluster| {
            (0..4).for_each(|p| cluster.partition_leader(&topic, p, Some(leader)).unwrap());
        });
        lab.bus.send(&lab.messages(usize::try_from(round).unwrap(), 1)).await.unwrap();
    }
    lab.each_once_in_order(30).await;
}

async fn slow_trips(lab: Lab) {
    for broker in 1..=3 {
        lab.mock.with(move |c| c.broker_round_trip_time(broker, Duration::from_millis(400))).unwrap();
    }
    for round in 0..3 {
        lab.bus.send(&lab.messages(round, 1)).await.unwrap();
    }
    lab.each_once_in_order(3).await;
}

async fn fetch_errors(lab: Lab) {
    lab.bus.send(&lab.messages(0, 20)).await.unwrap();
    for code in [
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        Code::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
        Code::RD_KAFKA_RESP_ERR_UNKNOWN,
    ] {
        lab.inject(Api::Fetch, code, 3);
        lab.each_once_in_order(20).await;
    }
}

async fn receiving(lab: Lab) {
    lab.bus.send(&lab.messages(0, 2)).await.unwrap();
    let mut reader = lab.member("receiving").await;
    lab.drain(&mut *reader, 16).await;
    for broker in 1..=3 {
        lab.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let error = loop {
        match reader.recv(10, Duration::from_millis(500)).await {
            Ok(batch) => assert!(batch.is_empty() && Instant::now() < deadline),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetryAdvice::Backoff));
    for broker in 1..=3 {
        lab.mock.with(move |cluster| cluster.broker_up(broker)).unwrap();
    }
    lab.bus.send(&lab.messages(2, 1)).await.unwrap();
    let mut came = BTreeMap::<u32, u64>::new();
    while came.values().sum::<u64>() < 8 {
        assert!(Instant::now() < deadline + Duration::from_secs(30), "it does not go on: {came:?}");
        match reader.recv(100, Duration::from_millis(500)).await {
            Ok(batch) => {
                batch.iter().for_each(|message| *came.entry(message.partition).or_default() += 1);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
    }
}

async fn commit_errors(lab: Lab) {
    lab.bus.send(&lab.messages(0, 5)).await.unwrap();
    let mut reader = lab.member("commits").await;
    let positions = lab.drain(&mut *reader, 40).await;
    for code in [
        Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
        Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    ] {
        lab.inject(Api::OffsetCommit, code, 2);
        let committed = reader.commit(&positions).await;
        let committed = committed.unwrap_or_else(|e| panic!("{code:?}: {}", e.report()));
        assert_eq!((committed.stored, committed.lost), (positions.clone(), vec![]), "{code:?}");
    }
    for (code, kind) in [
        (Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, ErrorKind::Unauthorized),
        (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, ErrorKind::Unauthorized),
    ] {
        lab.inject(Api::OffsetCommit, code, 1);
        assert_eq!(reader.commit(&positions).await.unwrap_err().kind(), kind, "{code:?}");
    }
    // The group has continued without this member. The member joins again and reads from the last commit.
    for code in [Code::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID] {
        lab.inject(Api::OffsetCommit, code, 2);
        let committed = reader.commit(&positions).await.unwrap();
        assert!(committed.stored.is_empty(), "{code:?}: the broker does not know this member: {committed:?}");
        assert_eq!(committed.lost.len(), positions.len(), "{code:?}");
    }
    lab.bus.send(&lab.messages(5, 1)).await.unwrap();
    lab.drain(&mut *reader, 8).await;
}

async fn moving_coordinator(lab: Lab) {
    let mut reader = lab.member("moved").await;
    for round in 0..6 {
        lab.bus.send(&lab.messages(round, 5)).await.unwrap();
        let coordinator = i32::try_from(round % 3 + 1).unwrap();
        lab.mock.with(move |cluster| {
            cluster.coordinator(MockCoordinator::Group("moved".to_owned()), coordinator).unwrap();
        });
        let positions = lab.drain(&mut *reader, 40).await;
        let committed = reader.commit(&positions).await.unwrap();
        assert_eq!((committed.stored, committed.lost), (positions, vec![]), "round {round}");
    }
}

async fn close_without_brokers(lab: Lab) {
    lab.bus.send(&lab.messages(0, 1)).await.unwrap();
    let reader = lab.member("closing").await;
    for broker in 1..=3 {
        lab.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    let bus = Arc::new(lab.bus);
    let batch: Vec<_> =
        (0..8).map(|n| Message::new(lab.topic.clone(), "x").with_key(format!("k{n}"))).collect();
    let publishing = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(&batch, PublishOptions::NONE).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    let closed = bus.close().await.unwrap();
    assert_eq!(closed.unknown, 8);
    // 5 s for draining, and 10 s for the member to leave.
    assert!(began.elapsed() < Duration::from_secs(17), "closing took {:?}", began.elapsed());
    for failure in publishing.await.unwrap().unwrap().into_outcomes().into_iter().map(Result::unwrap_err) {
        assert_eq!(failure.state, DeliveryState::Unknown);
    }
    drop(reader);
}

async fn dropping(lab: Lab) {
    lab.bus.send(&lab.messages(0, 1)).await.unwrap();
    let reader = lab.member("dropped").await;
    for broker in 1..=3 {
        lab.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    let began = Instant::now();
    drop(reader);
    drop(lab.bus);
    assert!(began.elapsed() < Duration::from_millis(500), "dropping took {:?}", began.elapsed());
}

/// Returns a producer without the rules of this library.
fn raw(lab: &Lab, compression: &str) -> BaseProducer {
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", &lab.mock.addresses).set("compression.type", compression);
    config.set("linger.ms", "500").set("message.max.bytes", "100000000").set("batch.size", "100000000");
    config.create().unwrap()
}

fn header(name: &str) -> OwnedHeaders {
    OwnedHeaders::new().insert(Header { key: name, value: Some("v") })
}

/// Reads partition 0 from its beginning. Returns its messages.
async fn read(lab: &Lab, buffer: usize, count: usize) -> Vec<ReceivedMessage> {
    let from = [(TopicPartition::new(lab.topic.clone(), 0), SeekTo::Earliest)];
    let request = ReaderRequest::new(from).unwrap().with_max_buffered_bytes(buffer);
    let mut reader = lab.bus.open_reader(request).await.unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut came = Vec::new();
    while came.len() < count {
        assert!(Instant::now() < deadline, "only {} messages came", came.len());
        came.extend(reader.recv(10_000, Duration::from_millis(500)).await.unwrap().into_messages());
    }
    came
}

async fn header_names(lab: Lab) {
    let producer = raw(&lab, "none");
    let long = "n".repeat(2_000);
    let marked = "mark of a name";
    for name in [Some(""), Some(&long), Some(marked), None] {
        let record = BaseRecord::to("faults").partition(0).key("k").payload("x");
        let headers = name.map_or_else(
            || header("plain"),
            |name| header(name).insert(Header { key: "b", value: Some("w") }),
        );
        producer.send(record.headers(headers)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(10)).unwrap();
    let came = read(&lab, 1 << 20, 4).await;
    let names = |message: &ReceivedMessage| {
        message.headers.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&came[0]), ["", "b"]);
    assert_eq!(names(&came[1]), [&long, "b"]);
    assert_eq!(names(&came[3]), ["plain"]);
    assert!(came.iter().all(|message| !message.headers_unreadable));
}

async fn many_headers(lab: Lab) {
    const BUFFER: usize = 8 << 20;
    const HEADERS: usize = 20_000;
    let producer = raw(&lab, "none");
    let headers = (0..HEADERS).fold(OwnedHeaders::new_with_capacity(HEADERS), |headers, _| {
        headers.insert(Header { key: "n", value: Some("v") })
    });
    let before = resident();
    for _ in 0..60 {
        let record = BaseRecord::<[u8], [u8]>::to("faults").partition(0).headers(headers.clone());
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
    }
    drop(producer);
    let came = read(&lab, BUFFER, 1).await;
    assert_eq!(came[0].headers.len(), HEADERS);
    // One batch contains at most the buffer size plus the burst that filled the buffer.
    let weight: usize = came.iter().map(|message| message.headers.weight()).sum();
    assert!(weight <= BUFFER + (1 << 20) + 2 * came[0].headers.weight(), "{weight} bytes in one batch");
    let grown = resident().saturating_sub(before);
    println!("many headers: {grown} bytes more are resident");
    // Three times the buffer size, plus the memory of other trials in this process: the batch of zeros has 90 MB.
    assert!(grown < 20 * BUFFER, "{grown} bytes more are resident");
}

async fn odd_messages(lab: Lab) {
    let producer = raw(&lab, "none");
    for time in [-1, i64::MAX, 0, 253_402_300_800_000] {
        let record = BaseRecord::<[u8], [u8]>::to("faults").partition(0).timestamp(time);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
    }
    let came = read(&lab, 1 << 20, 4).await;
    assert!(came.iter().all(|message| message.payload.is_none() && message.key.is_none()));
    assert_eq!(came[1].timestamp, None, "beyond the domain");
    assert_eq!(came.iter().map(|message| message.offset).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

async fn zeros(lab: Lab) {
    const BUFFER: usize = 4 << 20;
    const EACH: usize = 900_000;
    let producer = raw(&lab, "gzip");
    let payload = vec![0_u8; EACH];
    for _ in 0..100 {
        let record = BaseRecord::<[u8], [u8]>::to("faults").partition(0).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    drop(producer);
    let before = resident();
    let from = [(TopicPartition::new(lab.topic.clone(), 0), SeekTo::Earliest)];
    let request = ReaderRequest::new(from).unwrap().with_max_buffered_bytes(BUFFER);
    let mut reader = lab.bus.open_reader(request).await.unwrap();
    let (mut came, mut most, mut peak) = (0, 0, 0);
    let deadline = Instant::now() + Duration::from_mins(1);
    while came < 100 {
        peak = peak.max(resident());
        assert!(Instant::now() < deadline, "only {came} messages came");
        let batch = reader.recv(10_000, Duration::from_millis(500)).await.unwrap();
        most = most.max(batch.iter().map(ReceivedMessage::size).sum());
        came += batch.len();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(most <= BUFFER / 2 + (1 << 20) + 2 * EACH, "{most} bytes in one batch");
    // librdkafka decompresses the batch of 90 MB as a unit. The buffer bounds all other memory.
    let grown = peak.saturating_sub(before);
    println!("a batch of zeros: {grown} bytes more are resident");
    assert!(grown < 4 * 100 * EACH, "{grown} bytes more are resident");
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

async fn member_at_rest(lab: Lab) {
    let request = || {
        let request = SubscribeRequest::new(GroupId::new("rest").unwrap(), [lab.topic.clone()]).unwrap();
        request.with_timeouts(Duration::from_secs(4), Duration::from_secs(8)).unwrap()
    };
    let mut reader = lab.bus.subscribe(request()).await.unwrap();
    lab.bus.send(&lab.messages(0, 2)).await.unwrap();
    let positions = lab.drain(&mut *reader, 16).await;
    reader.commit(&positions).await.unwrap();
    let all: Vec<_> = (0..4).map(|p| TopicPartition::new(lab.topic.clone(), p)).collect();
    reader.pause(&all).await.unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    // The maximum poll interval has passed. Other members can own all partitions, and keep them.
    let mut other = lab.bus.subscribe(request()).await.unwrap();
    for _ in 0..20 {
        other.recv(1, Duration::from_millis(100)).await.unwrap();
    }
    assert_eq!(other.assignment().await.unwrap().partitions.len(), 4, "what the other one has");
    other.close().await.unwrap();
    lab.mock.with(|cluster| cluster.broker_down(1)).unwrap();
    lab.heard("client=\"consumer\" group=\"rest\"").await;
    lab.mock.with(|cluster| cluster.broker_up(1)).unwrap();
    // The partitions return without a waiting `recv`. The member receives the event, and the pause has ended.
    lab.bus.send(&lab.messages(2, 1)).await.unwrap();
    let (mut told, mut came) = (false, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while came < 8 {
        assert!(Instant::now() < deadline, "only {came} came");
        tokio::time::sleep(Duration::from_millis(20)).await;
        match reader.recv(100, Duration::ZERO).await {
            Ok(batch) => {
                told |= batch.events().contains(&SubscriptionEvent::MaxPollIntervalExceeded);
                came += batch.len();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    assert!(told, "it was not told that the maximum poll interval had passed");
}

async fn reader_at_rest(lab: Lab) {
    lab.bus.send(&lab.messages(0, 5)).await.unwrap();
    let all: Vec<_> = (0..4).map(|p| TopicPartition::new(lab.topic.clone(), p)).collect();
    let from = all.iter().map(|partition| (partition.clone(), SeekTo::Earliest));
    let mut reader = lab.bus.open_reader(ReaderRequest::new(from).unwrap()).await.unwrap();
    let mut came = BTreeMap::<u32, Vec<u64>>::new();
    let deadline = Instant::now() + Duration::from_secs(90);
    while came.values().map(Vec::len).sum::<usize>() < 14 {
        assert!(Instant::now() < deadline, "only {came:?} came");
        for message in &reader.recv(7, Duration::from_secs(1)).await.unwrap() {
            came.entry(message.partition).or_default().push(message.offset);
        }
    }
    tokio::time::sleep(Duration::from_secs(31)).await;
    // A seek is possible in the meantime. The other partitions continue at their positions.
    reader.seek(&[(all[0].clone(), SeekTo::Earliest)]).await.unwrap();
    came.remove(&0);
    lab.mock.with(|cluster| cluster.broker_down(1)).unwrap();
    lab.heard("client=\"consumer\" group=\"\"").await;
    lab.mock.with(|cluster| cluster.broker_up(1)).unwrap();
    lab.bus.send(&lab.messages(5, 1)).await.unwrap();
    while came.values().map(Vec::len).sum::<usize>() < 48 {
        assert!(Instant::now() < deadline, "only {came:?} came");
        tokio::time::sleep(Duration::from_millis(20)).await;
        match reader.recv(100, Duration::ZERO).await {
            Ok(batch) => {
                assert!(batch.events().is_empty(), "{:?}", batch.events());
                for message in &batch {
                    came.entry(message.partition).or_default().push(message.offset);
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    for offsets in came.into_values() {
        assert_eq!(offsets, (0..offsets.len() as u64).collect::<Vec<_>>());
    }
}

/// Returns the sums of metrics with this label since the last call.
fn measured(label: (&str, &str)) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::<String, f64>::new();
    for (key, _, _, value) in METRICS.get().unwrap().snapshot().into_vec() {
        let key = key.key();
        if key.labels().any(|l| (l.key(), l.value()) == label) {
            *sums.entry(key.name().to_owned()).or_default() += match value {
                DebugValue::Counter(count) => f64::from(u32::try_from(count).unwrap()),
                DebugValue::Gauge(value) => value.0,
                DebugValue::Histogram(values) => f64::from(u32::try_from(values.len()).unwrap()),
            };
        }
    }
    sums
}

async fn observed(lab: Lab) {
    const WANTED: [&str; 3] =
        ["qi_redpanda_received_messages_total", "qi_redpanda_round_trip_seconds", "qi_redpanda_consumer_lag"];
    let mut reader = lab.member("observed").await;
    lab.bus.send(&lab.messages(0, 50)).await.unwrap();
    // Reads only a small part, so that a lag remains.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut came = 0;
    while came < 10 {
        came += reader.recv(10, Duration::from_secs(1)).await.unwrap().len();
        assert!(Instant::now() < deadline, "only {came} came");
    }
    let mut sums = BTreeMap::<String, f64>::new();
    while !WANTED.iter().all(|name| sums.get(*name).is_some_and(|sum| *sum > 0.0)) {
        assert!(Instant::now() < deadline, "what was measured: {sums:?}");
        // Statistics are served only while a reader reads. This reader receives no further messages.
        let assigned = reader.assignment().await.unwrap().partitions;
        let assigned: Vec<_> = assigned.into_iter().map(|assigned| assigned.partition).collect();
        reader.pause(&assigned).await.unwrap();
        reader.recv(1, Duration::from_millis(300)).await.unwrap();
        for (name, sum) in measured(("group", "observed")) {
            *sums.entry(name).or_default() += sum;
        }
    }
    drop(reader);
    for broker in 1..=3 {
        lab.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    while !LOG.lock().unwrap().iter().any(|line| line.contains("client=") && line.contains("facility=")) {
        assert!(Instant::now() < deadline + Duration::from_secs(20), "librdkafka said nothing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
