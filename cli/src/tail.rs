//! `qi tail`: shows the messages of a topic as they arrive.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use qi_core::bus::{
    MessageBus, ReaderRequest, ReceivedMessage, SeekTo, Subscription, TopicName, TopicPartition,
};
use qi_core::{Error, ErrorKind, Result, ResultExt as _, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dlq::escaped;
use crate::output::{Format, Listing, maybe};
use crate::topics;

/// The largest number of messages of one receive.
const BATCH: usize = 500;
/// The longest wait of one receive.
const WAIT: Duration = Duration::from_millis(200);
/// The delay before a failed receive is repeated.
const RETRY: Duration = Duration::from_secs(1);
/// The longest time without a message before the end, unless the command follows the topic.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The number of bytes that are shown of a key and a payload.
const SHOWN_BYTES: usize = 1_024;

/// The first message to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// This number of existing messages in each partition.
    Last(u64),
    /// The first message with this time or a later time.
    Since(Timestamp),
}

/// The messages to show.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The topic.
    pub topic: TopicName,
    /// The partitions. An empty list selects all.
    pub partitions: Vec<u32>,
    /// The first message.
    pub start: Start,
    /// True to continue after the end offsets at the start of the command.
    pub follow: bool,
    /// The maximum number of messages.
    pub limit: Option<u64>,
}

/// Calls `show` for each message until the limit, the end, or the stop. Returns the number of messages. An outage of the
/// brokers is waited for. `show` returns false to end.
///
/// # Errors
/// `NotFound` for an unknown topic; `InvalidInput` for an unknown partition; `Timeout` if a topic that is not followed
/// returns no message before its end for 30 s; errors of the bus that are not retryable; errors of `show`.
pub async fn run(
    bus: &dyn MessageBus,
    plan: &Plan,
    stop: &CancellationToken,
    mut show: impl FnMut(&ReceivedMessage) -> Result<bool>,
) -> Result<u64> {
    if plan.limit == Some(0) {
        return Ok(0);
    }
    let found = topics::find(bus, &plan.topic).await?.partitions;
    let known = |id: &u32| found.iter().any(|partition| partition.id == *id);
    if let Some(unknown) = plan.partitions.iter().find(|id| !known(id)) {
        return Err(Error::invalid("tail.partition", "partition", unknown, "must exist in the topic"));
    }
    let selected =
        found.iter().filter(|found| plan.partitions.is_empty() || plan.partitions.contains(&found.id));
    let (mut from, mut ends) = (Vec::new(), BTreeMap::new());
    for found in selected {
        let partition = TopicPartition::new(plan.topic.clone(), found.id);
        let seek = match plan.start {
            Start::Last(count) => SeekTo::Offset(found.high.saturating_sub(count).max(found.low)),
            Start::Since(time) => SeekTo::At(time),
        };
        if found.high > found.low {
            ends.insert(partition.clone(), found.high);
        }
        from.push((partition, seek));
    }
    let mut reader = bus.open_reader(ReaderRequest::new(from)?).await?;
    let outcome = receive(&mut *reader, plan, ends, stop, &mut show).await;
    // `and` returns the first error, which is more useful than an error of `close`.
    let closed = reader.close().await;
    outcome.and_then(|shown| closed.map(|()| shown))
}

async fn receive(
    reader: &mut dyn Subscription,
    plan: &Plan,
    mut ends: BTreeMap<TopicPartition, u64>,
    stop: &CancellationToken,
    show: &mut impl FnMut(&ReceivedMessage) -> Result<bool>,
) -> Result<u64> {
    let (mut shown, mut last_progress) = (0, Instant::now());
    let assignment = reader.assignment().await?;
    ends.retain(|partition, end| {
        assignment.partitions.iter().any(|at| at.partition == *partition && at.position < *end)
    });
    while plan.follow || !ends.is_empty() {
        let Some(received) = stop.run_until_cancelled(reader.recv(BATCH, WAIT)).await else { break };
        let batch = match received {
            Ok(batch) => batch,
            Err(error)
                if error.retry().is_retryable() && (plan.follow || last_progress.elapsed() < MAX_WAIT) =>
            {
                stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        for message in &batch {
            let partition = TopicPartition::new(message.topic.clone(), message.partition);
            let is_after_end = ends.get(&partition).is_none_or(|end| message.offset >= *end);
            if is_after_end && !plan.follow {
                continue;
            }
            shown += 1;
            if !show(message)? || plan.limit == Some(shown) {
                return Ok(shown);
            }
        }
        if batch.offsets().iter().next().is_some() {
            last_progress = Instant::now();
        }
        ends.retain(|partition, end| batch.offsets().get(partition).is_none_or(|next| next < *end));
        if !plan.follow && last_progress.elapsed() >= MAX_WAIT && !ends.is_empty() {
            return Err(Error::new(ErrorKind::Timeout, "tail.end", "tail")
                .with_message(format_args!(
                    "no message received for {} s; end of topic not reached",
                    MAX_WAIT.as_secs()
                ))
                .with_context("topic", &plan.topic));
        }
    }
    Ok(shown)
}

/// Prints messages: a line of text, a row of CSV, or a JSON object in one line.
#[derive(Debug)]
pub struct Printer {
    format: Format,
    max_bytes: usize,
    has_header: bool,
}

impl Printer {
    /// Creates a printer. Without `full`, keys and payloads are cut to 1,024 bytes.
    pub fn new(format: Format, full: bool) -> Self {
        Self { format, max_bytes: if full { usize::MAX } else { SHOWN_BYTES }, has_header: false }
    }

    /// Prints one message. Text is escaped, so that it is safe on a terminal in every format. Returns false if the
    /// reader of a pipe has closed it.
    ///
    /// # Errors
    /// Other errors of the writer.
    pub fn print(&mut self, message: &ReceivedMessage, out: &mut impl Write) -> Result<bool> {
        let shown = |bytes: Option<&[u8]>| maybe(bytes.map(|bytes| escaped(bytes, self.max_bytes)));
        let (key, payload) = (shown(message.key.as_deref()), shown(message.payload.as_deref()));
        let line = if self.format == Format::Table {
            let word = |value: serde_json::Value| value.as_str().unwrap_or("-").to_owned();
            let time = word(maybe(message.timestamp));
            let (partition, offset) = (message.partition, message.offset);
            format!("{time}  {partition}/{offset}  {}  {}\n", word(key), word(payload))
        } else {
            let mut listing = Listing::new(["time", "partition", "offset", "key", "payload"]);
            let (partition, offset) = (message.partition.into(), message.offset.into());
            listing.push([maybe(message.timestamp), partition, offset, key, payload]);
            self.row(&listing)
        };
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            outcome => outcome.permanent("cli.output", "write").map(|()| true),
        }
    }

    fn row(&mut self, listing: &Listing) -> String {
        if self.format == Format::Json {
            return listing.objects().fold(String::new(), |lines, object| lines + &object.to_string() + "\n");
        }
        let rendered = listing.render(Format::Csv);
        if std::mem::replace(&mut self.has_header, true) {
            return rendered.split_once('\n').map_or_else(String::new, |(_, row)| row.to_owned());
        }
        rendered
    }
}
