//! `Buffered`: single records become bounded batches.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::bus::{Delivery, Message, MessageBus, PublishOptions};
use crate::{Error, ErrorKind, MarketSnapshot, Ohlcv, PriceStore, PriceTick, Quote, Result};

/// Where the batches go. There is one for each dataset over any store (`Arc<dyn PriceStore>` takes ticks, quotes,
/// bars and snapshots), and one for messages over any bus.
#[async_trait]
pub trait Sink<R>: Send + Sync + 'static {
    /// What is answered for one record.
    type Answer: Send + 'static;

    /// Writes a batch and answers for every record of it, by index.
    ///
    /// # Errors
    /// One error for all of them.
    async fn write(&self, batch: &[R]) -> Result<Vec<Result<Self::Answer>>>;

    /// How many bytes a record takes: what `max_bytes` counts.
    fn size(&self, record: &R) -> usize {
        let _ = record;
        size_of::<R>()
    }
}

macro_rules! store_sink {
    ($($record:ty => $insert:ident),*) => {$(
        #[async_trait]
        impl Sink<$record> for Arc<dyn PriceStore> {
            type Answer = ();

            async fn write(&self, batch: &[$record]) -> Result<Vec<Result<()>>> {
                self.$insert(batch).await?;
                Ok(batch.iter().map(|_| Ok(())).collect())
            }
        }
    )*};
}

store_sink!(
    PriceTick => insert_ticks,
    Quote => insert_quotes,
    Ohlcv => insert_bars,
    MarketSnapshot => insert_snapshots
);

#[async_trait]
impl Sink<Message> for Arc<dyn MessageBus> {
    type Answer = Delivery;

    async fn write(&self, batch: &[Message]) -> Result<Vec<Result<Delivery>>> {
        let outcomes = self.publish(batch, PublishOptions::NONE).await?.into_outcomes();
        Ok(outcomes.into_iter().map(|outcome| outcome.map_err(|failure| failure.error)).collect())
    }

    fn size(&self, message: &Message) -> usize {
        message.size()
    }
}

/// The bounds of a [`Buffered`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BufferedConfig {
    /// How many records a batch holds at most, and as many again may wait behind it: 1,000.
    pub max_records: usize,
    /// How many bytes may be held in all, in the batch that is written and behind it: 16 MiB. A record that is
    /// larger by itself goes alone.
    pub max_bytes: usize,
    /// How long the first record of a batch waits for others: 100 ms.
    pub max_delay: Duration,
}

impl Default for BufferedConfig {
    fn default() -> Self {
        Self { max_records: 1_000, max_bytes: 16 << 20, max_delay: Duration::from_millis(100) }
    }
}

impl BufferedConfig {
    /// With batches of at most so many records.
    #[must_use]
    pub fn with_max_records(mut self, records: usize) -> Self {
        self.max_records = records;
        self
    }

    /// With at most so many bytes.
    #[must_use]
    pub fn with_max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// With another delay.
    #[must_use]
    pub fn with_max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    fn check(self) -> Result<Self> {
        let Self { max_records, max_bytes, max_delay: _ } = self;
        let most = u32::MAX as usize;
        for (field, value) in [("max_records", max_records), ("max_bytes", max_bytes)] {
            if !(1..=most.min(Semaphore::MAX_PERMITS)).contains(&value) {
                return Err(Error::invalid("buffered.config", field, value, "must lie from 1 to 4294967295"));
            }
        }
        Ok(self)
    }
}

