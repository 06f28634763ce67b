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
struct LogCollector;

impl<S: tracing::Subscriber> Layer<S> for LogCollector {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct LogFields(String);
        impl tracing::field::Visit for LogFields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                let _ = write!(self.0, "{}={value:?} ", field.name());
            }
        }
        if event.metadata().target() == "librdkafka" {
            let mut fields = LogFields(String::new());
            event.record(&mut fields);
            LOG.lock().unwrap().push(fields.0);
        }
    }
}

fn main() -> ExitCode {
    let recorder = DebuggingRecorder::new();
    METRICS.set(recorder.snapshotter()).ok().unwrap();
    recorder.install().unwrap();
    tracing_subscriber::registry().with(LogCollector).init();
    let mut arguments = Arguments::from_args();
    // Most of the time of a trial is spent waiting for joins.
    arguments.test_threads = arguments.test_threads.or(Some(8));
    let mock: Arc<dyn BusFactory> = Arc::new(MockFactory);
    let mut all = trials(&mock, &[Wrapper::PLAIN]);
    all.extend([
        fault("transient_produce_errors_lose_and_duplicate_nothing", |context| {
            Box::pin(transient_produce_errors(context))
        }),
        fault("permanent_produce_errors_are_reported", |context| Box::pin(permanent_produce_errors(context))),
        fault("a_revoked_permission_leaves_the_delivery_state_unknown", |context| {
            Box::pin(revoked_permission(context))
        }),
        fault("a_producer_is_replaced_after_a_fatal_error", |context| Box::pin(fatal_error(context))),
        fault("a_producer_without_permission_is_unauthorized", |context| Box::pin(no_permission(context))),
        fault("a_publish_without_a_timely_response_is_unknown", |context| Box::pin(no_response(context))),
        fault("a_temporarily_unreachable_broker_delays_a_publish", |context| {
            Box::pin(unreachable_broker(context))
        }),
        fault("leader_changes_keep_the_order", |context| Box::pin(leader_changes(context))),
        fault("slow_round_trips_lose_nothing", |context| Box::pin(slow_round_trips(context))),
        fault("fetch_errors_stop_no_reader", |context| Box::pin(fetch_errors(context))),
        fault("recv_without_brokers_is_unavailable_and_resumes", |context| {
            Box::pin(recv_without_brokers(context))
        }),
        fault("retryable_commit_errors_are_retried", |context| Box::pin(commit_errors(context))),
        fault("a_coordinator_change_loses_nothing", |context| Box::pin(coordinator_change(context))),
        fault("close_reports_unknown_messages_within_its_timeout", |context| {
            Box::pin(close_without_brokers(context))
        }),
        fault("dropping_never_blocks", |context| Box::pin(drop_without_brokers(context))),
        fault("a_header_with_any_name_stops_no_reader", |context| Box::pin(header_names(context))),
        fault("many_short_headers_stay_within_the_buffer", |context| Box::pin(many_headers(context))),
        fault("null_payloads_and_invalid_times_are_messages", |context| Box::pin(null_payloads(context))),
        fault("a_batch_of_zeros_stays_within_the_buffer", |context| Box::pin(batch_of_zeros(context))),
        fault("statistics_become_metrics_and_the_log_is_traced", |context| {
            Box::pin(metrics_and_logs(context))
        }),
        fault("an_idle_member_leaves_and_serves_its_events", |context| Box::pin(idle_member(context))),
        fault("an_idle_reader_serves_its_events_and_keeps_its_position", |context| {
            Box::pin(idle_reader(context))
        }),
    ]);
    libtest_mimic::run(&arguments, all).exit_code()
}

/// A cluster of three brokers, a client, and a topic of four partitions.
struct TestContext {
    mock: Arc<Mock>,
    bus: RedpandaBus,
    topic: TopicName,
}

