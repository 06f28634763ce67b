//! The nine reading operations.

use futures::TryStreamExt;
use qi_core::store::{BarSource, PageRequest};
use qi_core::{
    Bar, Error, ErrorKind, Interval, MarketSnapshot, Operation, PriceStoreExt as _, PriceTick, Scope,
};
use qi_examples::market::{MarketReader, pair, rules};
use qi_testkit::chaos::Fault;

use crate::rig::{SECOND, at, bar, exchanges, instrument, quote, reader, snapshot, store, symbol, tick};

fn prices(ticks: &[PriceTick]) -> Vec<String> {
    ticks.iter().map(|tick| format!("{} {}", tick.instrument(), tick.price())).collect()
}

fn opens(bars: &[Bar]) -> Vec<u64> {
    bars.iter().map(|bar| bar.open_time().duration_since(at(0)).as_secs() / 60).collect()
}

#[tokio::test]
async fn current_price_is_the_newest_of_all_exchanges() {
    let (store, _) = store().await;
    let market = reader(&store);
    let ticks = [
        tick("binance:BTC-USD", 1, 0, "100"),
        tick("kraken:BTC-USD", 2, 0, "101"),
        tick("elsewhere:BTC-USD", 3, 0, "999"),
    ];
    store.insert_ticks(&ticks).await.unwrap();
    let price = market.current_price(&symbol("BTC-USD")).await.unwrap().unwrap();
    assert_eq!(price.to_string(), "101", "an exchange that the reader was not made for does not count");
}

#[tokio::test]
async fn equal_times_prefer_the_highest_seq_and_then_the_first_exchange() {
    let (store, _) = store().await;
    let market = reader(&store);
    let ticks = [
        tick("kraken:BTC-USD", 1, 9, "103"),
        tick("binance:BTC-USD", 1, 1, "102"),
        tick("binance:BTC-USD", 1, 0, "101"),
    ];
    store.insert_ticks(&ticks).await.unwrap();
    for _ in 0..2 {
        let price = market.current_price(&symbol("BTC-USD")).await.unwrap().unwrap();
        assert_eq!(price.to_string(), "102");
    }
}

#[tokio::test]
async fn coin_has_one_price_per_currency_symbol() {
    let (store, _) = store().await;
    let market = reader(&store);
    let (eth, usd, btc) = (symbol("ETH"), symbol("USD"), symbol("BTC"));
    let ticks = [tick("kraken:ETH-USD", 1, 0, "2300.5"), tick("kraken:ETH-BTC", 1, 0, "0.05321")];
    store.insert_ticks(&ticks).await.unwrap();
    for (currency, price) in [(&usd, Some("2300.5")), (&btc, Some("0.05321")), (&eth, None)] {
        let found = market.current_price(&pair(&eth, currency).unwrap()).await.unwrap();
        assert_eq!(found.map(|p| p.to_string()).as_deref(), price, "in {currency}");
    }
}

#[tokio::test]
async fn current_prices_cover_each_symbol_on_each_exchange() {
    let (store, _) = store().await;
    let market = reader(&store);
    let ticks = [
        tick("kraken:BTC-USD", 1, 0, "101"),
        tick("kraken:BTC-USD", 2, 0, "102"),
        tick("binance:BTC-USD", 1, 0, "103"),
        tick("kraken:ETH-USD", 1, 0, "5"),
        tick("kraken:DOGE-USD", 1, 0, "0.1"),
    ];
    store.insert_ticks(&ticks).await.unwrap();
    let requested = ["ETH-USD", "BTC-USD", "NEVER-USD", "BTC-USD"].map(symbol);
    let found = market.current_prices(&requested).await.unwrap();
    assert_eq!(prices(&found), ["binance:BTC-USD 103", "kraken:BTC-USD 102", "kraken:ETH-USD 5"]);
    let none = market.current_prices(&[]).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::InvalidInput, "an empty selection returned symbols");
}

#[tokio::test]
async fn current_prices_are_read_over_several_pages() {
    let (store, chaos) = store().await;
    let market = reader(&store);
    let symbols: Vec<_> = (0..2_500).map(|n| symbol(&format!("C{n}-USD"))).collect();
    let ticks: Vec<_> = symbols.iter().map(|s| tick(&format!("kraken:{s}"), 1, 0, "1")).collect();
    store.insert_ticks(&ticks).await.unwrap();
    assert_eq!(market.current_prices(&symbols).await.unwrap().len(), 2_500);

    chaos.inject_next(Operation::Latest, Fault::Delay);
    chaos.inject_next(Operation::Latest, Fault::Error);
    let broken = market.current_prices(&symbols).await.unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::Unavailable, "the first page alone is no answer");
}

