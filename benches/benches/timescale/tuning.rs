//! The batch size from which COPY is faster, and the memory of a long write.

use std::process::Command;

use qi_adapters::timescale::TimescaleConfig;
use qi_benches::{ratio, timed};

use crate::setup::Setup;
use crate::ticks::MILLION;

/// Compares small batches by COPY with the same batches by the merging statement.
pub(crate) fn break_even(setup: &Setup) {
    let config_with =
        |copy_from: usize| move |config: &mut TimescaleConfig| config.write.copy_from = copy_from;
    let (copies, merges) = (setup.create(config_with(1)), setup.create(config_with(usize::MAX)));
    // Both sides take their ticks from one sequence, which never repeats.
    let mut next = 0;
    for target in [&copies, &merges] {
        target.fill(next..next + MILLION / 10);
        target.compact();
    }
    next += MILLION / 10;
    for batch in [10, 50, 100, 200, 500, 1_000, 2_000] {
        let batches = (20_000 / batch).min(100);
        let ticks: Vec<_> = (0..2 * (setup.rounds + 1))
            .map(|_| {
                next += batches * batch;
                setup.market.ticks(next - batches * batch..next)
            })
            .collect();
        let (mut left, mut right) = (ticks.chunks(2), ticks.chunks(2));
        let times = ratio(
            setup.rounds,
            || {
                let new = &left.next().expect("as many as rounds")[0];
                timed(|| copies.insert(new, batch)) / u32::try_from(batches).expect("a small number")
            },
            || {
                let new = &right.next().expect("as many as rounds")[1];
                timed(|| merges.insert(new, batch)) / u32::try_from(batches).expect("a small number")
            },
        );
        println!("one batch of {batch}: COPY / merging upsert: {times}");
    }
}

/// The argument of a process that only writes and reports its memory.
pub(crate) const CHILD: &str = "--write-and-report-memory";

/// Starts two processes that write different numbers of ticks.
pub(crate) fn memory(setup: &Setup) {
    let program = std::env::current_exe().expect("the path of this program");
    let measured = [MILLION, 10 * MILLION].map(|ticks| {
        let mut peaks: Vec<u64> = (0..3.min(setup.rounds))
            .map(|_| {
                let child = Command::new(&program).args([CHILD, &ticks.to_string()]).output();
                let child = child.expect("this program runs again");
                let text = String::from_utf8_lossy(&child.stdout).into_owned();
                text.trim().parse().unwrap_or_else(|_| panic!("a number of KiB, not {text:?}: {child:?}"))
            })
            .collect();
        peaks.sort_unstable();
        peaks[peaks.len() / 2]
    });
    let [few, many] = measured;
    println!(
        "peak memory, 10,000,000 ticks / 1,000,000 ticks in batches of 100,000: ratio {:.3} ({many} KiB, {few} KiB)",
        many as f64 / few as f64
    );
}

/// Runs the process that [`memory`] starts.
pub(crate) fn child(mut arguments: impl Iterator<Item = String>) {
    const BATCH: usize = 100_000;
    let ticks: usize = arguments.next().and_then(|text| text.parse().ok()).expect("a number of ticks");
    let setup = Setup::new(1).expect("QI_TIMESCALE_URL");
    let target = setup.create(|_| ());
    for start in (0..ticks).step_by(BATCH) {
        target.insert(&setup.market.ticks(start..start + BATCH), BATCH);
    }
    assert_eq!(target.count(), i64::try_from(ticks).expect("a small number"));
    println!("{}", peak_kib());
}

/// Returns the peak resident memory of this process from Linux, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line VmHWM");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}
