//! Recovery from errors of librdkafka: offsets that no longer exist, deleted topics, and unreadable batches.

use std::time::Duration;

use qi_core::ErrorKind;
use qi_core::bus::{OffsetReset, SubscriptionEvent, TopicName, TopicPartition};
use rdkafka::Offset;
use rdkafka::admin::AdminClient;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use super::{Client, ConsumerThread, IDLE_RECHECK_INTERVAL, RETRY_BACKOFF, error, offsets};
use crate::redpanda::connect::KafkaContext;
use crate::redpanda::consumer::record_batch::RecordBatch;
use crate::redpanda::consumer::unreadable::{self, Range, Search, Suspect};
use crate::redpanda::offsets::OffsetSpec;

/// A partition with its fetch offset and generation.
type FetchOffset = (TopicPartition, u64, u64);

/// The state of a fetch offset in the log.
enum OffsetState {
    Valid,
    /// An offset that does not exist. The log contains the offsets from `low` to `high`. `to` is the offset that the
    /// reset policy selects. None if the policy is `OffsetReset::Error`.
    OutOfRange {
        to: Option<u64>,
        low: u64,
        high: u64,
    },
}

impl ConsumerThread {
    /// Handles an error that librdkafka returned in place of a message.
    pub(super) fn handle_error(&mut self, error: &KafkaError) {
        if let KafkaError::PartitionEOF(number) = error {
            // The event contains only the partition number, so the probe checks this number in every topic.
            self.end_probe.reached(&self.assignment, *number);
            return;
        }
        if let Some(batch) = self.client.context().take_unreadable() {
            // librdkafka fetches the batch again and reports it again until the batch is skipped.
            self.unreadable.insert(batch);
            self.unreadable_check.request(RETRY_BACKOFF);
            return;
        }
        let Some(code) = error::code_of(error) else { return };
        match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => {
                self.offset_check.request(Duration::ZERO);
            }
            Code::PollExceeded => {
                if !self.assignment.partitions.is_empty() {
                    self.lose_by_poll_interval();
                }
            }
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::UnknownTopicId => self.topic_check.request(Duration::ZERO),
            Code::FencedInstanceId => self.fatal = Some(error::from_code(code, "recv")),
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                let reason = self.client.client().fatal_error();
                self.fatal = Some(reason.map_or_else(
                    || error::from_code(code, "recv"),
                    |(code, reason)| error::from_code(code, "recv").with_message(reason),
                ));
            }
            _ => {
                let found = error::from_code(code, "recv");
                // Codes that are not in `error::CODES` are `Internal`. These codes and temporary errors are left to
                // librdkafka's retries. If no broker is connected, `recv` returns an error at its deadline.
                if found.retry().is_retryable() || found.kind() == ErrorKind::Internal {
                    tracing::debug!(%code, "librdkafka error; the consumer continues");
                } else {
                    self.failure = Some(found);
                }
            }
        }
    }

    /// Starts the check for fetch offsets that no longer exist.
    pub(super) fn check_offsets(&mut self) {
        if !self.offset_check.start() {
            return;
        }
        let fetched = self.fetch_offsets();
        let (offset_reset, limit) = (self.settings.offset_reset, self.settings.request_timeout);
        let find = move |client: &Client| offset_states(client, fetched, offset_reset, limit);
        self.request(find, |thread, found| {
            // Positions change only inside `recv`.
            thread.deferred.push_back(Box::new(move |thread| thread.reset_offsets(found)));
        });
    }

    /// Applies the result: resets or fails partitions whose fetch offset no longer exists.
    fn reset_offsets(&mut self, found: KafkaResult<(Vec<(FetchOffset, OffsetState)>, bool)>) {
        self.offset_check.finish();
        let (found, complete) = found.unwrap_or_default();
        if !complete {
            self.offset_check.request(RETRY_BACKOFF);
        }
        for ((partition, offset, generation), offset_state) in found {
            let partition_state = self.assignment.current(&partition, generation);
            // A seek may have changed the offset.
            let Some(partition_state) = partition_state.filter(|state| state.fetch_offset == offset) else {
                continue;
            };
            match offset_state {
                // librdkafka may have stopped at this offset nevertheless, if the log was truncated
                // and has grown again.
                OffsetState::Valid => self.seek_client(&partition, offset),
                OffsetState::OutOfRange { to: Some(to), low, high } => {
                    tracing::warn!(%partition, from = offset, to, "fetch offset out of range; applying the offset reset");
                    let last_commit = partition_state.pending_commit.or(partition_state.committed);
                    let invalid = last_commit.is_none_or(|commit| !(low..=high).contains(&commit));
                    let commit_reset = invalid && self.settings.has_group();
                    self.buffer.reset(&mut self.assignment, &partition, to, low, commit_reset);
                    self.seek_client(&partition, to);
                }
                OffsetState::OutOfRange { to: None, low, high } => {
                    partition_state.truncate(high);
                    partition_state.failed = Some(error::no_valid_offset(&partition, "recv"));
                    partition_state.log_start = low;
                }
            }
        }
    }

    /// Starts a search for batches that librdkafka cannot decompress. The search skips these batches.
    pub(super) fn check_unreadable(&mut self) {
        if !self.unreadable_check.start() {
            return;
        }
        let batches = std::mem::take(&mut self.unreadable);
        if batches.is_empty() {
            self.unreadable_check.finish();
            return;
        }
        let suspects = unreadable::suspects(&self.assignment, &batches);
        let (config, limit) = (self.client_config.clone(), self.settings.request_timeout);
        let (closing, responses) = (self.closing.subscribe(), self.responses.clone());
        let find = move |client: &Client| {
            let on_found = |suspect: &Suspect| {
                let suspect = suspect.clone();
                let _ = responses.send(Box::new(move |thread| thread.pause_unreadable(&suspect)));
            };
            let on_ranges = |suspect: &Suspect, ranges: Vec<Range>| {
                let suspect = suspect.clone();
                let skip = move |thread: &mut Self| thread.skip_unreadable(&suspect, &ranges);
                let _ = responses.send(Box::new(move |thread| thread.deferred.push_back(Box::new(skip))));
            };
            let search = Search { config: &config, batches: &batches, is_closing: &|| *closing.borrow() };
            search.run(client, &suspects, limit, on_found, on_ranges)
        };
        self.request(find, |thread, complete| {
            thread.unreadable_check.finish();
            // Discards the reports that arrived during the search: some concern skipped batches, and librdkafka repeats
            // the others.
            thread.unreadable_check.due = None;
            thread.unreadable.clear();
            if !complete {
                thread.unreadable_check.request(IDLE_RECHECK_INTERVAL);
            }
        });
    }

    /// Stops librdkafka's fetches of a partition, which would decompress an unreadable batch repeatedly.
    fn pause_unreadable(&mut self, suspect: &Suspect) {
        let state = self.assignment.current(&suspect.partition, suspect.generation);
        if state.is_some_and(|state| state.fetch_offset == suspect.fetch_offset)
            && let Ok(list) = offsets::list([(&suspect.partition, Offset::Invalid)])
            && let Err(error) = self.client.pause(&list)
        {
            tracing::debug!(%error, "cannot pause the partition of an unreadable batch");
        }
    }

    /// Moves a partition past unreadable ranges. The caller receives one message for each range.
    fn skip_unreadable(&mut self, suspect: &Suspect, ranges: &[Range]) {
        let partition = &suspect.partition;
        // Always resume: if a seek changed the offset in the meantime, the seek did not resume the partition.
        self.resume_client(partition);
        let state = self.assignment.current(partition, suspect.generation);
        let (Some(state), Some(last)) = (state, ranges.last()) else { return };
        if state.fetch_offset != suspect.fetch_offset {
            return;
        }
        let code = error::from_code(Code::BadCompression, "recv");
        let labels = [("topic", partition.topic.to_string()), ("partition", partition.partition.to_string())];
        for range in ranges {
            tracing::error!(
                %partition, first = range.first, last = range.next - 1, code = code.code(),
                "skipping unreadable offsets"
            );
            metrics::counter!("qi_redpanda_unreadable_ranges_total", &labels).increment(1);
            let batch = RecordBatch::unreadable(partition.clone(), suspect.generation, *range, code.code());
            self.buffer.push(&mut self.assignment, batch);
        }
        self.seek_client(partition, last.next);
    }

    /// Lets librdkafka fetch a partition again, unless the caller paused it.
    fn resume_client(&self, partition: &TopicPartition) {
        let state = self.assignment.partitions.get(partition);
        if state.is_some_and(|state| !state.paused)
            && let Ok(list) = offsets::list([(partition, Offset::Invalid)])
            && let Err(error) = self.client.resume(&list)
        {
            tracing::debug!(%error, "cannot resume a partition");
        }
    }

    /// Checks which subscribed topics exist.
    pub(super) fn check_topics(&mut self) {
        if !self.deleted_topics.is_empty() {
            self.topic_check.request(IDLE_RECHECK_INTERVAL);
        }
        if !self.topic_check.start() {
            return;
        }
        let (admin, topics) = (self.admin.clone(), self.settings.topics.clone());
        let limit = self.settings.request_timeout;
        let find = move |_: &Client| -> Vec<(TopicName, Option<bool>)> {
            let exists = |topic: TopicName| {
                let exists = topic_exists(&admin, &topic, limit);
                (topic, exists)
            };
            topics.into_iter().map(exists).collect()
        };
        self.request(find, |thread, topics| {
            thread.topic_check.finish();
            thread.deferred.push_back(Box::new(move |thread| thread.apply_topics(topics)));
        });
    }

    /// Records deleted topics and emits one `TopicDeleted` event for each. A topic that exists
    /// again is removed from `deleted_topics`.
    fn apply_topics(&mut self, topics: Vec<(TopicName, Option<bool>)>) {
        for (topic, exists) in topics {
            match exists {
                Some(true) => drop(self.deleted_topics.remove(&topic)),
                Some(false) if self.deleted_topics.insert(topic.clone()) => {
                    tracing::warn!(%topic, "a topic of the subscription was deleted");
                    self.assignment.events.push(SubscriptionEvent::TopicDeleted { topic });
                }
                Some(false) | None => {}
            }
        }
    }
}

