//! The consumer thread.
//!
//! Reads are expected while a `recv` waits and for a second afterwards. While reads are expected, the thread polls if the
//! buffer has space; otherwise only as a keepalive. A thread that always polled would never exceed the maximum poll
//! interval, so a subscription whose caller is stuck would keep its partitions. A consumer without reads is suspended: it
//! leaves its group, and the thread serves only librdkafka's events.

mod commit;
mod handle;
mod reassign;
mod recovery;
mod suspend;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use qi_core::bus::{
    self, AssignedPartition, OffsetReset, Offsets, SeekTo, SubscriptionEvent, TopicName, TopicPartition,
};
use qi_core::{Error, ErrorKind, Result};
use rdkafka::admin::AdminClient;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::types::RDKafkaTopic;
use rdkafka::{ClientConfig, Offset};
use tokio::sync::{oneshot, watch};

use super::assignment::Assignment;
use super::check::Check;
use super::end_probe::{self, EndProbe};
use super::fetch_buffer::{FetchBuffer, PolledBatch};
use super::rebalance::{Client, Rebalance, RebalanceContext};
use super::record_batch::RecordBatchBuilder;
use super::unreadable::UnreadableBatch;
use crate::redpanda::connect::KafkaContext;
use crate::redpanda::error;
use crate::redpanda::offsets::{self, OffsetSpec};
use commit::Commits;
pub(in crate::redpanda) use handle::{ConsumerHandle, PartitionSource, start};
use reassign::Rebalancing;

/// The interval at which librdkafka's events are served while no messages arrive.
const EVENT_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The pause before a failed request is repeated.
const RETRY_BACKOFF: Duration = Duration::from_millis(100);
/// The interval at which deleted topics are looked up, a suspended consumer is served, and an incomplete search for
/// unreadable batches is repeated.
const IDLE_RECHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The number of successive empty polls after which librdkafka's queue counts as empty. A poll that served an
/// event is also empty.
const MAX_EMPTY_POLLS: usize = 10;
/// The same number for a consumer that is suspended or has no space. Its queue may contain many events.
const MAX_EMPTY_POLLS_SUSPENDED: usize = 100;
/// The maximum number of messages that are polled before a waiting `recv` is served.
const MAX_POLL_RECORDS: usize = 1_000;
/// The number of polled bytes after which a waiting `recv` is served. The buffer may exceed half of its
/// limit by this number.
const MAX_POLL_BYTES: usize = 1 << 20;
/// The time after a `recv` during which the next `recv` is expected and messages are prefetched.
const PREFETCH_WINDOW: Duration = Duration::from_secs(1);
/// The interval at which a thread without space polls. It is shorter if the maximum poll interval is short.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// The time after which a reader without a group is suspended. A member is suspended after its maximum poll interval.
const READER_IDLE: Duration = Duration::from_secs(30);
/// The minimum time for which `recv` waits for a change of the assignment, even if its `wait` is shorter.
const MIN_CHANGE_WAIT: Duration = Duration::from_millis(500);
/// The maximum wait of a `recv`, so that even `Duration::MAX` ends.
const MAX_WAIT: Duration = Duration::from_hours(24 * 365);
/// The timeout of calls that only change the local state of librdkafka.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum time for which the client waits for requests in flight before it is dropped.
const CLIENT_DROP_TIMEOUT: Duration = Duration::from_mins(1);

/// The settings of a consumer.
#[derive(Debug)]
pub(in crate::redpanda) struct ConsumerSettings {
    pub(in crate::redpanda) topics: Vec<TopicName>,
    /// The start of a partition without a valid commit.
    pub(in crate::redpanda) offset_reset: OffsetReset,
    /// The maximum poll interval. None for a reader without a group.
    pub(in crate::redpanda) max_poll_interval: Option<Duration>,
    /// True if a revocation takes effect only in the `recv` after its announcement.
    pub(in crate::redpanda) announce_revocations: bool,
    pub(in crate::redpanda) max_buffered_bytes: usize,
    /// The timeout of one request to the brokers.
    pub(in crate::redpanda) request_timeout: Duration,
    pub(in crate::redpanda) commit_timeout: Duration,
}

