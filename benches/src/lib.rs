//! Shared code of the benchmarks: a ratio that is robust on a busy machine.
//!
//! Two consecutive measurements compare two states of the machine. Here every round measures both sides back to back,
//! in alternating order, and the result is the median of the rounds' ratios.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The result of [`ratio`]. Displays as one line: `ratio 0.81 (ours 29.1 ms, baseline 36.0 ms, 30 rounds, middle half 0.78
/// to 0.85)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    /// The median over the rounds of our time divided by the baseline's. Below 1, our side is faster.
    pub median: f64,
    /// The first and the third quartile of the rounds' ratios.
    pub quartiles: (f64, f64),
    /// The median time of our side.
    pub ours: Duration,
    /// The median time of the baseline.
    pub baseline: Duration,
    /// The number of measured rounds.
    pub rounds: usize,
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.quartiles;
        let (ours, baseline) = (self.ours.as_secs_f64() * 1e3, self.baseline.as_secs_f64() * 1e3);
        write!(
            f,
            "ratio {:.3} (ours {ours:.3} ms, baseline {baseline:.3} ms, {} rounds, middle half {low:.3} to {high:.3})",
            self.median, self.rounds
        )
    }
}

/// Measures `rounds` interleaved pairs (at least one) and returns the median of their ratios, ours over baseline.
///
/// Each closure does its own set-up and returns only the time to compare; [`timed`] helps. One unmeasured call of each
/// closure comes first. The order of the two sides alternates from round to round.
///
/// ```
/// use qi_benches::{ratio, timed};
/// use std::hint::black_box;
///
/// let half = ratio(
///     9,
///     || timed(|| (0..20_000u64).map(black_box).sum::<u64>()),
///     || timed(|| (0..40_000u64).map(black_box).sum::<u64>()),
/// );
/// println!("{half}");
/// assert_eq!(half.rounds, 9);
/// ```
pub fn ratio(
    rounds: usize,
    mut ours: impl FnMut() -> Duration,
    mut baseline: impl FnMut() -> Duration,
) -> Ratio {
    let rounds = rounds.max(1);
    ours();
    baseline();
    let pairs: Vec<(Duration, Duration)> = (0..rounds)
        .map(|round| {
            if round % 2 == 0 {
                let first = ours();
                (first, baseline())
            } else {
                let first = baseline();
                (ours(), first)
            }
        })
        .collect();
    let mut ratios: Vec<f64> =
        pairs.iter().map(|(a, b)| a.as_secs_f64() / b.as_secs_f64().max(1e-9)).collect();
    ratios.sort_by(f64::total_cmp);
    Ratio {
        median: at(&ratios, 2),
        quartiles: (at(&ratios, 1), at(&ratios, 3)),
        ours: median(pairs.iter().map(|pair| pair.0)),
        baseline: median(pairs.iter().map(|pair| pair.1)),
        rounds,
    }
}

/// Returns the median of some times (the upper middle of an even number), or zero without times.
pub fn median(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Returns the processor time of this process so far, to 10 ms. Returns 0 where the system has no `/proc`.
pub fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program is in parentheses, and may contain spaces. User and system time are the fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Returns the result of `work`, and the largest private memory that a process whose command line contains `name` had
/// during it, in KiB (`RssAnon`, read every 20 ms). Returns 0 KiB where the system has no `/proc`.
pub fn peak_memory_of<T>(name: &str, work: impl FnOnce() -> T) -> (T, u64) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !ended.load(Ordering::Relaxed) {
                peak = peak.max(private_memory_of(name));
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let result = work();
        ended.store(true, Ordering::Relaxed);
        (result, watch.join().unwrap_or_default())
    })
}

fn private_memory_of(name: &str) -> u64 {
    let memory = |folder: &Path| -> Option<u64> {
        let command = std::fs::read(folder.join("cmdline")).ok()?;
        if !String::from_utf8_lossy(&command).contains(name) {
            return None;
        }
        let status = std::fs::read_to_string(folder.join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| memory(&process.path())).max().unwrap_or_default()
}

/// Returns the duration of `work`. The result is kept from the optimiser and dropped after the measurement.
pub fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let result = std::hint::black_box(work());
    let took = start.elapsed();
    drop(result);
    took
}

/// Returns the value of an environment variable, unless it is empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns a new name for tables, schemas and topics.
pub fn unique() -> String {
    let nanos =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    format!("bench_{}_{nanos:08x}", std::process::id())
}

fn at(sorted: &[f64], quarter: usize) -> f64 {
    sorted[(sorted.len() - 1) * quarter / 4]
}

/// A section of a benchmark, and the function that runs it.
pub type Section<R> = (&'static str, fn(&R));

/// Runs the sections of a benchmark that the arguments name, or all of them. `--rounds N` sets the number of rounds.
/// `open` returns the rig, or prints why nothing can be measured.
///
/// An unknown argument ends the process.
///
/// # Panics
/// If no number follows `--rounds`.
pub fn sections<R, const N: usize>(
    sections: [Section<R>; N],
    mut rounds: usize,
    open: impl FnOnce(usize) -> Option<R>,
) {
    let (mut arguments, mut chosen) = (std::env::args().skip(1), Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => {
                let number = arguments.next().and_then(|text| text.parse().ok());
                rounds = number.expect("--rounds takes a number");
            }
            // Arguments for the other benchmarks of this crate, and of cargo.
            "ratios" | "--bench" => {}
            name if sections.iter().any(|(section, _)| *section == name) => chosen.push(argument),
            other => {
                let names = sections.map(|(name, _)| name).join(", ");
                eprintln!("unknown argument {other}; the sections are {names}");
                std::process::exit(2);
            }
        }
    }
    let Some(rig) = open(rounds) else { return };
    for (name, run) in sections {
        if chosen.is_empty() || chosen.iter().any(|c| c == name) {
            println!("\n[{name}]");
            run(&rig);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_a_robust_median() {
        let ms = Duration::from_millis;
        let mut ours = [10, 10, 900, 10, 10, 10].map(ms).into_iter();
        let mut baseline = [20, 20, 20, 20, 1, 20].map(ms).into_iter();
        let result = ratio(5, || ours.next().unwrap(), || baseline.next().unwrap());
        assert!((result.median - 0.5).abs() < 1e-9, "{result}");
        assert_eq!((result.ours, result.baseline, result.rounds), (ms(10), ms(20), 5));
    }
}
