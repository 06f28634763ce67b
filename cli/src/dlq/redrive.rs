//! Publishes the messages of dead letters again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use qi_core::bus::{
    DeliveryState, HeaderName, Message, MessageBus, Offsets, PublishOptions, PublishReport, ReceivedMessage,
    SeekTo, TopicName, TopicPartition, header,
};
use qi_core::{Backoff, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::scan::{Partitions, Scan, with_retries};
use super::{
    DeadLetter, Origin, OriginKey, SEEN_ORIGINS, Seen, Selection, UnreadPartition, is_dead_letter_topic,
};
use crate::output::{Listing, text};
use crate::progress;

/// The code of the error for a target that would cause a loop.
pub const INVALID_TARGET: &str = "dlq.target";
const PROGRESS: &str = "dlq.progress";
/// The time after the first failure for which a publish is repeated.
const MAX_WAIT: Duration = Duration::from_mins(1);
/// The number of failed messages that are named.
const MAX_NAMED_FAILURES: usize = 10;

/// The dead letters to redrive, and their target.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The dead letter topic.
    pub topic: TopicName,
    /// The target of every message. None is the origin topic of each message.
    pub to: Option<TopicName>,
    /// The dead letters of the topic to redrive.
    pub selection: Selection,
    /// The number of redrives after which a message is skipped.
    pub max_redrives: u32,
    /// The progress file. Without it every run starts at the beginning.
    pub progress: Option<PathBuf>,
    /// True to publish nothing and to leave the progress file unchanged.
    pub dry_run: bool,
}

impl Plan {
    fn is_dead_letter_topic(&self, topic: &TopicName) -> bool {
        *topic == self.topic || is_dead_letter_topic(topic)
    }
}

/// The number of dead letters by result, over all runs of a progress file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Counts {
    /// The published messages of each target topic.
    pub redriven: BTreeMap<TopicName, u64>,
    /// The messages that may be in the target topic more than once, because the outcome of a publish was unknown.
    pub may_be_twice: u64,
    /// Skipped: copies of an earlier dead letter.
    pub copies: u64,
    /// Skipped: dead letters without the complete message.
    pub truncated: u64,
    /// Skipped: messages that were redriven `max_redrives` times already.
    pub redriven_too_often: u64,
    /// Skipped: messages without an origin, which have no target unless the plan names one.
    pub foreign: u64,
    /// Skipped: messages whose origin is a dead letter topic.
    pub dead_letter_target: u64,
    /// Messages that the bus rejects permanently.
    pub failed: u64,
    /// The first ten of the failed messages, with the reason.
    pub failures: Vec<String>,
}

/// The result of [`redrive()`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RedriveReport {
    /// The number of dead letters by result.
    pub counts: Counts,
    /// The partitions that were not read up to their end.
    pub unread: Vec<UnreadPartition>,
    /// True if the command was stopped before the end.
    pub interrupted: bool,
    /// True if an earlier run with the progress file has finished. This run then did nothing.
    pub was_finished: bool,
    /// The error that ended the run before the end.
    pub error: Option<Error>,
}

impl RedriveReport {
    /// Returns true if every selected dead letter was redriven or skipped.
    pub fn is_complete(&self) -> bool {
        self.counts.failed == 0 && self.unread.is_empty() && !self.interrupted && self.error.is_none()
    }

    /// Returns one row for each result.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new(["result", "topic", "dead letters"]);
        for (topic, number) in &self.counts.redriven {
            listing.push([text("redriven"), text(topic), (*number).into()]);
        }
        for (result, number) in [
            ("redriven, possibly twice", self.counts.may_be_twice),
            ("skipped: copy", self.counts.copies),
            ("skipped: truncated", self.counts.truncated),
            ("skipped: redriven too often", self.counts.redriven_too_often),
            ("skipped: no origin", self.counts.foreign),
            ("skipped: origin is a dead letter topic", self.counts.dead_letter_target),
            ("failed", self.counts.failed),
        ] {
            listing.push([text(result), serde_json::Value::Null, number.into()]);
        }
        listing
    }
}