impl ConsumerSettings {
    pub(super) fn has_group(&self) -> bool {
        self.max_poll_interval.is_some()
    }

    /// Returns the time without a poll after which the consumer is suspended.
    fn max_idle(&self) -> Duration {
        self.max_poll_interval.unwrap_or(READER_IDLE)
    }

    fn buffer_level(&self, buffered_bytes: usize, since_poll: Duration) -> BufferLevel {
        // librdkafka queues the other half.
        let half = (self.max_buffered_bytes / 2).max(1);
        match buffered_bytes {
            bytes if bytes < half => BufferLevel::Free,
            bytes if bytes < half.saturating_add(MAX_POLL_BYTES) => BufferLevel::AlmostFull,
            _ if since_poll < KEEPALIVE_INTERVAL.min(self.max_idle() / 4) => BufferLevel::Full,
            _ => BufferLevel::KeepaliveDue,
        }
    }
}

/// The space in the fetch buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BufferLevel {
    Free,
    /// At least half of the limit is in use. Each `recv` polls one message, because this poll proves to librdkafka that
    /// the maximum poll interval is kept.
    AlmostFull,
    /// No space: messages arrive faster than the caller takes them. Nothing is polled.
    Full,
    /// No space, and the last poll is so long ago that a keepalive is due before the maximum poll interval passes.
    KeepaliveDue,
}

/// The membership of a consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Membership {
    /// The state before the first assignment.
    Joining,
    Active,
    /// The state without reads. `leave_requested` is true after librdkafka was instructed to leave the group, or to
    /// fetch nothing for a reader. The next `recv` resumes the consumer.
    Suspended {
        leave_requested: bool,
    },
}

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;
/// A call or the result of a request, which the thread applies to its state.
pub(super) type Command = Box<dyn FnOnce(&mut ConsumerThread) + Send>;

/// A `recv` that waits for its reply.
struct PendingRecv {
    max: usize,
    began: Instant,
    deadline: Instant,
    reply: Reply<PolledBatch>,
}

/// The consumer thread, which owns the state of a consumer.
pub(in crate::redpanda) struct ConsumerThread {
    commands: Receiver<Command>,
    rebalances: Receiver<Rebalance>,
    /// The sender of `commands`, for the results of requests.
    responses: Sender<Command>,
    recv: Option<PendingRecv>,
    joined: Option<Reply<()>>,
    commits: Commits,
    /// Dropped after the replies, because dropping the client may block.
    client: Arc<Client>,
    client_config: ClientConfig,
    admin: Arc<AdminClient<KafkaContext>>,
    settings: Arc<ConsumerSettings>,
    /// True if the consumer is closing. The sender is dropped at the end of the thread.
    closing: watch::Sender<bool>,
    membership: Membership,
    assignment: Assignment,
    buffer: FetchBuffer,
    /// True if a `recv` began since the last poll.
    recv_began: bool,
    last_recv: Instant,
    last_poll: Instant,
    /// The error that the next `recv` returns once.
    failure: Option<Error>,
    /// The error that every further call returns.
    fatal: Option<Error>,
    /// The results of requests that take effect inside `recv`.
    deferred: VecDeque<Command>,
    rebalancing: Rebalancing,
    /// The check for fetch offsets that no longer exist.
    offset_check: Check,
    /// The check for topics that were deleted or created again.
    topic_check: Check,
    deleted_topics: BTreeSet<TopicName>,
    /// Batches that cannot be decompressed, whose partitions are not known yet.
    unreadable: BTreeSet<UnreadableBatch>,
    unreadable_check: Check,
    end_probe: EndProbe,
    /// The number of messages and bytes in the last record batch.
    last_batch: (usize, usize),
}

/// The record batch that is being copied, and its source. The topic's handle is compared and never dereferenced.
type OpenBatch = ((*mut RDKafkaTopic, i32), RecordBatchBuilder);

