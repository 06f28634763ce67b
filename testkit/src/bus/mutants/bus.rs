//! The faulty bus: publishing, topics, groups and closing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use qi_core::bus::{
    BusInfo, BusPingReport, CloseReport, Delivery, DeliveryError, GroupId, GroupInfo, GroupPartition,
    GroupQuery, GroupState, HeaderName, Headers, Message, OffsetReset, Offsets, PublishOptions,
    PublishReport, ReaderRequest, SubscribeRequest, TopicInfo, TopicName, TopicOutcome, TopicSpec,
    TopicState, murmur2,
};
use qi_core::{Error, ErrorKind, MessageBus, Result, Selection, Subscription};

use super::fault::Fault;
use super::reader::FaultySubscription;

/// The commits that only the faulty bus reports as stored.
pub(super) type PhantomCommits = Arc<Mutex<Offsets>>;

/// A correct bus with one fault.
#[derive(Debug)]
pub(super) struct FaultyBus {
    inner: Arc<dyn MessageBus>,
    fault: Fault,
    held: Mutex<Option<Vec<Message>>>,
    stale: PhantomCommits,
    closed: AtomicBool,
}

impl FaultyBus {
    pub(super) fn new(inner: Arc<dyn MessageBus>, fault: Fault) -> Self {
        Self {
            inner,
            fault,
            held: Mutex::default(),
            stale: PhantomCommits::default(),
            closed: AtomicBool::new(false),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// Applies the fault to message `n` of a batch.
    fn apply_fault(&self, message: &Message, n: u32, partitions: Option<u32>) -> Message {
        let mut message = message.clone();
        let hash = message.key.as_deref().map(murmur2);
        match (self.fault, partitions) {
            (Fault::OtherHash, Some(count)) => {
                let sum = message.key.iter().flatten().map(|byte| u32::from(*byte)).sum::<u32>();
                message.partition = message.partition.or(message.key.is_some().then_some(sum % count));
            }
            (Fault::NegatesHash, Some(count)) => {
                let place = hash.map(|hash| hash.cast_signed().unsigned_abs() % count);
                message.partition = message.partition.or(place);
            }
            (Fault::ScattersMessagesWithoutKey, Some(count)) if message.key.is_none() => {
                message.partition = message.partition.or(Some(n % count));
            }
            (Fault::SendsMessagesWithoutKeyToFirst, _) if message.key.is_none() => {
                message.partition = Some(0);
            }
            (Fault::IgnoresPartition, _) if message.key.is_some() => message.partition = None,
            (Fault::EmptyKeyIsNone, _) => message.key = message.key.filter(|key| !key.is_empty()),
            (Fault::TombstoneIsEmpty, _) => message.payload = message.payload.or(Some(Bytes::new())),
            (Fault::DropsNamelessHeaders, _) => message.headers.remove(""),
            (Fault::SortsHeaders, _) => {
                let mut pairs = pairs(&message.headers);
                pairs.sort();
                message.headers = pairs.into_iter().collect();
            }
            (Fault::DeduplicatesHeaders, _) => {
                let one_each: BTreeMap<HeaderName, usize> =
                    pairs(&message.headers).into_iter().zip(0..).map(|((name, _), at)| (name, at)).collect();
                let kept = pairs(&message.headers).into_iter().zip(0..);
                message.headers = kept
                    .filter(|((name, _), at)| one_each.get(name) == Some(at))
                    .map(|(pair, _)| pair)
                    .collect();
            }
            _ => {}
        }
        message
    }

    /// Returns the number of partitions of a batch's topic, if the fault needs it.
    async fn partitions(&self, batch: &[Message]) -> Option<u32> {
        if !matches!(self.fault, Fault::OtherHash | Fault::NegatesHash | Fault::ScattersMessagesWithoutKey) {
            return None;
        }
        let topics = self.inner.topics().await.ok()?;
        let topic = topics.iter().find(|info| Some(&info.name) == batch.first().map(|m| &m.topic))?;
        u32::try_from(topic.partitions.len()).ok()
    }

    fn replace_held(&self, batch: Option<Vec<Message>>) -> Option<Vec<Message>> {
        std::mem::replace(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner), batch)
    }

    /// Publishes all but the last message and reports all of them as sent.
    async fn publish_without_last(
        &self,
        batch: &[Message],
        options: &PublishOptions,
    ) -> Result<PublishReport> {
        let Some((_, rest)) = batch.split_last() else { return self.inner.publish(batch, options).await };
        let mut outcomes = self.inner.publish(rest, options).await?.into_outcomes();
        outcomes.push(Ok(fabricated_delivery()));
        Ok(PublishReport::new(outcomes))
    }

    /// Holds back every other batch and sends it after the next batch. `close` sends a batch that is still held back,
    /// so that no message is lost.
    async fn publish_swapped(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport> {
        let Some(before) = self.replace_held(None) else {
            self.replace_held(Some(batch.to_vec()));
            return Ok(all_sent(batch));
        };
        let report = self.inner.publish(batch, options).await?;
        self.inner.publish(&before, options).await?.into_result()?;
        Ok(report)
    }

    /// Accepts every batch immediately into an unbounded buffer.
    fn publish_unbounded(&self, batch: &[Message], options: &PublishOptions) -> PublishReport {
        let (inner, buffered, options) = (self.inner.clone(), batch.to_vec(), options.clone());
        tokio::spawn(async move { inner.publish(&buffered, &options).await });
        all_sent(batch)
    }

    async fn create_unknown(&self, topics: impl Iterator<Item = &TopicName>) -> Result<()> {
        for name in topics {
            self.inner.create_topics(&[TopicSpec::new(name.clone(), 1)?]).await?;
        }
        Ok(())
    }

    /// Returns whether the bus answers although it is closed.
    fn ignores_closed(&self) -> bool {
        self.has(Fault::IgnoresClosed) && self.closed.load(Ordering::SeqCst)
    }
}

/// Returns a delivery for a message that was not sent.
fn fabricated_delivery() -> Delivery {
    Delivery::new(0, 0, None)
}

fn all_sent(batch: &[Message]) -> PublishReport {
    PublishReport::new(batch.iter().map(|_| Ok(fabricated_delivery())).collect())
}

fn pairs(headers: &Headers) -> Vec<(HeaderName, Option<Bytes>)> {
    headers.iter().map(|(name, value)| (name.clone(), value.cloned())).collect()
}

impl fmt::Display for FaultyBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {:?}", self.inner, self.fault)
    }
}

