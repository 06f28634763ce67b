//! The ClickHouse adapter beside its rivals on a real server, the one that `QI_CLICKHOUSE_URL` names, and beside the
//! TimescaleDB that `QI_TIMESCALE_URL` names.
//!
//! ```sh
//! scripts/backends up && eval "$(scripts/backends env)"
//! cargo bench -p qi-benches --bench clickhouse                        # all sections
//! cargo bench -p qi-benches --bench clickhouse -- write page          # some of them
//! cargo bench -p qi-benches --bench clickhouse -- --rounds 3 latest   # fewer rounds
//! ```
//!
//! Every line is the median over rounds that measure both sides back to back, in an order that alternates.
#![allow(missing_docs, reason = "a benchmark has no public items")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios have three digits")]

mod beside;
mod rig;
#[allow(dead_code, reason = "a part of it is for the other benchmark")]
#[path = "../timescale/ticks.rs"]
mod ticks;
mod write;

use rig::Rig;

type Section = fn(&Rig);

/// The sections and what runs them.
const SECTIONS: [(&str, Section); 4] =
    [("write", write::run), ("page", beside::page), ("latest", beside::latest), ("bars", beside::bars)];

const ROUNDS: usize = 7;

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
        println!("clickhouse: QI_CLICKHOUSE_URL is not set, so nothing was measured");
        return;
    };
    println!("clickhouse: {}", rig.server());
    for (name, run) in SECTIONS {
        if chosen.is_empty() || chosen.iter().any(|c| c == name) {
            println!("\n[{name}]");
            run(&rig);
        }
    }
}
