//! The ClickHouse adapter, compared with its baselines on the server of `QI_CLICKHOUSE_URL`, and with the TimescaleDB of
//! `QI_TIMESCALE_URL`.
//!
//! ```sh
//! scripts/backends up && eval "$(scripts/backends env)"
//! cargo bench -p qi-benches --bench clickhouse                        # all sections
//! cargo bench -p qi-benches --bench clickhouse -- write page          # some of them
//! cargo bench -p qi-benches --bench clickhouse -- --rounds 3 latest   # fewer rounds
//! ```
//!
//! Every line is the median over rounds that measure both sides back to back, in alternating order.
#![allow(missing_docs, reason = "a benchmark has no public items")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios have three digits")]

#[path = "../timescale/checks.rs"]
mod checks;
mod materialized;
mod read;
mod setup;
mod symbols;
#[allow(dead_code, reason = "a part of it is for the other benchmark")]
#[path = "../timescale/ticks.rs"]
mod ticks;
mod write;

use qi_benches::Section;
use setup::Setup;

/// The sections and their functions.
const SECTIONS: [Section<Setup>; 7] = [
    ("write", write::run),
    ("page", read::page),
    ("latest", read::latest),
    ("bars", read::bars),
    ("scale", read::scale),
    ("symbols", symbols::run),
    ("materialized", materialized::run),
];

const ROUNDS: usize = 7;

fn main() {
    qi_benches::sections(SECTIONS, ROUNDS, |rounds| {
        let setup = Setup::new(rounds);
        match &setup {
            Some(setup) => println!("clickhouse: {}", setup.server()),
            None => println!("clickhouse: QI_CLICKHOUSE_URL is not set, so nothing was measured"),
        }
        setup
    });
}
