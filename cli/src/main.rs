//! The operator's tool. `--help` lists the commands.
//!
//! Exit codes: 0 success, 1 failure or difference or missing schema or topic, 2 wrong usage or configuration, 130 and
//! 143 stopped by SIGINT and SIGTERM.

mod arguments;

use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use clap::Parser;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use qi_adapters::Config;
#[cfg(feature = "archive")]
use qi_cli::archive;
use qi_cli::output::{Format, Listing, printable};
use qi_cli::{Series, check, copy, dlq, import, migrate, query, replay, topics};
use qi_core::Datasets;
use qi_core::record::{Owner, SeriesKey};
use qi_core::store::BarQuery;
use qi_core::{Bar, Error, PriceStore, PriceTick, Result, ResultExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "archive")]
use arguments::ExportArguments;
use arguments::{
    Command, CopyArguments, Dlq, ImportArguments, InstrumentRange, Options, Part, Query, RedriveArguments,
    ReplayArguments,
};

const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// Most warnings of librdkafka are temporary. A permanent condition becomes an error of the bus.
const DEFAULT_LOG: &str = "warn,librdkafka=error";

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT_LOG.into()),
        )
        .with_writer(io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime.permanent("cli.runtime", "start") {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, FAILED),
    };
    let code = runtime.block_on(async {
        let builder = match &options.config {
            Some(path) => Config::builder().file(path),
            None => Config::builder(),
        };
        let config = builder.environment().datasets(options.datasets()).build();
        match config {
            Ok(config) => run(options, &config).await,
            Err(error) => fail(&error, USAGE),
        }
    });
    runtime.shutdown_background();
    code
}

async fn run(options: Options, config: &Config) -> ExitCode {
    let stop = Stop::default();
    if let Err(error) = stop.listen() {
        return fail(&error, FAILED);
    }
    let work = perform(options, config, &stop);
    tokio::pin!(work);
    let outcome = tokio::select! {
        outcome = &mut work => outcome,
        // Copies, replays, imports and dead letter commands end in order. Other commands are dropped.
        () = stop.overdue() => return ExitCode::from(stop.code()),
    };
    match outcome {
        Ok(_) if stop.code() > 0 => ExitCode::from(stop.code()),
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error)
            if error.kind() == qi_core::ErrorKind::Config
                || [dlq::INVALID_TARGET, "archive.range", "archive.settings"].contains(&error.code()) =>
        {
            fail(&error, USAGE)
        }
        Err(error) => fail(&error, FAILED),
    }
}

/// Executes the command and returns true if it succeeded.
async fn perform(options: Options, config: &Config, stop: &Stop) -> Result<bool> {
    let datasets = options.datasets();
    let Options { config: _, store, all_datasets: _, format, command } = options;
    let store_word = store.unwrap_or_else(|| config.store_backend().to_owned());
    let open_store = || config.open_store_as(&store_word);
    match command {
        Command::Check { write } => {
            let mut findings = check::Findings::default();
            match open_store().await {
                Ok(store) => {
                    let name = format!("store {store_word}");
                    let answers = findings.store(&name, &store, &datasets).await;
                    if write && answers {
                        findings.check_write(&name, &store).await;
                    }
                }
                Err(error) => findings.open_failed(&format!("store {store_word}"), &error),
            }
            let name = format!("bus {}", config.bus_backend());
            match config.open_bus().await {
                Ok(bus) => findings.bus(&name, &bus, &config.catalogue()?).await,
                Err(error) => findings.open_failed(&name, &error),
            }
            show(&findings.listing(), format)?;
            Ok(findings.passed())
        }
        Command::Migrate { dry_run } => {
            let mut listing = migrate::listing();
            let (store_name, store) = (format!("store {store_word}"), open_store().await?);
            let (bus, catalogue) = (config.open_bus().await?, config.catalogue()?);
            let bus_name = format!("bus {}", config.bus_backend());
            let well = if dry_run {
                migrate::plan_store(&store_name, &*store, &mut listing).await?;
                migrate::plan_bus(&bus_name, &*bus, &catalogue, &mut listing).await?;
                true
            } else {
                migrate::store(&store_name, &*store, &mut listing).await?;
                migrate::bus(&bus_name, &*bus, &catalogue, &mut listing).await?
            };
            show(&listing, format)?;
            Ok(well)
        }
        Command::Topics => {
            show(&topics::topics(&*config.open_bus().await?).await?, format)?;
            Ok(true)
        }
        Command::Lag { groups, partitions } => {
            show(&topics::lag(&*config.open_bus().await?, groups, partitions).await?, format)?;
            Ok(true)
        }
        Command::Query(query) => {
            show(&ask(&*open_store().await?, query).await?, format)?;
            Ok(true)
        }
        Command::Copy(arguments) => copy(config, arguments, stop, format).await,
        Command::Replay(arguments) => {
            let (bus, store) = (config.open_bus().await?, open_store().await?);
            replay(&*bus, &*store, (arguments, datasets), stop).await
        }
        #[cfg(feature = "archive")]
        Command::Export(arguments) => {
            export(&*open_store().await?, (arguments, datasets), stop, format).await
        }
        Command::Import(arguments) => {
            #[cfg(feature = "archive")]
            if let Some(address) = archive_of(&arguments)? {
                return import_archive(&*open_store().await?, (address, arguments), datasets, stop, format)
                    .await;
            }
            refuse_archive_options(&arguments)?;
            // The files are opened first: an error in them needs no server.
            let (files, plan) = open_files(arguments).await?;
            import(open_store().await?, files, plan, stop, format).await
        }
        Command::Dlq(command) => dead_letters(&*config.open_bus().await?, command, stop, format).await,
    }
}

