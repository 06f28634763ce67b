//! The main job: market data through a bus into a store, and bars read back. `--help` lists the options.
//!
//! Exit codes: 0 success, 1 failure or an agent that did not end in time, 2 wrong usage or configuration, 130 and 143
//! after an orderly stop by SIGINT and SIGTERM.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use clap::Parser;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use metrics_exporter_prometheus::PrometheusHandle;
use qi_adapters::Config;
use qi_core::bus::GroupInstanceId;
use qi_core::health::HealthChecker;
use qi_core::{Datasets, Error, ErrorKind, Instrument, Interval, Result, ResultExt as _};
use qi_examples::pipeline::{Data, Job, JobCounters, Live, Stop, Summary};
use qi_examples::probes;
use qi_files::coverage::Coverage;
use qi_files::{ColumnMap, FileOptions, Format, Progress};
use qi_testkit::market::{Market, MarketConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

const USAGE: u8 = 2;
const FAILED: u8 = 1;

/// Sends market data through a bus topic and a writer agent into a store, and reads bars and latest prices back.
///
/// Without options, a simulated market of 200,000 ticks goes through a bus and a store in memory.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// The configuration file. Without it all backends are in memory. QI__... variables override both.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Market data files of exchanges, instead of the simulated market: plain, .gz, .zst or .zip. The content
    /// determines the format.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    input: Vec<PathBuf>,
    /// The format of files whose content does not determine it: binance kraken kraken-rest bybit okx tardis candles.
    #[arg(long, requires = "input")]
    format: Option<Format>,
    /// The columns of CSV files, by number from 0 or by header name: time=0,price=1,quantity=2.
    #[arg(long, value_name = "COLUMNS", requires = "input", conflicts_with = "format")]
    columns: Option<ColumnMap>,
    /// The interval of the candles in the files, if neither file names nor rows contain it. Selects the entries of an
    /// archive with several intervals.
    #[arg(long, value_name = "INTERVAL", requires = "input")]
    input_interval: Option<Interval>,
    /// Instruments whose live trades are stored until a stop, instead of the simulated market:
    /// binance:BTC-USDT,kraken:BTC-USD. The coverage of the store is recorded; `qi coverage` shows it.
    #[arg(
        long,
        value_name = "EXCHANGE:SYMBOL,...",
        value_delimiter = ',',
        conflicts_with_all = ["input", "export", "instrument"]
    )]
    live: Vec<Instrument>,
    /// The instrument of the files, if they do not contain it; or the simulated instrument to export.
    #[arg(long, value_name = "EXCHANGE:SYMBOL")]
    instrument: Option<Instrument>,
    /// The interval of the bars: 1s 5s 15s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 1w.
    #[arg(long, default_value = "1m")]
    interval: Interval,
    /// Writes the bars of one instrument as CSV.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Prints the summary as JSON on standard output.
    #[arg(long)]
    json: bool,
    /// Stops at the first bad line of the input.
    #[arg(long)]
    strict: bool,
    /// Serves /livez, /startupz, /readyz and /metrics over HTTP while the job runs. Port 0 selects a free port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The writer's static member name in its group. After a kill, the next run with this name continues immediately.
    #[arg(long, value_name = "NAME")]
    member: Option<GroupInstanceId>,
    /// The number of ticks in the simulated market.
    #[arg(long, default_value_t = 200_000, conflicts_with_all = ["input", "live"])]
    ticks: usize,
    /// The number of instruments in the simulated market.
    #[arg(long, default_value_t = 10, conflicts_with_all = ["input", "live"])]
    instruments: usize,
    /// The seed of the simulated market.
    #[arg(long, default_value_t = 1, conflicts_with_all = ["input", "live"])]
    seed: u64,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime.permanent("pipeline.runtime", "start") {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, FAILED),
    };
    let code = runtime.block_on(async {
        // First of all, so that a signal stops the job in order from now on.
        let stop = Stop::default();
        match listen(&stop) {
            Ok(signalled) => run(stop, &signalled).await,
            Err(error) => fail(&error, FAILED),
        }
    });
    // A blocked thread must not delay the exit.
    runtime.shutdown_background();
    code
}

