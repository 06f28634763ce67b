//! A simulated market: many instruments, bursts, late ticks and repeated ticks. The same seed gives the same ticks.

use std::collections::VecDeque;

use fastrand::Rng;
use qi_core::{Error, Instrument, Price, PriceTick, Quantity, Result, Side, Timestamp};

/// The settings of a [`Market`]. Shares are from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MarketConfig {
    /// The seed of the random numbers.
    pub seed: u64,
    /// The traded instruments, at least one.
    pub instruments: Vec<Instrument>,
    /// The opening time of the market.
    pub start: Timestamp,
    /// The longest pause between two ticks, in microseconds, at least 1.
    pub max_pause_us: u64,
    /// The share of ticks that begin a burst of 2 to 20 trades of one instrument within a millisecond or two.
    pub bursts: f64,
    /// The share of ticks that arrive late, behind up to 32 others that happened after them.
    pub late: f64,
    /// The share of ticks that arrive a second time, unchanged.
    pub repeated: f64,
}

impl MarketConfig {
    /// Creates settings for a market with `instruments` instruments (`sim:A0000-USDT`, ...). The market opens on
    /// 2024-01-01 and has about 2,000 ticks per second, 2 % bursts, 1 % late ticks and 1 % repeated ticks.
    ///
    /// # Errors
    /// `InvalidInput` unless `instruments` lies in 1 to 10,000.
    pub fn new(seed: u64, instruments: usize) -> Result<Self> {
        if !(1..=10_000).contains(&instruments) {
            return Err(Error::invalid(
                "market.instruments",
                "instruments",
                instruments,
                "must lie from 1 to 10000",
            ));
        }
        Ok(Self {
            seed,
            instruments: (0..instruments)
                .map(|n| format!("sim:A{n:04}-USDT").parse())
                .collect::<Result<_>>()?,
            start: "2024-01-01T00:00:00Z".parse()?,
            max_pause_us: 1_000,
            bursts: 0.02,
            late: 0.01,
            repeated: 0.01,
        })
    }
}

/// The arrival of a tick relative to the time of its trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// The tick arrives in the order of trades.
    InOrder,
    /// The tick arrives after ticks that happened later.
    Late,
    /// The tick arrives for the second time.
    Repeated,
}

/// The largest number of ticks that are held back, and of ticks that are remembered. It bounds the simulator's memory.
const WINDOW: usize = 32;

/// An endless, seeded market. It iterates over [`PriceTick`]s; [`Market::arrival`] also returns the arrival of each
/// tick. The iteration ends only at the end of the [`Timestamp`] range.
///
/// ```
/// use qi_testkit::market::{Market, MarketConfig};
/// let one: Vec<_> = Market::new(MarketConfig::new(7, 10)?)?.take(1_000).collect();
/// let two: Vec<_> = Market::new(MarketConfig::new(7, 10)?)?.take(1_000).collect();
/// assert_eq!(one, two);
/// # Ok::<(), qi_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Market {
    config: MarketConfig,
    rng: Rng,
    now: i64,
    /// The state of each instrument: the price in cents, and the time and sequence number of its last tick.
    states: Vec<InstrumentState>,
    burst: Option<(usize, u32)>,
    /// The ticks that are held back, each with the number of other ticks that still arrive first.
    held: VecDeque<(PriceTick, u32)>,
    recent: VecDeque<PriceTick>,
}

#[derive(Debug, Clone)]
struct InstrumentState {
    cents: i64,
    last: i64,
    seq: u64,
}

const UNITS_PER_CENT: i128 = 10_000_000_000_000_000;
const UNITS_PER_LOT: i128 = 1_000_000_000_000;

