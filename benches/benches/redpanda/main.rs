//! The Redpanda adapter, compared with its baselines on the brokers of `QI_KAFKA_BROKERS`.
//!
//! ```sh
//! scripts/backends up redpanda && eval "$(scripts/backends env)"
//! cargo bench -p qi-benches --bench redpanda                        # all sections
//! cargo bench -p qi-benches --bench redpanda -- publish receive     # some of them
//! cargo bench -p qi-benches --bench redpanda -- --rounds 3 latency  # fewer rounds
//! ```
//!
//! Every ratio is the median over rounds that measure both sides back to back, in alternating order. All sides use one
//! library (librdkafka) and share the machine with the broker.
#![allow(missing_docs, reason = "a benchmark has no public items")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios have three digits")]

mod latency;
mod publish;
mod receive;
mod setup;

use qi_benches::Section;
use setup::Setup;

/// The sections and their functions.
const SECTIONS: [Section<Setup>; 3] =
    [("publish", publish::run), ("receive", receive::run), ("latency", latency::run)];

const ROUNDS: usize = 5;

fn main() {
    qi_benches::sections(SECTIONS, ROUNDS, |rounds| {
        let setup = Setup::new(rounds);
        if setup.is_none() {
            println!("redpanda: QI_KAFKA_BROKERS is not set, so nothing was measured");
        }
        setup
    });
}