/// The content of a progress file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    plan: String,
    partitions: BTreeMap<u32, PartitionProgress>,
    counts: Counts,
}

/// The progress in one partition of the dead letter topic.
#[derive(Debug, Default, Serialize, Deserialize)]
struct PartitionProgress {
    /// The next offset; None before the first message.
    next: Option<u64>,
    /// The end offset at the start of the first run. Later dead letters belong to another run, because they may come
    /// from messages that this run has published.
    end: u64,
    /// The processed offsets from `next` on. They follow a message whose publish did not succeed.
    processed: BTreeSet<u64>,
}

/// Publishes the messages of the selected dead letters again, to their origin topic or to the target of the plan.
/// The headers of the dead letter are removed. The header `qi-redrives` counts the redrives of a message. The key
/// determines the partition, and the message time is the time of publishing.
///
/// Delivery is at least once: the next run publishes messages again that were published after the last write of the
/// progress file. `progress` receives the number of published messages of this run.
///
/// # Errors
/// `InvalidInput` with [`INVALID_TARGET`] for a target that is a dead letter topic; `InvalidInput` for a progress file
/// of another plan, or a selection whose end is before its start; `NotFound` for an unknown topic or target. An error
/// after the first publish is in [`RedriveReport::error`].
pub async fn redrive(
    bus: &dyn MessageBus,
    plan: &Plan,
    stop: &CancellationToken,
    progress: impl Fn(u64),
) -> Result<RedriveReport> {
    plan.selection.check()?;
    if let Some(to) = plan.to.as_ref().filter(|to| plan.is_dead_letter_topic(to)) {
        return Err(Error::invalid(INVALID_TARGET, "to", to, "must not be a dead letter topic"));
    }
    let found = Partitions::of(bus, stop, &plan.topic).await?;
    let status = with_retries(stop, async || bus.ping().await).await?;
    let Some(status) = status.filter(|_| !stop.is_cancelled()) else {
        return Ok(RedriveReport { interrupted: true, ..RedriveReport::default() });
    };
    if let Some(to) = plan.to.as_ref().filter(|to| !found.topics.contains(*to)) {
        return Err(no_topic(to));
    }
    let mut run = Run::load(bus, plan, stop, found, &status.cluster_id.unwrap_or_default())?;
    let mut redriven = RedriveReport::default();
    if run.was_started && run.is_finished() {
        redriven.was_finished = true;
    } else {
        redriven.error = run.run(&mut redriven, progress).await.err();
    }
    redriven.unread.extend(run.found.unread);
    redriven.counts = run.progress.counts;
    Ok(redriven)
}

fn no_topic(topic: &TopicName) -> Error {
    Error::new(ErrorKind::NotFound, "dlq.target.missing", "redrive")
        .with_message("no topic has this name")
        .with_context("topic", topic)
}

/// A message of the dead letter topic with its verdict.
struct Classified {
    partition: u32,
    offset: u64,
    origin: Option<OriginKey>,
    class: Class,
}

enum Class {
    /// Not selected, or processed by an earlier run.
    Ignored,
    Foreign,
    Copy,
    Truncated,
    RedrivenTooOften,
    DeadLetterTarget,
    Failed(Error),
    Publish(Message),
}

/// The result of publishing one message.
#[derive(Clone)]
enum Outcome {
    Published,
    Failed(Error),
    /// The message has to be published again.
    Pending,
}

struct Run<'a> {
    bus: &'a dyn MessageBus,
    plan: &'a Plan,
    stop: &'a CancellationToken,
    found: Partitions,
    was_started: bool,
    progress: Progress,
    seen: Seen,
}