async fn run(stop: Stop, signalled: &AtomicI32) -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_ansi(
            io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        )
        .with_writer(io::stderr)
        .init();
    let json = options.json;
    let counters = Arc::new(JobCounters::default());
    let ticks = options.ticks as u64;
    let (job, progress) = match prepare(options, &stop, &counters).await {
        Ok(prepared) => prepared,
        Err(error) => return fail(&error, code_of(&error)),
    };
    let bar = watch(&counters, progress.as_ref(), ticks);
    let exported = job.export.as_ref().map(|(_, instrument)| instrument.clone());
    let result = job.run().await;
    bar.finish_and_clear();
    for error in counters.first_bad_lines() {
        complain(&error);
    }
    let more = counters.bad_lines().saturating_sub(counters.first_bad_lines().len() as u64);
    if more > 0 {
        let _ = writeln!(std::io::stderr(), "... and {more} more bad lines");
    }
    match result {
        Err(error) => fail(&error, FAILED),
        Ok(summary) => {
            if let Err(error) = show(&summary, json).permanent("pipeline.output", "write") {
                return fail(&error, FAILED);
            }
            match signalled.load(Ordering::Relaxed) {
                0 => verdict(&summary, progress.is_some(), exported.as_ref()),
                // The convention of shells: 128 plus the number of the signal.
                number => ExitCode::from(128 + u8::try_from(number).unwrap_or(0)),
            }
        }
    }
}

/// Returns the exit code of an error before the job began: 2 for wrong usage and configuration, 1 for an unavailable
/// server and a damaged file. `qi` has the same codes.
fn code_of(error: &Error) -> u8 {
    let describes_server =
        ["store.clickhouse.no_database", "store.timescale.no_database"].contains(&error.code());
    let is_usage = matches!(error.kind(), ErrorKind::Config | ErrorKind::InvalidInput);
    if is_usage && !describes_server { USAGE } else { FAILED }
}

/// Returns the exit code of a completed job. A job without records, with more bad lines than records, or without its
/// complete export has failed.
fn verdict(summary: &Summary, reads_files: bool, exported: Option<&Instrument>) -> ExitCode {
    let Summary { published, bad_lines, .. } = summary;
    let has_bars =
        |name: &Instrument| summary.instruments.iter().any(|row| row.bars > 0 && row.instrument == *name);
    let problem = if reads_files && *published == 0 {
        "the input has no record".to_owned()
    } else if bad_lines > published {
        format!("the input has more bad lines ({bad_lines}) than records ({published})")
    } else if let Some(name) = exported.filter(|name| !has_bars(name)) {
        format!("no export: {name} has no bars")
    } else if let Some(name) = exported.filter(|_| reads_files && summary.instruments.len() > 1) {
        format!(
            "the export is incomplete: it has {name}, and the input has {} instruments",
            summary.instruments.len()
        )
    } else {
        return ExitCode::SUCCESS;
    };
    let _ = writeln!(io::stderr(), "pipeline: {problem}");
    ExitCode::from(FAILED)
}

/// Listens for SIGINT and SIGTERM. The first signal stops in order, a second one immediately. The result has the first.
fn listen(stop: &Stop) -> Result<Arc<AtomicI32>> {
    let on = |kind: SignalKind| signal(kind).permanent("pipeline.signal", "listen");
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let first = Arc::new(AtomicI32::new(0));
    let (kept, stop) = (Arc::clone(&first), stop.clone());
    tokio::spawn(async move {
        kept.store(either(&mut interrupt, &mut terminate).await.as_raw_value(), Ordering::Relaxed);
        stop.graceful.cancel();
        either(&mut interrupt, &mut terminate).await;
        stop.immediate.cancel();
    });
    Ok(first)
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
    }
}

