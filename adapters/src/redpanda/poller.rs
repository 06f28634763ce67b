//! The thread of a reader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qi_core::bus::{Received, TopicName, TopicPartition};
use qi_core::{Error, ErrorKind};
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::types::RDKafkaTopic;

use super::feed::{BURST_BYTES, Feed, Room, Standing};
use super::inbox::{Change, Client, acknowledge};
use super::message::Copies;
use super::shelf::{Owned, Run};
use super::tails::Tails;
use super::{error, offsets, rest};

/// While nothing comes, librdkafka's own events are served this often.
const IDLE: Duration = Duration::from_millis(200);
/// What did not work is tried again after this.
const AGAIN: Duration = Duration::from_millis(100);
/// A deleted topic is looked for again this often, and a reader that rests is served.
const LOOK: Duration = Duration::from_secs(1);
/// So many events may come one after another and look like nothing.
const EVENTS: usize = 100;
/// So many messages are polled before they are put on the shelf.
const BURST: usize = 1_000;
/// A client that calls of dropped futures still use is waited for so long.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) struct Poller {
    feed: Arc<Feed>,
    client: Arc<Client>,
    stack: Stack,
    served: u64,
    /// Positions may have gone.
    doubtful: bool,
    /// Topics may be deleted.
    topics_doubtful: bool,
    tails: Arc<Tails>,
    resting: bool,
    looked: Instant,
}

/// Where a partition begins that was gained.
struct Start {
    partition: TopicPartition,
    at: u64,
    /// A start without a commit is to be committed itself.
    committed: Option<u64>,
    /// Without a commit it was to fail.
    fails: bool,
}

/// Where is fetched from, under which ownership.
struct Place {
    partition: TopicPartition,
    key: u64,
    fetched: u64,
}

/// What has become of the place that was being fetched from.
enum PlaceNow {
    Valid,
    /// `to` is where to go on; None where it is to fail. The log goes from `low` to `high` now.
    Gone {
        to: Option<u64>,
        low: u64,
        high: u64,
    },
}

/// Tells the readers of a thread that panicked.
struct Watch(Arc<Feed>);

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state().fatal = Some(error::internal("recv", "the thread of this reader panicked"));
            self.0.end();
        }
    }
}

/// Starts the thread of a feed.
pub(super) fn start(feed: Arc<Feed>, client: Arc<Client>) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("qi-redpanda-recv".to_owned());
    let run = move || {
        let _watch = Watch(feed.clone());
        Poller::new(feed, client).run();
    };
    thread.spawn(run).map(drop)
}

impl Poller {
    fn new(feed: Arc<Feed>, client: Arc<Client>) -> Self {
        let (stack, looked) = (Stack::default(), Instant::now());
        let tails = Arc::default();
        Self {
            feed,
            client,
            stack,
            served: 0,
            doubtful: false,
            topics_doubtful: false,
            tails,
            resting: false,
            looked,
        }
    }

    fn run(mut self) {
        while let Some(turn) = self.feed.turn() {
            if turn.resting {
                // Also for who calls `recv` again and again and never waits in it.
                self.rest(turn.active);
                continue;
            }
            if turn.open && !self.carry_out() {
                self.feed.bell.wait(AGAIN);
            }
            if !turn.active {
                self.feed.bell.wait(turn.patience);
                continue;
            }
            if !turn.open && self.feed.inbox().is_due() {
                // The next `recv` carries it out; until then nothing more is fetched.
                self.feed.bell.wait(IDLE);
                continue;
            }
            if turn.open && turn.room == Room::Free {
                self.start_anew();
            }
            self.look_for_the_missing();
            let received = self.feed.received();
            let most = match turn.room {
                Room::Free => BURST,
                // librdkafka is still told that its reader lives, once for each `recv`.
                Room::Scarce => usize::from(received != self.served),
                Room::None => 0,
                Room::Silent => {
                    self.discard();
                    0
                }
            };
            self.served = received;
            let more = most > 0 && self.burst(most);
            if self.doubtful {
                self.doubtful = !self.reset();
            }
            if std::mem::take(&mut self.topics_doubtful) {
                self.look_for_topics();
            }
            self.tails.look(&self.feed, &self.client);
            if !more {
                self.feed.bell.wait(IDLE);
            }
        }
        self.leave();
    }

