//! The program: reads the command line and the configuration, and executes the command.
//!
//! Exit codes: 0 success, 1 failure or difference or missing schema or topic, 2 wrong usage or configuration, 130 and
//! 143 stopped by SIGINT and SIGTERM. The module `exit` has the codes of errors.

use std::io::{self, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _};
use futures::StreamExt as _;
use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};
use qi_adapters::{Backends, Config};
use qi_core::Datasets;
use qi_core::record::{Owner, SeriesKey};
use qi_core::store::{BarQuery, BarSource, StatsQuery};
use qi_core::{
    Bar, BookSnapshot, Error, FundingRate, Liquidation, MarkPrice, MarketSnapshot, OpenInterest, PriceStore,
    PriceStoreExt as _, PriceTick, Quote, Result, ResultExt as _, Timestamp,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[cfg(feature = "archive")]
use crate::archive;
#[cfg(feature = "archive")]
use crate::arguments::ExportArguments;
use crate::arguments::{
    self, Bars, Command, CopyArguments, Dlq, Groups, ImportArguments, InstrumentRange, Options, Part,
    PersistArguments, Query, RedriveArguments, ReplayArguments, TailArguments, Topics,
};
use crate::exit::{FAILED, USAGE};
use crate::output::{Format, Listing, printable, text};
use crate::session::{MEMORY, Session, warn_of_memory};
use crate::{
    Series, bars, check, copy, coverage, dlq, exit, groups, import, maintain, migrate, query, replay, tail,
    topics,
};

/// Most warnings of librdkafka are temporary. A permanent condition becomes an error of the bus. A slow statement is
/// normal for a tool that reads complete stores.
const DEFAULT_LOG: &str = "warn,librdkafka=error,sqlx::query=error";

/// The configuration file of the current folder, which is read if no other file is named.
const DEFAULT_FILE: &str = "qi.toml";

/// Runs the tool with the built-in backends and these registered ones, and returns the exit code of the process. Reads
/// the command line, the environment and the configuration file.
///
/// A team's own tool is a program of a few lines:
///
/// ```no_run
/// use std::process::ExitCode;
/// use std::sync::Arc;
///
/// use qi_cli::Backends;
/// # use qi_core::{PriceStore, Result};
/// # fn open_mongo(_: String) -> Result<Arc<dyn PriceStore>> { unreachable!() }
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Mongo {
///     url: String,
/// }
///
/// fn main() -> ExitCode {
///     let mongo = Backends::builder()
///         .register_store("mongo", |section| open_mongo(section.deserialize::<Mongo>()?.url));
///     match mongo {
///         Ok(backends) => qi_cli::run(backends.build()),
///         Err(error) => {
///             eprintln!("{error}");
///             ExitCode::FAILURE
///         }
///     }
/// }
/// ```
pub fn run(backends: Backends) -> ExitCode {
    run_with(backends, &Datasets::standard())
}

/// Runs the tool as [`run`], for a program with its own datasets. The commands know these datasets and the datasets of
/// the library.
///
/// ```no_run
/// use qi_cli::Backends;
/// use qi_core::record::Record;
/// use qi_core::{Datasets, Instrument, Percent, Timestamp};
///
/// #[derive(Debug, Clone, PartialEq, Record)]
/// #[record(name = "borrow_rates")]
/// struct BorrowRate {
///     #[series]
///     instrument: Instrument,
///     #[time]
///     ts: Timestamp,
///     rate: Percent,
/// }
///
/// let datasets = Datasets::standard().with::<BorrowRate>()?;
/// qi_cli::run_with(Backends::default(), &datasets); // for example `query records borrow_rates x:Y`
/// # Ok::<(), qi_core::Error>(())
/// ```
pub fn run_with(backends: Backends, datasets: &Datasets) -> ExitCode {
    let command = arguments::with_datasets(Options::command(), datasets);
    let options = command.try_get_matches().and_then(|found| Options::from_arg_matches(&found));
    let options = match options {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            let rendered = error.render().to_string();
            say(format_args!("{}", rendered.strip_prefix("error: ").unwrap_or(&rendered).trim_end()));
            return ExitCode::from(USAGE);
        }
        // The text of `--help` or `--version`.
        Err(error) => error.exit(),
    };
    if let Command::Completions { shell } = options.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Options::command(), "qi", &mut script);
        // A reader that needs only the beginning closes the pipe.
        return match io::stdout().write_all(&script) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::from(FAILED),
            _ => ExitCode::SUCCESS,
        };
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT_LOG.into());
    // A program that has its own subscriber keeps it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(
            io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        )
        .with_writer(io::stderr)
        .try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime.permanent("cli.runtime", "start") {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, FAILED),
    };
    let code = runtime.block_on(async {
        let builder = match config_file(options.config.as_deref()) {
            Some(path) => Config::builder().file(path),
            None => Config::builder(),
        };
        let known = options.datasets(datasets);
        match builder.environment().backends(backends).datasets(known.clone()).build() {
            Ok(config) => {
                let has_others = known.iter().any(|dataset| datasets.position(dataset).is_err());
                let session = Session::new(&config, options.store.as_deref(), known, has_others);
                execute(options, &session).await
            }
            Err(error) => fail(&error, USAGE),
        }
    });
    runtime.shutdown_background();
    code
}

