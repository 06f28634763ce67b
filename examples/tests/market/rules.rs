//! The rules of `rules`, applied to the results of the operations.

use std::time::Duration;

use futures::TryStreamExt;
use qi_core::{BufferedConfig, Clock, ErrorKind, PriceStoreExt as _};
use qi_examples::market::{MarketWriter, rules};
use qi_testkit::ManualClock;

use crate::rig::{SECOND, at, bus, instrument, reader, store, symbol, tick};

#[tokio::test]
async fn current_price_becomes_stale_after_one_hour() {
    let (store, _) = store().await;
    store.insert_ticks(&[tick("kraken:BTC-USD", 0, 0, "1")]).await.unwrap();
    let found = reader(&store).current_prices(&[symbol("BTC-USD")]).await.unwrap();
    let clock = ManualClock::new(at(3_600));
    assert!(rules::check_fresh(found[0].ts(), at(3_600), rules::MAX_CURRENT_AGE).is_ok());
    clock.advance(Duration::from_mins(1));
    assert_eq!(
        rules::check_fresh(found[0].ts(), clock.now(), rules::MAX_CURRENT_AGE).unwrap_err().kind(),
        ErrorKind::Application
    );
}

/// Combines a reader and a writer: each record that satisfies a rule is published, and the first violation ends the
/// flow with its error.
#[tokio::test(start_paused = true)]
async fn records_flow_from_reader_to_writer_until_a_validation_fails() {
    let ((store, _), (bus, _)) = (store().await, bus().await);
    let name = instrument("kraken:BTC-USD");
    let ticks: Vec<_> = (0..4).map(|n| tick("kraken:BTC-USD", n, 0, "1")).collect();
    store.insert_ticks(&ticks).await.unwrap();
    let source = reader(&store);
    let sink = MarketWriter::new(bus.clone(), BufferedConfig::default()).unwrap();
    let flow = source.price_history(&name, 1).unwrap().and_then(async |tick| {
        rules::check_not_future(tick.ts(), at(1), SECOND)?;
        Ok(tick)
    });
    let ended = flow.try_for_each(async |tick| sink.publish_price(&tick).await.map(drop)).await;
    assert_eq!(ended.unwrap_err().code(), "market.rule.future");
    sink.flush(SECOND).await.unwrap();
    assert_eq!(sink.publishing_metrics().delivered, 3, "the records at 0, 1 and 2 s");
}
