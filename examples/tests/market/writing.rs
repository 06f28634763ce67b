//! The nine writing operations.

use std::sync::Arc;
use std::time::Duration;

use qi_core::bus::{GroupId, ReceivedMessage, SubscribeRequest, TopicName, TopicSpec, TopicState};
use qi_core::{
    Bar, BufferedConfig, ErrorKind, MarketSnapshot, MessageBus, Operation, PriceStoreExt as _, PriceTick,
    Quote, Record, Scope,
};
use qi_examples::market::{MarketWriter, PublishingMetrics};
use qi_testkit::chaos::Fault;

use crate::rig::{SECOND, bar, bare_bus, bus, quote, reader, snapshot, store, symbol, tick};

/// A delay that tests on paused time can observe; the batches are small.
const DELAY: Duration = Duration::from_millis(50);

fn writer(bus: &Arc<dyn MessageBus>) -> MarketWriter {
    let config = BufferedConfig::default().with_max_records(3).with_max_delay(DELAY);
    MarketWriter::new(Arc::clone(bus), config).unwrap()
}

async fn messages(bus: &Arc<dyn MessageBus>, topic: &str) -> Vec<ReceivedMessage> {
    let group = GroupId::new(format!("reads {topic}")).unwrap();
    let mut sub =
        bus.subscribe(SubscribeRequest::new(group, [TopicName::new(topic).unwrap()]).unwrap()).await.unwrap();
    let mut found = Vec::new();
    loop {
        let batch = sub.recv(1_000, SECOND).await.unwrap();
        if batch.is_empty() {
            sub.close().await.unwrap();
            return found;
        }
        found.extend(batch.into_messages());
    }
}

async fn records<T: Record>(bus: &Arc<dyn MessageBus>) -> Vec<T> {
    let topic = T::DATASET.topic();
    let group = GroupId::new(format!("decodes {topic}")).unwrap();
    let request = SubscribeRequest::new(group, [TopicName::new(topic).unwrap()]).unwrap();
    let mut sub = bus.subscribe(request).await.unwrap();
    let mut found = Vec::new();
    loop {
        let batch = sub.recv(1_000, SECOND).await.unwrap();
        if batch.is_empty() {
            sub.close().await.unwrap();
            return found;
        }
        let decoded = batch.decode::<T>();
        assert!(decoded.rejected.is_empty());
        found.extend(decoded.records);
    }
}

fn counts(metrics: PublishingMetrics) -> (u64, u64, u64) {
    (metrics.delivered, metrics.not_sent, metrics.unknown)
}

#[tokio::test(start_paused = true)]
async fn each_record_is_delivered_to_the_topic_of_its_dataset() {
    let (bus, _) = bus().await;
    let market = writer(&bus);
    let (tick, bar) = (tick("kraken:BTC-USD", 1, 0, "1.5"), bar("kraken:BTC-USD", 1, "2"));
    let (quote, snapshot) = (quote("kraken:BTC-USD", 1, "1", "2"), snapshot(Scope::Global, 1, 7));
    market.publish_price(&tick).await.unwrap().await.unwrap();
    market.publish_ohlcv(&bar).await.unwrap().await.unwrap();
    market.publish_level1(&quote).await.unwrap().await.unwrap();
    market.publish_analytics(&snapshot).await.unwrap().await.unwrap();
    assert_eq!(records::<PriceTick>(&bus).await, [tick]);
    assert_eq!(records::<Bar>(&bus).await, [bar]);
    assert_eq!(records::<Quote>(&bus).await, [quote]);
    assert_eq!(records::<MarketSnapshot>(&bus).await, [snapshot]);
}

#[tokio::test(start_paused = true)]
async fn receipt_reports_partition_and_offset() {
    let (bus, _) = bus().await;
    let market = writer(&bus);
    let tick = tick("kraken:BTC-USD", 1, 0, "1.5");
    let first = market.publish_price(&tick).await.unwrap().await.unwrap();
    let second = market.publish_price(&tick).await.unwrap().await.unwrap();
    assert_eq!((first.partition, first.offset + 1), (second.partition, second.offset));
    let found = messages(&bus, "crypto-prices").await;
    assert_eq!(found[0].key.as_deref(), Some(&b"kraken:BTC-USD"[..]));
    assert_eq!((found[0].partition, found[0].offset), (first.partition, first.offset));
}

