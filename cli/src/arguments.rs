//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use qi_cli::dlq::Selection;
use qi_cli::output::Format;
use qi_core::Datasets;
use qi_core::bus::{DeadLetters, GroupId, TopicName};
use qi_core::record::Dataset;
use qi_core::{Error, ErrorKind, Instrument, Interval, Result, TimeRange, Timestamp};

/// Looks after the backends of qi: checks, migrates, shows, copies, replays, redrives.
#[derive(Debug, Parser)]
#[command(name = "qi", version)]
pub(crate) struct Options {
    /// The configuration that names the backends; without it everything is in memory. QI__... variables override.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Another store of the same file in place of `store.backend`.
    #[arg(long, value_name = "BACKEND", global = true)]
    pub(crate) store: Option<String>,
    /// All datasets of the library, in place of ticks, quotes, bars and snapshots. Commands that name a dataset do not
    /// need it.
    #[arg(long, global = true)]
    pub(crate) all_datasets: bool,
    /// How rows are shown.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub(crate) format: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Connects to store and bus: versions, latency, what may be read, what is missing. Exit code 1 if something is
    /// missing.
    Check {
        /// Writes a tick of the instrument qi-check:PROBE too, and deletes it. Without this nothing is written.
        #[arg(long)]
        write: bool,
    },
    /// Makes the schema of the store and the topics of the catalogue. It can be repeated.
    Migrate {
        /// Shows the statements and the topics that are missing, and changes nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Every topic, with partitions, copies and messages.
    Topics,
    /// How far consumer groups are behind.
    Lag {
        /// Only these groups; all if there are none.
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<GroupId>,
        /// A row for each partition.
        #[arg(long)]
        partitions: bool,
    },
    /// Records of the store.
    #[command(subcommand)]
    Query(Query),
    /// From one store of the configuration to another; can be interrupted and goes on, and ends with a comparison by
    /// counts and checksums. Exit code 1 if something differs.
    Copy(CopyArguments),
    /// The records of a topic's messages into the store, by message time. Joins no group and commits nothing.
    Replay(ReplayArguments),
    /// Market data files as exchanges publish them, straight into the store, without a bus. Files are recognised by their
    /// content: plain, .gz, .zst or .zip. Exit code 1 without a record, or with more bad lines than records.
    Import(ImportArguments),
    /// Dead letters: lists, shows and redrives messages that could not be decoded.
    #[command(subcommand)]
    Dlq(Dlq),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// The number of dead letters of each topic, origin and error code. Without a topic: of every topic whose name
    /// ends with `.dlq`.
    List {
        #[command(flatten)]
        source: DeadLetterTopic,
        #[command(flatten)]
        selection: DeadLetterSelection,
    },
    /// Single dead letters, oldest first. Control characters are escaped in every format.
    Show {
        #[command(flatten)]
        source: DeadLetterTopic,
        #[command(flatten)]
        selection: DeadLetterSelection,
        /// The largest number of dead letters.
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Newest first.
        #[arg(long)]
        newest: bool,
        /// Shows key, payload, error and headers completely, in place of the first 1,024 bytes of each.
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
    /// The origin topic, in place of its dead letter topic `<ORIGIN>.dlq`.
    #[arg(long, value_name = "ORIGIN")]
    topic: Option<TopicName>,
}

impl Options {
    /// The datasets that the store is opened with.
    pub(crate) fn datasets(&self) -> Datasets {
        let standard = Datasets::standard();
        let named = match &self.command {
            Command::Query(Query::Latest { dataset, .. } | Query::Records { dataset, .. }) => {
                std::slice::from_ref(dataset)
            }
            Command::Copy(arguments) => &arguments.datasets,
            _ => &[],
        };
        let others = named.iter().any(|dataset| standard.position(*dataset).is_err());
        if self.all_datasets || others { Datasets::built_in() } else { standard }
    }
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
    /// Dead letters from this message time on, as 2024-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Dead letters up to this message time, exclusive.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Only this error code, compared exactly. Can be repeated.
    #[arg(long = "code", value_name = "CODE")]
    codes: Vec<String>,
    /// Only messages of this origin topic. Can be repeated.
    #[arg(long = "origin", value_name = "TOPIC")]
    origins: Vec<TopicName>,
}

impl From<DeadLetterSelection> for Selection {
    fn from(arguments: DeadLetterSelection) -> Self {
        let DeadLetterSelection { since, until, codes, origins } = arguments;
        Self { since, until, codes: codes.into_iter().collect(), origins: origins.into_iter().collect() }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RedriveArguments {
    #[command(flatten)]
    pub(crate) source: DeadLetterTopic,
    #[command(flatten)]
    pub(crate) selection: DeadLetterSelection,
    /// The target of every message, in place of its origin topic.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) to: Option<TopicName>,
    /// Skips messages that were redriven this many times already.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) max_redrives: u32,
    /// Keeps the progress in this file. The same command continues from there.
    #[arg(long, value_name = "FILE")]
    pub(crate) progress: Option<PathBuf>,
    /// Shows the same summary and publishes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Query {
    /// The latest record of each series of a dataset.
    Latest {
        /// Only these instruments or names; all if there are none.
        #[arg(value_name = "SERIES")]
        series: Vec<String>,
        /// The dataset.
        #[arg(long, default_value = "ticks", value_parser = dataset)]
        dataset: Dataset,
        /// The interval, for bars.
        #[arg(long)]
        interval: Option<Interval>,
        /// How many rows at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// The ticks of an instrument.
    Ticks {
        #[command(flatten)]
        asked: Asked,
    },
    /// The records of one series of a dataset.
    Records {
        /// The dataset.
        #[arg(value_parser = dataset)]
        dataset: Dataset,
        /// The instrument or the name.
        #[arg(value_name = "SERIES")]
        series: String,
        /// The interval, for bars.
        #[arg(long)]
        interval: Option<Interval>,
        #[command(flatten)]
        part: Part,
    },
    /// The bars of an instrument, derived from its ticks.
    Bars {
        #[command(flatten)]
        asked: Asked,
        /// The interval: 1s 5s 15s 1m 3m 5m 15m 30m 1h 2h 4h 6h 8h 12h 1d 1w.
        #[arg(long, default_value = "1m")]
        interval: Interval,
        /// Stored bars in place of derived ones.
        #[arg(long)]
        stored: bool,
    },
}

/// Of what, when, and how much.
#[derive(Debug, Args)]
pub(crate) struct Asked {
    /// The instrument.
    #[arg(value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instrument: Instrument,
    #[command(flatten)]
    pub(crate) part: Part,
}

/// When, and how much.
#[derive(Debug, Args)]
pub(crate) struct Part {
    #[command(flatten)]
    pub(crate) times: Times,
    /// Newest first.
    #[arg(long)]
    pub(crate) newest: bool,
    /// How many rows at most.
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
}

/// A range of times.
#[derive(Debug, Args)]
pub(crate) struct Times {
    /// From this time on, as 2024-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Timestamp>,
    /// Up to this time, exclusive.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Timestamp>,
}

impl Times {
    pub(crate) fn range(&self) -> Result<TimeRange> {
        TimeRange::new(self.since.unwrap_or(Timestamp::MIN), self.until.unwrap_or(Timestamp::MAX))
    }
}

#[derive(Debug, Args)]
pub(crate) struct CopyArguments {
    /// The backend to read.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) from: String,
    /// The backend to write; its schema is made if it is missing.
    #[arg(long, value_name = "BACKEND")]
    pub(crate) to: String,
    /// Which datasets; ticks, quotes, bars and snapshots if there are none.
    #[arg(long = "dataset", value_name = "DATASET", value_parser = dataset)]
    pub(crate) datasets: Vec<Dataset>,
    /// Only these instruments; all if there are none.
    #[arg(long = "instrument", value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instruments: Vec<Instrument>,
    #[command(flatten)]
    pub(crate) times: Times,
    /// Where the progress is kept: the same command goes on from there.
    #[arg(long, value_name = "FILE")]
    pub(crate) progress: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArguments {
    /// The topic.
    #[arg(long)]
    pub(crate) topic: TopicName,
    /// From this message time on, as 2024-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Timestamp,
    /// Up to this message time, exclusive; else to the end that the topic has now.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<Timestamp>,
    /// The longest wait for a partition that has no leader or gives nothing before its end, as 500ms, 60s or 5m. A
    /// partition that is not read to its end is named, and the exit code is 1.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) wait: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The files, in the order of their times.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The layout of files whose content tells none: binance kraken kraken-rest bybit okx tardis candles.
    #[arg(long, value_name = "LAYOUT")]
    pub(crate) input_format: Option<qi_files::Format>,
    /// The columns of CSV files, from 0 or by the names of the header: time=0,price=1,quantity=2.
    #[arg(long, value_name = "COLUMNS", conflicts_with = "input_format")]
    pub(crate) columns: Option<qi_files::ColumnMap>,
    /// The instrument, if the files do not name it.
    #[arg(long, value_name = "EXCHANGE:SYMBOL")]
    pub(crate) instrument: Option<Instrument>,
    /// The interval of candles, if neither the names of the files nor their rows tell it.
    #[arg(long, value_name = "INTERVAL")]
    pub(crate) input_interval: Option<Interval>,
    /// Stops at the first bad line.
    #[arg(long)]
    pub(crate) strict: bool,
}

fn dataset(text: &str) -> std::result::Result<Dataset, String> {
    let datasets = Datasets::built_in();
    datasets.get(text).ok_or_else(|| {
        let names: Vec<_> = datasets.iter().map(Dataset::name).collect();
        format!("must be one of {}", names.join(", "))
    })
}

fn duration(text: &str) -> std::result::Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("must be a number with the unit ms, s, m or h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "must begin with a number".to_owned())?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, seconds) in [("60s", 60), ("5m", 300), ("2h", 7_200), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "60", "s", "-1s", "1.5s", "1d", "99999999999999999999s", "9999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
