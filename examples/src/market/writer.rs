//! The nine writing operations.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::{
    Delivery, DeliveryError, Message, MessageBus, PublishOptions, TopicName, TopicSpec, TopicState,
    encode_message, encode_records,
};
use qi_core::record::Slice;
use qi_core::{
    Bar, BatchSink, Buffered, BufferedConfig, Error, ErrorKind, MarketSnapshot, PriceTick, Quote, Receipt,
    Record, Result,
};
use tokio::time::Instant;

use super::metrics::{BatchReport, Meter, PublishingMetrics};

/// Publishes market data on any bus.
///
/// All records of a writer go through one buffer, so that each instrument's records reach its partition in the order of
/// the calls. The caller waits while the buffer is full. A receipt has the result of a single record;
/// [`MarketWriter::flush`] returns the failures of dropped receipts. A report has the results of a batch, and
/// [`MarketWriter::publishing_metrics`] counts all results.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use qi_core::{BufferedConfig, MessageBus, PriceTick, Result};
/// use qi_examples::market::MarketWriter;
///
/// async fn feed(bus: Arc<dyn MessageBus>, ticks: &[PriceTick]) -> Result<()> {
///     let market = MarketWriter::new(bus, BufferedConfig::default())?;
///     for tick in ticks {
///         let _receipt = market.publish_price(tick).await?; // accepted, not yet delivered
///     }
///     market.flush(Duration::from_secs(30)).await?; // all delivered, or the first failure
///     market.close(Duration::from_secs(30)).await
/// }
/// ```
#[derive(Debug)]
pub struct MarketWriter {
    bus: Arc<dyn MessageBus>,
    buffer: Buffered<PendingMessage, PublishSink>,
    meter: Arc<Meter>,
}

impl MarketWriter {
    /// Creates a writer that publishes on `bus` and collects records up to these bounds. `max_delay` is the longest
    /// wait of a record for others, so it also adds to the duration of a batch call. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// `InvalidInput` for a bound of 0.
    pub fn new(bus: Arc<dyn MessageBus>, config: BufferedConfig) -> Result<Self> {
        let meter = Arc::new(Meter::default());
        let outbox = PublishSink { bus: Arc::clone(&bus), meter: Arc::clone(&meter) };
        Ok(Self { bus, buffer: Buffered::new(outbox, config)?, meter })
    }

    /// `publishPrice`: accepts one tick. An aggregator's price in several currencies is one tick for each currency.
    pub async fn publish_price(&self, tick: &PriceTick) -> Result<Receipt<Delivery>> {
        self.publish(tick, None).await
    }

    /// `publishPrices`: sends ticks, and returns after the bus has returned their results.
    pub async fn publish_prices(&self, ticks: &[PriceTick]) -> Result<BatchReport> {
        self.publish_all(ticks, None).await
    }

    /// `publishOHLCV`: accepts one candle.
    pub async fn publish_ohlcv(&self, bar: &Bar) -> Result<Receipt<Delivery>> {
        self.publish(bar, None).await
    }

    /// `publishOHLCVBatch`: sends candles, and returns after the bus has returned their results.
    pub async fn publish_ohlcv_batch(&self, bars: &[Bar]) -> Result<BatchReport> {
        self.publish_all(bars, None).await
    }

    /// `publishAnalytics`: accepts the figures of a market.
    pub async fn publish_analytics(&self, snapshot: &MarketSnapshot) -> Result<Receipt<Delivery>> {
        self.publish(snapshot, None).await
    }

    /// `publishLevel1`: accepts one quote, both sides with their sizes.
    pub async fn publish_level1(&self, quote: &Quote) -> Result<Receipt<Delivery>> {
        self.publish(quote, None).await
    }

    /// `flush`: sends the buffered records and waits for their results.
    ///
    /// # Errors
    /// The first failure of any record since the last flush; `Timeout` after `limit`, while the flush continues.
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        self.buffer.flush(limit).await
    }

    /// `createDestination`: creates a topic. An existing topic with the same number of partitions is unchanged, and the
    /// result lists the settings that differ.
    ///
    /// # Errors
    /// `Conflict` for a topic that exists with another number of partitions.
    pub async fn create_destination(&self, destination: TopicSpec) -> Result<TopicState> {
        let outcome = self.bus.create_topics(&[destination]).await?.pop().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "market.destination", "create_destination")
                .with_message("the response has no outcome for the topic")
        })?;
        outcome.result
    }

    /// `getPublishingMetrics`: returns the number of messages with a result, the number of failures, and the latency of
    /// deliveries.
    pub fn publishing_metrics(&self) -> PublishingMetrics {
        self.meter.read()
    }

    /// Accepts any record, for its own topic or another one that [`MarketWriter::create_destination`] created. Waits
    /// while the buffer is full.
    ///
    /// # Errors
    /// `Closed` after [`MarketWriter::close`].
    pub async fn publish<T: Record>(
        &self,
        record: &T,
        topic: Option<&TopicName>,
    ) -> Result<Receipt<Delivery>> {
        let since = Instant::now();
        self.buffer
            .add(PendingMessage { message: encode_message(&self.bus.info().encoding, record, topic)?, since })
            .await
    }

    /// Sends any records, for their own topic or another one, and returns after the bus has returned their results.
    ///
    /// # Errors
    /// `InvalidInput` if a record cannot be encoded; then nothing is sent.
    pub async fn publish_all<T: Record>(
        &self,
        records: &[T],
        topic: Option<&TopicName>,
    ) -> Result<BatchReport> {
        let since = Instant::now();
        let messages = encode_records(&self.bus.info().encoding, &Slice::new(records)?, topic)?;
        let mut receipts = Vec::with_capacity(messages.len());
        for message in messages {
            receipts.push(self.buffer.add(PendingMessage { message, since }).await);
        }
        let mut outcomes = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            outcomes.push(match receipt {
                Ok(receipt) => receipt.await,
                Err(error) => Err(error),
            });
        }
        Ok(BatchReport(outcomes))
    }

    /// Accepts no more records, sends the buffered ones, and waits for the results. Idempotent. The bus stays open,
    /// because it belongs to the caller.
    ///
    /// # Errors
    /// As [`MarketWriter::flush`].
    pub async fn close(&self, limit: Duration) -> Result<()> {
        self.buffer.close(limit).await
    }
}

/// A message, and the time of its publish call.
struct PendingMessage {
    message: Message,
    since: Instant,
}

/// The sink of the buffer, which publishes batches and measures the results.
struct PublishSink {
    bus: Arc<dyn MessageBus>,
    meter: Arc<Meter>,
}

#[async_trait]
impl BatchSink<PendingMessage> for PublishSink {
    type Output = Delivery;

    async fn write(&self, batch: &[PendingMessage]) -> Result<Vec<Result<Delivery>>> {
        let messages: Vec<_> = batch.iter().map(|pending| pending.message.clone()).collect();
        let outcomes_of_batch = match self.bus.publish(&messages, PublishOptions::NONE).await {
            Ok(report) => report.into_outcomes(),
            // No message was tried: every message has this result.
            Err(error) => batch.iter().map(|_| Err(DeliveryError::not_sent(error.clone()))).collect(),
        };
        let measured = batch.iter().zip(outcomes_of_batch);
        Ok(measured.map(|(pending, outcome)| self.meter.record(pending.since, outcome)).collect())
    }

    fn size(&self, pending: &PendingMessage) -> usize {
        pending.message.size()
    }
}
