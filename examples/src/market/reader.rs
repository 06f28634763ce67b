//! The nine reading operations.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use qi_core::store::{BarQuery, BarSource, LatestBarsQuery, LatestQuery, Page, PageRequest, RangeQuery};
use qi_core::{
    Clock, Error, Exchange, Instrument, Interval, MarketSnapshot, Ohlcv, Price, PriceStore, PriceStoreExt,
    PriceTick, Result, Scope, Selection, Symbol, SystemClock, TimeRange,
};

use super::Level1;
use super::laws;

const DAY: Duration = Duration::from_hours(24);

/// Reads market data out of any store.
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
    /// Reads from `store` what these exchanges (or aggregators) published.
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

    /// Counts days back from this clock's time.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// `getCurrentPrice`: the newest price of a symbol on any of the exchanges, in the currency that the symbol
    /// names. Of two with the same time the one of the first exchange, by name.
    pub async fn current_price(&self, symbol: &Symbol) -> Result<Option<Price>> {
        let ticks = self.current_prices(std::slice::from_ref(symbol)).await?;
        let newest = ticks.into_iter().max_by_key(|tick| (tick.ts(), Reverse(tick.instrument().clone())));
        Ok(newest.map(|tick| tick.price()))
    }

    /// `getCurrentPrices`: the latest tick of each symbol on each exchange that has one, by exchange and symbol.
    /// Market capitalisation and changes are asked of [`MarketReader::market_analytics`].
    ///
    /// # Errors
    /// `InvalidInput` without a symbol.
    pub async fn current_prices(&self, symbols: &[Symbol]) -> Result<Vec<PriceTick>> {
        let query = LatestQuery::new(self.on_every_exchange(symbols)?);
        self.store.latest_tick_stream(query).try_collect().await
    }

    /// `getCurrentOHLCV`: the newest stored candle of a symbol on any of the exchanges. Of two with the same open
    /// time the one of the first exchange, by name.
    pub async fn current_ohlcv(&self, symbol: &Symbol, interval: Interval) -> Result<Option<Ohlcv>> {
        let bars = self.latest_ohlcv(std::slice::from_ref(symbol), interval).await?;
        Ok(bars.into_iter().max_by_key(|bar| (bar.open_time(), Reverse(bar.instrument().clone()))))
    }

    /// `getLatestOHLCV`: the latest stored candle of each symbol on each exchange that has one, by exchange and
    /// symbol.
    ///
    /// # Errors
    /// `InvalidInput` without a symbol.
    pub async fn latest_ohlcv(&self, symbols: &[Symbol], interval: Interval) -> Result<Vec<Ohlcv>> {
        let query = LatestBarsQuery::new(interval, self.on_every_exchange(symbols)?);
        self.store.latest_bar_stream(query).try_collect().await
    }

    /// `getPriceHistory`: every tick of the last `days` days up to now, oldest first. It is a stream, page after
    /// page to the end: a busy day has millions of ticks, and a list would have to cut them off somewhere.
    ///
    /// # Errors
    /// `InvalidInput` for days that reach behind the beginning of time.
    pub fn price_history(
        &self,
        instrument: &Instrument,
        days: u32,
    ) -> Result<BoxStream<'_, Result<PriceTick>>> {
        let now = self.clock.now();
        let start = now.checked_sub(DAY.saturating_mul(days)).ok_or_else(|| {
            Error::invalid("market.history.days", "days", days, "must not reach behind 1970-01-05")
        })?;
        let range = laws::inclusive(start, now)?;
        Ok(self.store.tick_stream(RangeQuery::new(instrument.clone(), range)))
    }

    /// `getOHLCVByDateRange`: the candles that open in a range, oldest first, page after page to the end: those
    /// that were stored, or those that follow from the ticks. [`laws::inclusive`] makes a range whose both ends
    /// count.
    pub fn ohlcv_by_date_range(
        &self,
        instrument: &Instrument,
        interval: Interval,
        range: TimeRange,
        source: BarSource,
    ) -> BoxStream<'_, Result<Ohlcv>> {
        self.store.bar_stream(BarQuery::new(instrument.clone(), interval, range), source)
    }

    /// `getAvailableTickers`: what has ticks, on every exchange of the store, each with its latest one. A page of
    /// it: its `next` says whether there is more, and `PageRequest::after` goes on there.
    pub async fn available_tickers(&self, page: PageRequest) -> Result<Page<PriceTick>> {
        self.store.latest_ticks(&LatestQuery::new(Selection::All).with_page(page)).await
    }

    /// `getLevel1Data`: the newest quote of a symbol on one exchange, or on any of them. Of two with the same time
    /// the one of the first exchange, by name. Spot, future and swap differ by their symbols.
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

    /// `getMarketAnalytics`: the latest figures of the whole market, of an exchange, or of a coin.
    pub async fn market_analytics(&self, scope: &Scope) -> Result<Option<MarketSnapshot>> {
        self.store.latest_snapshot(scope).await
    }

    /// These symbols on every exchange of this reader.
    fn on_every_exchange(&self, symbols: &[Symbol]) -> Result<Selection<Instrument>> {
        let on = |exchange: &Exchange, symbol: &Symbol| Instrument::new(exchange.clone(), symbol.clone());
        Selection::these(self.exchanges.iter().flat_map(|e| symbols.iter().map(move |s| on(e, s))))
    }
}