/// Returns the named file, or the file in `QI_CONFIG`, or `qi.toml` if it exists.
fn config_file(named: Option<&Path>) -> Option<PathBuf> {
    let variable = || std::env::var_os("QI_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    // A file that cannot be read, such as a broken symbolic link, is an error and not an absent file.
    let is_absent =
        |path: &PathBuf| path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let default = || Some(PathBuf::from(DEFAULT_FILE)).filter(|path| !is_absent(path));
    named.map(Path::to_owned).or_else(variable).or_else(default)
}

async fn execute(options: Options, session: &Session<'_>) -> ExitCode {
    let stop = Stop::default();
    if let Err(error) = stop.listen() {
        return fail(&error, FAILED);
    }
    let work = async {
        let outcome = perform(options, session, &stop).await;
        let remedy = match &outcome {
            Err(error) => session.remedy(error).await,
            Ok(_) => None,
        };
        // Also after an error, so that a store on the disk is complete.
        (outcome, remedy, session.close().await)
    };
    tokio::pin!(work);
    let (outcome, remedy, unclosed) = tokio::select! {
        ended = &mut work => ended,
        // Copies, replays, imports and dead letter commands end in order. Other commands are dropped.
        () = stop.overdue() => return ExitCode::from(stop.code()),
    };
    let code = match outcome {
        Ok(_) if stop.code() > 0 => stop.code(),
        Ok(true) if unclosed.is_empty() => 0,
        Ok(_) => FAILED,
        Err(error) => {
            complain(&error);
            exit::code(&error)
        }
    };
    if let Some(remedy) = remedy {
        say(format_args!("{remedy}"));
    }
    unclosed.iter().for_each(complain);
    ExitCode::from(code)
}

/// Executes the command and returns true if it succeeded.
async fn perform(options: Options, session: &Session<'_>, stop: &Stop) -> Result<bool> {
    let Options { format, store, command, .. } = options;
    match command {
        Command::Config => {
            show(&settings(session.config, store.as_deref())?, format)?;
            Ok(true)
        }
        Command::Check { write } => check(session, write, format).await,
        Command::Migrate { dry_run } => migrate(session, dry_run, format).await,
        Command::Topics { command: None } => {
            show(&topics::topics(&*session.bus().await?).await?, format)?;
            Ok(true)
        }
        Command::Topics { command: Some(Topics::Describe { topic, settings }) } => {
            let topic = topics::find(&*session.bus().await?, &topic).await?;
            let listing = if settings { topics::settings(&topic) } else { topics::partitions(&topic) };
            show(&listing, format)?;
            Ok(true)
        }
        Command::Tail(arguments) => follow(&*session.bus().await?, arguments, stop, format).await,
        Command::Groups(Groups::Reset { group, topic, to, dry_run }) => {
            show(&groups::reset(&*session.bus().await?, &group, &topic, to, dry_run).await?, format)?;
            if dry_run {
                say(format_args!("dry run; nothing was committed"));
            }
            Ok(true)
        }
        Command::Lag { groups, partitions, max } => {
            let found = topics::groups(&*session.bus().await?, groups.clone()).await?;
            show(&topics::lag_rows(&found, partitions), format)?;
            let problems = max.map_or_else(Vec::new, |max| topics::above(&found, &groups, max));
            for problem in &problems {
                say(format_args!("{problem}"));
            }
            Ok(problems.is_empty())
        }
        Command::Instruments { dataset, exchange, limit } => {
            arguments::check_exchange(dataset, exchange.as_ref())?;
            let store = session.store().await?;
            show_part(query::instruments(&*store, dataset, exchange, more(limit)).await?, limit, format)?;
            Ok(true)
        }
        Command::Query(query) => ask(session, query, format).await,
        Command::Coverage { instruments, unknown, max_unknown, limit } => {
            let named = instruments.clone();
            let report = coverage::read(&*session.store().await?, instruments, unknown).await?;
            show_part(report.listing.clone(), limit, format)?;
            let Some(max) = max_unknown else { return Ok(true) };
            let problems = report.above(&named, max);
            for problem in &problems {
                say(format_args!("{problem}"));
            }
            Ok(problems.is_empty())
        }
        #[cfg(feature = "chart")]
        Command::Chart(arguments) => {
            match stop.graceful.run_until_cancelled(draw(session, arguments)).await {
                Some(drawn) => show(&drawn?, format).map(|()| true),
                None => Ok(false),
            }
        }
        Command::Maintain { until, budget } => {
            let work = maintain(session, until, budget, format);
            stop.graceful.run_until_cancelled(work).await.unwrap_or(Ok(false))
        }
        Command::Bars(Bars::Persist(arguments)) => persist(session, arguments, stop, format).await,
        Command::Copy(arguments) => copy(session, arguments, stop, format).await,
        Command::Replay(arguments) => replay(session, arguments, stop).await,
        #[cfg(feature = "archive")]
        Command::Export(arguments) => export(session, arguments, stop, format).await,
        Command::Import(arguments) => {
            #[cfg(feature = "archive")]
            if let Some(address) = archive_of(&arguments)? {
                return import_archive(session, (address, arguments), stop, format).await;
            }
            reject_archive_options(&arguments)?;
            // The files are opened first: an error in them needs no server.
            let (files, plan) = open_files(arguments).await?;
            import(session.target(&session.backend).await?, files, plan, stop, format).await
        }
        Command::Dlq(command) => dead_letters(session, command, stop, format).await,
        Command::Completions { .. } => Ok(true),
    }
}

async fn check(session: &Session<'_>, write: bool, format: Format) -> Result<bool> {
    let config = session.config;
    let migrate = session.migrate_command(&session.backend);
    let mut findings = check::Findings::default().with_migrate_command(migrate);
    let name = format!("store {}", session.backend);
    match session.store().await {
        Ok(store) => {
            let answers = findings.store(&name, &store, &session.datasets).await;
            if write && answers {
                findings.check_write(&name, &store).await;
            }
        }
        Err(error) if exit::is_usage(&error) => return Err(error),
        Err(error) => findings.open_failed(&name, &error),
    }
    let name = format!("bus {}", config.bus_backend());
    match session.bus().await {
        Ok(bus) if bus.info().backend == MEMORY => findings.bus_in_memory(&name, &bus).await,
        Ok(bus) => findings.bus(&name, &bus, &config.catalogue()?).await,
        Err(error) if exit::is_usage(&error) => return Err(error),
        Err(error) => findings.open_failed(&name, &error),
    }
    show(&findings.listing(), format)?;
    Ok(findings.passed())
}

async fn migrate(session: &Session<'_>, dry_run: bool, format: Format) -> Result<bool> {
    let (config, backend) = (session.config, session.backend.as_str());
    if !dry_run {
        warn_of_memory(backend);
    }
    let mut listing = migrate::listing();
    let (store_name, store) = (format!("store {backend}"), session.store().await?);
    let (bus, catalogue) = (session.bus().await?, config.catalogue()?);
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

/// Lists the settings for the store of `--store`, or for the configured store.
fn settings(config: &Config, store: Option<&str>) -> Result<Listing> {
    let mut listing = Listing::new(["key", "value", "origin"]);
    for setting in store.map_or_else(|| config.settings(), |store| config.settings_as(store))? {
        let is_option = store.is_some() && setting.key == "store.backend";
        let origin = if is_option { "--store".to_owned() } else { setting.origin };
        listing.push([text(setting.key), text(setting.value), text(origin)]);
    }
    Ok(listing)
}

async fn follow(
    bus: &dyn qi_core::MessageBus,
    arguments: TailArguments,
    stop: &Stop,
    format: Format,
) -> Result<bool> {
    let TailArguments { topic, partitions, since, last, no_follow, limit, full } = arguments;
    let start = since.map_or(tail::Start::Last(last), tail::Start::Since);
    let plan = tail::Plan { topic, partitions, start, follow: !no_follow, limit };
    let mut printer = tail::Printer::new(format, full);
    tail::run(bus, &plan, &stop.graceful, |message| printer.print(message, &mut io::stdout().lock())).await?;
    Ok(true)
}

#[cfg(feature = "chart")]
async fn draw(session: &Session<'_>, arguments: crate::arguments::ChartArguments) -> Result<Listing> {
    let crate::arguments::ChartArguments { instrument, interval, times, stored, gaps, out, width, height } =
        arguments;
    let source = if stored { BarSource::Stored } else { BarSource::Derived };
    let query = BarQuery::new(instrument, interval, times.range()?);
    let plan = crate::chart::Plan { query, source, gaps_only: gaps, out, size: (width, height) };
    plan.check()?;
    let store = session.store().await?;
    let drawn = crate::chart::draw(&*store, &plan).await;
    if drawn.as_ref().is_err_and(|error| error.code() == crate::chart::EMPTY) && !stored {
        hint_at_stored_bars(&*store, plan.query).await;
    }
    drawn
}

/// Names `--stored` if the stored dataset has bars of a query for derived bars. Errors do not replace the result.
async fn hint_at_stored_bars(store: &dyn PriceStore, query: BarQuery) {
    let Ok(query) = query.with_limit(1) else { return };
    if let Some(Ok(_)) = store.bar_stream(query, BarSource::Stored).next().await {
        say(format_args!("there are stored bars; `--stored` shows them"));
    }
}

async fn dead_letters(session: &Session<'_>, command: Dlq, stop: &Stop, format: Format) -> Result<bool> {
    let (unread, well) = match command {
        Dlq::List { source, selection } => {
            let (topic, selection) = (source.optional_name()?, selection.try_into()?);
            let bus = session.bus().await?;
            let listed = dlq::list(&*bus, topic.as_ref(), &selection, &stop.graceful).await?;
            show(&listed.listing(), format)?;
            (listed.unread, !listed.interrupted)
        }
        Dlq::Show { source, selection, limit, newest, full } => {
            let (topic, selection) = (source.name()?, selection.try_into()?);
            let (bus, view) = (session.bus().await?, dlq::View { limit, newest, full });
            let shown = dlq::show(&*bus, &topic, &selection, view, &stop.graceful).await?;
            show(&shown.listing(format), format)?;
            (shown.unread, !shown.interrupted)
        }
        Dlq::Redrive(arguments) => {
            let redriven = redrive(session, arguments, stop).await?;
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
    session: &Session<'_>,
    arguments: RedriveArguments,
    stop: &Stop,
) -> Result<dlq::RedriveReport> {
    let RedriveArguments { source, selection, to, max_redrives, progress, dry_run } = arguments;
    let (topic, has_progress) = (source.name()?, progress.is_some());
    let plan = dlq::Plan { topic, to, selection: selection.try_into()?, max_redrives, progress, dry_run };
    let bus = session.bus().await?;
    let published = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = published.clone();
    let bar = spinner("redriven", move || counter.load(Ordering::Relaxed));
    let progress = |messages| published.store(messages, Ordering::Relaxed);
    let redriven = dlq::redrive(&*bus, &plan, &stop.graceful, progress).await;
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

async fn ask(session: &Session<'_>, query: Query, format: Format) -> Result<bool> {
    let instrument_range = |dataset, InstrumentRange { instrument, part }: InstrumentRange| {
        (dataset, Owner::Instrument(instrument), None, part)
    };
    let (dataset, owner, interval, part) = match query {
        Query::Latest { series, dataset, interval, limit } => {
            let owners = series.iter().map(|name| query::owner(dataset, name)).collect::<Result<_>>()?;
            arguments::check_interval(dataset, interval)?;
            let store = session.store().await?;
            let latest = query::latest(&*store, dataset, owners, interval, more(limit)).await?;
            return show_part(latest, limit, format);
        }
        Query::Stats { instrument, times } => {
            let query = StatsQuery::new(instrument, times.range()?);
            show(&query::stats(&*session.store().await?, &query).await?, format)?;
            return Ok(true);
        }
        Query::Bars { range: InstrumentRange { instrument, part }, interval, stored: false } => {
            let Part { times, newest, limit } = part;
            let query = BarQuery::new(instrument, interval, times.range()?);
            let store = session.store().await?;
            let bars = query::derived_bars(&*store, query.clone(), newest, more(limit)).await?;
            if bars.rows().is_empty() {
                hint_at_stored_bars(&*store, query).await;
            }
            return show_part(bars, limit, format);
        }
        Query::Bars { range: InstrumentRange { instrument, part }, interval, stored: true } => {
            (Bar::DATASET, Owner::Instrument(instrument), Some(interval), part)
        }
        Query::Records { dataset, series, interval, part } => {
            (dataset, query::owner(dataset, &series)?, interval, part)
        }
        Query::Snapshots { scope, part } => {
            let dataset = MarketSnapshot::DATASET;
            (dataset, query::owner(dataset, &scope)?, None, part)
        }
        Query::Ticks { range } => instrument_range(PriceTick::DATASET, range),
        Query::Quotes { range } => instrument_range(Quote::DATASET, range),
        Query::FundingRates { range } => instrument_range(FundingRate::DATASET, range),
        Query::OpenInterest { range } => instrument_range(OpenInterest::DATASET, range),
        Query::Liquidations { range } => instrument_range(Liquidation::DATASET, range),
        Query::MarkPrices { range } => instrument_range(MarkPrice::DATASET, range),
        Query::BookSnapshots { range } => instrument_range(BookSnapshot::DATASET, range),
    };
    let Part { times, newest, limit } = part;
    let range = times.range()?;
    arguments::check_interval(dataset, interval)?;
    let (store, series) = (session.store().await?, Series { dataset, key: SeriesKey { owner, interval } });
    show_part(query::records(&*store, series, range, newest, more(limit)).await?, limit, format)
}

async fn maintain(
    session: &Session<'_>,
    until: Option<Timestamp>,
    budget: Option<Duration>,
    format: Format,
) -> Result<bool> {
    let (store, backend) = (session.store().await?, session.backend.as_str());
    let outcome = maintain::run(&*store, until, budget).await?;
    show(&outcome.listing(backend), format)?;
    if !outcome.is_enabled() {
        say(format_args!("the store materializes no bars"));
        if ["timescale", "postgres", "clickhouse"].contains(&backend) {
            say(format_args!(
                "`materialized_bars = true` in [store.{backend}] and `{}` enable them",
                session.migrate_command(backend)
            ));
        }
    } else if !outcome.is_complete() {
        say(format_args!("steps are left; the same command continues"));
    }
    Ok(outcome.is_complete())
}

async fn persist(
    session: &Session<'_>,
    arguments: PersistArguments,
    stop: &Stop,
    format: Format,
) -> Result<bool> {
    let PersistArguments { instruments, interval, since, until, overwrite } = arguments;
    arguments::range(since, until)?;
    let now = Timestamp::now();
    let until = until.map_or(now, |until| until.min(now));
    let plan = bars::Plan { instruments: instruments.instruments, interval, since, until, overwrite };
    let store = session.target(&session.backend).await?;
    let compared = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = compared.clone();
    let bar = spinner("bars compared", move || counter.load(Ordering::Relaxed));
    let outcome = bars::persist(&*store, plan, &stop.graceful, &compared).await;
    bar.finish_and_clear();
    let outcome = outcome?;
    show(&outcome.listing(), format)?;
    let kept = outcome.kept();
    if kept > 0 {
        say(format_args!(
            "{kept} stored bars count more ticks than the store has and were kept; --overwrite replaces them"
        ));
    }
    if outcome.interrupted {
        say(format_args!("stopped before the end; the same command continues"));
    }
    Ok(kept == 0 && !outcome.interrupted)
}

async fn copy(session: &Session<'_>, arguments: CopyArguments, stop: &Stop, format: Format) -> Result<bool> {
    let CopyArguments { from, to, datasets, instruments, times, progress, concurrency, verify_only } =
        arguments;
    if from == to {
        return Err(Error::invalid("copy.to", "to", to, "must be another backend than --from"));
    }
    let datasets = if datasets.is_empty() { Datasets::standard().iter().collect() } else { datasets };
    let (range, instruments) = (times.range()?, instruments.into_iter().collect());
    let plan = copy::Plan { datasets, instruments, range, progress };
    if !verify_only {
        warn_of_memory(&to);
    }
    let (source, target) = (session.store_of(&from).await?, session.store_of(&to).await?);
    let mut copy = copy::Copy::new(source, target, plan);
    copy.stop = stop.graceful.clone();
    copy.concurrency = concurrency.into();
    copy.verify_only = verify_only;
    let counter = copy.copied.clone();
    let bar = spinner("copied", move || counter.load(Ordering::Relaxed));
    let outcome = copy.run().await;
    bar.finish_and_clear();
    let outcome = outcome?;
    if outcome == copy::Outcome::Interrupted {
        say(format_args!(
            "stopped after {} records; the same command continues",
            copy.copied.load(Ordering::Relaxed)
        ));
        return Ok(false);
    }
    show(&outcome.listing(), format)?;
    Ok(outcome.is_equal())
}

async fn replay(session: &Session<'_>, arguments: ReplayArguments, stop: &Stop) -> Result<bool> {
    let ReplayArguments { topic, since, until, wait } = arguments;
    arguments::range(Some(since), until)?;
    let plan = replay::Plan { topic, datasets: session.datasets.clone(), since, until, wait };
    let (store, bus) = (session.target(&session.backend).await?, session.bus().await?);
    store.ensure_schema().await?;
    let stored = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = stored.clone();
    let bar = spinner("stored", move || counter.load(Ordering::Relaxed));
    let progress = |records| stored.store(records, Ordering::Relaxed);
    let replayed = replay::run(&*bus, &*store, &plan, &stop.graceful, progress).await;
    bar.finish_and_clear();
    let replayed = replayed?;
    for error in &replayed.errors {
        complain(error);
    }
    if replayed.errors.iter().any(|error| is_of_other_dataset(error, &plan.datasets)) {
        say(format_args!("{}", migrate::ALL_DATASETS));
    }
    for unreached in &replayed.unreached {
        say(format_args!("{unreached}"));
    }
    let replay::ReplayReport { stored, unreadable, interrupted, .. } = replayed;
    let stopped = if interrupted { "; stopped before the end" } else { "" };
    say(format_args!("{stored} records stored, {unreadable} messages without a valid record{stopped}"));
    Ok(replayed.is_complete())
}

/// Returns true if a message could not be decoded because its dataset needs `--all-datasets`.
fn is_of_other_dataset(error: &Error, datasets: &Datasets) -> bool {
    let is_type = error.context_value("field") == Some(qi_core::bus::header::TYPE);
    let named =
        Datasets::built_in().iter().find(|dataset| error.context_value("value") == Some(dataset.message()));
    is_type && named.is_some_and(|dataset| datasets.get(dataset.name()).is_none())
}

/// Returns the address of an archive, or None for files of exchanges.
#[cfg(feature = "archive")]
fn archive_of(arguments: &ImportArguments) -> Result<Option<String>> {
    let mut addresses = arguments.files.iter().filter_map(|path| path.to_str());
    let Some(address) = addresses.find(|address| archive::is_archive(address)) else {
        archive::reject_parquet(&arguments.files)?;
        return Ok(None);
    };
    let usage = |message: &str| {
        Err(Error::new(qi_core::ErrorKind::Config, "import.archive", "import").with_message(message))
    };
    if arguments.files.len() > 1 {
        return usage("an archive must be the only argument");
    }
    let ImportArguments { input_format, columns, input_interval, strict, coverage, .. } = arguments;
    if input_format.is_some() || columns.is_some() || input_interval.is_some() || *strict || *coverage {
        return usage(
            "--input-format, --columns, --input-interval, --strict and --coverage are for files of exchanges",
        );
    }
    Ok(Some(address.to_owned()))
}

fn reject_archive_options(arguments: &ImportArguments) -> Result<()> {
    let ImportArguments { datasets, times, instruments, .. } = arguments;
    let has_range = times.since.is_some() || times.until.is_some();
    if datasets.is_empty() && !has_range && instruments.len() <= 1 {
        return Ok(());
    }
    Err(Error::new(qi_core::ErrorKind::Config, "import.files", "import")
        .with_message("--dataset, --since, --until and a second --instrument are for archives"))
}

#[cfg(feature = "archive")]
async fn export(
    session: &Session<'_>,
    arguments: ExportArguments,
    stop: &Stop,
    format: Format,
) -> Result<bool> {
    let ExportArguments { archive, datasets, instruments, times, period, floats, verify, concurrency } =
        arguments;
    let datasets = if datasets.is_empty() { session.datasets.iter().collect() } else { datasets };
    let mut options = qi_arrow::ExportOptions::new(datasets);
    options.instruments = instruments.into_iter().collect();
    options.range = times.range()?;
    let length = |period: String| {
        if period == "month" { qi_arrow::PeriodLength::Month } else { qi_arrow::PeriodLength::Day }
    };
    options.period = period.map(length);
    options.decimals = if floats { qi_arrow::Decimals::Float64 } else { qi_arrow::Decimals::Exact };
    options.verify_existing = verify;
    options.concurrency = concurrency.into();
    options.stop = stop.graceful.clone();
    // An error in the address needs no server.
    let archive = qi_arrow::Archive::create(&archive)?;
    let store = session.store().await?;
    check::read_access(&*store, options.datasets.iter().copied()).await?;
    let counter = options.progress.clone();
    let bar = spinner("read", move || counter.load(Ordering::Relaxed));
    let report = qi_arrow::export(&*store, &archive, &options).await;
    bar.finish_and_clear();
    let report = report?;
    for file in &report.repaired {
        say(format_args!("{}: the manifest was written again from the data file", printable(file)));
    }
    say_failures(&report.failures, report.failed);
    if report.interrupted {
        say(format_args!("stopped before the end; the same command continues"));
        return Ok(false);
    }
    show(&archive::exported(&report), format)?;
    if report.series.is_empty() {
        say(format_args!("the store has no records of the selected series"));
    }
    match report.orphaned {
        0 => {}
        1 => say(format_args!("1 file of the archive belongs to a series that the store does not have")),
        files => {
            say(format_args!("{files} files of the archive belong to series that the store does not have"));
        }
    }
    if report.failed > 0 {
        say(format_args!("the store does not have the records of these files; restore them from a copy"));
    }
    Ok(report.failed == 0)
}

/// Prints the first failures and the number of the others.
#[cfg(feature = "archive")]
fn say_failures(failures: &[(String, Error)], failed: u64) {
    for (file, error) in failures {
        say(format_args!("{}: {}", printable(file), printable(&error.report())));
    }
    let more = failed.saturating_sub(failures.len() as u64);
    if more > 0 {
        say(format_args!("... and {more} more failures"));
    }
}

#[cfg(feature = "archive")]
async fn import_archive(
    session: &Session<'_>,
    (address, arguments): (String, ImportArguments),
    stop: &Stop,
    format: Format,
) -> Result<bool> {
    let ImportArguments { instruments, datasets, times, .. } = arguments;
    let mut options = qi_arrow::ImportOptions::new(session.datasets.clone());
    options.instruments = instruments.into_iter().collect();
    options.datasets = datasets;
    options.range = times.range()?;
    options.stop = stop.graceful.clone();
    let counter = options.progress.clone();
    archive::check_folder(&address, &session.datasets)?;
    let archive = qi_arrow::Archive::open(&address)?;
    let store = session.target(&session.backend).await?;
    store.ensure_schema().await?;
    let bar = spinner("stored", move || counter.load(Ordering::Relaxed));
    let report = qi_arrow::import(&*store, &archive, &options).await;
    bar.finish_and_clear();
    let report = report?;
    say_failures(&report.failures, report.failed);
    for instrument in &report.missing {
        say(format_args!("the archive has no file of {instrument}"));
    }
    let is_closed =
        |name: &str| Datasets::built_in().get(name).is_some() && session.datasets.get(name).is_none();
    if report.failures.iter().any(|(_, error)| {
        error.code() == "archive.dataset" && error.context_value("dataset").is_some_and(is_closed)
    }) {
        say(format_args!("{}", migrate::ALL_DATASETS));
    }
    show(&archive::imported(&report), format)?;
    if let Some(error) = report.error {
        return Err(error);
    }
    if report.interrupted {
        say(format_args!("stopped before the end; the same command continues"));
    } else if report.series.is_empty() && report.failed == 0 {
        say(format_args!("the archive has no file that the options select"));
        return Ok(false);
    }
    Ok(report.is_good())
}

async fn open_files(arguments: ImportArguments) -> Result<(qi_files::Files, import::Plan)> {
    let ImportArguments {
        files, input_format, columns, instruments, input_interval, strict, coverage, ..
    } = arguments;
    let options = qi_files::FileOptions::default().format(input_format).columns(columns);
    let options = options.instrument(instruments.into_iter().next()).interval(input_interval);
    let opened = tokio::task::spawn_blocking(move || qi_files::open(&files, &options)).await;
    let files = opened.permanent("import", "open")??;
    for note in &files.skipped {
        say(format_args!("{note}"));
    }
    Ok((files, import::Plan { strict, coverage }))
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
        ProgressStyle::with_template("{wide_bar} {read} of {total} MB read, {msg} stored  {eta}")
    {
        let megabytes = |bytes: u64| HumanCount(bytes.div_ceil(1_000_000));
        let read = move |state: &ProgressState, line: &mut dyn std::fmt::Write| {
            let _ = write!(line, "{}", megabytes(state.pos()));
        };
        let total = move |state: &ProgressState, line: &mut dyn std::fmt::Write| {
            let _ = write!(line, "{}", megabytes(state.len().unwrap_or(0)));
        };
        bar.set_style(style.with_key("read", read).with_key("total", total));
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

/// The stop signal. The first SIGINT or SIGTERM stops in order. A second one, or ten seconds, stops immediately.
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
    if let Ok(style) = ProgressStyle::with_template(&format!("{{spinner}} {{human_pos}} {what}  {{rate}}")) {
        bar.set_style(style.with_key("rate", |state: &ProgressState, line: &mut dyn std::fmt::Write| {
            let _ = write!(line, "{}", per_second(state.per_sec()));
        }));
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

/// Returns a rate as a whole number.
fn per_second(rate: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
    let whole = rate.round() as u64;
    format!("{}/s", HumanCount(whole))
}

/// Returns the limit of a query that shows `limit` rows and detects whether there are more.
fn more(limit: usize) -> usize {
    limit.saturating_add(1)
}

/// Shows the first `limit` rows, and says if there are more.
fn show_part(mut listing: Listing, limit: usize, format: Format) -> Result<bool> {
    let is_cut = listing.truncate(limit);
    show(&listing, format)?;
    if is_cut {
        say(format_args!("only the first {limit} rows are shown; --limit N shows more"));
    }
    Ok(true)
}

fn show(listing: &Listing, format: Format) -> Result<()> {
    listing.write(format, &mut io::stdout().lock()).permanent("cli.output", "write")
}

pub(crate) fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "qi: {what}");
}

fn complain(error: &Error) {
    say(format_args!("{}", printable(&error.report())));
}

fn fail(error: &Error, code: u8) -> ExitCode {
    complain(error);
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_no_decimals() {
        assert_eq!(per_second(1_234_567.891), "1,234,568/s");
        assert_eq!(per_second(0.4), "0/s");
    }
}