impl ConsumerThread {
    fn new(
        settings: Arc<ConsumerSettings>,
        admin: Arc<AdminClient<KafkaContext>>,
        client_config: ClientConfig,
        context: KafkaContext,
    ) -> KafkaResult<Self> {
        let (responses, commands) = mpsc::channel::<Command>();
        let (context, rebalances) = RebalanceContext::new(context);
        let mut client: Client = client_config.create_with_context(context)?;
        let wake = responses.clone();
        client.set_nonempty_callback(move || drop(wake.send(Box::new(|_| {}))));
        Ok(Self {
            commands,
            rebalances,
            responses,
            recv: None,
            joined: None,
            commits: Commits::default(),
            client: Arc::new(client),
            client_config,
            admin,
            settings,
            closing: watch::Sender::new(false),
            membership: Membership::Joining,
            assignment: Assignment::default(),
            buffer: FetchBuffer::default(),
            recv_began: false,
            last_recv: Instant::now(),
            last_poll: Instant::now(),
            failure: None,
            fatal: None,
            deferred: VecDeque::new(),
            rebalancing: Rebalancing::default(),
            offset_check: Check::default(),
            topic_check: Check::default(),
            deleted_topics: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            unreadable_check: Check::default(),
            end_probe: EndProbe::default(),
            last_batch: (0, 0),
        })
    }

    fn run(mut self) {
        let mut wait = Duration::ZERO;
        while !*self.closing.borrow() {
            if !wait.is_zero()
                && let Ok(command) = self.commands.recv_timeout(wait)
            {
                command(&mut self);
            }
            self.serve_commands();
            wait = self.step();
        }
        self.leave();
    }

    fn serve_commands(&mut self) {
        while !*self.closing.borrow()
            && let Ok(command) = self.commands.try_recv()
        {
            command(self);
        }
    }

    /// Performs all due work. Returns the maximum time that the thread may wait for a command.
    fn step(&mut self) -> Duration {
        if self.recv.as_ref().is_some_and(|recv| recv.reply.is_closed()) {
            self.end_recv();
        }
        let caller_waits = self.caller_waits();
        if !caller_waits && self.since_poll() >= self.settings.max_idle() {
            self.suspend();
        }
        if matches!(self.membership, Membership::Suspended { .. }) {
            let wait = self.step_suspended();
            self.reply_recv();
            return self.until_deadline(wait);
        }
        self.take_rebalances();
        if caller_waits {
            while let Some(apply) = self.deferred.pop_front() {
                apply(self);
            }
            self.rebalance();
            self.commit_starts();
            self.complete_join();
        }
        self.reply_recv();
        if !self.should_fetch() {
            return self.settings.max_idle().saturating_sub(self.since_poll());
        }
        let may_poll = if self.caller_waits() {
            !self.rebalancing.is_revoking()
        } else {
            !self.rebalancing.is_pending()
        };
        if !may_poll {
            // The next `recv` carries out the change. Until then, no messages are fetched.
            return self.until_deadline(EVENT_POLL_INTERVAL);
        }
        let level = self.settings.buffer_level(self.assignment.buffered_bytes(), self.since_poll());
        if self.caller_waits() && level == BufferLevel::Free {
            self.reassign();
        }
        let max_records = match level {
            BufferLevel::Free => MAX_POLL_RECORDS,
            BufferLevel::AlmostFull => usize::from(self.recv_began),
            BufferLevel::Full => 0,
            BufferLevel::KeepaliveDue => {
                self.keepalive();
                0
            }
        };
        self.recv_began = false;
        let more = max_records > 0 && self.poll(max_records);
        self.reply_recv();
        self.check_offsets();
        self.check_topics();
        self.check_unreadable();
        self.probe_ends();
        if more { Duration::ZERO } else { self.until_deadline(EVENT_POLL_INTERVAL) }
    }

