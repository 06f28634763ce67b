use qi_core::bus::{GroupId, SubscribeRequest, Subscription as _, SubscriptionEvent};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

use super::reassign::StartOffset;
use super::*;
use crate::redpanda::client_config;
use crate::redpanda::config::RedpandaConfig;
use crate::redpanda::consumer::RedpandaSubscription;
use crate::redpanda::consumer::record_batch::RecordBatch;

const UNREACHABLE_BROKER: &str = "127.0.0.1:1";

/// Returns a group member whose consumer thread does not run.
fn member(brokers: &str) -> (ConsumerThread, ConsumerHandle) {
    let config = RedpandaConfig::from_brokers(brokers);
    let (topic, group) = (TopicName::new("t").unwrap(), GroupId::new("g").unwrap());
    let request = SubscribeRequest::new(group, [topic.clone()]).unwrap();
    let settings = ConsumerSettings {
        topics: vec![topic],
        offset_reset: OffsetReset::Earliest,
        max_poll_interval: Some(request.max_poll_interval),
        announce_revocations: false,
        max_buffered_bytes: request.max_buffered_bytes,
        request_timeout: Duration::from_millis(100),
        commit_timeout: Duration::from_millis(100),
    };
    let admin = client_config::admin(&config).create_with_context(KafkaContext::new("admin", "")).unwrap();
    let client_config = client_config::member(&config, &request);
    let context = KafkaContext::new("consumer", "g");
    let thread = ConsumerThread::new(Arc::new(settings), Arc::new(admin), client_config, context).unwrap();
    let handle = ConsumerHandle::new(&thread);
    (thread, handle)
}

fn cluster() -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 1, 1).unwrap();
    cluster
}

fn partition() -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), 0)
}

fn start_offset(offset: u64, committed: Option<u64>) -> StartOffset {
    StartOffset { partition: partition(), offset, committed, fails: false }
}

fn push(thread: &mut ConsumerThread, offsets: std::ops::Range<u8>) {
    let generation = thread.assignment.partitions.get(&partition()).unwrap().generation;
    let lengths: Vec<_> = offsets.clone().map(|_| 1).collect();
    let batch = RecordBatch::of(partition(), generation, offsets.start, &lengths, false);
    thread.buffer.push(&mut thread.assignment, batch);
}

/// Serves commands until a reply arrives.
fn reply<T>(thread: &mut ConsumerThread, mut reply: oneshot::Receiver<Result<T>>) -> Result<T> {
    loop {
        if let Ok(result) = reply.try_recv() {
            return result;
        }
        let command = thread.commands.recv_timeout(Duration::from_secs(30)).unwrap();
        command(thread);
    }
}

#[test]
fn a_rebalance_ends_a_poll() {
    for most in [1, MAX_POLL_RECORDS] {
        let cluster = cluster();
        let (mut thread, _handle) = member(&cluster.bootstrap_servers());
        thread.subscribe().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut more = false;
        while !thread.rebalancing.is_pending() && Instant::now() < deadline {
            let _ = thread.commands.recv_timeout(EVENT_POLL_INTERVAL);
            more = thread.poll(most);
        }
        let pending = thread.rebalancing.is_pending();
        // `leave` runs before the assertions: the client of a thread that panics waits for the acknowledgement
        // indefinitely.
        thread.leave();
        assert!(pending, "no assignment arrived");
        assert!(more, "the thread would sleep");
    }
}

#[test]
fn header_bytes_count_towards_the_maximum_poll_bytes() {
    const EACH: usize = 100 << 10;
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let large = vec![0; EACH];
    for _ in 0..40 {
        let headers = OwnedHeaders::new().insert(Header { key: "n", value: Some(&large) });
        producer.send(BaseRecord::<[u8], [u8]>::to("t").partition(0).headers(headers)).unwrap();
    }
    producer.flush(Duration::from_secs(10)).unwrap();
    let (mut thread, _handle) = member(&brokers);
    thread.apply_assignment(&[start_offset(0, Some(0))]).unwrap();
    let (mut buffered, mut most) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while buffered < 40 * EACH && Instant::now() < deadline {
        // Enough time for more messages than one poll returns.
        std::thread::sleep(Duration::from_millis(300));
        thread.poll(MAX_POLL_RECORDS);
        let now = thread.assignment.buffered_bytes();
        (buffered, most) = (now, most.max(now - buffered));
    }
    thread.leave();
    assert!(buffered >= 40 * EACH, "{buffered} bytes received");
    assert!(most < MAX_POLL_BYTES + 2 * EACH, "{most} bytes in one poll");
}

#[test]
fn partitions_rejected_by_librdkafka_are_not_assigned() {
    let (mut thread, _handle) = member(UNREACHABLE_BROKER);
    // librdkafka rejects a list that contains a partition twice.
    assert!(thread.apply_assignment(&[start_offset(3, None), start_offset(3, None)]).is_err());
    assert!(thread.assignment.partitions.is_empty());
    thread.apply_assignment(&[start_offset(3, None)]).unwrap();
    let state = thread.assignment.partitions.get(&partition()).unwrap();
    assert_eq!((state.position, state.committed, state.pending_commit), (3, None, Some(3)));
}

