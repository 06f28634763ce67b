//! The contract of the store, run on a record that the test defines.

use qi_core::{Instrument, Percent, Price, Record, Timestamp};
use qi_testkit::store::contract::{MemoryFactory, Sample, Suite, Wrapper, instrument_no};

#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "lending_rates", message = "lending_rate", version = 1)]
struct LendingRate {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    rate: Percent,
    mark_price: Option<Price>,
    next_change: Option<Timestamp>,
}

impl Sample for LendingRate {
    fn series_no(n: usize) -> Instrument {
        instrument_no(n)
    }
    fn make(instrument: &Instrument, ts: Timestamp, _seq: u64, value: u32) -> Self {
        let number = i128::from(value) + 1;
        Self {
            instrument: instrument.clone(),
            ts,
            rate: Percent::from_units(-number).expect("a small number"),
            mark_price: Price::from_units(number).ok(),
            next_change: Timestamp::from_secs(1_709_510_400 + i64::from(value)).ok(),
        }
    }
}

fn main() {
    Suite::new().on(MemoryFactory, [Wrapper::PLAIN, Wrapper::FULL_STACK]).with::<LendingRate>().main();
}