#[tokio::test(start_paused = true)]
async fn batches_report_one_outcome_per_record() {
    let (bus, _) = bus().await;
    let market = writer(&bus);
    let ticks: Vec<_> = (0..10).map(|seq| tick("kraken:BTC-USD", 1, seq, "1")).collect();
    let report = market.publish_prices(&ticks).await.unwrap();
    assert_eq!((report.outcomes().len(), report.delivered(), report.failures().count()), (10, 10, 0));
    assert_eq!(report.into_result().unwrap().len(), 10);
    let bars: Vec<_> = (0..4).map(|minute| bar("kraken:BTC-USD", minute, "1")).collect();
    assert_eq!(market.publish_ohlcv_batch(&bars).await.unwrap().delivered(), 4);
    assert_eq!((records::<PriceTick>(&bus).await, records::<Bar>(&bus).await), (ticks, bars));
    assert!(market.publish_prices(&[]).await.unwrap().outcomes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn batch_does_not_overtake_earlier_single_records() {
    let (bus, _) = bus().await;
    let market = writer(&bus);
    let (old, new) = (bar("kraken:BTC-USD", 1, "1"), bar("kraken:BTC-USD", 1, "2"));
    let _receipt = market.publish_ohlcv(&old).await.unwrap();
    market.publish_ohlcv_batch(std::slice::from_ref(&new)).await.unwrap().into_result().unwrap();
    assert_eq!(records::<Bar>(&bus).await, [old, new], "the last correction is stored");
}

#[tokio::test(start_paused = true)]
async fn flush_waits_for_all_earlier_deliveries() {
    let (bus, _) = bus().await;
    let market = writer(&bus);
    for seq in 0..5 {
        let _receipt = market.publish_price(&tick("kraken:BTC-USD", 1, seq, "1")).await.unwrap();
    }
    market.flush(SECOND).await.unwrap();
    assert_eq!(counts(market.publishing_metrics()), (5, 0, 0));
    assert_eq!(messages(&bus, "crypto-prices").await.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn flush_reports_an_unread_failure_once() {
    let (bus, chaos) = bus().await;
    let market = writer(&bus);
    chaos.inject_next(Operation::Publish, Fault::LostResponse);
    let _dropped = market.publish_price(&tick("kraken:BTC-USD", 1, 0, "1")).await.unwrap();
    let failure = market.flush(SECOND).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::Unavailable);
    assert_eq!(failure.context_value("delivery"), Some("unknown"), "the message may still be in the log");
    market.flush(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn flush_reports_a_timeout() {
    let (bus, chaos) = bus().await;
    let market = writer(&bus);
    chaos.inject_next(Operation::Publish, Fault::Hang);
    let _receipt = market.publish_price(&tick("kraken:BTC-USD", 1, 0, "1")).await.unwrap();
    assert_eq!(market.flush(SECOND).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(market.publishing_metrics().total_messages(), 0, "a record without a response has no result");
}

#[tokio::test(start_paused = true)]
async fn failure_appears_in_receipt_report_and_metrics() {
    let (bus, _) = bare_bus();
    let market = writer(&bus);
    let tick = tick("kraken:BTC-USD", 1, 0, "1");
    let rejected = market.publish_price(&tick).await.unwrap().await.unwrap_err();
    assert_eq!(
        (rejected.kind(), rejected.context_value("delivery")),
        (ErrorKind::NotFound, Some("not_sent"))
    );

    let topic = TopicName::new("crypto-prices").unwrap();
    market.create_destination(TopicSpec::new(topic, 1).unwrap()).await.unwrap();
    market.publish_prices(&vec![tick.clone(); 3]).await.unwrap().into_result().unwrap();
    assert_eq!(counts(market.publishing_metrics()), (3, 1, 0));
    assert_eq!(market.publishing_metrics().success_rate(), Some(0.75));
    assert_eq!(market.publishing_metrics().error_rate(), Some(0.25));

    bus.close().await.unwrap();
    let report = market.publish_prices(&[tick.clone(), tick]).await.unwrap();
    assert_eq!(
        report.failures().map(|(index, e)| (index, e.kind())).collect::<Vec<_>>(),
        [(0, ErrorKind::Closed), (1, ErrorKind::Closed)]
    );
    let error = report.into_result().unwrap_err();
    assert_eq!((error.context_value("index"), error.context_value("failed")), (Some("0"), Some("2")));
    assert_eq!(counts(market.publishing_metrics()), (3, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn metrics_are_unknown_before_the_first_response() {
    let (bus, _) = bus().await;
    let market = writer(&bus);
    let none = market.publishing_metrics();
    assert_eq!((none.total_messages(), none.success_rate(), none.error_rate()), (0, None, None));
    assert_eq!(none.average_latency(), None);

    // A single record waits for the delay. Three records fill a batch and do not wait.
    let alone = market.publish_price(&tick("kraken:BTC-USD", 1, 0, "1")).await.unwrap();
    alone.await.unwrap();
    assert_eq!(market.publishing_metrics().average_latency(), Some(DELAY));
    let ticks: Vec<_> = (1..4).map(|seq| tick("kraken:BTC-USD", 1, seq, "1")).collect();
    market.publish_prices(&ticks).await.unwrap().into_result().unwrap();
    assert_eq!(market.publishing_metrics().average_latency(), Some(DELAY / 4));
    assert_eq!(market.publishing_metrics().success_rate(), Some(1.0));
}

#[tokio::test]
async fn destination_is_created_once_and_not_changed_later() {
    let (bus, _) = bare_bus();
    let market = writer(&bus);
    let name = TopicName::new("alerts").unwrap();
    let spec = |partitions| TopicSpec::new(name.clone(), partitions).unwrap();
    assert_eq!(market.create_destination(spec(2)).await.unwrap(), TopicState::Created);
    let again = market.create_destination(spec(2)).await.unwrap();
    assert_eq!(again, TopicState::Existed { differs: Vec::new(), settings_hidden: false });
    let other = market.create_destination(spec(3)).await.unwrap_err();
    assert_eq!((other.kind(), other.retry().is_retryable()), (ErrorKind::Conflict, false));
}

#[tokio::test(start_paused = true)]
async fn any_record_can_be_published_to_a_custom_destination() {
    let (bus, _) = bare_bus();
    let market = writer(&bus);
    let alerts = TopicName::new("alerts").unwrap();
    market.create_destination(TopicSpec::new(alerts.clone(), 1).unwrap()).await.unwrap();
    let tick = tick("kraken:BTC-USD", 1, 0, "1");
    market.publish(&tick, Some(&alerts)).await.unwrap().await.unwrap();
    market.publish_all(&[tick], Some(&alerts)).await.unwrap().into_result().unwrap();
    assert_eq!(messages(&bus, "alerts").await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn close_delivers_buffered_records_and_rejects_new_records() {
    let (bus, _) = bus().await;
    let market = writer(&bus);
    let tick = tick("kraken:BTC-USD", 1, 0, "1");
    let _receipt = market.publish_price(&tick).await.unwrap();
    market.close(SECOND).await.unwrap();
    market.close(SECOND).await.unwrap();
    assert_eq!(messages(&bus, "crypto-prices").await.len(), 1, "the bus is still open");
    assert_eq!(market.publish_price(&tick).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(market.flush(SECOND).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn published_records_are_read_by_the_consumer() {
    let ((bus, _), (store, _)) = (bus().await, store().await);
    let market = writer(&bus);
    let ticks: Vec<_> =
        (0..2_000).map(|seq| tick("kraken:BTC-USD", 1, seq, &format!("{}", seq + 1))).collect();
    market.publish_prices(&ticks).await.unwrap().into_result().unwrap();
    store.insert_ticks(&records::<PriceTick>(&bus).await).await.unwrap();
    let price = reader(&store).current_price(&symbol("BTC-USD")).await.unwrap().unwrap();
    assert_eq!(price.to_string(), "2000");
}
