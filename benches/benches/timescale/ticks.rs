//! New ticks of 100 instruments in the order of time. 10,000,000 ticks are one day.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use qi_core::{Decimal, Instrument, Price, PriceTick, Quantity, Side, Timestamp};

pub(crate) const MILLION: usize = 1_000_000;
pub(crate) const INSTRUMENTS: usize = 100;

/// 2023-11-16, the first day of a chunk of 7 days, so that the day of ticks is in one chunk.
const START: i64 = 1_700_092_800_000_000;
/// The time between two ticks, in microseconds.
const STEP: i64 = 8_640;

/// The hundred instruments.
#[derive(Debug, Clone)]
pub(crate) struct Market(Vec<Instrument>);

impl Market {
    pub(crate) fn new() -> Self {
        let name = |n| format!("binance:COIN{n:03}-USDT").parse().expect("a valid name");
        Self((0..INSTRUMENTS).map(name).collect())
    }

    pub(crate) fn instruments(&self) -> &[Instrument] {
        &self.0
    }

    /// Returns a tick by its number. Prices have 2 places and quantities 8, like those of exchanges.
    pub(crate) fn tick(&self, n: usize) -> PriceTick {
        self.tick_at(n, time(n))
    }

    pub(crate) fn tick_at(&self, n: usize, ts: Timestamp) -> PriceTick {
        const CENT: i128 = Decimal::UNITS_PER_ONE / 100;
        const EIGHT_PLACES: i128 = Decimal::UNITS_PER_ONE / 100_000_000;
        let number = n as i128;
        let price = Price::from_units((3_900_000 + number * 7_919 % 100_003) * CENT).expect("a price");
        let quantity = (number * 104_729 % 299_999_977 + 1) * EIGHT_PLACES;
        let quantity = Quantity::from_units(quantity).expect("a quantity");
        PriceTick::new(self.0[n % INSTRUMENTS].clone(), ts, n as u64, price)
            .expect("a valid tick")
            .with_quantity(quantity)
            .with_side(if n.is_multiple_of(3) { Side::Sell } else { Side::Buy })
    }

    /// Returns the ticks of these numbers.
    pub(crate) fn ticks(&self, numbers: std::ops::Range<usize>) -> Vec<PriceTick> {
        numbers.map(|n| self.tick(n)).collect()
    }
}

/// Returns the time of a tick by its number.
pub(crate) fn time(n: usize) -> Timestamp {
    Timestamp::from_micros(START + i64::try_from(n).expect("a small number") * STEP).expect("a time of 2023")
}

/// Writes the rows as CSV for the table `ticks`, whose instruments have the ids 1 to 100.
pub(crate) fn csv_with_ids(ticks: &[PriceTick], file: &Path) {
    csv(ticks, file, |n, tick, out| {
        let side = match tick.side() {
            Some(Side::Buy) => "1",
            Some(Side::Sell) => "2",
            None => "",
        };
        let id = n % INSTRUMENTS + 1;
        let quantity = tick.quantity().expect("a quantity");
        writeln!(out, "{id},{},{},{},{quantity},{side}", tick.ts(), tick.seq(), tick.price())
    });
}

/// Writes the rows as CSV with names instead of ids.
pub(crate) fn csv_with_names(ticks: &[PriceTick], file: &Path) {
    csv(ticks, file, |_, tick, out| {
        let (exchange, symbol) = (tick.instrument().exchange(), tick.instrument().symbol());
        let quantity = tick.quantity().expect("a quantity");
        let side = tick.side().map_or("", Side::as_str);
        writeln!(out, "{exchange},{symbol},{},{},{},{quantity},{side}", tick.ts(), tick.seq(), tick.price())
    });
}

fn csv(
    ticks: &[PriceTick],
    file: &Path,
    row: impl Fn(usize, &PriceTick, &mut BufWriter<File>) -> std::io::Result<()>,
) {
    let mut out = BufWriter::new(File::create(file).expect("a file"));
    for (n, tick) in ticks.iter().enumerate() {
        row(n, tick, &mut out).expect("room for the file");
    }
    out.flush().expect("room for the file");
}