impl Market {
    /// Creates a market with the given settings.
    ///
    /// # Errors
    /// `InvalidInput` if there are no instruments, if the longest pause is 0, or if a share is outside 0 to 1.
    pub fn new(config: MarketConfig) -> Result<Self> {
        if config.instruments.is_empty() {
            return Err(Error::invalid("market.instruments", "instruments", "[]", "must name at least one"));
        }
        if config.max_pause_us == 0 {
            return Err(Error::invalid("market.pause", "max_pause_us", 0, "must be at least 1"));
        }
        for (field, share) in
            [("bursts", config.bursts), ("late", config.late), ("repeated", config.repeated)]
        {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::invalid("market.share", field, share, "must lie from 0 to 1"));
            }
        }
        let mut rng = Rng::with_seed(config.seed);
        let states = config
            .instruments
            .iter()
            .map(|_| InstrumentState { cents: rng.i64(100..10_000_000), last: 0, seq: 0 })
            .collect();
        let now = config.start.as_micros();
        Ok(Self { config, rng, now, states, burst: None, held: VecDeque::new(), recent: VecDeque::new() })
    }

    /// Returns the next tick and its arrival, or None at the end of the [`Timestamp`] range.
    pub fn arrival(&mut self) -> Option<(PriceTick, Arrival)> {
        if let Some(tick) = self.due() {
            return Some((self.remember_recent(tick), Arrival::Late));
        }
        if !self.recent.is_empty() && self.rng.f64() < self.config.repeated {
            let at = self.rng.usize(..self.recent.len());
            return Some((self.recent[at].clone(), Arrival::Repeated));
        }
        loop {
            let Some(tick) = self.trade() else {
                // At the end of the range, the ticks that are held back still arrive.
                let (tick, _) = self.held.pop_front()?;
                return Some((tick, Arrival::Late));
            };
            if self.held.len() < WINDOW && self.rng.f64() < self.config.late {
                let behind = self.rng.u32(1..=32);
                self.held.push_back((tick, behind));
            } else {
                return Some((self.remember_recent(tick), Arrival::InOrder));
            }
        }
    }

    fn due(&mut self) -> Option<PriceTick> {
        for (_, behind) in &mut self.held {
            *behind = behind.saturating_sub(1);
        }
        let at = self.held.iter().position(|(_, behind)| *behind == 0)?;
        self.held.remove(at).map(|(tick, _)| tick)
    }

    fn remember_recent(&mut self, tick: PriceTick) -> PriceTick {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(tick.clone());
        tick
    }

    fn trade(&mut self) -> Option<PriceTick> {
        let at = if let Some((at, left)) = self.burst.take() {
            // Trades of one order share a millisecond, and often a microsecond.
            self.now += self.rng.i64(0..=100) * i64::from(self.rng.bool());
            self.burst = (left > 1).then(|| (at, left - 1));
            at
        } else {
            self.now += self.rng.i64(1..=i64::try_from(self.config.max_pause_us).ok()?);
            let at = self.rng.usize(..self.states.len());
            if self.rng.f64() < self.config.bursts {
                self.burst = Some((at, self.rng.u32(1..20)));
            }
            at
        };
        let state = &mut self.states[at];
        // The price moves by at most 5 basis points per trade and never falls below 1 cent.
        let step = (state.cents / 2_000).max(1);
        state.cents = (state.cents + self.rng.i64(-step..=step)).clamp(1, 1_000_000_000_000);
        state.seq = if state.last == self.now { state.seq + 1 } else { 0 };
        state.last = self.now;
        let price = Price::from_units(i128::from(state.cents) * UNITS_PER_CENT).ok()?;
        let quantity =
            Quantity::from_units(i128::from(self.rng.i64(1..=100_000_000)) * UNITS_PER_LOT).ok()?;
        let side = if self.rng.bool() { Side::Buy } else { Side::Sell };
        let ts = Timestamp::from_micros(self.now).ok()?;
        let tick = PriceTick::new(self.config.instruments[at].clone(), ts, state.seq, price).ok()?;
        Some(tick.with_quantity(quantity).with_side(side))
    }
}

impl Iterator for Market {
    type Item = PriceTick;

    fn next(&mut self) -> Option<PriceTick> {
        self.arrival().map(|(tick, _)| tick)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn market_has_the_configured_shares_of_late_and_repeated_ticks() {
        let mut market = Market::new(MarketConfig::new(3, 20).unwrap()).unwrap();
        let ticks: Vec<_> = (0..100_000).map(|_| market.arrival().unwrap()).collect();
        let count = |wanted| ticks.iter().filter(|(_, arrival)| *arrival == wanted).count();
        assert!((500..2_000).contains(&count(Arrival::Late)), "{}", count(Arrival::Late));
        assert!((500..2_000).contains(&count(Arrival::Repeated)), "{}", count(Arrival::Repeated));
        let keys: HashSet<_> = ticks.iter().map(|(t, _)| (t.instrument().clone(), t.ts(), t.seq())).collect();
        assert_eq!(keys.len(), ticks.len() - count(Arrival::Repeated), "a key is repeated only on purpose");
        assert!(ticks.iter().any(|(t, _)| t.seq() > 0), "some trades share a microsecond");
        assert_eq!(ticks.iter().map(|(t, _)| t.instrument()).collect::<HashSet<_>>().len(), 20);
    }

    #[test]
    fn seeds_determine_the_market() {
        let ticks =
            |seed| Market::new(MarketConfig::new(seed, 2).unwrap()).unwrap().take(100).collect::<Vec<_>>();
        assert_eq!(ticks(1), ticks(1));
        assert_ne!(ticks(1), ticks(2));
    }

    #[test]
    fn iteration_ends_at_the_last_timestamp_with_all_ticks_delivered() {
        let mut config = MarketConfig::new(1, 1).unwrap();
        config.start = Timestamp::from_micros(Timestamp::MAX_RECORD.as_micros() - 10_000).unwrap();
        config.late = 0.5;
        let ticks: Vec<_> = Market::new(config).unwrap().collect();
        assert!(!ticks.is_empty() && ticks.iter().all(|t| t.ts() <= Timestamp::MAX_RECORD));
    }

    #[test]
    fn invalid_settings_are_rejected() {
        assert!(MarketConfig::new(1, 0).is_err());
        let config = MarketConfig::new(1, 1).unwrap();
        assert!(Market::new(MarketConfig { late: 1.5, ..config.clone() }).is_err());
        assert!(Market::new(MarketConfig { max_pause_us: 0, ..config }).is_err());
    }
}
