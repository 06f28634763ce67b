use qi_core::{Instrument, Percent, Record, Timestamp};

#[derive(Debug, Clone, PartialEq, Record)]
struct FundingRate {
    #[series]
    instrument: Instrument,
    #[time]
    ts: Timestamp,
    rate: Percent,
}

fn main() {}