    /// Nobody has read for long. What librdkafka has to tell is heard all the same, or it would pile up: its log, its
    /// statistics, whether brokers are there. To poll is to take part, so the reader takes part no more until a `recv`
    /// wants it to.
    fn rest(&mut self, wanted: bool) {
        if !self.resting {
            rest::begin(&self.feed, &self.client);
            self.resting = true;
        }
        self.hear();
        if !rest::has_begun(&self.feed, &self.client) {
            self.feed.bell.wait(AGAIN);
        } else if !wanted {
            self.feed.bell.wait(LOOK);
        } else if let Err(error) = rest::end(&self.feed, &self.client) {
            self.failed(error::of(error, "recv"));
            self.feed.bell.wait(AGAIN);
        } else {
            self.resting = false;
        }
    }

    /// Tells librdkafka that its reader lives, and hears it, though there is no room. What it has fetched is dropped
    /// before, and what comes all the same is fetched again when there is room.
    fn discard(&mut self) {
        let feed = self.feed.clone();
        let _gate = feed.gate();
        let places: Vec<_> = {
            let state = feed.state();
            let owned = state.shelf.owned().iter().filter(|(_, owned)| owned.failed.is_none());
            owned.map(|(partition, owned)| (partition.clone(), owned.fetched)).collect()
        };
        for (partition, fetched) in places {
            let sent = feed.send_to(&self.client, &partition, fetched);
            feed.state().shelf.send(&partition, sent);
        }
        let client = self.client.clone();
        for _ in 0..EVENTS {
            match client.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    if let Some((partition, _)) = self.owned(&message) {
                        feed.state().shelf.send(&partition, false);
                    }
                }
                Some(Err(error)) => self.trouble(&error),
                None => {}
            }
            if feed.inbox().is_due() {
                break;
            }
        }
        feed.polled();
    }

    /// Serves events. Messages that are still on their way belong to nobody here.
    fn hear(&mut self) {
        let client = self.client.clone();
        let mut nothing = 0;
        for _ in 0..BURST {
            match client.poll(Duration::ZERO) {
                Some(Ok(_)) => nothing = 0,
                Some(Err(error)) => self.trouble(&error),
                // It may also be an event that was served.
                None => nothing += 1,
            }
            if nothing > EVENTS {
                break;
            }
        }
    }

    /// Polls what is there, and says whether there may be more, or a change of the assignment is to be carried out.
    fn burst(&mut self, most: usize) -> bool {
        let feed = self.feed.clone();
        let _gate = feed.gate();
        let client = self.client.clone();
        let mut stack = std::mem::take(&mut self.stack);
        // Freed together, after they were copied. The thread that fetches allocated them, and to free each message as it
        // comes is to be in that thread's way at every message: it costs both a quarter of their rate.
        let mut spent = Vec::with_capacity(most);
        let mut bytes = 0;
        let mut empty = false;
        let more = loop {
            // An answer of nothing may also be an event that was served; a second look, of a moment, knows better.
            let wait = if empty { Duration::from_millis(1) } else { Duration::ZERO };
            match client.poll(wait) {
                Some(Ok(message)) => {
                    empty = false;
                    bytes += message.key_len() + message.payload_len() + self.add(&mut stack, &message);
                    spent.push(message);
                }
                Some(Err(error)) => {
                    stack.put(&feed);
                    self.trouble(&error);
                }
                // What came is wanted now; the next burst looks again.
                None if !spent.is_empty() => break true,
                None if empty => break false,
                None => empty = true,
            }
            if spent.len() >= most || bytes >= BURST_BYTES || feed.inbox().is_due() {
                break most > 1;
            }
        };
        stack.put(&feed);
        self.stack = stack;
        feed.polled();
        more || feed.inbox().is_due()
    }

    /// Adds a message to a run, and says what its headers take.
    fn add(&self, stack: &mut Stack, message: &BorrowedMessage<'_>) -> usize {
        let place = (message.topic_ptr(), message.partition());
        if stack.open.as_ref().is_none_or(|open| open.place != place) {
            let Some((partition, key)) = self.owned(message) else { return 0 };
            stack.begin(place, partition, key);
        }
        stack.open.as_mut().map_or(0, |open| open.copies.push(message))
    }

    /// A message's partition, if this reader owns it, and under which key.
    fn owned(&self, message: &BorrowedMessage<'_>) -> Option<(TopicPartition, u64)> {
        let number = u32::try_from(message.partition()).ok()?;
        let name = message.topic();
        let topic = self.feed.plan.topics.iter().find(|topic| topic.as_str() == name)?;
        let partition = TopicPartition::new(topic.clone(), number);
        let state = self.feed.state();
        let key = state.shelf.owned().get(&partition).filter(|owned| !owned.astray)?.key;
        drop(state);
        Some((partition, key))
    }

    /// What librdkafka says in place of a message.
    fn trouble(&mut self, error: &KafkaError) {
        if let KafkaError::PartitionEOF(number) = error {
            self.tails.reached(&self.feed, *number);
            return;
        }
        let Some(code) = error::code_of(error) else { return };
        match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => self.doubtful = true,
            Code::PollExceeded => self.feed.pass_poll_limit(),
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::UnknownTopicId => {
                self.topics_doubtful = true;
                return;
            }
            Code::FencedInstanceId => self.feed.state().fatal = Some(error::by_code(code, "recv")),
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                let why = self.client.client().fatal_error();
                let why = why.map_or_else(
                    || error::by_code(code, "recv"),
                    |(code, reason)| error::by_code(code, "recv").with_message(reason),
                );
                self.feed.state().fatal = Some(why);
            }
            _ => {
                let found = error::by_code(code, "recv");
                // What passes by itself librdkafka tries again; `recv` says so when its wait has passed.
                if found.retry().is_retryable() || found.kind() == ErrorKind::Internal {
                    tracing::debug!(%code, "librdkafka goes on after an error");
                    return;
                }
                self.feed.state().failure = Some(found);
            }
        }
        self.feed.changed.notify_waiters();
    }

    /// Carries out what librdkafka wants of the assignment. False if a broker did not answer, and it is to be tried
    /// again.
    fn carry_out(&mut self) -> bool {
        let mut done = false;
        while let Some(change) = self.feed.inbox().due() {
            let carried = match &change {
                Change::Lose(partitions) => self.lose(partitions),
                Change::Gain(partitions) => self.gain(partitions),
            };
            if let Err(error) = carried {
                self.failed(error::of(error, "recv"));
                return false;
            }
            self.feed.inbox().done();
            done = true;
        }
        let settled = self.settle();
        if done {
            self.feed.changed.notify_waiters();
        }
        settled
    }

    fn failed(&self, error: Error) {
        tracing::debug!(%error, "a change of the assignment could not be carried out yet");
        if !error.retry().is_retryable() {
            self.feed.state().failure = Some(error);
            self.feed.changed.notify_waiters();
        }
    }

    fn lose(&self, partitions: &[TopicPartition]) -> KafkaResult<()> {
        {
            // A pause or a seek that has begun is done before, and none begins after.
            let _gate = self.feed.gate();
            let mut state = self.feed.state();
            state.shelf.lose(partitions);
            state.shelf.turn();
        }
        // A commit that is under way ends before somebody else owns its partitions.
        let _commits = self.feed.commits.blocking_lock();
        let list = offsets::list(partitions.iter().map(|p| (p, rdkafka::Offset::Invalid)))?;
        acknowledge(&self.client, &list, false)
    }

    fn gain(&self, partitions: &[TopicPartition]) -> KafkaResult<()> {
        self.take_over(&self.starts(partitions)?)?;
        self.settle();
        let mut state = self.feed.state();
        if state.standing == Standing::Joining {
            state.standing = Standing::In;
            state.shelf.forget_gains();
        }
        Ok(())
    }

    /// Where partitions begin: at their commits; where there is none, at the start that `otherwise` gives.
    fn starts(&self, partitions: &[TopicPartition]) -> KafkaResult<Vec<Start>> {
        let limit = self.feed.plan.limit;
        let committed = offsets::committed(&*self.client, partitions, limit)?;
        let fresh: Vec<_> = partitions.iter().filter(|p| !committed.contains_key(*p)).collect();
        let place = offsets::start(self.feed.plan.otherwise);
        let fails = place.is_none();
        let place = place.unwrap_or(offsets::Place::End);
        let mut found = offsets::find_each(&*self.client, fresh, place, limit)?;
        let mut gone = Vec::new();
        let mut starts = BTreeMap::new();
        while let Some((partition, start)) = found.pop_first() {
            match start {
                Ok(start) => drop(starts.insert(partition, start)),
                // Its topic was deleted. librdkafka waits for an answer for every partition.
                Err(error) if error::is_gone(&error) => gone.push(partition),
                Err(error) => return Err(error),
            }
        }
        let starts = partitions.iter().filter_map(|partition| {
            let gone = gone.contains(partition).then_some(0);
            let committed = committed.get(partition).copied().or(gone);
            let at = committed.or_else(|| starts.get(partition).copied())?;
            let fails = fails && committed.is_none();
            Some(Start { partition: partition.clone(), at, committed, fails })
        });
        Ok(starts.collect())
    }

    /// Owns partitions, once librdkafka has taken them.
    fn take_over(&self, starts: &[Start]) -> KafkaResult<()> {
        let _gate = self.feed.gate();
        // librdkafka remembers a pause over the loss of a partition, however it was lost.
        let list = offsets::list(starts.iter().map(|start| (&start.partition, rdkafka::Offset::Invalid)))?;
        self.client.resume(&list)?;
        let list = offsets::list(starts.iter().map(|start| (&start.partition, offsets::offset(start.at))))?;
        acknowledge(&self.client, &list, true)?;
        let mut state = self.feed.state();
        for Start { partition, at, committed, fails } in starts {
            state.shelf.gain(partition.clone(), *at, *committed);
            if let Some(owned) = state.shelf.get_mut(partition) {
                owned.unsettled = (committed.is_none() && !fails).then_some(*at);
                owned.failed = fails.then(|| error::no_start(partition, "recv"));
            }
        }
        state.shelf.turn();
        Ok(())
    }

    /// Commits where partitions begin, before anything of them is handed out, so that a takeover begins there too.
    fn settle(&self) -> bool {
        let unsettled = || -> Vec<_> {
            let state = self.feed.state();
            let owned = state.shelf.owned().iter();
            owned.filter_map(|(p, owned)| Some((p.clone(), owned.key, owned.unsettled?))).collect()
        };
        if unsettled().is_empty() {
            return true;
        }
        // A commit that is under way must not come after this one.
        let _commits = self.feed.commits.blocking_lock();
        let unsettled = unsettled();
        if unsettled.is_empty() {
            return true;
        }
        let list = offsets::list(unsettled.iter().map(|(p, _, start)| (p, offsets::offset(*start))));
        let committed = list.and_then(|list| self.client.commit(&list, CommitMode::Sync));
        if let Err(error) = committed {
            self.failed(error::of(error, "recv"));
            return false;
        }
        let mut state = self.feed.state();
        for (partition, key, start) in unsettled {
            if let Some(owned) = state.shelf.get_mut(&partition).filter(|owned| owned.key == key) {
                (owned.committed, owned.unsettled) = (Some(start), None);
            }
        }
        drop(state);
        self.feed.changed.notify_waiters();
        true
    }

    /// Answers positions that have gone. False if a broker did not answer, and it is to be tried again.
    fn reset(&self) -> bool {
        let feed = &self.feed;
        let places: Vec<_> = {
            let state = feed.state();
            let owned = state.shelf.owned().iter().filter(|(_, owned)| owned.failed.is_none());
            let place = |(partition, owned): (&TopicPartition, &Owned)| Place {
                partition: partition.clone(),
                key: owned.key,
                fetched: owned.fetched,
            };
            owned.map(place).collect()
        };
        // The brokers are asked before the gate is taken: a pause or a seek does not wait for them.
        let Ok((found, mut all)) = self.places_now(places) else { return false };
        let gate = feed.gate();
        for (Place { partition, key, fetched }, now) in found {
            let mut state = feed.state();
            let owned = state.shelf.get_mut(&partition);
            let Some(owned) = owned.filter(|owned| (owned.key, owned.fetched) == (key, fetched)) else {
                // It was given away, or sought in meanwhile.
                continue;
            };
            match now {
                PlaceNow::Valid => {
                    // librdkafka may have stopped here all the same: the log was cut, and has grown again.
                    drop(state);
                    let sent = feed.send_to(&self.client, &partition, fetched);
                    feed.state().shelf.send(&partition, sent);
                }
                PlaceNow::Gone { to: Some(to), low, high } => {
                    tracing::warn!(%partition, from = fetched, to, "the position has gone");
                    let commit = owned.unsettled.or(owned.committed);
                    let gone = commit.is_none_or(|commit| !(low..=high).contains(&commit));
                    state.shelf.reset(&partition, to, low, gone && feed.plan.has_group());
                    drop(state);
                    let sent = feed.send_to(&self.client, &partition, to);
                    feed.state().shelf.send(&partition, sent);
                }
                PlaceNow::Gone { to: None, low, high } => {
                    owned.go_back(high);
                    (owned.failed, owned.floor) = (Some(error::no_start(&partition, "recv")), low);
                }
            }
        }
        drop(gate);
        all &= self.settle();
        feed.bell.ring();
        feed.changed.notify_waiters();
        all
    }

    /// What has become of places that were being fetched from, and whether all of them are known.
    fn places_now(&self, places: Vec<Place>) -> KafkaResult<(Vec<(Place, PlaceNow)>, bool)> {
        let (client, limit) = (&*self.client, self.feed.plan.limit);
        let partitions = || places.iter().map(|place| &place.partition);
        let low = offsets::find_each(client, partitions(), offsets::Place::Beginning, limit)?;
        let high = offsets::find_each(client, partitions(), offsets::Place::End, limit)?;
        let (mut found, mut all) = (Vec::with_capacity(places.len()), true);
        for place in places {
            let partition = &place.partition;
            let (low, high) = match (low.get(partition), high.get(partition)) {
                (Some(Ok(low)), Some(Ok(high))) => (*low, *high),
                // A topic that is gone is looked for elsewhere.
                (Some(Err(error)), _) | (_, Some(Err(error))) if error::is_gone(error) => continue,
                _ => {
                    all = false;
                    continue;
                }
            };
            let now = if (low..=high).contains(&place.fetched) {
                PlaceNow::Valid
            } else {
                match offsets::starts(client, [partition], self.feed.plan.otherwise, limit) {
                    Ok(None) => PlaceNow::Gone { to: None, low, high },
                    Ok(Some(starts)) if starts.contains_key(partition) => {
                        PlaceNow::Gone { to: starts.get(partition).copied(), low, high }
                    }
                    Ok(Some(_)) | Err(_) => {
                        all = false;
                        continue;
                    }
                }
            };
            found.push((place, now));
        }
        Ok((found, all))
    }

    /// Starts partitions where librdkafka could not be sent. They leave its assignment for a moment, and while it waits
    /// for its partitions to be given away it takes that for the answer: so this happens inside `recv` only, where the
    /// assignment may change, and after what is due was carried out.
    fn start_anew(&self) {
        let _gate = self.feed.gate();
        let astray: Vec<_> = {
            let state = self.feed.state();
            let owned =
                state.shelf.owned().iter().filter(|(_, owned)| owned.astray && owned.failed.is_none());
            owned.map(|(partition, owned)| (partition.clone(), owned.fetched)).collect()
        };
        for (partition, to) in astray {
            if self.feed.inbox().is_due() {
                return;
            }
            let started = offsets::list([(&partition, offsets::offset(to))]).and_then(|list| {
                if self.feed.send_to(&self.client, &partition, to) {
                    return Ok(());
                }
                // It is out already if it could not be put back the last time.
                let _ = self.client.incremental_unassign(&list);
                self.client.incremental_assign(&list)
            });
            match started {
                Err(error) => self.failed(error::of(error, "recv")),
                Ok(()) => self.feed.state().shelf.send(&partition, true),
            }
        }
        self.feed.changed.notify_waiters();
    }

    /// Looks for topics that were deleted.
    fn look_for_topics(&self) {
        for topic in &self.feed.plan.topics {
            if !self.feed.state().missing.contains(topic) && self.is_missing(topic) {
                tracing::warn!(%topic, "a topic of the subscription was deleted");
                let mut state = self.feed.state();
                state.missing.insert(topic.clone());
                state.shelf.deleted(topic.clone());
                drop(state);
                self.feed.changed.notify_waiters();
            }
        }
    }

    /// A topic that was gone may have been created again.
    fn look_for_the_missing(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let missing = self.feed.state().missing.clone();
        for topic in missing {
            if !self.is_missing(&topic) {
                self.feed.state().missing.remove(&topic);
            }
        }
    }

    fn is_missing(&self, topic: &TopicName) -> bool {
        let found = self.feed.admin.inner().fetch_metadata(Some(topic.as_str()), self.feed.plan.limit);
        found.is_ok_and(|found| {
            let gone = |code: Code| matches!(code, Code::UnknownTopic | Code::UnknownTopicOrPartition);
            found.topics().iter().any(|found| found.error().is_some_and(|code| gone(code.into())))
        })
    }

    /// Leaves the group. What librdkafka still waits for is given back first.
    fn leave(self) {
        let Self { feed, client, .. } = self;
        {
            // A commit that goes on though its caller has gone must not follow this member into what comes after.
            let _gate = feed.gate();
            feed.state().shelf.lose_all();
        }
        feed.inbox().dismiss(&client);
        drop(feed.take_client());
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&client) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(client);
        feed.end();
    }
}