#[tokio::test]
async fn current_candle_is_the_newest_and_latest_candles_cover_each_exchange() {
    let (store, _) = store().await;
    let market = reader(&store);
    let bars = [
        bar("binance:BTC-USD", 1, "100"),
        bar("binance:BTC-USD", 2, "101"),
        bar("kraken:BTC-USD", 2, "102"),
        bar("kraken:ETH-USD", 0, "5"),
    ];
    store.insert_bars(&bars).await.unwrap();
    let current = market.current_ohlcv(&symbol("BTC-USD"), Interval::M1).await.unwrap();
    assert_eq!(current.as_ref(), Some(&bars[1]), "of two with the same open time the first exchange's");
    let latest = market.latest_ohlcv(&["BTC-USD", "ETH-USD"].map(symbol), Interval::M1).await.unwrap();
    assert_eq!(latest, bars[1..]);
    let hourly = market.current_ohlcv(&symbol("BTC-USD"), Interval::H1).await.unwrap();
    assert_eq!(hourly, None, "a candle of another length is another candle");
}

#[tokio::test(start_paused = true)]
async fn price_history_covers_the_last_days() {
    let (store, _) = store().await;
    let market = reader(&store);
    let name = "kraken:BTC-USD";
    let mut ticks = vec![tick(name, 3_600 - 86_400 - 1, 0, "1"), tick(name, 3_600 - 86_400, 0, "2")];
    ticks.extend((0..2_500).map(|seq| tick(name, 0, seq, "3")));
    ticks.extend([tick(name, 3_600, 0, "4"), tick(name, 3_601, 0, "5"), tick("binance:BTC-USD", 1, 0, "6")]);
    store.insert_ticks(&ticks).await.unwrap();
    let found: Vec<_> = market.price_history(&instrument(name), 1).unwrap().try_collect().await.unwrap();
    assert_eq!(found.len(), 2_502, "every page, but neither what is older nor what is not yet");
    assert!(found == ticks[1..2_503], "oldest first");
}

#[tokio::test]
async fn history_before_the_first_timestamp_is_rejected() {
    let (store, _) = store().await;
    let market = reader(&store);
    for days in [30_000, u32::MAX] {
        let Err(error) = market.price_history(&instrument("kraken:BTC-USD"), days) else { panic!("{days}") };
        assert_eq!((error.kind(), error.context_value("field")), (ErrorKind::InvalidInput, Some("days")));
    }
}

#[tokio::test]
async fn candles_by_date_range_include_both_ends() {
    let (store, _) = store().await;
    let market = reader(&store);
    let name = instrument("kraken:BTC-USD");
    let bars: Vec<_> = (0..5).map(|minute| bar("kraken:BTC-USD", minute, "7")).collect();
    store.insert_bars(&bars).await.unwrap();
    store.insert_ticks(&[tick("kraken:BTC-USD", 125, 0, "8")]).await.unwrap();
    let range = rules::inclusive_range(at(60), at(180)).unwrap();
    let ask = |source| market.ohlcv_by_date_range(&name, Interval::M1, range, source);
    let stored: Vec<_> = ask(BarSource::Stored).try_collect().await.unwrap();
    assert_eq!(opens(&stored), [1, 2, 3]);
    let derived: Vec<_> = ask(BarSource::Derived).try_collect().await.unwrap();
    assert_eq!((opens(&derived), derived[0].close().to_string()), (vec![2], "8".to_owned()));
}

#[tokio::test]
async fn available_tickers_are_paged_with_latest_prices() {
    let (store, _) = store().await;
    let market = reader(&store);
    let ticks = [
        tick("binance:BTC-USD", 1, 0, "1"),
        tick("binance:BTC-USD", 2, 0, "2"),
        tick("elsewhere:BTC-USD", 1, 0, "3"),
        tick("kraken:BTC-USD", 1, 0, "4"),
    ];
    store.insert_ticks(&ticks).await.unwrap();
    let two = PageRequest::first(2).unwrap();
    let first = market.available_tickers(two.clone()).await.unwrap();
    assert_eq!(prices(&first.items), ["binance:BTC-USD 2", "elsewhere:BTC-USD 3"]);
    let rest = market.available_tickers(two.after(first.next.unwrap())).await.unwrap();
    assert_eq!((prices(&rest.items), rest.next), (vec!["kraken:BTC-USD 4".to_owned()], None));
}

#[tokio::test]
async fn level1_is_the_newest_quote_of_all_or_one_exchange() {
    let (store, _) = store().await;
    let market = reader(&store);
    let quotes = [
        quote("binance:BTC-USD", 1, "99", "101"),
        quote("kraken:BTC-USD", 2, "100", "101"),
        quote("kraken:BTC-USD-PERP", 3, "90", "91"),
    ];
    store.insert_quotes(&quotes).await.unwrap();
    let any = market.level1(&symbol("BTC-USD"), None).await.unwrap().unwrap();
    assert_eq!((&any.0, any.spread().unwrap().to_string()), (&quotes[1], "1".to_owned()));
    let [binance, _] = exchanges();
    let one = market.level1(&symbol("BTC-USD"), Some(&binance)).await.unwrap().unwrap();
    assert_eq!(one.0, quotes[0]);
}

