//! `Buffered`: collects single records into bounded batches.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};

use crate::bus::{Delivery, Message, MessageBus, PublishOptions};
use crate::deadline::later;
use crate::{Error, ErrorKind, PriceStore, PriceStoreExt, Record, Result};

/// The destination of batches. `Arc<dyn PriceStore>` implements it for records, and `Arc<dyn MessageBus>` for messages.
#[async_trait]
pub trait BatchSink<R>: Send + Sync + 'static {
    /// The result for one record.
    type Output: Send + 'static;

    /// Writes a batch and returns the result of every record, by index.
    ///
    /// # Errors
    /// An error that applies to every record of the batch.
    async fn write(&self, batch: &[R]) -> Result<Vec<Result<Self::Output>>>;

    /// Returns the size of a record in bytes, which `max_bytes` counts.
    fn size(&self, record: &R) -> usize {
        let _ = record;
        size_of::<R>()
    }
}

#[async_trait]
impl<R: Record> BatchSink<R> for Arc<dyn PriceStore> {
    type Output = ();

    async fn write(&self, batch: &[R]) -> Result<Vec<Result<()>>> {
        self.insert_records(batch).await?;
        Ok(batch.iter().map(|_| Ok(())).collect())
    }
}

#[async_trait]
impl BatchSink<Message> for Arc<dyn MessageBus> {
    type Output = Delivery;

    async fn write(&self, batch: &[Message]) -> Result<Vec<Result<Delivery>>> {
        let outcomes = self.publish(batch, PublishOptions::NONE).await?.into_outcomes();
        Ok(outcomes.into_iter().map(|outcome| outcome.map_err(|failure| failure.error)).collect())
    }

    fn size(&self, message: &Message) -> usize {
        message.weight()
    }
}

/// The settings of a [`Buffered`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BufferedConfig {
    /// The maximum number of records in a batch. While a batch is written, as many further records may wait. Defaults
    /// to 1,000.
    pub max_records: usize,
    /// The maximum number of buffered bytes, including the batch that is being written. A larger record is written
    /// alone. Defaults to 16 MiB.
    pub max_bytes: usize,
    /// The time that the first record of a batch waits for further records. Defaults to 100 ms.
    pub max_delay: Duration,
}

impl Default for BufferedConfig {
    fn default() -> Self {
        Self { max_records: 1_000, max_bytes: 16 << 20, max_delay: Duration::from_millis(100) }
    }
}

impl BufferedConfig {
    /// Sets the maximum number of records in a batch.
    #[must_use]
    pub fn with_max_records(mut self, records: usize) -> Self {
        self.max_records = records;
        self
    }

    /// Sets the maximum number of buffered bytes.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets the time that the first record of a batch waits for further records.
    #[must_use]
    pub fn with_max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    fn check(self) -> Result<Self> {
        let Self { max_records, max_bytes, max_delay: _ } = self;
        let max = u32::MAX as usize;
        for (field, value) in [("max_records", max_records), ("max_bytes", max_bytes)] {
            if !(1..=max.min(Semaphore::MAX_PERMITS)).contains(&value) {
                return Err(Error::invalid("buffered.config", field, value, "must lie from 1 to 4294967295"));
            }
        }
        Ok(self)
    }
}

/// A buffer that collects single records into batches. It writes a batch when the batch has `max_records` or
/// `max_bytes`, or when its first record has waited `max_delay`.
///
/// If the buffer is full, the caller waits. Every record has a [`Receipt`] with its result. If a batch fails, all its
/// receipts return the error. A receipt may be dropped, because [`Buffered::flush`] also returns the first failure.
/// Batches are written one at a time, so records keep their order.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use qi_core::{Buffered, BufferedConfig, PriceStore, PriceTick, Result};
/// async fn feed(store: Arc<dyn PriceStore>, ticks: Vec<PriceTick>) -> Result<()> {
///     let buffer = Buffered::new(store, BufferedConfig::default())?;
///     for tick in ticks {
///         let _receipt = buffer.add(tick).await?; // waits while the buffer is full
///     }
///     buffer.flush(Duration::from_secs(30)).await?; // after `Ok` everything is stored
///     buffer.close(Duration::from_secs(30)).await
/// }
/// ```
pub struct Buffered<R, S: BatchSink<R>> {
    sink: Arc<S>,
    config: BufferedConfig,
    byte_permits: Arc<Semaphore>,
    /// Permits for the records in the channel. They bound the channel instead of its capacity, because a semaphore can
    /// be closed while a caller waits for it without being polled; a full channel cannot.
    record_permits: Arc<Semaphore>,
    /// Notifies the worker that a caller waits for space, so that the worker writes its current batch.
    space_wanted: Arc<Notify>,
    closing: AtomicBool,
    sender: mpsc::UnboundedSender<Command<R, S::Output>>,
    /// The result of the worker, after it has ended.
    ended: watch::Receiver<Option<Result<()>>>,
}

