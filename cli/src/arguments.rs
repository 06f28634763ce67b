//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use qi_core::Datasets;
use qi_core::bus::{DeadLetters, GroupId, SeekTo, TopicName};
use qi_core::record::{Dataset, SeriesType};
use qi_core::{Error, ErrorKind, Exchange, Instrument, Interval, Result, TimeRange, Timestamp};
use qi_files::coverage::Coverage;

use crate::dlq::Selection;
use crate::output::Format;

/// The operator's tool for the backends of qi: checks, migrates, queries, copies, replays, imports, redrives.
#[derive(Debug, Parser)]
#[command(name = "qi", version, max_term_width = 100)]
pub(crate) struct Options {
    /// The configuration file. Defaults to the file in the variable `QI_CONFIG`, then to `qi.toml` in the current folder.
    /// Without a file all backends are in memory. QI__... variables override the file.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// The store of the configuration file to use instead of `store.backend`.
    #[arg(long, value_name = "BACKEND", global = true)]
    pub(crate) store: Option<String>,
    /// Opens all datasets of the library, instead of ticks, quotes, bars and snapshots. Commands that name a dataset
    /// do not need this.
    #[arg(long, global = true)]
    pub(crate) all_datasets: bool,
    /// The format of the output.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub(crate) format: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows the effective settings, each with its origin: default, file, environment variable or `--store`. Secrets are
    /// hidden.
    Config,
    /// Checks the store and the bus: latency, versions, schema, topics and permissions. Creates nothing, even with
    /// `auto_schema`. Exit code 1 if a check fails.
    Check {
        /// Also writes a tick of the instrument qi-check:PROBE and deletes it. Without this, nothing is written.
        #[arg(long)]
        write: bool,
    },
    /// Creates the schema of the store and the topics of the catalogue. Can be repeated.
    Migrate {
        /// Shows the missing statements and topics, and changes nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Shows every topic with partitions, replicas and messages.
    Topics {
        #[command(subcommand)]
        command: Option<Topics>,
    },
    /// Shows the messages of a topic as they arrive, after the newest ones. Joins no group and commits nothing.
    Tail(TailArguments),
    /// Changes the offsets of consumer groups.
    #[command(subcommand)]
    Groups(Groups),
    /// Shows the lag of consumer groups.
    Lag {
        /// Only these groups. Defaults to all groups.
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<GroupId>,
        /// Shows a row for each partition.
        #[arg(long)]
        partitions: bool,
        /// For probes: exit code 1 if a topic of a group has a larger lag or an unknown lag, or if a named group does not
        /// exist.
        #[arg(long, value_name = "N")]
        max: Option<u64>,
    },
    /// Shows the instruments or names of a dataset, with the times of their first and last record.
    Instruments {
        /// The dataset.
        #[arg(long, default_value = "ticks", value_parser = dataset)]
        dataset: Dataset,
        /// Only instruments of this exchange.
        #[arg(long)]
        exchange: Option<Exchange>,
        /// The maximum number of rows.
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Shows records of the store. Creates nothing, even with `auto_schema`.
    #[command(subcommand)]
    Query(Query),
    /// Shows the coverage of trades: the ranges of trade ids that the store has, that the exchange does not have, and
    /// that are unknown.
    Coverage {
        /// Only these instruments. Defaults to all instruments with coverage.
        #[arg(value_name = "EXCHANGE:SYMBOL")]
        instruments: Vec<Instrument>,
        /// Shows only unknown ranges.
        #[arg(long)]
        unknown: bool,
        /// For probes: exit code 1 if an instrument has more unknown ids, or if a named instrument has no coverage.
        #[arg(long, value_name = "N")]
        max_unknown: Option<u64>,
        /// The maximum number of rows.
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Draws the candles and the volume of an instrument to an SVG or PNG file, and marks the gaps: intervals without
    /// data. Exit code 1 without data.
    #[cfg(feature = "chart")]
    Chart(ChartArguments),
    /// Materializes bars up to a watermark and rebuilds stale hours, until no step is left. Exit code 1 if steps are left,
    /// or if the store materializes no bars.
    Maintain {
        /// The end of the materialized bars, rounded down to a full hour. Defaults to 10 minutes before the clock of
        /// the server.
        #[arg(long, value_name = "TIME")]
        until: Option<Timestamp>,
        /// Starts no further step after this time, for example 30s or 5m. Defaults to no limit.
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        budget: Option<Duration>,
    },
    /// Writes bars.
    #[command(subcommand)]
    Bars(Bars),
    /// Copies records from one store of the configuration to another, and compares both by counts and checksums. Can
    /// be interrupted and continued. `--until` defaults to now. Exit code 1 if a series differs.
    Copy(CopyArguments),
    /// Stores the records of a topic's messages, by message time. Joins no group and commits nothing.
    Replay(ReplayArguments),
    /// Writes market data files of exchanges directly into the store, without a bus: plain, .gz, .zst or .zip. The
    /// content determines the format. Exit code 1 without a record, or with more bad lines than records. A folder or a
    /// URL is an archive of `qi export`; exit code 1 if a file of it fails. For an archive: `--since` and `--until`
    /// select the files whose period begins in the range.
    Import(ImportArguments),
    /// Writes the records of the store to an archive of Parquet files: a file for each series and day. Writes only
    /// files that are missing or differ from the store. Can be interrupted and continued. `--since` and `--until` must be
    /// the start of a period.
    #[cfg(feature = "archive")]
    Export(ExportArguments),
    /// Lists, shows and redrives dead letters: messages that could not be decoded.
    #[command(subcommand)]
    Dlq(Dlq),
    /// Prints the completions of a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Topics {
    /// Shows the partitions of a topic with leader, replicas and offsets.
    Describe {
        /// The topic.
        topic: TopicName,
        /// Shows the settings of the topic instead.
        #[arg(long)]
        settings: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bars {
    /// Writes closed bars, derived from ticks, into the stored dataset, so that they outlast their ticks. Writes only
    /// missing and different bars. Can be interrupted and continued. Exit code 1 if a stored bar was kept that counts
    /// more ticks than the store has.
    Persist(PersistArguments),
}

#[derive(Debug, Args)]
pub(crate) struct PersistArguments {
    #[command(flatten)]
    pub(crate) instruments: PersistedInstruments,
    /// The interval: 1s 5s 15s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 1w.
    #[arg(long)]
    pub(crate) interval: Interval,
    /// The earliest open time, inclusive, for example 2024-01-31T12:00:00Z. Defaults to a page before the latest
    /// stored bar of each instrument. To persist late and corrected ticks of earlier bars, set it before them.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Timestamp>,
    /// The latest close time, inclusive. Defaults to now. A later time counts as now.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Timestamp>,
    /// Also replaces stored bars that count more ticks than the store has.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PersistedInstruments {
    /// An instrument. Can be repeated.
    #[arg(long = "instrument", value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instruments: Vec<Instrument>,
    /// All instruments that have ticks.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Groups {
    /// Commits new offsets of a topic for a group without members, and shows the old and the new ones.
    Reset {
        /// The consumer group.
        group: GroupId,
        /// The topic.
        #[arg(long)]
        topic: TopicName,
        /// The new position in every partition: `earliest`, `latest`, an offset, or a message time such as
        /// 2024-01-31T12:00:00Z.
        #[arg(long, value_name = "POSITION", value_parser = position)]
        to: SeekTo,
        /// Shows the new offsets and commits nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TailArguments {
    /// The topic.
    pub(crate) topic: TopicName,
    /// Only this partition. Can be repeated.
    #[arg(long = "partition", value_name = "N")]
    pub(crate) partitions: Vec<u32>,
    /// Starts at this message time instead of the newest messages.
    #[arg(long, value_name = "TIME", conflicts_with = "last")]
    pub(crate) since: Option<Timestamp>,
    /// The number of existing messages of each partition to show first.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) last: u64,
    /// Stops at the current end of the topic.
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// Ends after this number of messages.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Shows key and payload completely, instead of the first 1,024 bytes of each.
    #[arg(long)]
    pub(crate) full: bool,
}

#[cfg(feature = "chart")]
#[derive(Debug, Args)]
pub(crate) struct ChartArguments {
    /// The instrument.
    #[arg(value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instrument: Instrument,
    /// The interval of the candles: 1s 5s 15s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 1w.
    #[arg(long, default_value = "1h")]
    pub(crate) interval: Interval,
    #[command(flatten)]
    pub(crate) times: Times,
    /// Draws stored bars, instead of bars that are derived from ticks.
    #[arg(long)]
    pub(crate) stored: bool,
    /// Draws only the gaps over the range, and names the longest ones.
    #[arg(long)]
    pub(crate) gaps: bool,
    /// The file, which is replaced. Its name ends with `.svg` or `.png`.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The width of the picture in pixels.
    #[arg(long, value_name = "PIXELS", default_value_t = 1_200, value_parser = clap::value_parser!(u32).range(400..=8_000))]
    pub(crate) width: u32,
    /// The height of the picture in pixels.
    #[arg(long, value_name = "PIXELS", default_value_t = 675, value_parser = clap::value_parser!(u32).range(300..=8_000))]
    pub(crate) height: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// Counts the dead letters of each topic, origin and error code. Without a topic, reads all topics with names that
    /// end with `.dlq`.
    List {
        #[command(flatten)]
        source: DeadLetterTopic,
        #[command(flatten)]
        selection: DeadLetterSelection,
    },
    /// Shows single dead letters, oldest first. Control characters are escaped in every format.
    Show {
        #[command(flatten)]
        source: DeadLetterTopic,
        #[command(flatten)]
        selection: DeadLetterSelection,
        /// The maximum number of dead letters.
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Shows the newest first.
        #[arg(long)]
        newest: bool,
        /// Shows key, payload, error and headers completely, instead of the first 1,024 bytes of each.
        #[arg(long)]
        full: bool,
    },
    /// Publishes the messages of dead letters again, up to the end that the topic has now. Skips copies, truncated
    /// messages and messages that were redriven too often. Delivery is at least once. Exit code 1 if a message fails
    /// or a partition cannot be read.
    Redrive(RedriveArguments),
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct DeadLetterTopic {
    /// The dead letter topic.
    #[arg(value_name = "DEAD_LETTER_TOPIC")]
    dead_letter_topic: Option<TopicName>,
    /// The origin topic, instead of its dead letter topic `<ORIGIN>.dlq`.
    #[arg(long, value_name = "ORIGIN")]
    topic: Option<TopicName>,
}

impl Options {
    /// Returns the datasets that the store is opened with: those of the program, and all others if the command names one
    /// of them.
    pub(crate) fn datasets(&self, program: &Datasets) -> Datasets {
        let named = match &self.command {
            Command::Instruments { dataset, .. }
            | Command::Query(Query::Latest { dataset, .. } | Query::Records { dataset, .. }) => {
                std::slice::from_ref(dataset)
            }
            Command::Query(
                Query::FundingRates { .. }
                | Query::OpenInterest { .. }
                | Query::Liquidations { .. }
                | Query::MarkPrices { .. }
                | Query::BookSnapshots { .. },
            )
            | Command::Coverage { .. } => return all(program),
            Command::Copy(arguments) => &arguments.datasets,
            Command::Import(arguments) if arguments.coverage => return all(program),
            Command::Import(arguments) => &arguments.datasets,
            #[cfg(feature = "archive")]
            Command::Export(arguments) => &arguments.datasets,
            _ => &[],
        };
        let others = named.iter().any(|dataset| program.position(*dataset).is_err());
        if self.all_datasets || others { all(program) } else { program.clone() }
    }
}

/// Returns the datasets of a program and of the library, with the ledger of coverage.
fn all(program: &Datasets) -> Datasets {
    let missing = |dataset: &Dataset| program.get(dataset.name()).is_none();
    Datasets::built_in().iter().chain([Coverage::DATASET]).filter(missing).fold(
        program.clone(),
        |all, dataset| {
            // A dataset whose tables another dataset has is left out.
            all.clone().with_dataset(dataset).unwrap_or(all)
        },
    )
}

/// Lets the options with datasets accept the datasets of a program.
pub(crate) fn with_datasets(command: clap::Command, program: &Datasets) -> clap::Command {
    let known = all(program);
    let parser = move |text: &str| dataset_of(&known, text);
    let command = command.mut_args(|argument| {
        if ["dataset", "datasets"].contains(&argument.get_id().as_str()) {
            argument.value_parser(parser.clone())
        } else {
            argument
        }
    });
    command.mut_subcommands(|command| with_datasets(command, program))
}

impl DeadLetterTopic {
    pub(crate) fn optional_name(self) -> Result<Option<TopicName>> {
        match (self.dead_letter_topic, self.topic) {
            (None, Some(origin)) => DeadLetters::default().topic_for(&origin).map(Some),
            (name, _) => Ok(name),
        }
    }

    pub(crate) fn name(self) -> Result<TopicName> {
        self.optional_name()?.ok_or_else(|| {
            Error::new(ErrorKind::Config, "dlq.topic", "dlq")
                .with_message("a dead letter topic or --topic is required")
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct DeadLetterSelection {
    /// Only dead letters from this message time on, for example 2024-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only dead letters before this message time.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Only this error code, compared exactly. Can be repeated.
    #[arg(long = "code", value_name = "CODE")]
    codes: Vec<String>,
    /// Only messages of this origin topic. Can be repeated.
    #[arg(long = "origin", value_name = "TOPIC")]
    origins: Vec<TopicName>,
}

impl TryFrom<DeadLetterSelection> for Selection {
    type Error = Error;

    fn try_from(arguments: DeadLetterSelection) -> Result<Self> {
        let DeadLetterSelection { since, until, codes, origins } = arguments;
        range(since, until)?;
        let (codes, origins) = (codes.into_iter().collect(), origins.into_iter().collect());
        Ok(Self { since, until, codes, origins })
    }
}

#[derive(Debug, Args)]
pub(crate) struct RedriveArguments {
    #[command(flatten)]
    pub(crate) source: DeadLetterTopic,
    #[command(flatten)]
    pub(crate) selection: DeadLetterSelection,
    /// The target of every message, instead of its origin topic.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) to: Option<TopicName>,
    /// Skips messages that were already redriven this many times.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) max_redrives: u32,
    /// Saves the progress in this file. The same command continues from there.
    #[arg(long, value_name = "FILE")]
    pub(crate) progress: Option<PathBuf>,
    /// Shows the same summary and publishes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Query {
    /// Shows the latest record of each series of a dataset.
    Latest {
        /// Only these instruments or names. Defaults to all series.
        #[arg(value_name = "SERIES")]
        series: Vec<String>,
        /// The dataset.
        #[arg(long, default_value = "ticks", value_parser = dataset)]
        dataset: Dataset,
        /// The interval, for bars.
        #[arg(long)]
        interval: Option<Interval>,
        /// The maximum number of rows.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows the ticks of an instrument.
    Ticks {
        #[command(flatten)]
        range: InstrumentRange,
    },
    /// Shows the quotes of an instrument.
    Quotes {
        #[command(flatten)]
        range: InstrumentRange,
    },
    /// Shows the market snapshots of a scope: `global`, `asset:BTC`, ...
    Snapshots {
        /// The scope.
        #[arg(value_name = "SCOPE")]
        scope: String,
        #[command(flatten)]
        part: Part,
    },
    /// Shows the funding rates of an instrument.
    #[command(name = "funding_rates")]
    FundingRates {
        #[command(flatten)]
        range: InstrumentRange,
    },
    /// Shows the open interest of an instrument.
    #[command(name = "open_interest")]
    OpenInterest {
        #[command(flatten)]
        range: InstrumentRange,
    },
    /// Shows the liquidations of an instrument.
    Liquidations {
        #[command(flatten)]
        range: InstrumentRange,
    },
    /// Shows the mark prices of an instrument.
    #[command(name = "mark_prices")]
    MarkPrices {
        #[command(flatten)]
        range: InstrumentRange,
    },
    /// Shows the snapshots of the order book of an instrument.
    #[command(name = "book_snapshots")]
    BookSnapshots {
        #[command(flatten)]
        range: InstrumentRange,
    },
    /// Shows figures of the ticks of an instrument in a range: count, prices, volume, VWAP and change.
    Stats {
        /// The instrument.
        #[arg(value_name = "EXCHANGE:SYMBOL")]
        instrument: Instrument,
        #[command(flatten)]
        times: Times,
    },
    /// Shows the records of one series of any dataset.
    Records {
        /// The dataset.
        #[arg(value_parser = dataset)]
        dataset: Dataset,
        /// The instrument or the name of the series.
        #[arg(value_name = "SERIES")]
        series: String,
        /// The interval, for bars.
        #[arg(long)]
        interval: Option<Interval>,
        #[command(flatten)]
        part: Part,
    },
    /// Shows the bars of an instrument, derived from its ticks.
    Bars {
        #[command(flatten)]
        range: InstrumentRange,
        /// The interval: 1s 5s 15s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 1w.
        #[arg(long, default_value = "1m")]
        interval: Interval,
        /// Shows stored bars, instead of derived ones.
        #[arg(long)]
        stored: bool,
    },
}

/// The instrument, the range and the limit of a query.
#[derive(Debug, Args)]
pub(crate) struct InstrumentRange {
    /// The instrument.
    #[arg(value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instrument: Instrument,
    #[command(flatten)]
    pub(crate) part: Part,
}

/// The range and the limit of a query.
#[derive(Debug, Args)]
pub(crate) struct Part {
    #[command(flatten)]
    pub(crate) times: Times,
    /// Shows the newest first.
    #[arg(long)]
    pub(crate) newest: bool,
    /// The maximum number of rows.
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
}

/// A range of times.
#[derive(Debug, Args)]
pub(crate) struct Times {
    /// The start, inclusive, for example 2024-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Timestamp>,
    /// The end, exclusive.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Timestamp>,
}

impl Times {
    pub(crate) fn range(&self) -> Result<TimeRange> {
        range(self.since, self.until)
    }
}

/// Returns the range of `--since` and `--until`.
///
/// # Errors
/// `Config` for an empty range.
pub(crate) fn range(since: Option<Timestamp>, until: Option<Timestamp>) -> Result<TimeRange> {
    let (start, end) = (since.unwrap_or(Timestamp::MIN), until.unwrap_or(Timestamp::MAX));
    if start < end {
        return TimeRange::new(start, end);
    }
    Err(Error::new(ErrorKind::Config, "cli.range", "validate")
        .with_message("--until must be after --since")
        .with_context("since", start)
        .with_context("until", end))
}

/// Checks that `--interval` is set if and only if a dataset has intervals.
///
/// # Errors
/// `Config` otherwise.
pub(crate) fn check_interval(dataset: Dataset, interval: Option<Interval>) -> Result<()> {
    let rule = match (dataset.interval(), interval) {
        (Some(_), None) => "--interval is required for this dataset",
        (None, Some(_)) => "--interval must not be set for this dataset",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Config, "cli.interval", "validate")
        .with_message(rule)
        .with_context("dataset", dataset))
}

/// Checks that `--exchange` is set only for a dataset of instruments.
///
/// # Errors
/// `Config` otherwise.
pub(crate) fn check_exchange(dataset: Dataset, exchange: Option<&Exchange>) -> Result<()> {
    if exchange.is_none() || dataset.series() == SeriesType::Instrument {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "cli.exchange", "validate")
        .with_message("--exchange applies only to datasets of instruments")
        .with_context("dataset", dataset))
}

#[derive(Debug, Args)]
pub(crate) struct CopyArguments {
    /// The backend to read.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) from: String,
    /// The backend to write. Its schema is created if it is missing.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) to: String,
    /// Only these datasets. Defaults to ticks, quotes, bars and snapshots.
    #[arg(long = "dataset", value_name = "DATASET", value_parser = dataset)]
    pub(crate) datasets: Vec<Dataset>,
    /// Only these instruments. Defaults to all instruments.
    #[arg(long = "instrument", value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instruments: Vec<Instrument>,
    #[command(flatten)]
    pub(crate) times: Times,
    /// Saves the progress in this file, at most once a second. The same command continues from there.
    #[arg(long, value_name = "FILE")]
    pub(crate) progress: Option<PathBuf>,
    /// The number of series that are copied or compared concurrently, from 1 to 64.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) concurrency: u8,
    /// Compares the stores and writes nothing.
    #[arg(long, conflicts_with = "progress")]
    pub(crate) verify_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArguments {
    /// The topic.
    #[arg(long)]
    pub(crate) topic: TopicName,
    /// The start of the message times, inclusive, for example 2024-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Timestamp,
    /// The end of the message times, exclusive. Defaults to the present end of the topic.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Timestamp>,
    /// The longest wait for a partition without a leader, or without a message before its end, for example 500ms, 60s
    /// or 5m. After it, the partition is named, and the exit code is 1.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) wait: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The files, earliest first. Or one archive: a folder, or a URL such as `s3://bucket/prefix`.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The format of files whose content does not determine it: binance kraken kraken-rest bybit okx tardis candles.
    #[arg(long, value_name = "LAYOUT")]
    pub(crate) input_format: Option<qi_files::Format>,
    /// The columns of CSV files, by number from 0 or by header name: time=0,price=1,quantity=2.
    #[arg(long, value_name = "COLUMNS", conflicts_with = "input_format")]
    pub(crate) columns: Option<qi_files::ColumnMap>,
    /// The instrument, if the files do not contain it. For an archive: only these instruments, and exit code 1 if the
    /// archive has no file of one. Can be repeated for an archive. Datasets of names, such as snapshots, are imported
    /// completely.
    #[arg(long = "instrument", value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instruments: Vec<Instrument>,
    /// For an archive: only these datasets. Defaults to all that the store is opened with; see --all-datasets.
    #[arg(long = "dataset", value_name = "DATASET", value_parser = dataset)]
    pub(crate) datasets: Vec<Dataset>,
    #[command(flatten)]
    pub(crate) times: Times,
    /// The interval of the candles, if neither file names nor rows contain it. Selects the entries of a zip archive with
    /// several intervals.
    #[arg(long, value_name = "INTERVAL")]
    pub(crate) input_interval: Option<Interval>,
    /// Stops at the first bad line.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Records the trade ids of each file that matches its `.CHECKSUM` in the coverage ledger; see `qi coverage`. A file
    /// of aggregated trades, or with bad lines, is not recorded.
    #[arg(long)]
    pub(crate) coverage: bool,
}

#[cfg(feature = "archive")]
#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// The folder of the archive, or its URL, for example `s3://bucket/prefix`. `gs://`, `az://`, and `https://` for the
    /// hosts of S3, R2 and Azure are known too. Variables of the environment such as `AWS_ACCESS_KEY_ID` have the
    /// options.
    #[arg(value_name = "ARCHIVE")]
    pub(crate) archive: String,
    /// Only these datasets. Defaults to ticks, quotes, bars and snapshots, and with --all-datasets to all.
    #[arg(long = "dataset", value_name = "DATASET", value_parser = dataset)]
    pub(crate) datasets: Vec<Dataset>,
    /// Only these instruments. Defaults to all instruments. Datasets of names, such as snapshots, are exported
    /// completely.
    #[arg(long = "instrument", value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instruments: Vec<Instrument>,
    #[command(flatten)]
    pub(crate) times: Times,
    /// The period of a file. All exports of an archive have the same. Defaults to that of the archive, and to a day for its
    /// first export.
    #[arg(long, value_name = "PERIOD", value_parser = ["day", "month"])]
    pub(crate) period: Option<String>,
    /// Writes doubles instead of exact decimals. Such an archive cannot be imported.
    #[arg(long)]
    pub(crate) floats: bool,
    /// Also reads the existing files and compares their SHA-256, also those whose records the store no longer has. Without
    /// this, a changed file of the same size is not detected.
    #[arg(long)]
    pub(crate) verify: bool,
    /// The number of series that are exported concurrently, from 1 to 64.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) concurrency: u8,
}

fn dataset(text: &str) -> std::result::Result<Dataset, String> {
    dataset_of(&Datasets::built_in(), text)
}

fn dataset_of(datasets: &Datasets, text: &str) -> std::result::Result<Dataset, String> {
    datasets.get(text).ok_or_else(|| {
        let names: Vec<_> = datasets.iter().map(Dataset::name).collect();
        format!("must be one of {}", names.join(", "))
    })
}

fn position(text: &str) -> std::result::Result<SeekTo, String> {
    match text {
        "earliest" => Ok(SeekTo::Earliest),
        "latest" => Ok(SeekTo::Latest),
        _ => match text.parse() {
            Ok(offset) => Ok(SeekTo::Offset(offset)),
            Err(_) => text.parse().map(SeekTo::At).map_err(|_| {
                "must be earliest, latest, an offset, or a time such as 2024-01-31T12:00:00Z".to_owned()
            }),
        },
    }
}

fn duration(text: &str) -> std::result::Result<Duration, String> {
    let rule = |e: Error| e.message().unwrap_or_default().trim_start_matches("duration ").to_owned();
    qi_core::domain::duration::parse(text).map_err(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, seconds) in [("60s", 60), ("5m", 300), ("2h", 7_200), ("1d", 86_400), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "60", "s", "-1s", "1.5s", "1w", "99999999999999999999s", "9999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
