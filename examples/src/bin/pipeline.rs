//! Market data through a bus into a store, and bars read back. `--help` lists the options.
//!
//! Exit codes: 0 done, 1 failed or an agent did not end in time, 2 wrong usage or configuration, 130 and 143 after
//! a clean stop by SIGINT and SIGTERM.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use metrics_exporter_prometheus::PrometheusHandle;
use qi_adapters::Config;
use qi_core::bus::MemberId;
use qi_core::health::Health;
use qi_core::{Error, ErrorKind, Instrument, Interval, Result, ResultExt as _};
use qi_examples::pipeline::source::{self, Format};
use qi_examples::pipeline::{Data, Job, Stop, Summary, Tally};
use qi_examples::probes;
use qi_testkit::market::{Market, MarketConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

const USAGE: u8 = 2;
const FAILED: u8 = 1;

/// Market data -> bus topic -> writer agent -> store -> bars and latest prices read back.
///
/// With no options a simulated market of 200,000 ticks goes through a bus and a store in memory.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// The configuration that picks the backends; without it everything is in memory. QI__... variables override.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A recorded file, plain or gzip, in place of the simulated market.
    #[arg(long, value_name = "FILE", requires_all = ["format", "instrument"])]
    input: Option<PathBuf>,
    /// The format of the recorded file.
    #[arg(long, value_enum, requires = "input")]
    format: Option<Format>,
    /// The instrument of the recorded file, or the one of the simulated market to export.
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
    /// Serves /livez, /startupz, /readyz and /metrics over HTTP while the job runs; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The writer's name in its group: after a kill, the next one of that name goes on at once.
    #[arg(long, value_name = "NAME")]
    member: Option<MemberId>,
    /// How many ticks the simulated market has.
    #[arg(long, default_value_t = 200_000, conflicts_with = "input")]
    ticks: usize,
    /// How many instruments the simulated market has.
    #[arg(long, default_value_t = 10, conflicts_with = "input")]
    instruments: usize,
    /// The seed of the simulated market.
    #[arg(long, default_value_t = 1, conflicts_with = "input")]
    seed: u64,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime.permanent("pipeline.runtime", "start") {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, FAILED),
    };
    let code = runtime.block_on(async {
        // Before anything else, so that a signal ends the job in order from now on.
        let stop = Stop::default();
        match listen(&stop) {
            Ok(signalled) => run(stop, &signalled).await,
            Err(error) => fail(&error, FAILED),
        }
    });
    // What still blocks a thread must not hold up the end.
    runtime.shutdown_background();
    code
}

async fn run(stop: Stop, signalled: &AtomicI32) -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let json = options.json;
    let tally = Arc::new(Tally::default());
    let total = if options.input.is_none() { Some(options.ticks as u64) } else { None };
    let job = match prepare(options, &stop, &tally).await {
        Ok(job) => job,
        Err(error) => return fail(&error, USAGE),
    };
    let bar = watch(&tally, total);
    let result = job.run().await;
    bar.finish_and_clear();
    for error in tally.first_bad_lines() {
        complain(&error);
    }
    let more = tally.bad_lines().saturating_sub(tally.first_bad_lines().len() as u64);
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
                0 => ExitCode::SUCCESS,
                // The shell's convention: 128 and the number of the signal.
                number => ExitCode::from(128 + u8::try_from(number).unwrap_or(0)),
            }
        }
    }
}

/// The first SIGINT or SIGTERM stops gently, a second one at once. The number of the first is kept.
fn listen(stop: &Stop) -> Result<Arc<AtomicI32>> {
    let on = |kind: SignalKind| signal(kind).permanent("pipeline.signal", "listen");
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let first = Arc::new(AtomicI32::new(0));
    let (kept, stop) = (Arc::clone(&first), stop.clone());
    tokio::spawn(async move {
        kept.store(either(&mut interrupt, &mut terminate).await.as_raw_value(), Ordering::Relaxed);
        stop.gently.cancel();
        either(&mut interrupt, &mut terminate).await;
        stop.now.cancel();
    });
    Ok(first)
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
    }
}

async fn prepare(options: Options, stop: &Stop, tally: &Arc<Tally>) -> Result<Job> {
    let config = match &options.config {
        Some(path) => Config::load(path)?,
        None => Config::builder().environment().build()?,
    };
    let instrument = options.instrument;
    let (data, known) = match (&options.input, options.format, &instrument) {
        (Some(path), Some(Format::Candles), Some(name)) => {
            let (bars, interval) = source::candles(path, name)?;
            (Data::Bars(bars, interval), vec![name.clone()])
        }
        (Some(path), Some(format), Some(name)) => {
            (Data::Ticks(source::trades(path, format, name)?), vec![name.clone()])
        }
        _ => {
            let market = MarketConfig::new(options.seed, options.instruments)?;
            let known = market.instruments.clone();
            (Data::Ticks(Box::new(Market::new(market)?.take(options.ticks).map(Ok))), known)
        }
    };
    if let Some(name) = instrument.as_ref().filter(|name| !known.contains(name)) {
        return Err(Error::invalid("pipeline.instrument", "instrument", name, "must be one of the market's"));
    }
    if let (Some(input), Some(export)) = (&options.input, &options.export)
        && input.canonicalize().is_ok_and(|input| export.canonicalize().is_ok_and(|export| export == input))
    {
        let rule = "must not be the input, which it would replace";
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
    // The exporter comes first: what is opened keeps the one that it finds.
    let metrics =
        options.listen.map(|address| Ok::<_, Error>((address, probes::install_metrics()?))).transpose()?;
    let (store, bus) = (config.open_store().await?, config.open_bus().await?);
    let health =
        Health::new().store(config.store_backend(), store.clone()).bus(config.bus_backend(), bus.clone());
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
    job.tally = Arc::clone(tally);
    job.stop = stop.clone();
    job.on_deadline_exceeded = Some(Box::new(|report| {
        let late: Vec<_> = report.leaked().map(|agent| agent.name.to_string()).collect();
        let _ = writeln!(std::io::stderr(), "pipeline: did not end in time: {}", late.join(", "));
        std::process::exit(i32::from(FAILED));
    }));
    job.check()?;
    Ok(job)
}

/// Serves probes and metrics from a task that ends with the program.
async fn listen_on(address: SocketAddr, health: Arc<Health>, metrics: PrometheusHandle) -> Result<()> {
    let refuse = |error| {
        Error::new(ErrorKind::Config, "pipeline.listen", "listen")
            .with_message("cannot listen there")
            .with_context("address", address)
            .with_source(error)
    };
    let listener = TcpListener::bind(address).await.map_err(refuse)?;
    let bound = listener.local_addr().map_err(refuse)?;
    let _ = writeln!(std::io::stderr(), "pipeline: listening on http://{bound}");
    tokio::spawn(probes::serve(listener, health, metrics));
    Ok(())
}

/// A bar on a terminal, nothing in a pipe.
fn watch(tally: &Arc<Tally>, total: Option<u64>) -> ProgressBar {
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let template = if total.is_some() {
        "{wide_bar} {human_pos}/{human_len} stored  {per_sec}  {eta}"
    } else {
        "{spinner} {human_pos} stored  {per_sec}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let (watched, tally) = (bar.downgrade(), Arc::clone(tally));
    tokio::spawn(async move {
        while let Some(bar) = watched.upgrade() {
            bar.set_position(tally.stored());
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
            "stopped: {published} published, {stored} stored; what is not committed comes again from a durable bus"
        )
    } else {
        summary.table()
    };
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // A reader that has read enough is no failure.
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
