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
    Buffered, BufferedConfig, Error, ErrorKind, MarketSnapshot, Ohlcv, PriceTick, Quote, Receipt, Record,
    Result, Sink,
};
use tokio::time::Instant;

use super::metrics::{BatchReport, Meter, PublishingMetrics};

/// Publishes market data on any bus.
///
/// All records of a writer go through one buffer, single ones and batches alike, so that each instrument's records
/// reach its partition in the order of the calls. A full buffer makes the caller wait. What became of a single
/// record is told by its receipt, or, for those who drop receipts, by [`MarketWriter::flush`]; of a batch by its
/// report; of all by [`MarketWriter::publishing_metrics`].
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use qi_core::{BufferedConfig, MessageBus, PriceTick, Result};
/// use qi_examples::market::MarketWriter;
///
/// async fn feed(bus: Arc<dyn MessageBus>, ticks: &[PriceTick]) -> Result<()> {
///     let market = MarketWriter::new(bus, BufferedConfig::default())?;
///     for tick in ticks {
///         let _receipt = market.publish_price(tick).await?; // taken, not yet delivered
///     }
///     market.flush(Duration::from_secs(30)).await?; // delivered, or this says why not
///     market.close(Duration::from_secs(30)).await
/// }
/// ```
#[derive(Debug)]
pub struct MarketWriter {
    bus: Arc<dyn MessageBus>,
    buffer: Buffered<Taken, Outbox>,
    meter: Arc<Meter>,
}

impl MarketWriter {
    /// Publishes on `bus`, collecting records up to these bounds. `max_delay` is the longest that a record waits
    /// for others, and with it what a call of one batch takes at most beside the bus. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// `InvalidInput` for a bound of 0.
    pub fn new(bus: Arc<dyn MessageBus>, config: BufferedConfig) -> Result<Self> {
        let meter = Arc::new(Meter::default());
        let outbox = Outbox { bus: Arc::clone(&bus), meter: Arc::clone(&meter) };
        Ok(Self { bus, buffer: Buffered::new(outbox, config)?, meter })
    }

    /// `publishPrice`: takes one tick. An aggregator's price in several currencies is a tick of each.
    pub async fn publish_price(&self, tick: &PriceTick) -> Result<Receipt<Delivery>> {
        self.publish(tick, None).await
    }

    /// `publishPrices`: sends ticks, and answers for each when the bus has.
    pub async fn publish_prices(&self, ticks: &[PriceTick]) -> Result<BatchReport> {
        self.publish_all(ticks, None).await
    }

    /// `publishOHLCV`: takes one candle.
    pub async fn publish_ohlcv(&self, bar: &Ohlcv) -> Result<Receipt<Delivery>> {
        self.publish(bar, None).await
    }

    /// `publishOHLCVBatch`: sends candles, and answers for each when the bus has.
    pub async fn publish_ohlcv_batch(&self, bars: &[Ohlcv]) -> Result<BatchReport> {
        self.publish_all(bars, None).await
    }

    /// `publishAnalytics`: takes the figures of a market.
    pub async fn publish_analytics(&self, snapshot: &MarketSnapshot) -> Result<Receipt<Delivery>> {
        self.publish(snapshot, None).await
    }

    /// `publishLevel1`: takes one quote, both sides with their sizes.
    pub async fn publish_level1(&self, quote: &Quote) -> Result<Receipt<Delivery>> {
        self.publish(quote, None).await
    }

    /// `flush`: sends what is held and waits for the bus's answers.
    ///
    /// # Errors
    /// The first failure of any record since the flush before; `Timeout` after `limit` (it goes on all the same).
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        self.buffer.flush(limit).await
    }

    /// `createDestination`: creates a topic. One that exists with as many partitions is left as it is, and the
    /// answer says which of its settings differ.
    ///
    /// # Errors
    /// `Conflict` for a topic that exists with another number of partitions.
    pub async fn create_destination(&self, destination: TopicSpec) -> Result<TopicState> {
        let outcome = self.bus.create_topics(&[destination]).await?.pop().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "market.destination", "create_destination")
                .with_message("the bus did not answer for the topic")
        })?;
        outcome.result
    }

    /// `getPublishingMetrics`: how many messages the bus has answered for, how many of them failed, and how long
    /// a delivery took.
    pub fn publishing_metrics(&self) -> PublishingMetrics {
        self.meter.read()
    }

    /// Takes any record, for its own topic or another one, as [`MarketWriter::create_destination`] makes them.
    /// Waits while the buffer is full.
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
            .add(Taken { message: encode_message(&self.bus.info().encoding, record, topic)?, since })
            .await
    }

    /// Sends any records, for their own topic or another one, and answers for each when the bus has.
    ///
    /// # Errors
    /// `InvalidInput` if a record cannot be written as a message; nothing was sent then.
    pub async fn publish_all<T: Record>(
        &self,
        records: &[T],
        topic: Option<&TopicName>,
    ) -> Result<BatchReport> {
        let since = Instant::now();
        let messages = encode_records(&self.bus.info().encoding, &Slice::new(records)?, topic)?;
        let mut receipts = Vec::with_capacity(messages.len());
        for message in messages {
            receipts.push(self.buffer.add(Taken { message, since }).await);
        }
        let mut outcomes = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            outcomes.push(match receipt {
                Ok(receipt) => receipt.await,
                Err(not_taken) => Err(not_taken),
            });
        }
        Ok(BatchReport(outcomes))
    }

    /// Takes nothing more, sends what is held, and waits for the answers. Idempotent. The bus stays open: it
    /// belongs to whoever made it.
    ///
    /// # Errors
    /// As [`MarketWriter::flush`].
    pub async fn close(&self, limit: Duration) -> Result<()> {
        self.buffer.close(limit).await
    }
}

/// A message, and since when its publisher waits.
struct Taken {
    message: Message,
    since: Instant,
}

/// Publishes what the buffer collected, and measures it.
struct Outbox {
    bus: Arc<dyn MessageBus>,
    meter: Arc<Meter>,
}

#[async_trait]
impl Sink<Taken> for Outbox {
    type Answer = Delivery;

    async fn write(&self, batch: &[Taken]) -> Result<Vec<Result<Delivery>>> {
        let messages: Vec<_> = batch.iter().map(|taken| taken.message.clone()).collect();
        let answers = match self.bus.publish(&messages, PublishOptions::NONE).await {
            Ok(report) => report.into_outcomes(),
            // Nothing was tried: that is an answer for every message.
            Err(error) => batch.iter().map(|_| Err(DeliveryError::not_sent(error.clone()))).collect(),
        };
        let measured = batch.iter().zip(answers);
        Ok(measured.map(|(taken, answer)| self.meter.answered(taken.since, answer)).collect())
    }

    fn size(&self, taken: &Taken) -> usize {
        taken.message.size()
    }
}
