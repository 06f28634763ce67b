use qi_core::{Instrument, Record, Timestamp};

#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "funding_rates")]
struct FundingRate {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    rate: f64,
}

fn main() {}