async fn dead_letters(
    bus: &dyn qi_core::MessageBus,
    command: Dlq,
    stop: &Stop,
    format: Format,
) -> Result<bool> {
    let (unread, well) = match command {
        Dlq::List { source, selection } => {
            let topic = source.optional_name()?;
            let listed = dlq::list(bus, topic.as_ref(), &selection.into(), &stop.graceful).await?;
            show(&listed.listing(), format)?;
            (listed.unread, !listed.interrupted)
        }
        Dlq::Show { source, selection, limit, newest, full } => {
            let view = dlq::View { limit, newest, full };
            let shown = dlq::show(bus, &source.name()?, &selection.into(), view, &stop.graceful).await?;
            show(&shown.listing(format), format)?;
            (shown.unread, !shown.interrupted)
        }
        Dlq::Redrive(arguments) => {
            let redriven = redrive(bus, arguments, stop).await?;
            show(&redriven.listing(), format)?;
            let well = redriven.is_complete();
            (redriven.unread, well)
        }
    };
    for partition in &unread {
        say(format_args!("{partition}"));
    }
    Ok(well && unread.is_empty())
}

async fn redrive(
    bus: &dyn qi_core::MessageBus,
    arguments: RedriveArguments,
    stop: &Stop,
) -> Result<dlq::RedriveReport> {
    let RedriveArguments { source, selection, to, max_redrives, progress, dry_run } = arguments;
    let (topic, has_progress) = (source.name()?, progress.is_some());
    let plan = dlq::Plan { topic, to, selection: selection.into(), max_redrives, progress, dry_run };
    let published = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = published.clone();
    let bar = spinner("redriven", move || counter.load(Ordering::Relaxed));
    let progress = |messages| published.store(messages, Ordering::Relaxed);
    let redriven = dlq::redrive(bus, &plan, &stop.graceful, progress).await;
    bar.finish_and_clear();
    let redriven = redriven?;
    for failure in &redriven.counts.failures {
        say(format_args!("failed: {}", printable(failure)));
    }
    if let Some(error) = &redriven.error {
        complain(error);
    }
    if redriven.was_finished {
        say(format_args!("an earlier run with this progress file has finished; nothing was published"));
    } else if dry_run {
        say(format_args!("dry run; nothing was published"));
    } else if (redriven.interrupted || redriven.error.is_some()) && has_progress {
        say(format_args!("stopped before the end; the same command continues"));
    } else if redriven.interrupted {
        say(format_args!(
            "stopped before the end; without --progress the same command starts from the beginning"
        ));
    }
    Ok(redriven)
}

