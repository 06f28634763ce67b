use qi_core::{Exchange, Instrument, Percent, Record, Timestamp};

#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "funding_rates")]
struct FundingRate {
    #[series]
    instrument: Instrument,
    #[series]
    exchange: Exchange,
    #[time]
    ts: Timestamp,
    rate: Percent,
}

fn main() {}