/// Returns whether a topic exists, or None if the brokers did not respond.
fn topic_exists(admin: &AdminClient<KafkaContext>, topic: &TopicName, limit: Duration) -> Option<bool> {
    let found = admin.inner().fetch_metadata(Some(topic.as_str()), limit).ok()?;
    let unknown = |code: Code| matches!(code, Code::UnknownTopic | Code::UnknownTopicOrPartition);
    Some(!found.topics().iter().any(|found| found.error().is_some_and(|code| unknown(code.into()))))
}

/// Returns the states of the fetch offsets, and true if all states are known.
fn offset_states(
    client: &Client,
    fetched: Vec<FetchOffset>,
    offset_reset: OffsetReset,
    limit: Duration,
) -> KafkaResult<(Vec<(FetchOffset, OffsetState)>, bool)> {
    let partitions = || fetched.iter().map(|(partition, ..)| partition);
    let low = offsets::find_each(client, partitions(), OffsetSpec::Earliest, limit)?;
    let high = offsets::find_each(client, partitions(), OffsetSpec::Latest, limit)?;
    let (mut found, mut complete) = (Vec::with_capacity(fetched.len()), true);
    for fetched in fetched {
        let (partition, offset, _) = &fetched;
        let (low, high) = match (low.get(partition), high.get(partition)) {
            (Some(Ok(low)), Some(Ok(high))) => (*low, *high),
            // `check_topics` handles deleted topics.
            (Some(Err(error)), _) | (_, Some(Err(error))) if error::is_missing(error) => continue,
            _ => {
                complete = false;
                continue;
            }
        };
        let offset_state = if (low..=high).contains(offset) {
            OffsetState::Valid
        } else {
            let reset = offsets::reset_spec(offset_reset);
            let to = reset.map(|spec| offsets::find(client, [partition], spec, limit)).transpose();
            match to.map(|to| to.map(|found| found.get(partition).copied())) {
                Ok(None) => OffsetState::OutOfRange { to: None, low, high },
                Ok(Some(Some(to))) => OffsetState::OutOfRange { to: Some(to), low, high },
                Ok(Some(None)) | Err(_) => {
                    complete = false;
                    continue;
                }
            }
        };
        found.push((fetched, offset_state));
    }
    Ok((found, complete))
}
