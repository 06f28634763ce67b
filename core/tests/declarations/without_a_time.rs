use qi_core::{Instrument, Percent, Record};

#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "funding_rates")]
struct FundingRate {
    #[series]
    instrument: Instrument,
    rate: Percent,
}

fn main() {}