fn fault(name: &str, run: fn(TestContext) -> BoxFuture<'static, ()>) -> Trial {
    Trial::test(format!("mock/faults::{name}"), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mock = Mock::start(3);
        let (bus, topic) = (RedpandaBus::open(mock.config())?, TopicName::new("faults")?);
        mock.topic(&topic, 4);
        runtime.block_on(run(TestContext { mock, bus, topic }));
        Ok(())
    })
}

impl TestContext {
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
        let (mut found, mut received) = (BTreeMap::<String, Vec<usize>>::new(), 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let wait = if received < count { Duration::from_secs(1) } else { Duration::from_millis(500) };
            let batch = reader.recv(1_000, wait).await.unwrap();
            if batch.is_empty() && received >= count {
                reader.close().await.unwrap();
                return found;
            }
            received += batch.len();
            for message in &batch {
                let text = |bytes: &Option<bytes::Bytes>| {
                    String::from_utf8(bytes.as_ref().unwrap().to_vec()).unwrap()
                };
                found.entry(text(&message.key)).or_default().push(text(&message.payload).parse().unwrap());
            }
            assert!(Instant::now() < deadline, "{received} of {count} messages received");
        }
    }

    async fn assert_each_once_in_order(&self, count: usize) {
        let found = self.stored(8 * count).await;
        assert_eq!(found.len(), 8, "keys");
        for (key, numbers) in found {
            assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "messages of {key}");
        }
    }

    async fn member(&self, group: &str) -> Box<dyn Subscription> {
        let request = SubscribeRequest::new(GroupId::new(group).unwrap(), [self.topic.clone()]).unwrap();
        let request = request.with_timeouts(Duration::from_secs(4), Duration::from_secs(30)).unwrap();
        self.bus.subscribe(request).await.unwrap()
    }

    /// Waits until the log has a line about the cluster's first broker from this client.
    async fn wait_for_log(&self, client: &str) {
        let broker = self.mock.addresses.split(',').next().unwrap();
        let deadline = Instant::now() + Duration::from_secs(15);
        let matches = |line: &String| line.contains(client) && line.contains(broker);
        while !LOG.lock().unwrap().iter().any(matches) {
            assert!(Instant::now() < deadline, "no log line of {client}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn drain(&self, reader: &mut dyn Subscription, count: usize) -> Offsets {
        let mut positions = Offsets::new();
        let mut received = 0;
        let deadline = Instant::now() + Duration::from_secs(30);
        while received < count {
            match reader.recv(1_000, Duration::from_secs(1)).await {
                Ok(batch) => {
                    received += batch.len();
                    positions.merge(batch.offsets());
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
            assert!(Instant::now() < deadline, "{received} of {count} messages received");
        }
        assert_eq!(received, count);
        positions
    }
}

async fn transient_produce_errors(context: TestContext) {
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
        context.inject(Api::Produce, code, 2);
        let sent = context.bus.send(&context.messages(round * 25, 25)).await;
        assert_eq!(sent.unwrap_or_else(|e| panic!("{code:?}: {}", e.report())).len(), 200);
    }
    context.assert_each_once_in_order(25 * codes.len()).await;
}

async fn permanent_produce_errors(context: TestContext) {
    let rows = [
        (Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, ErrorKind::InvalidInput),
        (Code::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, ErrorKind::InvalidInput),
        (Code::RD_KAFKA_RESP_ERR_INVALID_RECORD, ErrorKind::InvalidInput),
        (Code::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, ErrorKind::InvalidInput),
        (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, ErrorKind::Unauthorized),
    ];
    for (round, (code, kind)) in rows.into_iter().enumerate() {
        context.inject(Api::Produce, code, 1);
        // A topic without any known metadata, so that the client never had a permission.
        let topic = TopicName::new(format!("rejecting-{round}")).unwrap();
        context.mock.topic(&topic, 1);
        let rejected = context.bus.publish(&[Message::new(topic, "x")], PublishOptions::NONE).await.unwrap();
        let failure = rejected.into_outcomes().pop().unwrap().unwrap_err();
        assert_eq!(
            (failure.error.kind(), failure.state),
            (kind, DeliveryState::NotSent),
            "{code:?}: {}",
            failure.error
        );
        assert_eq!(failure.error.retry(), RetryAdvice::Never, "{code:?}");
        // The error affected only this message.
        context.bus.send(&context.messages(round, 1)).await.unwrap();
    }
    // A connection that broke before the response leaves the outcome unknown.
    context.inject(Api::Produce, Code::RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION, 1);
    let report = context.bus.publish(&context.messages(1_000, 1)[..1], PublishOptions::NONE).await.unwrap();
    let failure = report.into_outcomes().pop().unwrap().unwrap_err();
    assert_eq!((failure.error.kind(), failure.state), (ErrorKind::Unavailable, DeliveryState::Unknown));
    context.assert_each_once_in_order(rows.len()).await;
}

async fn revoked_permission(context: TestContext) {
    context.bus.send(&context.messages(0, 1)).await.unwrap();
    // The message is in the log, but there were too few replicas at first. The retry then fails because the
    // user lacks the permission.
    context.mock.with(|cluster| {
        cluster.request_errors(
            Api::Produce,
            &[
                Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
                Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            ],
        );
    });
    let report = context.bus.publish(&context.messages(1_000, 1)[..1], PublishOptions::NONE).await.unwrap();
    let failure = report.into_outcomes().pop().unwrap().unwrap_err();
    assert_eq!((failure.error.kind(), failure.state), (ErrorKind::Unauthorized, DeliveryState::Unknown));
}

async fn fatal_error(context: TestContext) {
    context.bus.send(&context.messages(0, 1)).await.unwrap();
    for round in 0..2 {
        context.inject(Api::Produce, Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 1);
        let report =
            context.bus.publish(&context.messages(1_000, 1)[..1], PublishOptions::NONE).await.unwrap();
        let failure = report.into_outcomes().pop().unwrap().unwrap_err();
        assert_eq!(failure.state, DeliveryState::Unknown, "in flight at a fatal error: {}", failure.error);
        // The next message has a new producer. A message with an unknown outcome is not sent again.
        let started = Instant::now();
        context.bus.send(&context.messages(round + 1, 1)).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(5), "the publish took {:?}", started.elapsed());
    }
    context.assert_each_once_in_order(3).await;
}

async fn no_permission(context: TestContext) {
    context.inject(Api::InitProducerId, Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, 1_000);
    for _ in 0..2 {
        let report = context.bus.publish(&context.messages(0, 1), PublishOptions::NONE).await.unwrap();
        for failure in report.into_outcomes().into_iter().map(Result::unwrap_err) {
            assert_eq!(failure.error.kind(), ErrorKind::Unauthorized, "{}", failure.error);
            assert_eq!(failure.state, DeliveryState::NotSent, "{}", failure.error);
        }
    }
    assert!(context.stored(0).await.is_empty());
}

async fn no_response(context: TestContext) {
    context.bus.send(&context.messages(0, 1)).await.unwrap();
    for broker in 1..=3 {
        context.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    let report = context.bus.publish(&context.messages(1, 1), PublishOptions::NONE).await.unwrap();
    for failure in report.into_outcomes().into_iter().map(Result::unwrap_err) {
        assert_eq!((failure.error.kind(), failure.state), (ErrorKind::Timeout, DeliveryState::Unknown));
    }
    for broker in 1..=3 {
        context.mock.with(move |cluster| cluster.broker_up(broker)).unwrap();
    }
    context.bus.send(&context.messages(1, 1)).await.unwrap();
    context.assert_each_once_in_order(2).await;
}

async fn unreachable_broker(context: TestContext) {
    context.bus.send(&context.messages(0, 1)).await.unwrap();
    let down = async {
        for broker in [1, 2, 3] {
            context.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
            tokio::time::sleep(Duration::from_millis(700)).await;
            context.mock.with(move |cluster| cluster.broker_up(broker)).unwrap();
        }
    };
    let sending = async {
        for round in 1..40 {
            context.bus.send(&context.messages(round, 1)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(down, sending);
    context.assert_each_once_in_order(40).await;
}

async fn leader_changes(context: TestContext) {
    for round in 0..30 {
        let (topic, leader) = (context.topic.to_string(), round % 3 + 1);
        context.mock.with(move |cluster| {
            (0..4).for_each(|p| cluster.partition_leader(&topic, p, Some(leader)).unwrap());
        });
        context.bus.send(&context.messages(usize::try_from(round).unwrap(), 1)).await.unwrap();
    }
    context.assert_each_once_in_order(30).await;
}

async fn slow_round_trips(context: TestContext) {
    for broker in 1..=3 {
        context.mock.with(move |c| c.broker_round_trip_time(broker, Duration::from_millis(400))).unwrap();
    }
    for round in 0..3 {
        context.bus.send(&context.messages(round, 1)).await.unwrap();
    }
    context.assert_each_once_in_order(3).await;
}

async fn fetch_errors(context: TestContext) {
    context.bus.send(&context.messages(0, 20)).await.unwrap();
    for code in [
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        Code::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
        Code::RD_KAFKA_RESP_ERR_UNKNOWN,
    ] {
        context.inject(Api::Fetch, code, 3);
        context.assert_each_once_in_order(20).await;
    }
}

async fn recv_without_brokers(context: TestContext) {
    context.bus.send(&context.messages(0, 2)).await.unwrap();
    let mut reader = context.member("receiving").await;
    context.drain(&mut *reader, 16).await;
    for broker in 1..=3 {
        context.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
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
        context.mock.with(move |cluster| cluster.broker_up(broker)).unwrap();
    }
    context.bus.send(&context.messages(2, 1)).await.unwrap();
    let mut received = BTreeMap::<u32, u64>::new();
    while received.values().sum::<u64>() < 8 {
        assert!(Instant::now() < deadline + Duration::from_secs(30), "recv does not resume: {received:?}");
        match reader.recv(100, Duration::from_millis(500)).await {
            Ok(batch) => {
                batch.iter().for_each(|message| *received.entry(message.partition).or_default() += 1);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
    }
}

async fn commit_errors(context: TestContext) {
    context.bus.send(&context.messages(0, 5)).await.unwrap();
    let mut reader = context.member("commits").await;
    let positions = context.drain(&mut *reader, 40).await;
    for code in [
        Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
        Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
        Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    ] {
        context.inject(Api::OffsetCommit, code, 2);
        let committed = reader.commit(&positions).await;
        let committed = committed.unwrap_or_else(|e| panic!("{code:?}: {}", e.report()));
        assert_eq!((committed.stored, committed.lost), (positions.clone(), vec![]), "{code:?}");
    }
    for (code, kind) in [
        (Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, ErrorKind::Unauthorized),
        (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, ErrorKind::Unauthorized),
    ] {
        context.inject(Api::OffsetCommit, code, 1);
        assert_eq!(reader.commit(&positions).await.unwrap_err().kind(), kind, "{code:?}");
    }
    // The group has continued without this member. The member joins again and reads from the last commit.
    for code in [Code::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID] {
        context.inject(Api::OffsetCommit, code, 2);
        let committed = reader.commit(&positions).await.unwrap();
        assert!(committed.stored.is_empty(), "{code:?}: the broker does not know this member: {committed:?}");
        assert_eq!(committed.lost.len(), positions.len(), "{code:?}");
    }
    context.bus.send(&context.messages(5, 1)).await.unwrap();
    context.drain(&mut *reader, 8).await;
}

async fn coordinator_change(context: TestContext) {
    let mut reader = context.member("moved").await;
    for round in 0..6 {
        context.bus.send(&context.messages(round, 5)).await.unwrap();
        let coordinator = i32::try_from(round % 3 + 1).unwrap();
        context.mock.with(move |cluster| {
            cluster.coordinator(MockCoordinator::Group("moved".to_owned()), coordinator).unwrap();
        });
        let positions = context.drain(&mut *reader, 40).await;
        let committed = reader.commit(&positions).await.unwrap();
        assert_eq!((committed.stored, committed.lost), (positions, vec![]), "round {round}");
    }
}

async fn close_without_brokers(context: TestContext) {
    context.bus.send(&context.messages(0, 1)).await.unwrap();
    let reader = context.member("closing").await;
    for broker in 1..=3 {
        context.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    let bus = Arc::new(context.bus);
    let batch: Vec<_> =
        (0..8).map(|n| Message::new(context.topic.clone(), "x").with_key(format!("k{n}"))).collect();
    let publishing = tokio::spawn({
        let bus = bus.clone();
        async move { bus.publish(&batch, PublishOptions::NONE).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    let closed = bus.close().await.unwrap();
    assert_eq!(closed.unknown, 8);
    // 5 s for draining, and 10 s for the member to leave.
    assert!(started.elapsed() < Duration::from_secs(17), "close took {:?}", started.elapsed());
    for failure in publishing.await.unwrap().unwrap().into_outcomes().into_iter().map(Result::unwrap_err) {
        assert_eq!(failure.state, DeliveryState::Unknown);
    }
    drop(reader);
}

async fn drop_without_brokers(context: TestContext) {
    context.bus.send(&context.messages(0, 1)).await.unwrap();
    let reader = context.member("dropped").await;
    for broker in 1..=3 {
        context.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    let started = Instant::now();
    drop(reader);
    drop(context.bus);
    assert!(started.elapsed() < Duration::from_millis(500), "dropping took {:?}", started.elapsed());
}

/// Returns a producer without the rules of this library.
fn raw_producer(context: &TestContext, compression: &str) -> BaseProducer {
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", &context.mock.addresses).set("compression.type", compression);
    config.set("linger.ms", "500").set("message.max.bytes", "100000000").set("batch.size", "100000000");
    config.create().unwrap()
}

fn header(name: &str) -> OwnedHeaders {
    OwnedHeaders::new().insert(Header { key: name, value: Some("v") })
}

/// Reads partition 0 from its beginning. Returns its messages.
async fn read(context: &TestContext, buffer: usize, count: usize) -> Vec<ReceivedMessage> {
    let from = [(TopicPartition::new(context.topic.clone(), 0), SeekTo::Earliest)];
    let request = ReaderRequest::new(from).unwrap().with_max_buffered_bytes(buffer);
    let mut reader = context.bus.open_reader(request).await.unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut received = Vec::new();
    while received.len() < count {
        assert!(Instant::now() < deadline, "{} messages received", received.len());
        received.extend(reader.recv(10_000, Duration::from_millis(500)).await.unwrap().into_messages());
    }
    received
}

async fn header_names(context: TestContext) {
    let producer = raw_producer(&context, "none");
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
    let received = read(&context, 1 << 20, 4).await;
    let names = |message: &ReceivedMessage| {
        message.headers.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&received[0]), ["", "b"]);
    assert_eq!(names(&received[1]), [&long, "b"]);
    assert_eq!(names(&received[3]), ["plain"]);
    assert!(received.iter().all(|message| !message.headers_unreadable));
}

async fn many_headers(context: TestContext) {
    const BUFFER: usize = 8 << 20;
    const HEADERS: usize = 20_000;
    let producer = raw_producer(&context, "none");
    let headers = (0..HEADERS).fold(OwnedHeaders::new_with_capacity(HEADERS), |headers, _| {
        headers.insert(Header { key: "n", value: Some("v") })
    });
    let before = resident_bytes();
    for _ in 0..60 {
        let record = BaseRecord::<[u8], [u8]>::to("faults").partition(0).headers(headers.clone());
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
    }
    drop(producer);
    let received = read(&context, BUFFER, 1).await;
    assert_eq!(received[0].headers.len(), HEADERS);
    // One batch contains at most the buffer size plus the burst that filled the buffer.
    let weight: usize = received.iter().map(|message| message.headers.weight()).sum();
    assert!(weight <= BUFFER + (1 << 20) + 2 * received[0].headers.weight(), "{weight} bytes in one batch");
    let grown = resident_bytes().saturating_sub(before);
    println!("many headers: {grown} additional resident bytes");
    // Three times the buffer size, plus the memory of other trials in this process: the batch of zeros has 90 MB.
    assert!(grown < 20 * BUFFER, "{grown} additional resident bytes");
}

async fn null_payloads(context: TestContext) {
    let producer = raw_producer(&context, "none");
    for time in [-1, i64::MAX, 0, 253_402_300_800_000] {
        let record = BaseRecord::<[u8], [u8]>::to("faults").partition(0).timestamp(time);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
    }
    let received = read(&context, 1 << 20, 4).await;
    assert!(received.iter().all(|message| message.payload.is_none() && message.key.is_none()));
    assert_eq!(received[1].timestamp, None, "beyond the domain");
    assert_eq!(received.iter().map(|message| message.offset).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

async fn batch_of_zeros(context: TestContext) {
    const BUFFER: usize = 4 << 20;
    const EACH: usize = 900_000;
    let producer = raw_producer(&context, "gzip");
    let payload = vec![0_u8; EACH];
    for _ in 0..100 {
        let record = BaseRecord::<[u8], [u8]>::to("faults").partition(0).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    drop(producer);
    let before = resident_bytes();
    let from = [(TopicPartition::new(context.topic.clone(), 0), SeekTo::Earliest)];
    let request = ReaderRequest::new(from).unwrap().with_max_buffered_bytes(BUFFER);
    let mut reader = context.bus.open_reader(request).await.unwrap();
    let (mut received, mut most, mut peak) = (0, 0, 0);
    let deadline = Instant::now() + Duration::from_mins(1);
    while received < 100 {
        peak = peak.max(resident_bytes());
        assert!(Instant::now() < deadline, "{received} messages received");
        let batch = reader.recv(10_000, Duration::from_millis(500)).await.unwrap();
        most = most.max(batch.iter().map(ReceivedMessage::size).sum());
        received += batch.len();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(most <= BUFFER / 2 + (1 << 20) + 2 * EACH, "{most} bytes in one batch");
    // librdkafka decompresses the batch of 90 MB as a unit. The buffer bounds all other memory.
    let grown = peak.saturating_sub(before);
    println!("a batch of zeros: {grown} additional resident bytes");
    assert!(grown < 4 * 100 * EACH, "{grown} additional resident bytes");
}

/// Returns the resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

async fn idle_member(context: TestContext) {
    let request = || {
        let request = SubscribeRequest::new(GroupId::new("rest").unwrap(), [context.topic.clone()]).unwrap();
        request.with_timeouts(Duration::from_secs(4), Duration::from_secs(8)).unwrap()
    };
    let mut reader = context.bus.subscribe(request()).await.unwrap();
    context.bus.send(&context.messages(0, 2)).await.unwrap();
    let positions = context.drain(&mut *reader, 16).await;
    reader.commit(&positions).await.unwrap();
    let all: Vec<_> = (0..4).map(|p| TopicPartition::new(context.topic.clone(), p)).collect();
    reader.pause(&all).await.unwrap();
    tokio::time::sleep(Duration::from_secs(9)).await;
    // The maximum poll interval has passed. Other members can own all partitions, and keep them.
    let mut other = context.bus.subscribe(request()).await.unwrap();
    for _ in 0..20 {
        other.recv(1, Duration::from_millis(100)).await.unwrap();
    }
    assert_eq!(other.assignment().await.unwrap().partitions.len(), 4, "partitions of the other member");
    other.close().await.unwrap();
    context.mock.with(|cluster| cluster.broker_down(1)).unwrap();
    context.wait_for_log("client=\"consumer\" group=\"rest\"").await;
    context.mock.with(|cluster| cluster.broker_up(1)).unwrap();
    // The partitions return without a waiting `recv`. The member receives the event, and the pause has ended.
    context.bus.send(&context.messages(2, 1)).await.unwrap();
    let (mut is_notified, mut received) = (false, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while received < 8 {
        assert!(Instant::now() < deadline, "{received} messages received");
        tokio::time::sleep(Duration::from_millis(20)).await;
        match reader.recv(100, Duration::ZERO).await {
            Ok(batch) => {
                is_notified |= batch.events().contains(&SubscriptionEvent::MaxPollIntervalExceeded);
                received += batch.len();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    assert!(is_notified, "no MaxPollIntervalExceeded event");
}

async fn idle_reader(context: TestContext) {
    context.bus.send(&context.messages(0, 5)).await.unwrap();
    let all: Vec<_> = (0..4).map(|p| TopicPartition::new(context.topic.clone(), p)).collect();
    let from = all.iter().map(|partition| (partition.clone(), SeekTo::Earliest));
    let mut reader = context.bus.open_reader(ReaderRequest::new(from).unwrap()).await.unwrap();
    let mut received = BTreeMap::<u32, Vec<u64>>::new();
    let deadline = Instant::now() + Duration::from_secs(90);
    while received.values().map(Vec::len).sum::<usize>() < 14 {
        assert!(Instant::now() < deadline, "received {received:?}");
        for message in &reader.recv(7, Duration::from_secs(1)).await.unwrap() {
            received.entry(message.partition).or_default().push(message.offset);
        }
    }
    tokio::time::sleep(Duration::from_secs(31)).await;
    // A seek is possible in the meantime. The other partitions continue at their positions.
    reader.seek(&[(all[0].clone(), SeekTo::Earliest)]).await.unwrap();
    received.remove(&0);
    context.mock.with(|cluster| cluster.broker_down(1)).unwrap();
    context.wait_for_log("client=\"consumer\" group=\"\"").await;
    context.mock.with(|cluster| cluster.broker_up(1)).unwrap();
    context.bus.send(&context.messages(5, 1)).await.unwrap();
    while received.values().map(Vec::len).sum::<usize>() < 48 {
        assert!(Instant::now() < deadline, "received {received:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        match reader.recv(100, Duration::ZERO).await {
            Ok(batch) => {
                assert!(batch.events().is_empty(), "{:?}", batch.events());
                for message in &batch {
                    received.entry(message.partition).or_default().push(message.offset);
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    }
    for offsets in received.into_values() {
        assert_eq!(offsets, (0..offsets.len() as u64).collect::<Vec<_>>());
    }
}

/// Returns the sums of metrics with this label since the last call.
fn take_metrics(label: (&str, &str)) -> BTreeMap<String, f64> {
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

async fn metrics_and_logs(context: TestContext) {
    const WANTED: [&str; 3] =
        ["qi_redpanda_received_messages_total", "qi_redpanda_round_trip_seconds", "qi_redpanda_consumer_lag"];
    let mut reader = context.member("observed").await;
    context.bus.send(&context.messages(0, 50)).await.unwrap();
    // Reads only a small part, so that a lag remains.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut received = 0;
    while received < 10 {
        received += reader.recv(10, Duration::from_secs(1)).await.unwrap().len();
        assert!(Instant::now() < deadline, "{received} messages received");
    }
    let mut sums = BTreeMap::<String, f64>::new();
    while !WANTED.iter().all(|name| sums.get(*name).is_some_and(|sum| *sum > 0.0)) {
        assert!(Instant::now() < deadline, "metrics: {sums:?}");
        // Statistics are served only while a reader reads. This reader receives no further messages.
        let assigned = reader.assignment().await.unwrap().partitions;
        let assigned: Vec<_> = assigned.into_iter().map(|assigned| assigned.partition).collect();
        reader.pause(&assigned).await.unwrap();
        reader.recv(1, Duration::from_millis(300)).await.unwrap();
        for (name, sum) in take_metrics(("group", "observed")) {
            *sums.entry(name).or_default() += sum;
        }
    }
    drop(reader);
    for broker in 1..=3 {
        context.mock.with(move |cluster| cluster.broker_down(broker)).unwrap();
    }
    while !LOG.lock().unwrap().iter().any(|line| line.contains("client=") && line.contains("facility=")) {
        assert!(Instant::now() < deadline + Duration::from_secs(20), "no log line of librdkafka");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