enum Command<R, A> {
    Record(Entry<R, A>),
    /// Completed when all earlier records are written, with the first failure since the previous flush.
    Flush(oneshot::Sender<Result<()>>),
    /// Rejects further records. Earlier records are still written.
    Close,
}

struct Entry<R, A> {
    record: R,
    bytes: usize,
    result: oneshot::Sender<Result<A>>,
    byte_permits: OwnedSemaphorePermit,
    /// Released when the record leaves the channel.
    record_permit: Option<OwnedSemaphorePermit>,
}

/// A future of the result of one record. It may be dropped.
#[derive(Debug)]
pub struct Receipt<A>(oneshot::Receiver<Result<A>>);

impl<A> Future for Receipt<A> {
    type Output = Result<A>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<A>> {
        Pin::new(&mut self.0).poll(cx).map(|result| result.unwrap_or_else(|_| Err(worker_ended("receipt"))))
    }
}

impl<R, S: BatchSink<R>> fmt::Debug for Buffered<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffered").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<R: Send + Sync + 'static, S: BatchSink<R>> Buffered<R, S> {
    /// Creates a buffer in front of `sink` and starts its task. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// `InvalidInput` if `max_records` or `max_bytes` is 0 or above 4,294,967,295.
    pub fn new(sink: S, config: BufferedConfig) -> Result<Self> {
        let (config, sink) = (config.check()?, Arc::new(sink));
        let (sender, receiver) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(None);
        let space_wanted = Arc::new(Notify::new());
        let worker = Worker {
            sink: Arc::clone(&sink),
            config,
            receiver,
            space_wanted: Arc::clone(&space_wanted),
            failed: None,
        };
        tokio::spawn(async move { end.send_replace(Some(worker.run().await)) });
        let byte_permits = Arc::new(Semaphore::new(config.max_bytes));
        let record_permits = Arc::new(Semaphore::new(config.max_records));
        Ok(Self {
            sink,
            config,
            byte_permits,
            record_permits,
            space_wanted,
            closing: AtomicBool::new(false),
            sender,
            ended,
        })
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::closed("buffered.closed", operation));
        }
        Ok(())
    }

    /// Returns the reason for a rejected command: the buffer is closed, or the worker has ended early.
    fn rejection(&self, operation: &'static str) -> Error {
        self.check_open(operation).err().unwrap_or_else(|| worker_ended(operation))
    }

    /// Returns the settings.
    pub fn config(&self) -> BufferedConfig {
        self.config
    }

    /// Adds a record, and waits while the buffer is full. If the future is dropped early, the record is not added.
    ///
    /// # Errors
    /// `Closed` after [`Buffered::close`]; `Internal` if the buffer's task has ended.
    pub async fn add(&self, record: R) -> Result<Receipt<S::Output>> {
        self.check_open("add")?;
        let bytes = self.sink.size(&record);
        let count = u32::try_from(bytes.clamp(1, self.config.max_bytes)).unwrap_or(u32::MAX);
        let closed = |_| Error::closed("buffered.closed", "add");
        let record_permit = Arc::clone(&self.record_permits).acquire_owned().await.map_err(closed)?;
        let byte_permits = if let Ok(permits) = Arc::clone(&self.byte_permits).try_acquire_many_owned(count) {
            permits
        } else {
            self.space_wanted.notify_one();
            let permits = Arc::clone(&self.byte_permits).acquire_many_owned(count).await;
            permits.map_err(closed)?
        };
        let (result, receipt) = oneshot::channel();
        let entry = Entry { record, bytes, result, byte_permits, record_permit: Some(record_permit) };
        self.sender.send(Command::Record(entry)).map_err(|_| self.rejection("add"))?;
        Ok(Receipt(receipt))
    }

    /// Writes all buffered records and waits for the result.
    ///
    /// # Errors
    /// The first failure of any record since the previous flush. `Timeout` after `limit`; the write then continues.
    /// `Closed` after [`Buffered::close`].
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        self.check_open("flush")?;
        let (done, outcome) = oneshot::channel();
        let flush = async {
            self.sender.send(Command::Flush(done)).map_err(|_| self.rejection("flush"))?;
            outcome.await.unwrap_or_else(|_| Err(worker_ended("flush")))
        };
        timeout(limit, flush).await.unwrap_or_else(|_| Err(timed_out("flush", limit)))
    }

    /// Rejects further records, writes all buffered records, and waits for the result. Every call waits for the same
    /// end and returns the same result. If the future is dropped, the close continues.
    ///
    /// # Errors
    /// The first failure of any record since the last flush. `Timeout` after `limit`; the write then continues, and
    /// another call waits for the rest.
    pub async fn close(&self, limit: Duration) -> Result<()> {
        self.closing.store(true, Ordering::Release);
        self.byte_permits.close();
        self.record_permits.close();
        let mut ended = self.ended.clone();
        let drained = async {
            // A worker that has ended needs no command.
            let _ = self.sender.send(Command::Close);
            match ended.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
                Err(_) => Err(worker_ended("close")),
            }
        };
        timeout(limit, drained).await.unwrap_or_else(|_| Err(timed_out("close", limit)))
    }
}

