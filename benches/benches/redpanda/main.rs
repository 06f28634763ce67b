//! The Redpanda adapter beside its rivals on real brokers, those that `QI_KAFKA_BROKERS` names.
//!
//! ```sh
//! scripts/backends up redpanda && eval "$(scripts/backends env)"
//! cargo bench -p qi-benches --bench redpanda                        # all sections
//! cargo bench -p qi-benches --bench redpanda -- publish receive     # some of them
//! cargo bench -p qi-benches --bench redpanda -- --rounds 3 latency  # fewer rounds
//! ```
//!
//! Every ratio is the median over rounds that measure both sides back to back, in an order that alternates. All sides
//! use one core of librdkafka and share the machine with the broker.
#![allow(missing_docs, reason = "a benchmark has no public items")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios have three digits")]

mod latency;
mod publish;
mod receive;
mod rig;

use rig::Rig;

type Section = fn(&Rig);

/// The sections and what runs them.
const SECTIONS: [(&str, Section); 3] =
    [("publish", publish::run), ("receive", receive::run), ("latency", latency::run)];

const ROUNDS: usize = 5;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut rounds, mut chosen) = (ROUNDS, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => {
                let number = arguments.next().and_then(|text| text.parse().ok());
                rounds = number.expect("--rounds takes a number");
            }
            // Words for the other benchmarks of this crate, and what cargo adds.
            "ratios" | "--bench" => {}
            name if SECTIONS.iter().any(|(section, _)| *section == name) => chosen.push(argument),
            other => {
                let names = SECTIONS.map(|(name, _)| name).join(", ");
                eprintln!("unknown argument {other}; the sections are {names}");
                std::process::exit(2);
            }
        }
    }
    let Some(rig) = Rig::new(rounds) else {
        println!("redpanda: QI_KAFKA_BROKERS is not set, so nothing was measured");
        return;
    };
    for (name, run) in SECTIONS {
        if chosen.is_empty() || chosen.iter().any(|c| c == name) {
            println!("\n[{name}]");
            run(&rig);
        }
    }
}
