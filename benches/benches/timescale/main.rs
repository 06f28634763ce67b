//! The TimescaleDB adapter, compared with its baselines on the server of `QI_TIMESCALE_URL`.
//!
//! ```sh
//! scripts/backends up && eval "$(scripts/backends env)"
//! cargo bench -p qi-benches --bench timescale                        # all sections
//! cargo bench -p qi-benches --bench timescale -- write page          # some of them
//! cargo bench -p qi-benches --bench timescale -- --rounds 3 replay   # fewer rounds
//! ```
//!
//! Every line is the median over rounds that measure both sides back to back, in alternating order. Each round that
//! writes has its own tables, and a CHECKPOINT before each side, so that no side pays for the write-ahead log of the
//! other. `psql` must be installed.
#![allow(missing_docs, reason = "a benchmark has no public items")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios have three digits")]

mod baselines;
mod checks;
mod duplicates;
mod materialized;
mod read;
mod replay;
mod scale;
mod setup;
mod ticks;
mod tuning;
mod write;

use qi_benches::Section;
use setup::Setup;

/// The sections and their functions.
const SECTIONS: [Section<Setup>; 10] = [
    ("write", write::run),
    ("replay", replay::run),
    ("duplicates", duplicates::run),
    ("page", read::page),
    ("latest", read::latest),
    ("scale", scale::run),
    ("bars", read::bars),
    ("materialized", materialized::run),
    ("break-even", tuning::break_even),
    ("memory", tuning::memory),
];

const ROUNDS: usize = 7;

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(tuning::CHILD) {
        return tuning::child(arguments);
    }
    qi_benches::sections(SECTIONS, ROUNDS, |rounds| {
        let setup = Setup::new(rounds);
        match &setup {
            Some(setup) => println!("timescale: {}", setup.server()),
            None => println!("timescale: QI_TIMESCALE_URL is not set, so nothing was measured"),
        }
        setup
    });
}