async fn prepare(
    options: Options,
    stop: &Stop,
    counters: &Arc<JobCounters>,
) -> Result<(Job, Option<Progress>)> {
    let config = match &options.config {
        Some(path) => Config::builder().file(path),
        None => Config::builder(),
    };
    let is_live = !options.live.is_empty();
    let datasets = if is_live { Datasets::standard().with::<Coverage>()? } else { Datasets::standard() };
    let config = config.environment().datasets(datasets).build()?;
    let instrument = options.instrument;
    let (data, known, progress) = if is_live {
        let live = Live::new(options.live);
        live.check()?;
        (Data::Live(Box::new(live)), Vec::new(), None)
    } else if options.input.is_empty() {
        let market = MarketConfig::new(options.seed, options.instruments)?;
        let known = market.instruments.clone();
        (Data::Ticks(Box::new(Market::new(market)?.take(options.ticks).map(Ok))), known, None)
    } else {
        let (paths, how) = (options.input.clone(), FileOptions::default());
        let how = how.format(options.format).columns(options.columns).instrument(instrument.clone());
        let how = how.interval(options.input_interval);
        // Checksums and the interval of candles require a scan of the complete files.
        let opened = tokio::task::spawn_blocking(move || qi_files::open(&paths, &how));
        let files = opened.await.permanent("pipeline.input", "open")??;
        for note in &files.skipped {
            let _ = writeln!(io::stderr(), "pipeline: {note}");
        }
        (files.data.into(), files.instruments, Some(files.progress))
    };
    if let Some(name) = instrument.as_ref().filter(|name| options.input.is_empty() && !known.contains(name)) {
        return Err(Error::invalid("pipeline.instrument", "instrument", name, "must be one of the market's"));
    }
    if let Some(export) = &options.export
        && options.input.iter().any(|input| qi_files::is_same_file(input, export))
    {
        let rule = "must not be an input, which it would replace";
        return Err(Error::invalid("pipeline.export", "export", export.display(), rule));
    }
    let export = match (options.export, instrument) {
        (None, _) => None,
        (Some(path), Some(name)) => Some((path, name)),
        (Some(path), None) => match <[Instrument; 1]>::try_from(known) {
            Ok([only]) => Some((path, only)),
            Err(known) => {
                return Err(Error::invalid(
                    "pipeline.export",
                    "export",
                    path.display(),
                    format_args!("needs --instrument, because there are {}", known.len()),
                ));
            }
        },
    };
    // The exporter comes first, because a backend keeps the exporter that exists when it is opened.
    let metrics =
        options.listen.map(|address| Ok::<_, Error>((address, probes::install_metrics()?))).transpose()?;
    let (store, bus) = (config.open_store().await?, config.open_bus().await?);
    let health = HealthChecker::new()
        .store(config.store_backend(), store.clone())
        .bus(config.bus_backend(), bus.clone());
    let health = Arc::new(health.expect_agents());
    let mut job = Job::new(store, bus, data)?;
    job.health = Some(health.clone());
    if let Some((address, metrics)) = metrics {
        listen_on(address, health, metrics).await?;
    }
    job.catalogue = config.catalogue()?;
    job.interval = options.interval;
    job.export = export;
    job.strict = options.strict;
    job.member = options.member;
    job.counters = Arc::clone(counters);
    job.stop = stop.clone();
    job.on_deadline_exceeded = Some(Box::new(|report| {
        let late: Vec<_> = report.leaked().map(|agent| agent.name.to_string()).collect();
        let _ = writeln!(std::io::stderr(), "pipeline: did not end in time: {}", late.join(", "));
        std::process::exit(i32::from(FAILED));
    }));
    job.check()?;
    Ok((job, progress))
}

/// Serves probes and metrics in a task that ends with the program.
async fn listen_on(address: SocketAddr, health: Arc<HealthChecker>, metrics: PrometheusHandle) -> Result<()> {
    let reject = |error| {
        Error::new(ErrorKind::Config, "pipeline.listen", "listen")
            .with_message("cannot listen on the address")
            .with_context("address", address)
            .with_source(error)
    };
    let listener = TcpListener::bind(address).await.map_err(reject)?;
    let bound = listener.local_addr().map_err(reject)?;
    let _ = writeln!(std::io::stderr(), "pipeline: listening on http://{bound}");
    tokio::spawn(probes::serve(listener, health, metrics));
    Ok(())
}

/// Shows the progress on a terminal: the bytes of the files, or the ticks of the market. Hidden in a pipe.
fn watch(counters: &Arc<JobCounters>, progress: Option<&Progress>, ticks: u64) -> ProgressBar {
    let bar = ProgressBar::new(progress.map_or(ticks, Progress::total));
    let template = if progress.is_some() {
        "{wide_bar} {bytes}/{total_bytes} read, {msg} stored  {eta}"
    } else {
        "{wide_bar} {human_pos}/{human_len} stored  {eta}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let (watched, counters, progress) = (bar.downgrade(), Arc::clone(counters), progress.cloned());
    tokio::spawn(async move {
        while let Some(bar) = watched.upgrade() {
            bar.set_position(progress.as_ref().map_or_else(|| counters.stored(), Progress::read));
            bar.set_message(HumanCount(counters.stored()).to_string());
            drop(bar);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    bar
}

fn show(summary: &Summary, json: bool) -> io::Result<()> {
    let text = if json {
        serde_json::to_string_pretty(summary)?
    } else if summary.interrupted {
        let Summary { published, stored, .. } = summary;
        format!(
            "stopped: {published} published, {stored} stored; a durable bus redelivers uncommitted messages"
        )
    } else {
        summary.table()
    };
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // A closed pipe, for example to `head`, is not an error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

fn complain(error: &Error) {
    let _ = writeln!(std::io::stderr(), "pipeline: {}", error.report());
}

fn fail(error: &Error, code: u8) -> ExitCode {
    complain(error);
    ExitCode::from(code)
}