/// Runs as they are made.
#[derive(Default)]
struct Stack {
    open: Option<Open>,
    ready: Vec<Run>,
    /// How many messages and bytes the run before had.
    last: (usize, usize),
}

struct Open {
    /// The topic's handle is compared and never looked into.
    place: (*mut RDKafkaTopic, i32),
    partition: TopicPartition,
    key: u64,
    copies: Copies,
}

impl Stack {
    fn begin(&mut self, place: (*mut RDKafkaTopic, i32), partition: TopicPartition, key: u64) {
        self.close();
        // About as long as the one before.
        let copies = Copies::with_capacity(self.last.0.clamp(8, BURST), self.last.1);
        self.open = Some(Open { place, partition, key, copies });
    }

    fn close(&mut self) {
        if let Some(Open { partition, key, copies, .. }) = self.open.take() {
            let messages = copies.finish();
            self.last = (messages.len(), messages.shared());
            let bytes = messages.weight();
            self.ready.push(Run { partition, key, messages, bytes });
        }
    }

    /// Puts everything on the shelf.
    fn put(&mut self, feed: &Feed) {
        self.close();
        if self.ready.is_empty() {
            return;
        }
        let mut state = feed.state();
        for run in self.ready.drain(..) {
            state.shelf.put(run);
        }
        drop(state);
        feed.changed.notify_waiters();
    }
}