fn timed_out(operation: &'static str, limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, "buffered.timeout", operation)
        .with_message(format_args!("no result within {limit:?}"))
        .with_context("limit", format_args!("{limit:?}"))
}

/// Returns the error of an ended worker. The worker ends early only if the sink panics or the runtime is dropped.
fn worker_ended(operation: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "buffered.worker", operation)
        .with_message("buffer task ended; the outcome of the record is unknown")
}

struct Worker<R, S: BatchSink<R>> {
    sink: Arc<S>,
    config: BufferedConfig,
    receiver: mpsc::UnboundedReceiver<Command<R, S::Output>>,
    space_wanted: Arc<Notify>,
    /// The first failure since the last flush.
    failed: Option<Error>,
}

/// The reason why a batch ended before it was full.
enum BatchEnd {
    Flush(oneshot::Sender<Result<()>>),
    Other,
}

impl<R: Send + Sync + 'static, S: BatchSink<R>> Worker<R, S> {
    /// Writes batches until the buffer is closed or dropped. Returns the first failure since the last flush.
    async fn run(mut self) -> Result<()> {
        while let Some(command) = self.receiver.recv().await {
            match command {
                Command::Close => self.receiver.close(),
                Command::Flush(done) => self.flushed(done),
                Command::Record(first) => {
                    let (batch, end) = self.collect(first).await;
                    self.write(batch).await;
                    if let BatchEnd::Flush(done) = end {
                        self.flushed(done);
                    }
                }
            }
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    fn flushed(&mut self, done: oneshot::Sender<Result<()>>) {
        // If the caller of `flush` no longer waits, the next flush returns the failure.
        if let Err(Err(error)) = done.send(self.failed.take().map_or(Ok(()), Err)) {
            self.failed = Some(error);
        }
    }

    /// Collects a batch that begins with `first`. The batch ends when it is full or has waited `max_delay`, or when a
    /// caller flushes or waits for space.
    async fn collect(&mut self, mut first: Entry<R, S::Output>) -> (Vec<Entry<R, S::Output>>, BatchEnd) {
        let deadline = later(self.config.max_delay);
        first.record_permit = None;
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < self.config.max_records && bytes < self.config.max_bytes {
            let command = tokio::select! {
                biased;
                command = self.receiver.recv() => command,
                () = self.space_wanted.notified() => break,
                () = sleep_until(deadline) => break,
            };
            match command {
                Some(Command::Record(mut entry)) => {
                    entry.record_permit = None;
                    bytes += entry.bytes;
                    batch.push(entry);
                }
                Some(Command::Flush(done)) => return (batch, BatchEnd::Flush(done)),
                // Records that are still in the channel arrive without delay.
                Some(Command::Close) => self.receiver.close(),
                None => break,
            }
        }
        (batch, BatchEnd::Other)
    }

    async fn write(&mut self, batch: Vec<Entry<R, S::Output>>) {
        let (records, waiting): (Vec<R>, Vec<_>) = batch
            .into_iter()
            .map(|Entry { record, result, byte_permits, .. }| (record, (result, byte_permits)))
            .unzip();
        let results = match self.sink.write(&records).await {
            Ok(results) if results.len() == records.len() => results,
            Ok(results) => {
                let error = Error::new(ErrorKind::Internal, "buffered.results", "write")
                    .with_message("the sink must return one result for each record")
                    .with_context("records", records.len())
                    .with_context("results", results.len());
                records.iter().map(|_| Err(error.clone())).collect()
            }
            Err(error) => records.iter().map(|_| Err(error.clone())).collect(),
        };
        for ((sender, byte_permits), result) in waiting.into_iter().zip(results) {
            if let (None, Err(error)) = (&self.failed, &result) {
                self.failed = Some(error.clone());
            }
            // If the receipt was dropped, `flush` returns the failure.
            let _ = sender.send(result);
            drop(byte_permits);
        }
    }
}
