//! Records to Parquet and back, compared with arrow-rs; exports of the stores, compared with reading their pages; and a
//! columnar read of ClickHouse, compared with reading its pages.
//!
//! ```sh
//! scripts/backends up && eval "$(scripts/backends env)"
//! cargo bench -p qi-benches --bench columnar                       # all sections
//! cargo bench -p qi-benches --bench columnar -- file               # no server
//! cargo bench -p qi-benches --bench columnar -- --rounds 1 store   # QI_BENCH_TICKS sets the number of ticks
//! ```
#![allow(missing_docs, reason = "a benchmark has no public items")]
#![allow(clippy::cast_precision_loss, reason = "rates and ratios have three digits")]

mod file;
mod store;

use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cap::Cap;
use qi_benches::Section;
use tokio::runtime::Runtime;

#[global_allocator]
pub(crate) static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const SECTIONS: [Section<Setup>; 3] =
    [("file", file::run), ("store", store::export), ("arrow-stream", store::stream)];

fn main() {
    qi_benches::sections(SECTIONS, 3, |rounds| Some(Setup::new(rounds)));
}

pub(crate) struct Setup {
    pub(crate) rounds: usize,
    pub(crate) runtime: Runtime,
}

impl Setup {
    fn new(rounds: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { rounds, runtime: runtime.expect("a runtime") }
    }
}

/// Returns the result of `work`, and the largest number of bytes that were allocated during it beyond its beginning.
pub(crate) fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATOR.allocated();
    let (highest, ended) = (Arc::new(AtomicUsize::new(before)), Arc::new(AtomicBool::new(false)));
    let (seen, until) = (highest.clone(), ended.clone());
    let watch = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            seen.fetch_max(ALLOCATOR.allocated(), Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(500));
        }
    });
    let result = work();
    ended.store(true, Ordering::Relaxed);
    watch.join().expect("no panic");
    (result, highest.load(Ordering::Relaxed) - before)
}

pub(crate) fn rate(ticks: usize, took: Duration) -> String {
    format!("{:.0} ticks/s", ticks as f64 / took.as_secs_f64())
}

pub(crate) fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