async fn ask(store: &dyn PriceStore, query: Query) -> Result<Listing> {
    let range = |dataset, owner, interval, Part { times, newest, limit }: Part| async move {
        let series = Series { dataset, key: SeriesKey { owner, interval } };
        query::records(store, series, times.range()?, newest, limit).await
    };
    match query {
        Query::Latest { series, dataset, interval, limit } => {
            let owners = series.iter().map(|name| query::owner(dataset, name)).collect::<Result<_>>()?;
            query::latest(store, dataset, owners, interval, limit).await
        }
        Query::Records { dataset, series, interval, part } => {
            range(dataset, query::owner(dataset, &series)?, interval, part).await
        }
        Query::Ticks { range: InstrumentRange { instrument, part } } => {
            range(PriceTick::DATASET, Owner::Instrument(instrument), None, part).await
        }
        Query::Bars { range: InstrumentRange { instrument, part }, interval, stored: true } => {
            range(Bar::DATASET, Owner::Instrument(instrument), Some(interval), part).await
        }
        Query::Bars { range: InstrumentRange { instrument, part }, interval, stored: false } => {
            let Part { times, newest, limit } = part;
            let query = BarQuery::new(instrument, interval, times.range()?);
            query::derived_bars(store, query, newest, limit).await
        }
    }
}

async fn copy(config: &Config, arguments: CopyArguments, stop: &Stop, format: Format) -> Result<bool> {
    let CopyArguments { from, to, datasets, instruments, times, progress } = arguments;
    if from == to {
        return Err(Error::invalid("copy.to", "to", to, "must be another backend than --from"));
    }
    let datasets = if datasets.is_empty() { Datasets::standard().iter().collect() } else { datasets };
    let (source, target) = (config.open_store_as(&from).await?, config.open_store_as(&to).await?);
    let plan = copy::Plan {
        datasets,
        instruments: instruments.into_iter().collect(),
        range: times.range()?,
        progress,
    };
    let mut copy = copy::Copy::new(source, target, plan);
    copy.stop = stop.graceful.clone();
    let counter = copy.copied.clone();
    let bar = spinner("copied", move || counter.load(Ordering::Relaxed));
    let outcome = copy.run().await;
    bar.finish_and_clear();
    let outcome = outcome?;
    if outcome == copy::Outcome::Interrupted {
        say(format_args!(
            "stopped after {} records; the same command goes on",
            copy.copied.load(Ordering::Relaxed)
        ));
        return Ok(false);
    }
    show(&outcome.listing(), format)?;
    Ok(outcome.is_equal())
}

async fn replay(
    bus: &dyn qi_core::MessageBus,
    store: &dyn PriceStore,
    (arguments, datasets): (ReplayArguments, Datasets),
    stop: &Stop,
) -> Result<bool> {
    let ReplayArguments { topic, since, until, wait } = arguments;
    let plan = replay::Plan { topic, datasets, since, until, wait };
    store.ensure_schema().await?;
    let stored = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = stored.clone();
    let bar = spinner("stored", move || counter.load(Ordering::Relaxed));
    let progress = |records| stored.store(records, Ordering::Relaxed);
    let replayed = replay::run(bus, store, &plan, &stop.graceful, progress).await;
    bar.finish_and_clear();
    let replayed = replayed?;
    for error in &replayed.errors {
        complain(error);
    }
    for unreached in &replayed.unreached {
        say(format_args!("{unreached}"));
    }
    let replay::ReplayReport { stored, unreadable, interrupted, .. } = replayed;
    let stopped = if interrupted { "; stopped before the end" } else { "" };
    say(format_args!("{stored} records stored, {unreadable} messages were none{stopped}"));
    Ok(replayed.is_complete())
}