impl<'a> Run<'a> {
    fn load(
        bus: &'a dyn MessageBus,
        plan: &'a Plan,
        stop: &'a CancellationToken,
        mut found: Partitions,
        cluster: &str,
    ) -> Result<Self> {
        let Plan { topic, to, selection, max_redrives, progress: path, .. } = plan;
        let backend = bus.info().backend;
        let target = to.as_ref().map_or("the origin topics", |to| to.as_str());
        let plan_text = format!(
            "{backend} {cluster}: {topic} to {target}, {selection:?}, at most {max_redrives} redrives"
        );
        let loaded = progress::load(path.as_deref(), PROGRESS, &plan_text, |found: &Progress| &found.plan)?;
        let was_started = loaded.is_some();
        let mut progress = loaded.unwrap_or(Progress { plan: plan_text, ..Progress::default() });
        for (partition, (low, high)) in &found.offsets {
            let at = progress
                .partitions
                .entry(partition.partition)
                .or_insert(PartitionProgress { end: *high, ..PartitionProgress::default() });
            if at.end > *high {
                let rule = format!(
                    "has offset {} as the end of {partition}, which now ends at {high}; the topic may have been recreated",
                    at.end
                );
                return Err(Error::invalid(
                    PROGRESS,
                    "progress",
                    path.clone().unwrap_or_default().display(),
                    rule,
                ));
            }
            // Retention may have removed messages that an earlier run did not reach.
            at.next = at.next.map(|next| next.max(*low));
        }
        let seen = Seen::new(SEEN_ORIGINS);
        found.unread.retain(|unread| {
            progress.partitions.get(&unread.partition.partition).is_none_or(|at| !at.is_finished())
        });
        Ok(Self { bus, plan, stop, found, was_started, progress, seen })
    }

    fn is_finished(&self) -> bool {
        self.found.unread.is_empty() && self.progress.partitions.values().all(PartitionProgress::is_finished)
    }

    fn save(&self) -> Result<()> {
        let path = self.plan.progress.as_deref().filter(|_| !self.plan.dry_run);
        progress::save(path, PROGRESS, &self.progress)
    }

    async fn run(&mut self, redriven: &mut RedriveReport, progress: impl Fn(u64)) -> Result<()> {
        // The ends must survive a kill, or the next run would include later dead letters.
        self.save()?;
        self.read_earlier_origins().await?;
        let mut scan =
            self.scan(|at, start| (at.next.map_or(start, SeekTo::Offset), at.next, at.end)).await?;
        let mut published = 0;
        let outcome = loop {
            let messages = match scan.next().await {
                Ok(messages) => messages,
                Err(error) => break Err(error),
            };
            let is_last = messages.is_none();
            match self.process(&messages.unwrap_or_default(), &scan.offsets, &mut published).await {
                Ok(true) if !is_last => progress(published),
                outcome => break outcome.map(|is_settled| redriven.interrupted |= !is_settled),
            }
        };
        progress(published);
        redriven.interrupted |= scan.interrupted;
        redriven.unread.append(&mut scan.unread);
        outcome.and(scan.close().await)
    }