/// Collects single records into batches: a batch goes out when it holds `max_records` or `max_bytes`, or when its
/// first record has waited `max_delay`.
///
/// A full buffer makes the caller wait. Every record has a [`Receipt`] that says what became of it; a batch that
/// fails answers every record that was in it. A receipt may be dropped: [`Buffered::flush`] tells the first
/// failure too. Batches go out one after the other, so that the order of the records is kept.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use qi_core::{Buffered, BufferedConfig, PriceStore, PriceTick, Result};
/// async fn feed(store: Arc<dyn PriceStore>, ticks: Vec<PriceTick>) -> Result<()> {
///     let buffer = Buffered::new(store, BufferedConfig::default())?;
///     for tick in ticks {
///         let _receipt = buffer.add(tick).await?; // waits while the buffer is full
///     }
///     buffer.flush(Duration::from_secs(30)).await?; // everything is stored, or this says why not
///     buffer.close(Duration::from_secs(30)).await
/// }
/// ```
pub struct Buffered<R, S: Sink<R>> {
    sink: Arc<S>,
    config: BufferedConfig,
    room: Arc<Semaphore>,
    shared: Mutex<Shared<R, S::Answer>>,
}

struct Shared<R, A> {
    /// None once it is closed.
    sender: Option<mpsc::Sender<Command<R, A>>>,
    worker: Option<JoinHandle<()>>,
}

enum Command<R, A> {
    Record(Entry<R, A>),
    /// Answered when everything before it is written: with the first failure since the flush before.
    Flush(oneshot::Sender<Result<()>>),
}

struct Entry<R, A> {
    record: R,
    bytes: usize,
    answer: oneshot::Sender<Result<A>>,
    room: OwnedSemaphorePermit,
}

/// What became of one record, once it is known. It may be dropped.
#[derive(Debug)]
pub struct Receipt<A>(oneshot::Receiver<Result<A>>);

impl<A> Future for Receipt<A> {
    type Output = Result<A>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<A>> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(worker_gone("receipt"))))
    }
}

impl<R, S: Sink<R>> fmt::Debug for Buffered<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffered").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<R: Send + Sync + 'static, S: Sink<R>> Buffered<R, S> {
    /// A buffer in front of `sink`, with a task of its own. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// `InvalidInput` for a bound of 0.
    pub fn new(sink: S, config: BufferedConfig) -> Result<Self> {
        let (config, sink) = (config.check()?, Arc::new(sink));
        let (sender, receiver) = mpsc::channel(config.max_records);
        let worker = tokio::spawn(Worker { sink: Arc::clone(&sink), config, receiver, failed: None }.run());
        Ok(Self {
            sink,
            config,
            room: Arc::new(Semaphore::new(config.max_bytes)),
            shared: Mutex::new(Shared { sender: Some(sender), worker: Some(worker) }),
        })
    }

    fn sender(&self, operation: &'static str) -> Result<mpsc::Sender<Command<R, S::Answer>>> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.sender.clone().ok_or_else(|| Error::closed("buffered.closed", operation))
    }

    /// Takes a record, waiting while the buffer is full. Dropping the future before it is done leaves the record
    /// out.
    ///
    /// # Errors
    /// `Closed` after [`Buffered::close`].
    pub async fn add(&self, record: R) -> Result<Receipt<S::Answer>> {
        let sender = self.sender("add")?;
        let bytes = self.sink.size(&record);
        let share = u32::try_from(bytes.clamp(1, self.config.max_bytes)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(share).await;
        let room = room.map_err(|_| Error::closed("buffered.closed", "add"))?;
        let (answer, receipt) = oneshot::channel();
        let entry = Entry { record, bytes, answer, room };
        sender.send(Command::Record(entry)).await.map_err(|_| worker_gone("add"))?;
        Ok(Receipt(receipt))
    }

    /// Writes what is held, and waits for it.
    ///
    /// # Errors
    /// The first failure of any record since the flush before; `Timeout` if it takes longer than `limit` (it goes
    /// on all the same); `Closed` after [`Buffered::close`].
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        let sender = self.sender("flush")?;
        let (done, waits) = oneshot::channel();
        let flush = async {
            sender.send(Command::Flush(done)).await.map_err(|_| worker_gone("flush"))?;
            waits.await.unwrap_or_else(|_| Err(worker_gone("flush")))
        };
        timeout(limit, flush).await.unwrap_or_else(|_| Err(late("flush", limit)))
    }

    /// Takes nothing more, writes what is held, and waits for it. Idempotent.
    ///
    /// # Errors
    /// As [`Buffered::flush`], of the first call that waits for the end.
    pub async fn close(&self, limit: Duration) -> Result<()> {
        let (sender, worker) = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            (shared.sender.take(), shared.worker.take())
        };
        let Some(worker) = worker else { return Ok(()) };
        // Callers that wait for room hold a sender: they must go before the worker can end.
        self.room.close();
        let drained = async {
            let mut outcome = Ok(());
            if let Some(sender) = sender {
                let (done, waits) = oneshot::channel();
                if sender.send(Command::Flush(done)).await.is_ok() {
                    outcome = waits.await.unwrap_or_else(|_| Err(worker_gone("close")));
                }
            }
            worker.await.map_err(|_| worker_gone("close"))?;
            outcome
        };
        timeout(limit, drained).await.unwrap_or_else(|_| Err(late("close", limit)))
    }
}

