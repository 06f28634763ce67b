//! The handle to a consumer thread.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use qi_core::Result;
use qi_core::bus::{SeekTo, TopicPartition};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use tokio::sync::{oneshot, watch};

use super::{Command, ConsumerSettings, ConsumerThread, Reply};
use crate::redpanda::connect::KafkaContext;
use crate::redpanda::error;

/// The source of a consumer's partitions.
#[derive(Debug)]
pub(in crate::redpanda) enum PartitionSource {
    /// The group assigns partitions of the topics.
    Subscribe,
    /// The caller names the partitions.
    Assign(Vec<(TopicPartition, SeekTo)>),
}

/// A handle to a consumer thread.
#[derive(Clone)]
pub(in crate::redpanda) struct ConsumerHandle {
    commands: Sender<Command>,
    closing: watch::Receiver<bool>,
    pub(in crate::redpanda) settings: Arc<ConsumerSettings>,
}

impl fmt::Debug for ConsumerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerHandle").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl ConsumerHandle {
    pub(super) fn new(thread: &ConsumerThread) -> Self {
        let (commands, closing) = (thread.responses.clone(), thread.closing.subscribe());
        Self { commands, closing, settings: thread.settings.clone() }
    }

    /// Returns an error if the consumer is closed.
    pub(in crate::redpanda) fn check_open(&self, operation: &'static str) -> Result<()> {
        if *self.closing.borrow() { Err(error::closed(operation)) } else { Ok(()) }
    }

    /// Sends a command. A command to a thread that has ended is dropped.
    pub(in crate::redpanda) fn send(&self, command: impl FnOnce(&mut ConsumerThread) + Send + 'static) {
        let _ = self.commands.send(Box::new(command));
    }

    /// Waits for the reply to a command.
    pub(in crate::redpanda) async fn reply<T>(
        &self,
        reply: &mut oneshot::Receiver<Result<T>>,
        operation: &'static str,
    ) -> Result<T> {
        match reply.await {
            Ok(result) => result,
            Err(_) => Err(self
                .check_open(operation)
                .err()
                .unwrap_or_else(|| error::internal(operation, "the consumer thread panicked"))),
        }
    }

    /// Sends a command and waits for its reply.
    pub(in crate::redpanda) async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        command: impl FnOnce(&mut ConsumerThread, Reply<T>) + Send + 'static,
    ) -> Result<T> {
        let (reply, mut receiver) = oneshot::channel();
        self.send(move |thread| command(thread, reply));
        self.reply(&mut receiver, operation).await
    }

    /// Begins to close the consumer. Waiting calls return.
    pub(in crate::redpanda) fn close(&self) {
        self.send(|thread| {
            thread.closing.send_replace(true);
        });
    }

    /// Waits until the consumer thread has ended. Returns false if the limit passes first.
    pub(in crate::redpanda) async fn wait_closed(&self, limit: Duration) -> bool {
        let mut closing = self.closing.clone();
        tokio::time::timeout(limit, async { while closing.changed().await.is_ok() {} }).await.is_ok()
    }

    /// Returns whether the thread has ended.
    pub(in crate::redpanda) fn has_ended(&mut self) -> bool {
        self.closing.borrow_and_update();
        self.closing.has_changed().is_err()
    }
}

/// Starts a consumer. The receiver gets the result of the first assignment.
pub(in crate::redpanda) fn start(
    settings: ConsumerSettings,
    admin: Arc<AdminClient<KafkaContext>>,
    client_config: ClientConfig,
    context: KafkaContext,
    source: PartitionSource,
) -> Result<(ConsumerHandle, oneshot::Receiver<Result<()>>)> {
    let operation = if settings.has_group() { "subscribe" } else { "open_reader" };
    let failed = |e| error::from_kafka(e, operation);
    let mut thread =
        ConsumerThread::new(Arc::new(settings), admin, client_config, context).map_err(failed)?;
    let (handle, (joined, result)) = (ConsumerHandle::new(&thread), oneshot::channel());
    thread.joined = Some(joined);
    match source {
        PartitionSource::Subscribe => thread.subscribe().map_err(failed)?,
        PartitionSource::Assign(from) => thread.assign(from),
    }
    let builder = std::thread::Builder::new().name("qi-redpanda-recv".to_owned());
    builder.spawn(move || thread.run()).map_err(|e| error::internal(operation, e))?;
    Ok((handle, result))
}