#[test]
fn a_zero_wait_recv_waits_for_a_resuming_consumer() {
    let (mut thread, _handle) = member(UNREACHABLE_BROKER);
    thread.membership = Membership::Suspended { leave_requested: true };
    let (reply, _result) = oneshot::channel();
    thread.begin_recv(1, Duration::ZERO, reply);
    let until = |thread: &ConsumerThread| {
        let recv = thread.recv.as_ref().unwrap();
        thread.recv_until(recv).duration_since(recv.began)
    };
    assert_eq!(until(&thread), MIN_CHANGE_WAIT);
    thread.membership = Membership::Active;
    assert_eq!(until(&thread), Duration::ZERO);
    thread.membership = Membership::Suspended { leave_requested: true };
    thread.end_recv();
    assert!(thread.should_fetch() && !thread.caller_waits(), "a caller that polls resumes the consumer, too");
}

#[test]
fn seek_and_pause_after_a_revocation_are_rejected() {
    let (mut thread, _handle) = member(UNREACHABLE_BROKER);
    thread.membership = Membership::Active;
    thread.assignment.gain(partition(), 0, None);
    let (sender, receiver) = oneshot::channel();
    thread.seek(vec![(partition(), SeekTo::Offset(1))], sender);
    // The maximum poll interval passes during the request.
    thread.lose_by_poll_interval();
    let rejected = reply(&mut thread, receiver).unwrap_err();
    assert_eq!((rejected.kind(), rejected.code()), (ErrorKind::InvalidInput, "bus.redpanda.not_owned"));
    let rejected = thread.set_paused(&[partition()], true, "pause").unwrap_err();
    assert_eq!((rejected.kind(), rejected.code()), (ErrorKind::InvalidInput, "bus.redpanda.not_owned"));
}

#[tokio::test]
async fn the_result_of_a_dropped_recv_goes_to_the_next_recv() {
    let (mut thread, handle) = member(UNREACHABLE_BROKER);
    thread.membership = Membership::Active;
    thread.assignment.gain(partition(), 0, None);
    push(&mut thread, 0..5);
    let mut subscription = RedpandaSubscription::new(handle);
    for answered in [false, true] {
        let mut recv = subscription.recv(3, Duration::from_secs(9));
        assert!(futures::poll!(&mut recv).is_pending());
        thread.serve_commands();
        if answered {
            thread.reply_recv();
            assert_eq!(thread.assignment.partitions.get(&partition()).unwrap().position, 3);
        }
        drop(recv);
        thread.serve_commands();
        thread.reply_recv();
        assert!(thread.recv.is_none());
        assert_eq!(thread.assignment.partitions.get(&partition()).unwrap().position, 0, "{answered}");
    }
    let mut recv = subscription.recv(9, Duration::from_secs(9));
    assert!(futures::poll!(&mut recv).is_pending());
    thread.serve_commands();
    thread.reply_recv();
    let batch = recv.await.unwrap();
    assert_eq!(batch.iter().map(|m| m.offset).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let gained = SubscriptionEvent::AssignmentChanged { gained: vec![partition()], lost: vec![] };
    assert_eq!(batch.events(), [gained]);
}

#[test]
fn a_revocation_waits_for_the_commit_in_flight() {
    let cluster = cluster();
    let (mut thread, _handle) = member(&cluster.bootstrap_servers());
    thread.membership = Membership::Active;
    thread.apply_assignment(&[start_offset(0, Some(0))]).unwrap();
    push(&mut thread, 0..5);
    thread.buffer.take(&mut thread.assignment, 5).unwrap();
    let (sender, committed) = oneshot::channel();
    thread.commit([(partition(), 5)].into_iter().collect(), sender);
    assert!(thread.commits.in_flight);
    thread.rebalancing.add(Rebalance { partitions: vec![partition()], assigns: false });
    thread.rebalance();
    assert!(thread.assignment.partitions.contains_key(&partition()), "others would own it too soon");
    let _ = reply(&mut thread, committed);
    assert!(!thread.commits.in_flight);
    thread.rebalance();
    assert!(!thread.assignment.partitions.contains_key(&partition()));
    let (sender, committed) = oneshot::channel();
    thread.commit([(partition(), 5)].into_iter().collect(), sender);
    assert_eq!(reply(&mut thread, committed).unwrap().lost, [partition()]);
    thread.leave();
}

#[test]
fn request_results_apply_only_inside_recv() {
    let (mut thread, _handle) = member(UNREACHABLE_BROKER);
    thread.membership = Membership::Active;
    thread.assignment.gain(partition(), 0, None);
    thread.last_recv = Instant::now();
    let applied = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let apply = applied.clone();
    let is_applied = || applied.load(std::sync::atomic::Ordering::Relaxed);
    thread.deferred.push_back(Box::new(move |_| apply.store(true, std::sync::atomic::Ordering::Relaxed)));
    thread.step();
    assert!(!is_applied());
    let (reply, _result) = oneshot::channel();
    thread.begin_recv(1, Duration::from_secs(9), reply);
    thread.step();
    assert!(is_applied());
}