/// Kept small, because it is made once for each message.
const _: () = assert!(size_of::<Received>() <= 192);

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

    use super::*;
    use crate::redpanda::feed::{member_at, nowhere};

    fn cluster() -> MockCluster<'static, DefaultProducerContext> {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        cluster
    }

    #[test]
    fn a_change_of_the_assignment_waits_for_nothing() {
        for most in [1, BURST] {
            let cluster = cluster();
            let feed = member_at(&cluster.bootstrap_servers());
            let client = feed.client("recv").unwrap();
            client.subscribe(&["t"]).unwrap();
            let mut poller = Poller::new(feed.clone(), client);
            let deadline = Instant::now() + Duration::from_secs(30);
            let mut more = false;
            while !feed.inbox().is_due() && Instant::now() < deadline {
                feed.bell.wait(IDLE);
                more = poller.burst(most);
            }
            let came = feed.inbox().is_due();
            // Before what is asserted: the client of a thread that panics waits for an answer for ever.
            feed.begin_end();
            poller.leave();
            assert!(came, "no assignment came");
            assert!(more, "the thread would sleep over it");
        }
    }

    #[test]
    fn headers_count_in_what_is_polled_at_once() {
        const EACH: usize = 100 << 10;
        let cluster = cluster();
        let brokers = cluster.bootstrap_servers();
        let producer: BaseProducer =
            rdkafka::ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
        let large = vec![0; EACH];
        for _ in 0..40 {
            let headers = OwnedHeaders::new().insert(Header { key: "n", value: Some(&large) });
            producer.send(BaseRecord::<[u8], [u8]>::to("t").partition(0).headers(headers)).unwrap();
        }
        producer.flush(Duration::from_secs(10)).unwrap();
        let feed = member_at(&brokers);
        let mut poller = Poller::new(feed.clone(), feed.client("recv").unwrap());
        let partition = TopicPartition::new(feed.plan.topics[0].clone(), 0);
        poller.take_over(&[Start { partition, at: 0, committed: Some(0), fails: false }]).unwrap();
        let (mut buffered, mut most) = (0, 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        while buffered < 40 * EACH && Instant::now() < deadline {
            // Time for more than a burst takes.
            std::thread::sleep(Duration::from_millis(300));
            poller.burst(BURST);
            let now = feed.state().shelf.buffered();
            (buffered, most) = (now, most.max(now - buffered));
        }
        feed.begin_end();
        poller.leave();
        assert!(buffered >= 40 * EACH, "{buffered} bytes came");
        assert!(most < BURST_BYTES + 2 * EACH, "{most} bytes at once");
    }

    #[test]
    fn what_librdkafka_does_not_take_is_not_owned() {
        let feed = nowhere();
        let client = feed.client("recv").unwrap();
        let poller = Poller::new(feed.clone(), client);
        let start = || {
            let partition = TopicPartition::new(feed.plan.topics[0].clone(), 0);
            Start { partition, at: 3, committed: None, fails: false }
        };
        // It refuses a partition that is named twice.
        assert!(poller.take_over(&[start(), start()]).is_err());
        assert!(feed.state().shelf.owned().is_empty());
        poller.take_over(&[start()]).unwrap();
        let state = feed.state();
        let owned = &state.shelf.owned()[&start().partition];
        assert_eq!((owned.position, owned.committed, owned.unsettled), (3, None, Some(3)));
    }
}