#[async_trait]
impl MessageBus for FaultyBus {
    fn info(&self) -> BusInfo {
        self.inner.info()
    }

    async fn publish(&self, batch: &[Message], options: &PublishOptions) -> Result<PublishReport> {
        if self.has(Fault::CreatesOnPublish) {
            self.create_unknown(batch.iter().map(|message| &message.topic)).await?;
        }
        let count = self.partitions(batch).await;
        let mut altered: Vec<Message> =
            batch.iter().zip(0..).map(|(message, n)| self.apply_fault(message, n, count)).collect();
        let none = PublishOptions::NONE;
        let options = if self.has(Fault::DropsOptions) { none } else { options };
        match self.fault {
            Fault::LosesLast => return self.publish_without_last(&altered, options).await,
            Fault::SwapsBatches => return self.publish_swapped(&altered, options).await,
            Fault::IgnoresCapacity => return Ok(self.publish_unbounded(&altered, options)),
            Fault::ReversesBatch => altered.reverse(),
            Fault::SendsTwice => {
                self.inner.publish(&altered[..altered.len().min(1)], options).await?.into_result()?;
            }
            _ => {}
        }
        let mut outcomes = self.inner.publish(&altered, options).await?.into_outcomes();
        match self.fault {
            Fault::ReversesBatch => outcomes.reverse(),
            Fault::WrongOffsets => outcomes.iter_mut().flatten().for_each(|delivery| delivery.offset += 1),
            Fault::OtherTooLargeCode => {
                for failure in outcomes.iter_mut().filter_map(|outcome| outcome.as_mut().err()) {
                    let kind = failure.error.kind();
                    failure.error = Error::new(kind, "bus.broken.message.size", "publish");
                }
            }
            Fault::HidesTooLarge => {
                for outcome in &mut outcomes {
                    if outcome.as_ref().is_err_and(DeliveryError::is_too_large) {
                        *outcome = Ok(fabricated_delivery());
                    }
                }
            }
            Fault::FailsTogether => {
                if let Some(error) = outcomes.iter().find_map(|o| o.as_ref().err().map(|e| e.error.clone())) {
                    outcomes = batch.iter().map(|_| Err(DeliveryError::not_sent(error.clone()))).collect();
                }
            }
            _ => {}
        }
        Ok(PublishReport::new(outcomes))
    }

