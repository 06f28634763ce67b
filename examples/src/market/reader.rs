//! The nine reading operations.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use qi_core::store::{BarQuery, BarSource, LatestBarsQuery, LatestQuery, Page, PageRequest, RangeQuery};
use qi_core::{
    Bar, Clock, Error, Exchange, Instrument, Interval, MarketSnapshot, Price, PriceStore, PriceStoreExt,
    PriceTick, Result, Scope, Selection, Symbol, SystemClock, TimeRange,
};

use super::Level1;
use super::rules;

const DAY: Duration = Duration::from_hours(24);

/// Reads market data from any store.
///
/// ```
/// use std::sync::Arc;
/// use qi_core::{PriceStore, Result};
/// use qi_examples::market::MarketReader;
///
/// async fn show(store: Arc<dyn PriceStore>) -> Result<()> {
///     let market = MarketReader::new(store, ["binance".parse()?, "kraken".parse()?])?;
///     match market.current_price(&"BTC-USD".parse()?).await? {
///         Some(price) => println!("{price} USD"),
///         None => println!("no exchange has a price"),
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct MarketReader {
    store: Arc<dyn PriceStore>,
    exchanges: Vec<Exchange>,
    clock: Arc<dyn Clock>,
}

impl MarketReader {
    /// Creates a reader of the records of these exchanges (or aggregators).
    ///
    /// # Errors
    /// `InvalidInput` without an exchange.
    pub fn new(store: Arc<dyn PriceStore>, exchanges: impl IntoIterator<Item = Exchange>) -> Result<Self> {
        let exchanges: Vec<_> = exchanges.into_iter().collect();
        if exchanges.is_empty() {
            return Err(Error::invalid("market.exchanges", "exchanges", "[]", "must name at least one"));
        }
        Ok(Self { store, exchanges, clock: Arc::new(SystemClock) })
    }

    /// Sets the clock from which days are counted back.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// `getCurrentPrice`: returns the newest price of a symbol on any of the exchanges, in the currency of the symbol.
    /// Of two prices of one time, returns the price of the first exchange by name.
    pub async fn current_price(&self, symbol: &Symbol) -> Result<Option<Price>> {
        let ticks = self.current_prices(std::slice::from_ref(symbol)).await?;
        let newest = ticks.into_iter().max_by_key(|tick| (tick.ts(), Reverse(tick.instrument().clone())));
        Ok(newest.map(|tick| tick.price()))
    }

    /// `getCurrentPrices`: returns the latest tick of each symbol on each exchange that has one, ordered by exchange
    /// and symbol. [`MarketReader::market_analytics`] returns market capitalisation and changes.
    ///
    /// # Errors
    /// `InvalidInput` without a symbol.
    pub async fn current_prices(&self, symbols: &[Symbol]) -> Result<Vec<PriceTick>> {
        let query = LatestQuery::new(self.on_every_exchange(symbols)?);
        self.store.latest_tick_stream(query).try_collect().await
    }

    /// `getCurrentOHLCV`: returns the newest stored candle of a symbol on any of the exchanges. Of two candles with one
    /// open time, returns the candle of the first exchange by name.
    pub async fn current_ohlcv(&self, symbol: &Symbol, interval: Interval) -> Result<Option<Bar>> {
        let bars = self.latest_ohlcv(std::slice::from_ref(symbol), interval).await?;
        Ok(bars.into_iter().max_by_key(|bar| (bar.open_time(), Reverse(bar.instrument().clone()))))
    }

    /// `getLatestOHLCV`: returns the latest stored candle of each symbol on each exchange that has one, ordered by
    /// exchange and symbol.
    ///
    /// # Errors
    /// `InvalidInput` without a symbol.
    pub async fn latest_ohlcv(&self, symbols: &[Symbol], interval: Interval) -> Result<Vec<Bar>> {
        let query = LatestBarsQuery::new(interval, self.on_every_exchange(symbols)?);
        self.store.latest_bar_stream(query).try_collect().await
    }

    /// `getPriceHistory`: returns every tick of the last `days` days up to now, oldest first. The result is a stream of
    /// pages, because a busy day has millions of ticks.
    ///
    /// # Errors
    /// `InvalidInput` for days before the earliest timestamp.
    pub fn price_history(
        &self,
        instrument: &Instrument,
        days: u32,
    ) -> Result<BoxStream<'_, Result<PriceTick>>> {
        let now = self.clock.now();
        let start = now.checked_sub(DAY.saturating_mul(days)).ok_or_else(|| {
            Error::invalid("market.history.days", "days", days, "must not reach before 1970-01-05")
        })?;
        let range = rules::inclusive_range(start, now)?;
        Ok(self.store.tick_stream(RangeQuery::new(instrument.clone(), range)))
    }

    /// `getOHLCVByDateRange`: returns the candles that open in a range, oldest first, as a stream of pages. `source`
    /// selects stored candles or candles derived from ticks. [`rules::inclusive_range`] creates a range with both ends.
    pub fn ohlcv_by_date_range(
        &self,
        instrument: &Instrument,
        interval: Interval,
        range: TimeRange,
        source: BarSource,
    ) -> BoxStream<'_, Result<Bar>> {
        self.store.bar_stream(BarQuery::new(instrument.clone(), interval, range), source)
    }

    /// `getAvailableTickers`: returns a page of the instruments with ticks, on every exchange of the store, each with
    /// its latest tick. `next` is the cursor of the next page, for `PageRequest::after`.
    pub async fn available_tickers(&self, page: PageRequest) -> Result<Page<PriceTick>> {
        self.store.latest_ticks(&LatestQuery::new(Selection::All).with_page(page)).await
    }

    /// `getLevel1Data`: returns the newest quote of a symbol on one exchange, or on any of them. Of two quotes of one
    /// time, returns the quote of the first exchange by name. Spot, futures and swaps differ by their symbols.
    pub async fn level1(&self, symbol: &Symbol, exchange: Option<&Exchange>) -> Result<Option<Level1>> {
        let selection = match exchange {
            Some(exchange) => Selection::one(Instrument::new(exchange.clone(), symbol.clone())),
            None => self.on_every_exchange(std::slice::from_ref(symbol))?,
        };
        let quotes = self.store.latest_quote_stream(LatestQuery::new(selection));
        let quotes: Vec<_> = quotes.try_collect().await?;
        let newest = quotes.into_iter().max_by_key(|q| (q.ts(), Reverse(q.instrument().clone())));
        Ok(newest.map(Level1))
    }

    /// `getMarketAnalytics`: returns the latest figures of the complete market, of an exchange, or of a coin.
    pub async fn market_analytics(&self, scope: &Scope) -> Result<Option<MarketSnapshot>> {
        self.store.latest_snapshot(scope).await
    }

    /// Returns these symbols on every exchange of this reader.
    fn on_every_exchange(&self, symbols: &[Symbol]) -> Result<Selection<Instrument>> {
        let on = |exchange: &Exchange, symbol: &Symbol| Instrument::new(exchange.clone(), symbol.clone());
        Selection::only(self.exchanges.iter().flat_map(|e| symbols.iter().map(move |s| on(e, s))))
    }
}