/// Returns the address of an archive, or None for files of exchanges.
#[cfg(feature = "archive")]
fn archive_of(arguments: &ImportArguments) -> Result<Option<String>> {
    let mut addresses = arguments.files.iter().filter_map(|path| path.to_str());
    let Some(address) = addresses.find(|address| archive::is_archive(address)) else { return Ok(None) };
    let usage = |message: &str| {
        Err(Error::new(qi_core::ErrorKind::Config, "import.archive", "import").with_message(message))
    };
    if arguments.files.len() > 1 {
        return usage("an archive must be the only argument");
    }
    let ImportArguments { input_format, columns, input_interval, strict, .. } = arguments;
    if input_format.is_some() || columns.is_some() || input_interval.is_some() || *strict {
        return usage("--input-format, --columns, --input-interval and --strict are for files of exchanges");
    }
    Ok(Some(address.to_owned()))
}

fn refuse_archive_options(arguments: &ImportArguments) -> Result<()> {
    if arguments.datasets.is_empty() && arguments.times.since.is_none() && arguments.times.until.is_none() {
        return Ok(());
    }
    Err(Error::new(qi_core::ErrorKind::Config, "import.files", "import")
        .with_message("--dataset, --since and --until are for archives"))
}

#[cfg(feature = "archive")]
async fn export(
    store: &dyn PriceStore,
    (arguments, all): (ExportArguments, Datasets),
    stop: &Stop,
    format: Format,
) -> Result<bool> {
    let ExportArguments { archive, datasets, instruments, times, period, floats, verify, concurrency } =
        arguments;
    let datasets = if datasets.is_empty() { all.iter().collect() } else { datasets };
    let mut options = qi_arrow::ExportOptions::new(datasets);
    options.instruments = instruments.into_iter().collect();
    options.range = times.range()?;
    options.period =
        if period == "month" { qi_arrow::PeriodLength::Month } else { qi_arrow::PeriodLength::Day };
    options.decimals = if floats { qi_arrow::Decimals::Float64 } else { qi_arrow::Decimals::Exact };
    options.verify_existing = verify;
    options.concurrency = concurrency.into();
    options.stop = stop.graceful.clone();
    let archive = qi_arrow::Archive::create(&archive)?;
    let counter = options.progress.clone();
    let bar = spinner("read", move || counter.load(Ordering::Relaxed));
    let report = qi_arrow::export(store, &archive, &options).await;
    bar.finish_and_clear();
    let report = report?;
    if report.interrupted {
        say(format_args!("stopped before the end; the same command continues"));
        return Ok(false);
    }
    show(&archive::exported(&report), format)?;
    if report.series.is_empty() {
        say(format_args!("the store has no records"));
    }
    if report.orphaned > 0 {
        let files = report.orphaned;
        say(format_args!("{files} files of the archive belong to series that the store does not have"));
    }
    Ok(true)
}

#[cfg(feature = "archive")]
async fn import_archive(
    store: &dyn PriceStore,
    (address, arguments): (String, ImportArguments),
    known: Datasets,
    stop: &Stop,
    format: Format,
) -> Result<bool> {
    let ImportArguments { instrument, datasets, times, .. } = arguments;
    let mut options = qi_arrow::ImportOptions::new(known);
    options.instruments = instrument.into_iter().collect();
    options.datasets = datasets;
    options.range = times.range()?;
    options.stop = stop.graceful.clone();
    let counter = options.progress.clone();
    let archive = qi_arrow::Archive::open(&address)?;
    store.ensure_schema().await?;
    let bar = spinner("stored", move || counter.load(Ordering::Relaxed));
    let report = qi_arrow::import(store, &archive, &options).await;
    bar.finish_and_clear();
    let report = report?;
    for (file, error) in &report.failures {
        say(format_args!("{}: {}", printable(file), printable(&error.report())));
    }
    let more = report.failed.saturating_sub(report.failures.len() as u64);
    if more > 0 {
        say(format_args!("... and {more} more failures"));
    }
    if report.failures.iter().any(|(_, error)| error.code() == "archive.dataset") {
        say(format_args!("--all-datasets opens all datasets of the library"));
    }
    show(&archive::imported(&report), format)?;
    if report.interrupted {
        say(format_args!("stopped before the end; the same command continues"));
    } else if report.series.is_empty() && report.failed == 0 {
        say(format_args!("the archive has no file that the options select"));
        return Ok(false);
    }
    Ok(report.is_good())
}