    async fn subscribe(&self, request: SubscribeRequest) -> Result<Box<dyn Subscription>> {
        if self.has(Fault::CreatesOnSubscribe) {
            self.create_unknown(request.topics.iter()).await?;
        }
        let latest = self.has(Fault::ResolvesLatestAgain) && request.offset_reset == OffsetReset::Latest;
        let first = request.topics.first().cloned();
        let sub = self.inner.subscribe(request).await?;
        let extra = match first {
            Some(topic) if self.has(Fault::TwoOwners) => {
                Some(FaultySubscription::second_owner(&self.inner, topic).await?)
            }
            _ => None,
        };
        let mut reader = FaultySubscription::new(sub, self.fault, self.stale.clone(), extra);
        if latest {
            reader.seek_to_the_end().await?;
        }
        Ok(Box::new(reader))
    }

    async fn open_reader(&self, request: ReaderRequest) -> Result<Box<dyn Subscription>> {
        let sub = self.inner.open_reader(request).await?;
        let fault = match self.fault {
            Fault::HidesResetsWithoutGroup => Fault::HidesResets,
            other => other,
        };
        Ok(Box::new(FaultySubscription::new(sub, fault, self.stale.clone(), None)))
    }

    async fn create_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicOutcome>> {
        let mut outcomes = self.inner.create_topics(specs).await?;
        if self.has(Fault::AcceptsOtherPartitions) {
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.result.is_err()) {
                outcome.result = Ok(TopicState::Existed { differs: Vec::new(), settings_hidden: false });
            }
        }
        Ok(outcomes)
    }

    async fn delete_topics(&self, names: &[TopicName]) -> Result<Vec<TopicOutcome>> {
        self.inner.delete_topics(names).await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>> {
        if self.ignores_closed() { Ok(Vec::new()) } else { self.inner.topics().await }
    }

    async fn groups(&self, query: &GroupQuery) -> Result<Vec<GroupInfo>> {
        let every_topic = GroupQuery::new(query.groups.clone());
        let query = if self.has(Fault::IgnoresTopicsOfQuery) { &every_topic } else { query };
        let mut groups = self.inner.groups(query).await?;
        let stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for row in groups.iter_mut().flat_map(|group| &mut group.partitions) {
            if (self.has(Fault::CommitsLostPartitions) || self.has(Fault::CommitsBelowReset))
                && let Some(committed) = stale.get(&row.partition)
            {
                *row = GroupPartition::new(row.partition.clone(), Some(committed), row.end);
            }
            if self.has(Fault::GroupLagOneOff) {
                row.lag = row.lag.map(|lag| lag + 1);
            }
        }
        if self.has(Fault::InventsGroups)
            && let Selection::Only(wanted) = &query.groups
        {
            let known: Vec<GroupId> = groups.iter().map(|group| group.id.clone()).collect();
            let unknown = wanted.iter().filter(|id| !known.contains(id)).cloned();
            groups.extend(unknown.map(|id| GroupInfo::new(id, GroupState::Empty, Vec::new(), Vec::new())));
        }
        Ok(groups)
    }

    async fn ping(&self) -> Result<BusPingReport> {
        self.inner.ping().await
    }

    async fn close(&self) -> Result<CloseReport> {
        if let Some(last) = self.replace_held(None) {
            self.inner.publish(&last, PublishOptions::NONE).await?.into_result()?;
        }
        let again = self.closed.swap(true, Ordering::SeqCst);
        match self.fault {
            Fault::ClosesOnce if again => Err(Error::new(ErrorKind::Closed, "bus.broken.closed", "close")),
            Fault::NeverLeaves => Ok(CloseReport::default()),
            _ => self.inner.close().await,
        }
    }
}