#[tokio::test]
async fn market_analytics_of_different_scopes_do_not_overwrite_each_other() {
    let (store, _) = store().await;
    let market = reader(&store);
    let [_, kraken] = exchanges();
    let scopes = [Scope::Global, Scope::Exchange(kraken), Scope::Asset(symbol("BTC"))];
    for (markets, scope) in (1..).zip(&scopes) {
        let figures = [snapshot(scope.clone(), 0, 99), snapshot(scope.clone(), 1, markets)];
        store.insert_snapshots(&figures).await.unwrap();
    }
    let known = |found: Option<MarketSnapshot>| found.unwrap().values().markets;
    for (markets, scope) in (1..).zip(&scopes) {
        assert_eq!(known(market.market_analytics(scope).await.unwrap()), Some(markets));
    }
}

/// Returns the results of all operations for a symbol: the number of records, or the kind of the error.
async fn every_answer(market: &MarketReader) -> Vec<Result<usize, ErrorKind>> {
    let (btc, name) = (symbol("BTC-USD"), instrument("kraken:BTC-USD"));
    let some = std::slice::from_ref(&btc);
    let range = rules::inclusive_range(at(0), at(3_600)).unwrap();
    let kind = |error: Error| error.kind();
    let history = market.price_history(&name, 1).unwrap().try_collect::<Vec<_>>().await;
    let candles = market.ohlcv_by_date_range(&name, Interval::M1, range, BarSource::Stored);
    let first = PageRequest::default();
    vec![
        market.current_price(&btc).await.map(|found| found.iter().count()).map_err(kind),
        market.current_prices(some).await.map(|found| found.len()).map_err(kind),
        market.current_ohlcv(&btc, Interval::M1).await.map(|found| found.iter().count()).map_err(kind),
        market.latest_ohlcv(some, Interval::M1).await.map(|found| found.len()).map_err(kind),
        history.map(|found| found.len()).map_err(kind),
        candles.try_collect::<Vec<_>>().await.map(|found| found.len()).map_err(kind),
        market.available_tickers(first).await.map(|page| page.items.len()).map_err(kind),
        market.level1(&btc, None).await.map(|found| found.iter().count()).map_err(kind),
        market.market_analytics(&Scope::Global).await.map(|found| found.iter().count()).map_err(kind),
    ]
}

#[tokio::test]
async fn empty_store_returns_empty_results() {
    let (store, _) = store().await;
    assert_eq!(every_answer(&reader(&store)).await, [Ok(0); 9]);
}

#[tokio::test]
async fn unknown_symbol_returns_empty_results() {
    let (store, _) = store().await;
    store.insert_ticks(&[tick("kraken:ETH-USD", 1, 0, "1")]).await.unwrap();
    store.insert_bars(&[bar("kraken:ETH-USD", 1, "1")]).await.unwrap();
    store.insert_quotes(&[quote("kraken:ETH-USD", 1, "1", "2")]).await.unwrap();
    store.insert_snapshots(&[snapshot(Scope::Asset(symbol("ETH")), 1, 1)]).await.unwrap();
    let mut nothing = [Ok(0); 9];
    nothing[6] = Ok(1); // the tickers are those of the store
    assert_eq!(every_answer(&reader(&store)).await, nothing);
}

#[tokio::test]
async fn closed_store_fails_every_operation() {
    let (store, _) = store().await;
    store.close().await.unwrap();
    assert_eq!(every_answer(&reader(&store)).await, [Err(ErrorKind::Closed); 9]);
}

#[tokio::test]
async fn store_without_schema_fails_every_operation() {
    let store: std::sync::Arc<dyn qi_core::PriceStore> =
        std::sync::Arc::new(qi_testkit::store::MemoryStore::default());
    assert_eq!(every_answer(&reader(&store)).await, [Err(ErrorKind::SchemaMismatch); 9]);
}

#[tokio::test]
async fn reader_without_exchanges_is_rejected() {
    let (store, _) = store().await;
    assert_eq!(MarketReader::new(store, []).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[tokio::test(start_paused = true)]
async fn reader_waits_for_a_slow_store() {
    let (store, chaos) = store().await;
    let chaos = chaos.with_delay(5 * SECOND);
    chaos.inject_next(Operation::Latest, Fault::Delay);
    store.insert_ticks(&[tick("kraken:BTC-USD", 1, 0, "1")]).await.unwrap();
    assert!(reader(&store).current_price(&symbol("BTC-USD")).await.unwrap().is_some());
}