    /// Opens a reader of the partitions that are not finished.
    async fn scan(
        &self,
        part: impl Fn(&PartitionProgress, SeekTo) -> (SeekTo, Option<u64>, u64),
    ) -> Result<Scan<'a>> {
        let parts = self.found.offsets.iter().filter_map(|(partition, (low, _))| {
            let at = self.progress.partitions.get(&partition.partition)?;
            let (from, next, end) = part(at, self.plan.selection.start());
            Some((partition.clone(), from, next.unwrap_or(*low), end))
        });
        Scan::open(self.bus, self.stop, parts).await
    }

    /// Reads the part that earlier runs have processed again, to recognise the copies of its dead letters.
    async fn read_earlier_origins(&mut self) -> Result<()> {
        if !self.was_started {
            return Ok(());
        }
        let mut scan = self.scan(|at, start| (start, None, at.next.unwrap_or(0))).await?;
        let outcome = loop {
            match scan.next().await {
                Ok(Some(messages)) => {
                    let complete = |dead_letter: &DeadLetter<'_>| {
                        self.plan.selection.holds(*dead_letter) && !dead_letter.is_truncated()
                    };
                    for dead_letter in messages.iter().map(DeadLetter).filter(complete) {
                        dead_letter.origin().map(|origin| self.seen.insert(&origin));
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        outcome.and(scan.close().await)
    }

    /// Processes one batch and writes the progress file. Returns false if it was stopped before all messages were
    /// published.
    async fn process(
        &mut self,
        messages: &[ReceivedMessage],
        offsets: &Offsets,
        published: &mut u64,
    ) -> Result<bool> {
        let classified = messages.iter().map(|message| self.classify(message)).collect::<Result<Vec<_>>>()?;
        let to_publish: Vec<_> = classified
            .iter()
            .filter_map(|classified| match &classified.class {
                Class::Publish(message) => Some(message),
                _ => None,
            })
            .collect();
        let (outcomes, unknown, error) = self.publish(&to_publish).await;
        let mut outcomes = outcomes.into_iter();
        let (mut pending, mut pending_origins) = (BTreeSet::new(), HashSet::new());
        let counts = &mut self.progress.counts;
        for classified in &classified {
            let at = (classified.partition, classified.offset);
            match &classified.class {
                Class::Ignored => {}
                Class::Foreign => counts.foreign += 1,
                // The first copy was not published, so the next run must read this copy too.
                Class::Copy if classified.origin.is_some_and(|origin| pending_origins.contains(&origin)) => {
                    pending.insert(at);
                }
                Class::Copy => counts.copies += 1,
                Class::Truncated => counts.truncated += 1,
                Class::RedrivenTooOften => counts.redriven_too_often += 1,
                Class::DeadLetterTarget => counts.dead_letter_target += 1,
                Class::Failed(error) => counts.fail(&self.plan.topic, at, error),
                Class::Publish(message) => match outcomes.next() {
                    Some(Outcome::Published) => {
                        *published += 1;
                        *counts.redriven.entry(message.topic.clone()).or_default() += 1;
                    }
                    Some(Outcome::Failed(error)) => counts.fail(&self.plan.topic, at, &error),
                    Some(Outcome::Pending) | None => {
                        pending.insert(at);
                        pending_origins.extend(classified.origin);
                    }
                },
            }
        }
        counts.may_be_twice += unknown;
        for (id, at) in &mut self.progress.partitions {
            let partition = TopicPartition::new(self.plan.topic.clone(), *id);
            let Some(read) = offsets.get(&partition) else { continue };
            let first = pending.iter().find(|(partition, _)| partition == id).map(|(_, offset)| *offset);
            let next = first.unwrap_or(read);
            at.processed
                .extend(classified.iter().filter(|classified| classified.partition == *id).map(|j| j.offset));
            at.processed.retain(|offset| *offset >= next && !pending.contains(&(*id, *offset)));
            at.next = Some(next);
        }
        self.save()?;
        match error {
            Some(error) => Err(error),
            None => Ok(pending.is_empty()),
        }
    }

    fn classify(&mut self, message: &ReceivedMessage) -> Result<Classified> {
        let dead_letter = DeadLetter(message);
        let origin = dead_letter.origin();
        let key = origin.as_ref().map(|origin| self.seen.key(origin));
        let class = self.class(dead_letter, origin)?;
        Ok(Classified { partition: message.partition, offset: message.offset, origin: key, class })
    }

    fn class(&mut self, dead_letter: DeadLetter<'_>, origin: Option<Origin>) -> Result<Class> {
        if !self.plan.selection.holds(dead_letter) {
            return Ok(Class::Ignored);
        }
        // A complete copy of a truncated dead letter must be published.
        let is_truncated = dead_letter.is_truncated();
        let is_copy = !is_truncated && origin.as_ref().is_some_and(|origin| !self.seen.insert(origin));
        let at = self.progress.partitions.get(&dead_letter.0.partition);
        if at.is_some_and(|at| at.processed.contains(&dead_letter.0.offset)) {
            return Ok(Class::Ignored);
        }
        let Some(target) = self.plan.to.clone().or(origin.map(|origin| origin.topic)) else {
            return Ok(Class::Foreign);
        };
        Ok(if is_copy {
            Class::Copy
        } else if is_truncated {
            Class::Truncated
        } else if dead_letter.redrives() >= self.plan.max_redrives {
            Class::RedrivenTooOften
        } else if self.plan.is_dead_letter_topic(&target) {
            Class::DeadLetterTarget
        } else if !self.found.topics.contains(&target) {
            Class::Failed(no_topic(&target))
        } else {
            Class::Publish(message(dead_letter, target)?)
        })
    }

    /// Publishes messages. For a minute, repeats messages that the bus does not have, or whose outcome is unknown.
    /// Returns the outcomes, the number of messages with an unknown outcome, and the error if messages are pending.
    async fn publish(&self, messages: &[&Message]) -> (Vec<Outcome>, u64, Option<Error>) {
        if self.plan.dry_run {
            return (vec![Outcome::Published; messages.len()], 0, None);
        }
        let mut outcomes = vec![Outcome::Pending; messages.len()];
        let (mut unknown, mut sent_alone) = (BTreeSet::new(), BTreeSet::new());
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut deadline = None;
        for failures in 1.. {
            let (single, mut pending): (Vec<usize>, Vec<usize>) = (0..messages.len())
                .filter(|at| matches!(outcomes[*at], Outcome::Pending))
                .partition(|at| sent_alone.contains(at));
            if pending.is_empty() {
                pending.extend(single.first());
            }
            if pending.is_empty() {
                break;
            }
            let batch: Vec<Message> = pending.iter().map(|at| messages[*at].clone()).collect();
            let (mut last, mut is_fatal) = (None, false);
            let report = match self.bus.publish(&batch, PublishOptions::NONE).await {
                Ok(report) => report,
                Err(error) => {
                    is_fatal = !error.retry().is_retryable();
                    last = Some(error);
                    PublishReport::default()
                }
            };
            for (at, outcome) in pending.into_iter().zip(report.into_outcomes()) {
                match outcome {
                    Ok(_) => outcomes[at] = Outcome::Published,
                    Err(failure) if failure.state == DeliveryState::Unknown => {
                        unknown.insert(at);
                        last = Some(failure.error);
                    }
                    // The broker may have rejected the batch that contains the message.
                    Err(failure) if failure.is_too_large() && batch.len() > 1 => drop(sent_alone.insert(at)),
                    Err(failure) if is_of_the_message(&failure.error) => {
                        outcomes[at] = Outcome::Failed(failure.error);
                    }
                    Err(failure) => {
                        is_fatal |= !failure.error.retry().is_retryable();
                        last = Some(failure.error);
                    }
                }
            }
            let Some(error) = last else { continue };
            if is_fatal || Instant::now() >= *deadline.get_or_insert_with(|| Instant::now() + MAX_WAIT) {
                return (outcomes, unknown.len() as u64, Some(error));
            }
            self.stop.run_until_cancelled(tokio::time::sleep(backoff.delay(failures, 0.0))).await;
            if self.stop.is_cancelled() {
                break;
            }
        }
        (outcomes, unknown.len() as u64, None)
    }
}

impl PartitionProgress {
    fn is_finished(&self) -> bool {
        self.next.is_some_and(|next| next >= self.end)
    }
}

impl Counts {
    fn fail(&mut self, topic: &TopicName, (partition, offset): (u32, u64), error: &Error) {
        self.failed += 1;
        if self.failures.len() < MAX_NAMED_FAILURES {
            self.failures.push(format!("{topic}/{partition} at offset {offset}: {}", error.report()));
        }
    }
}

/// Returns true for an error that is specific to its message.
fn is_of_the_message(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound)
}

/// Returns the message of a dead letter.
fn message(dead_letter: DeadLetter<'_>, target: TopicName) -> Result<Message> {
    let mut message = Message::tombstone(target);
    message.key.clone_from(&dead_letter.0.key);
    message.payload.clone_from(&dead_letter.0.payload);
    message.headers.clone_from(&dead_letter.0.headers);
    for name in header::OF_DEAD_LETTERS {
        message.headers.remove(name);
    }
    let redrives = dead_letter.redrives().saturating_add(1).to_string();
    Ok(message.with_header(HeaderName::new(header::REDRIVES)?, redrives))
}