    /// Returns whether a caller waits for `recv` or for the first assignment. Only then may the assignment change.
    fn caller_waits(&self) -> bool {
        self.recv.is_some() || self.joined.is_some()
    }

    /// Returns whether messages should be fetched: a caller waits, or its next `recv` is expected.
    fn should_fetch(&self) -> bool {
        self.caller_waits() || self.last_recv.elapsed() < PREFETCH_WINDOW
    }

    fn since_poll(&self) -> Duration {
        self.last_poll.elapsed()
    }

    /// Returns whether the maximum poll interval has passed. Other members may then own the partitions.
    fn is_overdue(&self) -> bool {
        self.settings.max_poll_interval.is_some_and(|limit| self.since_poll() >= limit)
    }

    /// Shortens a wait to the deadline of the waiting `recv`.
    fn until_deadline(&self, wait: Duration) -> Duration {
        let until = self.recv.as_ref().map(|recv| self.recv_until(recv));
        until.map_or(wait, |until| wait.min(until.saturating_duration_since(Instant::now())))
    }

    /// Runs a request on a separate thread. Its result is a command to this thread.
    fn request<T: Send + 'static>(
        &mut self,
        request: impl FnOnce(&Client) -> T + Send + 'static,
        handle_response: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        let (client, responses) = (self.client.clone(), self.responses.clone());
        let work = move || {
            let result = request(&client);
            // The client is dropped when no request uses it.
            drop(client);
            let _ = responses.send(Box::new(move |thread| handle_response(thread, result)));
        };
        if let Err(error) = std::thread::Builder::new().name("qi-redpanda-req".to_owned()).spawn(work) {
            self.fatal = Some(error::internal("recv", error));
        }
    }

    /// Stores an error for the next `recv`, unless the request is retried.
    fn request_failed(&mut self, error: KafkaError) {
        let error = error::from_kafka(error, "recv");
        tracing::debug!(%error, "consumer request failed");
        if !error.retry().is_retryable() {
            self.failure = Some(error);
        }
    }

    /// Returns an error if a partition is not assigned.
    fn check_assigned<'a>(
        &self,
        partitions: impl IntoIterator<Item = &'a TopicPartition>,
        operation: &'static str,
    ) -> Result<()> {
        if let Some(fatal) = &self.fatal {
            return Err(fatal.clone());
        }
        for partition in partitions {
            if !self.assignment.partitions.contains_key(partition) || self.is_overdue() {
                return Err(error::not_owned(partition, operation));
            }
        }
        Ok(())
    }

    pub(super) fn begin_recv(&mut self, max: usize, wait: Duration, reply: Reply<PolledBatch>) {
        if self.is_overdue() {
            self.suspend();
        }
        let began = Instant::now();
        self.recv = Some(PendingRecv { max, began, deadline: began + wait.min(MAX_WAIT), reply });
        self.recv_began = true;
    }

    fn end_recv(&mut self) -> Option<PendingRecv> {
        self.last_recv = Instant::now();
        self.recv.take()
    }

    /// Returns the latest time of the reply to a `recv`. The reply waits for changes that are carried out inside
    /// `recv`.
    fn recv_until(&self, recv: &PendingRecv) -> Instant {
        let changing = self.rebalancing.is_pending()
            || matches!(self.membership, Membership::Suspended { .. })
            || self.assignment.partitions.values().any(|state| state.needs_reassign);
        if changing { recv.deadline.max(recv.began + MIN_CHANGE_WAIT) } else { recv.deadline }
    }

    /// Replies to the waiting `recv` if there is a result.
    fn reply_recv(&mut self) {
        let Some(recv) = &self.recv else { return };
        let (max, last) = (recv.max, Instant::now() >= self.recv_until(recv));
        if let Some(result) = self.recv_result(max, last)
            && let Some(recv) = self.end_recv()
            && let Err(result) = recv.reply.send(result)
        {
            self.put_back(result);
        }
    }

    /// Returns the result of a `recv`, if there is a result. With `last`, there is always a result.
    fn recv_result(&mut self, max: usize, last: bool) -> Option<Result<PolledBatch>> {
        let error = self.fatal.clone().or_else(|| self.failure.take());
        if let Some(error) = error.or_else(|| self.assignment.failure()) {
            return Some(Err(error));
        }
        if self.deleted_topics.len() == self.settings.topics.len()
            && let Some(topic) = self.deleted_topics.first()
        {
            return Some(Err(error::unknown_topic(topic, "recv")));
        }
        // Messages of partitions that are about to be revoked must not be returned.
        if !self.rebalancing.is_revoking()
            && let Some(polled) = self.buffer.take(&mut self.assignment, max)
        {
            return Some(Ok(polled));
        }
        if !last {
            return None;
        }
        let connection = &self.client.context().connection;
        if !connection.is_connected() {
            return Some(Err(connection.auth_error_or(error::unavailable("recv"))));
        }
        Some(Ok(self.buffer.take_none(&mut self.assignment)))
    }

    /// Takes back the result of a `recv` whose future was dropped.
    pub(super) fn put_back(&mut self, result: Result<PolledBatch>) {
        match result {
            Ok(mut polled) => {
                let events = polled.events.len();
                polled.events.retain(|event| *event != SubscriptionEvent::RevocationPending);
                // The revocation is announced again.
                self.rebalancing.announced &= polled.events.len() == events;
                self.buffer.put_back(&mut self.assignment, polled);
            }
            // `recv_result` computes errors of the kinds `Unavailable` and `NotFound` again for the next `recv`. Other
            // errors were taken from `failure` and are restored.
            Err(error) if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound) => {
                self.failure = Some(error);
            }
            Err(_) => {}
        }
    }

    /// Replies to `subscribe` or `open_reader` after the first assignment, or with the reason of its failure.
    fn complete_join(&mut self) {
        if self.joined.is_none() {
            return;
        }
        let error = self.fatal.clone().or_else(|| self.failure.take());
        let result = match error.or_else(|| self.assignment.failure()) {
            Some(error) => Err(error),
            None if self.membership == Membership::Joining || !self.commits.starts_tried => return,
            None => Ok(()),
        };
        if let Some(joined) = self.joined.take() {
            let _ = joined.send(result);
        }
        self.last_recv = Instant::now();
    }

    /// Polls librdkafka's queue. Returns whether the queue may contain more.
    fn poll(&mut self, max_records: usize) -> bool {
        let client = self.client.clone();
        let mut open = None;
        // Messages are freed together after they were copied, because the fetching thread allocated them.
        // Freeing each message on arrival would make both threads contend at every message, which costs a
        // quarter of their throughput.
        let mut messages_polled = Vec::with_capacity(max_records);
        let (mut bytes, mut empty) = (0, 0);
        let more = loop {
            match client.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    empty = 0;
                    bytes += message.key_len() + message.payload_len() + self.add(&mut open, &message);
                    messages_polled.push(message);
                }
                Some(Err(error)) => {
                    self.finish_batch(&mut open);
                    self.handle_error(&error);
                }
                // Received messages are returned first. The next call polls again.
                None if self.take_rebalances() || !messages_polled.is_empty() => break true,
                None if empty >= MAX_EMPTY_POLLS => break false,
                None => empty += 1,
            }
            if messages_polled.len() >= max_records || bytes >= MAX_POLL_BYTES {
                break max_records > 1;
            }
        };
        self.finish_batch(&mut open);
        self.last_poll = Instant::now();
        more
    }

    /// Copies a message, and returns the weight of its headers.
    fn add(&mut self, open: &mut Option<OpenBatch>, message: &BorrowedMessage<'_>) -> usize {
        let source = (message.topic_ptr(), message.partition());
        if open.as_ref().is_none_or(|(open, _)| *open != source) {
            self.finish_batch(open);
            let Some((partition, generation)) = self.assigned(message) else { return 0 };
            // The last batch is the estimate for the size of this batch.
            let (messages, bytes) = (self.last_batch.0.clamp(8, MAX_POLL_RECORDS), self.last_batch.1);
            *open = Some((source, RecordBatchBuilder::new(partition, generation, messages, bytes)));
        }
        open.as_mut().map_or(0, |(_, builder)| builder.push(message))
    }

    fn finish_batch(&mut self, open: &mut Option<OpenBatch>) {
        if let Some((_, builder)) = open.take() {
            let batch = builder.finish();
            self.last_batch = (batch.len(), batch.shared_bytes());
            self.buffer.push(&mut self.assignment, batch);
        }
    }

    /// Returns the partition and the generation of a message whose partition is assigned.
    fn assigned(&self, message: &BorrowedMessage<'_>) -> Option<(TopicPartition, u64)> {
        let number = u32::try_from(message.partition()).ok()?;
        let name = message.topic();
        let topic = self.settings.topics.iter().find(|topic| topic.as_str() == name)?;
        let partition = TopicPartition::new(topic.clone(), number);
        let generation =
            self.assignment.partitions.get(&partition).filter(|state| !state.needs_reassign)?.generation;
        Some((partition, generation))
    }

    /// Polls although the buffer has no space. Drops fetched messages before the poll. Messages that arrive during the
    /// poll are fetched again when there is space.
    fn keepalive(&mut self) {
        for (partition, offset, _) in self.fetch_offsets() {
            self.seek_client(&partition, offset);
        }
        let client = self.client.clone();
        for _ in 0..MAX_EMPTY_POLLS_SUSPENDED {
            match client.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    if let Some((partition, _)) = self.assigned(&message) {
                        self.assignment.finish_seek(&partition, false);
                    }
                }
                Some(Err(error)) => self.handle_error(&error),
                None => {}
            }
            if self.take_rebalances() {
                break;
            }
        }
        self.last_poll = Instant::now();
    }

    /// Returns the fetch offset and the generation of each partition that has not failed.
    fn fetch_offsets(&self) -> Vec<(TopicPartition, u64, u64)> {
        let valid = self.assignment.partitions.iter().filter(|(_, state)| state.failed.is_none());
        valid.map(|(partition, state)| (partition.clone(), state.fetch_offset, state.generation)).collect()
    }

    /// Makes librdkafka fetch from another offset. If librdkafka does not fetch the partition, the
    /// partition is assigned again.
    fn seek_client(&mut self, partition: &TopicPartition, to: u64) {
        // A suspended consumer begins at this offset when it resumes.
        let done = matches!(self.membership, Membership::Suspended { .. }) || {
            let (topic, number) = (partition.topic.as_str(), partition.partition.cast_signed());
            self.client.seek(topic, number, offsets::offset(to), LOCAL_TIMEOUT).is_ok()
        };
        self.assignment.finish_seek(partition, done);
    }

    pub(super) fn seek(&mut self, to: Vec<(TopicPartition, SeekTo)>, reply: Reply<()>) {
        if let Err(error) = self.check_assigned(to.iter().map(|(partition, _)| partition), "seek") {
            let _ = reply.send(Err(error));
            return;
        }
        let limit = self.settings.request_timeout;
        let resolve = move |client: &Client| resolve(client, &to, limit, "seek");
        self.request(resolve, move |thread, found| {
            let result = found.and_then(|found| {
                // The maximum poll interval may have passed during the request.
                thread.check_assigned(found.iter().map(|(partition, _)| partition), "seek")?;
                for (partition, offset) in found {
                    thread.buffer.seek(&mut thread.assignment, &partition, offset);
                    thread.seek_client(&partition, offset);
                }
                Ok(())
            });
            let _ = reply.send(result);
        });
    }

    pub(super) fn set_paused(
        &mut self,
        partitions: &[TopicPartition],
        paused: bool,
        operation: &'static str,
    ) -> Result<()> {
        self.check_assigned(partitions, operation)?;
        let list = offsets::list(partitions.iter().map(|partition| (partition, Offset::Invalid)));
        let done =
            list.and_then(|list| if paused { self.client.pause(&list) } else { self.client.resume(&list) });
        done.map_err(|e| error::from_kafka(e, operation))?;
        for partition in partitions {
            if let Some(state) = self.assignment.partitions.get_mut(partition) {
                state.paused = paused;
            }
        }
        Ok(())
    }

    pub(super) fn describe(&mut self, reply: Reply<bus::Assignment>) {
        if let Some(fatal) = &self.fatal {
            let _ = reply.send(Err(fatal.clone()));
            return;
        }
        let limit = self.settings.request_timeout;
        let partitions: Vec<_> = self.assignment.partitions.keys().cloned().collect();
        let ends = move |client: &Client| {
            let failed = |e| client.context().connection.auth_error_or(error::from_request(e, "assignment"));
            let found = offsets::find_each(client, &partitions, OffsetSpec::Latest, limit).map_err(failed)?;
            let mut ends = Offsets::new();
            for (partition, end) in found {
                match end {
                    Ok(end) => ends.set(partition, end),
                    // A deleted topic has no messages to read.
                    Err(error) if error::is_missing(&error) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            Ok(ends)
        };
        self.request(ends, move |thread, ends: Result<Offsets>| {
            let described = ends.map(|ends| {
                let partitions = thread.assignment.partitions.iter().map(|(partition, state)| {
                    let end = ends.get(partition).unwrap_or(state.position);
                    let lag = end.saturating_sub(state.position);
                    AssignedPartition::new(
                        partition.clone(),
                        state.position,
                        state.committed,
                        lag,
                        state.paused,
                    )
                });
                bus::Assignment::new(thread.assignment.epoch, partitions.collect())
            });
            let _ = reply.send(described);
        });
    }

    /// Searches for offsets without a message at the ends of partitions.
    fn probe_ends(&mut self) {
        let Some(tails) = self.end_probe.start(&self.assignment) else { return };
        let (config, limit) = (self.client_config.clone(), self.settings.request_timeout);
        let (closing, responses) = (self.closing.subscribe(), self.responses.clone());
        let probe = move |client: &Client| {
            let is_closing = || *closing.borrow();
            end_probe::probe(client, &config, tails, limit, is_closing, |partition, generation, from, to| {
                let partition = partition.clone();
                let skip = move |thread: &mut Self| {
                    thread.buffer.skip(&mut thread.assignment, &partition, generation, from, to);
                };
                let _ = responses.send(Box::new(move |thread| thread.deferred.push_back(Box::new(skip))));
            })
        };
        self.request(probe, |thread, unknown| thread.end_probe.finish(unknown));
    }

    /// Leaves the group, and drops the client.
    fn leave(mut self) {
        self.take_rebalances();
        self.dismiss_rebalances();
        let Self { commands, rebalances, client, recv, joined, commits, closing, .. } = self;
        // Waiting calls and further calls return. Later events are acknowledged immediately.
        drop((commands, rebalances, recv, joined, commits));
        let deadline = Instant::now() + CLIENT_DROP_TIMEOUT;
        while Arc::strong_count(&client) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(client);
        drop(closing);
    }
}

/// Resolves the positions of a caller to offsets.
fn resolve(
    client: &Client,
    to: &[(TopicPartition, SeekTo)],
    limit: Duration,
    operation: &'static str,
) -> Result<Vec<(TopicPartition, u64)>> {
    let mut found = Vec::with_capacity(to.len());
    for (partition, target) in to {
        let spec = match target {
            SeekTo::Offset(offset) => {
                found.push((partition.clone(), *offset));
                continue;
            }
            SeekTo::At(time) => OffsetSpec::At(*time),
            SeekTo::Earliest => OffsetSpec::Earliest,
            SeekTo::Latest => OffsetSpec::Latest,
        };
        let offsets = offsets::find(client, [partition], spec, limit)
            .map_err(|e| client.context().connection.auth_error_or(error::from_request(e, operation)))?;
        found.extend(offsets);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