async fn open_files(arguments: ImportArguments) -> Result<(qi_files::Files, import::Plan)> {
    let ImportArguments { files, input_format, columns, instrument, input_interval, strict, .. } = arguments;
    let options = qi_files::FileOptions::default().format(input_format).columns(columns);
    let options = options.instrument(instrument).interval(input_interval);
    let opened = tokio::task::spawn_blocking(move || qi_files::open(&files, &options)).await;
    Ok((opened.permanent("import", "open")??, import::Plan { strict }))
}

async fn import(
    store: Arc<dyn PriceStore>,
    files: qi_files::Files,
    plan: import::Plan,
    stop: &Stop,
    format: Format,
) -> Result<bool> {
    let stored = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let bar = bytes_bar(files.progress.clone(), stored.clone());
    let imported = import::run(store, files, plan, &stop.graceful, stored).await;
    bar.finish_and_clear();
    let imported = imported?;
    for error in &imported.bad_lines {
        complain(error);
    }
    let more = imported.bad().saturating_sub(imported.bad_lines.len() as u64);
    if more > 0 {
        say(format_args!("... and {more} more bad lines"));
    }
    show(&imported.listing(), format)?;
    if let Some(error) = &imported.error {
        complain(error);
    } else if imported.interrupted {
        say(format_args!("stopped before the end; the same command stores the same records again"));
    } else if imported.records() == 0 {
        say(format_args!("the files have no record"));
    } else if !imported.is_good() {
        say(format_args!("more bad lines ({}) than records ({})", imported.bad(), imported.records()));
    }
    Ok(imported.is_good())
}

/// Shows the number of bytes that were read from the files, on a terminal.
fn bytes_bar(progress: qi_files::Progress, stored: Arc<std::sync::atomic::AtomicU64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(progress.total());
    if let Ok(style) =
        ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} read, {msg} stored  {eta}")
    {
        bar.set_style(style);
    }
    let watched = bar.downgrade();
    tokio::spawn(async move {
        while let Some(bar) = watched.upgrade() {
            bar.set_position(progress.read());
            bar.set_message(HumanCount(stored.load(Ordering::Relaxed)).to_string());
            drop(bar);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    bar
}

/// The stop signal. The first SIGINT or SIGTERM stops in order. A second one, or ten seconds, stops at once.
#[derive(Debug, Default)]
struct Stop {
    graceful: CancellationToken,
    immediate: CancellationToken,
    code: Arc<AtomicU8>,
}

impl Stop {
    fn listen(&self) -> Result<()> {
        let on = |kind: SignalKind| signal(kind).permanent("cli.signal", "listen");
        let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
        let (graceful, immediate, code) = (self.graceful.clone(), self.immediate.clone(), self.code.clone());
        tokio::spawn(async move {
            // The convention of shells: 128 plus the number of the signal.
            let first = tokio::select! { _ = interrupt.recv() => 130, _ = terminate.recv() => 143 };
            code.store(first, Ordering::Relaxed);
            graceful.cancel();
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = tokio::time::sleep(Duration::from_secs(10)) => {}
            }
            immediate.cancel();
        });
        Ok(())
    }

    async fn overdue(&self) {
        self.immediate.cancelled().await;
    }

    /// Returns the exit code of the first signal, or 0 without a signal.
    fn code(&self) -> u8 {
        self.code.load(Ordering::Relaxed)
    }
}

/// Shows a rising count on a terminal.
fn spinner(what: &'static str, count: impl Fn() -> u64 + Send + 'static) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template(&format!("{{spinner}} {{human_pos}} {what}  {{per_sec}}"))
    {
        bar.set_style(style);
    }
    let watched = bar.downgrade();
    tokio::spawn(async move {
        while let Some(bar) = watched.upgrade() {
            bar.set_position(count());
            drop(bar);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    bar
}

fn show(listing: &Listing, format: Format) -> Result<()> {
    listing.write(format, &mut io::stdout().lock()).permanent("cli.output", "write")
}

fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "qi: {what}");
}

fn complain(error: &Error) {
    say(format_args!("{}", printable(&error.report())));
}

fn fail(error: &Error, code: u8) -> ExitCode {
    complain(error);
    ExitCode::from(code)
}