fn late(operation: &'static str, limit: Duration) -> Error {
    Error::new(ErrorKind::Timeout, "buffered.timeout", operation).with_context("limit_ms", limit.as_millis())
}

/// The worker ends early only if the sink panics or the runtime is dropped.
fn worker_gone(operation: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "buffered.worker", operation)
        .with_message("the task behind the buffer has ended; whether the record was written is unknown")
}

struct Worker<R, S: Sink<R>> {
    sink: Arc<S>,
    config: BufferedConfig,
    receiver: mpsc::Receiver<Command<R, S::Answer>>,
    /// The first failure since the last flush.
    failed: Option<Error>,
}

impl<R: Send + Sync + 'static, S: Sink<R>> Worker<R, S> {
    async fn run(mut self) {
        while let Some(command) = self.receiver.recv().await {
            match command {
                Command::Flush(done) => self.flushed(done),
                Command::Record(first) => {
                    let (batch, flush) = self.collect(first).await;
                    self.write(batch).await;
                    if let Some(done) = flush {
                        self.flushed(done);
                    }
                }
            }
        }
    }

    fn flushed(&mut self, done: oneshot::Sender<Result<()>>) {
        // Who asked may have gone; the failure then waits for the next one who asks.
        if let Err(Err(error)) = done.send(self.failed.take().map_or(Ok(()), Err)) {
            self.failed = Some(error);
        }
    }

    /// A batch that begins with `first`, and the flush that ended it, if one did.
    async fn collect(
        &mut self,
        first: Entry<R, S::Answer>,
    ) -> (Vec<Entry<R, S::Answer>>, Option<oneshot::Sender<Result<()>>>) {
        let deadline = Instant::now() + self.config.max_delay;
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < self.config.max_records && bytes < self.config.max_bytes {
            match timeout_at(deadline, self.receiver.recv()).await {
                Ok(Some(Command::Record(entry))) => {
                    bytes += entry.bytes;
                    batch.push(entry);
                }
                Ok(Some(Command::Flush(done))) => return (batch, Some(done)),
                Ok(None) | Err(_) => break,
            }
        }
        (batch, None)
    }

    async fn write(&mut self, batch: Vec<Entry<R, S::Answer>>) {
        let (records, waiting): (Vec<R>, Vec<_>) =
            batch.into_iter().map(|Entry { record, answer, room, .. }| (record, (answer, room))).unzip();
        let answers = match self.sink.write(&records).await {
            Ok(answers) if answers.len() == records.len() => answers,
            Ok(answers) => {
                let error = Error::new(ErrorKind::Internal, "buffered.answers", "write")
                    .with_message("the sink must answer for every record")
                    .with_context("records", records.len())
                    .with_context("answers", answers.len());
                records.iter().map(|_| Err(error.clone())).collect()
            }
            Err(error) => records.iter().map(|_| Err(error.clone())).collect(),
        };
        for ((answer_to, room), answer) in waiting.into_iter().zip(answers) {
            if let (None, Err(error)) = (&self.failed, &answer) {
                self.failed = Some(error.clone());
            }
            // Who dropped the receipt is told by `flush`.
            let _ = answer_to.send(answer);
            drop(room);
        }
    }
}
