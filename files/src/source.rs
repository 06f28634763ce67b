//! Several files as one source of records.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};

use qi_core::{Bar, Error, ErrorKind, Instrument, Interval, PriceTick, Result, Timestamp};

use crate::interval::IntervalDetector;
use crate::json::Arrays;
use crate::layout::{ColumnMap, Format, Kind, Layout};
use crate::lines::{Line, Lines, TOO_LONG};
use crate::name::{self, NamedInterval};
use crate::ordinals::TimestampOrdinals;
use crate::row::{InstrumentSource, LineParser};
use crate::unpack::{CHECKSUM, Progress, Stream, streams};

/// Any item of a source that is not a record.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// The start of a file. The records up to the next file belong to this file.
    File(FileStart),
    /// A line without a valid record. Later lines may have records.
    BadLine(Error),
    /// The error of a source that cannot be read further.
    Fatal(Error),
}

/// The start of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileStart {
    /// The path. For an entry of an archive: `archive.zip!entry.csv`.
    pub name: String,
    /// True if the sequence numbers are the exchange's ids. Otherwise each one is an ordinal among the trades of one
    /// timestamp in this file, which [`crate::Numbering`] continues from the stored trades.
    pub has_ids: bool,
    /// The meaning of the ids.
    pub trade_ids: TradeIds,
    /// True if the file matches its checksum file.
    pub is_verified: bool,
}

/// The meaning of the ids in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TradeIds {
    /// There are no ids of trades: the file has none, or those of aggregated trades.
    None,
    /// Each id belongs to one trade. Ids between those of a file may belong to other trades.
    Sparse,
    /// The exchange publishes all trades of an instrument with consecutive ids, as Binance does. An id that such a file
    /// lacks between two others belongs to no trade.
    Consecutive,
}

/// Records in the order of the files and their lines.
pub type Source<T> = Box<dyn Iterator<Item = Result<T, Input>> + Send>;

/// The records of files.
pub enum Data {
    /// Trades.
    Trades(Source<PriceTick>),
    /// Candles of one interval.
    Candles(Source<Bar>, Interval),
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Trades(_) => f.write_str("Trades"),
            Self::Candles(_, interval) => write!(f, "Candles({interval})"),
        }
    }
}

/// Opened files.
#[derive(Debug)]
#[non_exhaustive]
pub struct Files {
    /// The records.
    pub data: Data,
    /// The progress in bytes.
    pub progress: Progress,
    /// The distinct instruments that are known before the files are read: from the options, the names, or the first
    /// lines.
    pub instruments: Vec<Instrument>,
    /// Notes for the user: files and entries of archives that are not read, with the reason, and files of trades without
    /// quantities.
    pub skipped: Vec<String>,
}

/// Options for properties that files do not contain.
#[derive(Debug, Clone, Default)]
pub struct FileOptions {
    format: Option<Format>,
    columns: Option<ColumnMap>,
    instrument: Option<Instrument>,
    interval: Option<Interval>,
}

impl FileOptions {
    /// Sets the format of files whose content does not determine it.
    #[must_use]
    pub fn format(mut self, format: impl Into<Option<Format>>) -> Self {
        self.format = format.into();
        self
    }

    /// Sets the columns of CSV files. This disables the recognition of formats.
    #[must_use]
    pub fn columns(mut self, columns: impl Into<Option<ColumnMap>>) -> Self {
        self.columns = columns.into();
        self
    }

    /// Sets the instrument, instead of the instrument in the name or the columns of the files.
    #[must_use]
    pub fn instrument(mut self, instrument: impl Into<Option<Instrument>>) -> Self {
        self.instrument = instrument.into();
        self
    }

    /// Sets the interval of candles.
    #[must_use]
    pub fn interval(mut self, interval: impl Into<Option<Interval>>) -> Self {
        self.interval = interval.into();
        self
    }
}

/// The number of lines at the start of a file that are used for its recognition.
const SAMPLE_LINES: usize = 50;

/// A stream and its layout.
struct Plan {
    stream: Stream,
    layout: Layout,
    instrument_source: InstrumentSource,
    has_ids: bool,
    interval: Option<Interval>,
}

/// Opens files, recognises each by its content, and verifies checksum files.
///
/// # Errors
/// `InvalidInput` if a file cannot be opened or recognised, if files hold different kinds of records, or if an
/// instrument or an interval is unknown; the message names the option to set. `CorruptData` for a damaged file.
pub fn open(paths: &[PathBuf], options: &FileOptions) -> Result<Files> {
    let progress = Progress::default();
    let mut plans: Vec<Plan> = Vec::new();
    let mut instruments: Vec<Instrument> = Vec::new();
    // Publishers have different names for one asset, so only the symbols of files of one format are compared. Old and
    // new files of one publisher can have different separators, such as `BTC/USDT` and `BTCUSDT`.
    let bare = |symbol: &str| -> String {
        symbol.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_uppercase()
    };
    let mut symbols: HashMap<&'static str, String> = HashMap::new();
    let mut skipped = Vec::new();
    let mut kind = None;
    for path in paths {
        if is_checksum(path) {
            skipped
                .push(format!("{} is the checksum of another file and is not read as data", path.display()));
            continue;
        }
        let found = streams(path)?;
        let is_archive = found.len() > 1;
        let (before, mut other_intervals) = (plans.len(), Vec::new());
        for stream in found {
            if is_archive && is_document(&stream, options)? {
                skipped.push(format!("{} is no data and is not read", stream.label()));
                continue;
            }
            let (size, label) = (stream.size, stream.label());
            let planned = match plan(stream, options, is_archive)? {
                Planned::Empty => {
                    progress.expect(size);
                    continue;
                }
                Planned::OtherInterval => {
                    other_intervals.push(label);
                    continue;
                }
                Planned::Read(planned) => *planned,
            };
            progress.expect(size);
            if *kind.get_or_insert(planned.plan.layout.kind) != planned.plan.layout.kind {
                let rule = "must hold the same kind of records as the other files";
                return Err(Error::invalid("files.kind", "input", label, rule));
            }
            if let Some(instrument) = &options.instrument
                && let Some(found) = planned.symbol
                && *symbols.entry(planned.plan.layout.name).or_insert_with(|| bare(&found)) != bare(&found)
            {
                let rule = "must not be set for files of several instruments";
                return Err(Error::invalid("files.instrument", "instrument", instrument, rule)
                    .with_context("file", label)
                    .with_context("symbol", found));
            }
            let layout = &planned.plan.layout;
            if layout.kind == Kind::Trades && layout.columns.quantity.is_none() && options.columns.is_none() {
                skipped.push(format!(
                    "{label} has no known column of quantities, so its trades have none; --columns names the columns"
                ));
            }
            if let Some(first) = planned.first.filter(|first| !instruments.contains(first)) {
                instruments.push(first);
            }
            plans.push(planned.plan);
        }
        if let (Some(first), Some(interval)) = (other_intervals.first(), options.interval) {
            if plans.len() == before {
                let rule =
                    format!("must have an entry with candles of {interval}, as --input-interval states");
                return Err(Error::invalid("files.interval", "input", path.display(), rule));
            }
            let count = other_intervals.len();
            skipped.push(format!(
                "{count} entries have no candles of {interval} and are not read, such as {first}"
            ));
        }
    }
    let stated = || options.columns.as_ref().map(ColumnMap::kind).or(options.format.map(Format::kind));
    let data = match kind.or_else(stated) {
        Some(Kind::Candles) => {
            let interval = common_interval(&plans, options)?;
            Data::Candles(
                Box::new(Reader::new(
                    plans,
                    progress.clone(),
                    Box::new(move |parser: &mut LineParser, line: &str, _: &mut TimestampOrdinals| {
                        parser.candle(line, interval)
                    }),
                )),
                interval,
            )
        }
        // Empty files contain no candles either.
        _ => Data::Trades(Box::new(Reader::new(plans, progress.clone(), Box::new(LineParser::trade)))),
    };
    Ok(Files { data, progress, instruments, skipped })
}

fn common_interval(plans: &[Plan], options: &FileOptions) -> Result<Interval> {
    let mut common = options.interval;
    for plan in plans {
        match (plan.interval, common) {
            (Some(interval), Some(common)) if interval != common => {
                let rule = format!(
                    "must have candles of {common}, like the previous files; --input-interval selects the entries of \
                     one interval from an archive"
                );
                return Err(Error::invalid("files.interval", "input", plan.stream.label(), rule));
            }
            (Some(interval), None) => common = Some(interval),
            _ => {}
        }
    }
    // Without a plan there is no line, and the interval has no effect.
    Ok(common.unwrap_or(Interval::M1))
}

/// The start of a stream.
enum Sample {
    /// The first lines that are not empty.
    Lines(Vec<Vec<u8>>),
    /// A JSON document, which may have one line of any length.
    Json,
    /// A first line that exceeds the maximum length.
    TooLong,
}

fn is_json(stream: &Stream) -> io::Result<bool> {
    let mut bytes = stream.open(&Progress::default())?;
    loop {
        let start = bytes.fill_buf()?;
        // The first three bytes are the byte order mark.
        let ignored = |byte: &u8| matches!(byte, 0xef | 0xbb | 0xbf) || byte.is_ascii_whitespace();
        if let Some(first) = start.iter().find(|byte| !ignored(byte)) {
            return Ok(*first == b'{');
        }
        match start.len() {
            0 => return Ok(false),
            length => bytes.consume(length),
        }
    }
}

fn sample(stream: &Stream, options: &FileOptions) -> io::Result<Sample> {
    if options.columns.is_none() && is_json(stream)? {
        return Ok(Sample::Json);
    }
    let mut lines = Lines::new(stream.open(&Progress::default())?);
    let mut found = Vec::new();
    while found.len() < SAMPLE_LINES {
        match lines.next() {
            Ok(Line::End) => break,
            Ok(Line::Bad(TOO_LONG, _)) if found.is_empty() => return Ok(Sample::TooLong),
            Ok(Line::Text | Line::Bad(..)) if lines.raw().trim_ascii().is_empty() => {}
            Ok(Line::Text | Line::Bad(..)) => found.push(lines.raw().to_vec()),
            // The reader reports damage after the first lines.
            Err(_) if !found.is_empty() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Sample::Lines(found))
}

/// Returns the first arrays of a JSON document, as lines.
fn sample_json(stream: &Stream) -> io::Result<(Vec<Vec<u8>>, String)> {
    let mut arrays = Arrays::new(stream.open(&Progress::default())?, false);
    let mut found = Vec::new();
    while found.len() < SAMPLE_LINES {
        match arrays.next()? {
            Line::End => break,
            Line::Text => found.push(arrays.text().as_bytes().to_vec()),
            Line::Bad(..) => {}
        }
    }
    Ok((found, arrays.pair))
}

/// The result of looking at the start of a stream.
enum Planned {
    /// A stream without lines.
    Empty,
    /// An entry of an archive whose name states another interval than the option.
    OtherInterval,
    /// A stream to read.
    Read(Box<Opening>),
}

struct Opening {
    plan: Plan,
    /// The first instrument.
    first: Option<Instrument>,
    /// The symbol in the lines or the name, even if the option sets another instrument.
    symbol: Option<String>,
}

/// Returns whether a file is the checksum of another file in its folder.
fn is_checksum(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == CHECKSUM) && path.with_extension("").is_file()
}

/// Returns whether an entry of an archive is a document: by its name, and because its content has no known format.
fn is_document(stream: &Stream, options: &FileOptions) -> Result<bool> {
    let name = stream.name().to_ascii_lowercase();
    // Lines of a text file have a meaning if an option states it.
    let is_stated = options.columns.is_some() || options.format.is_some();
    let extension = Path::new(&name).extension().and_then(|end| end.to_str()).unwrap_or("");
    let is_named = name.starts_with("readme")
        || ["md", "pdf", "html"].contains(&extension)
        || (extension == "txt" && !is_stated)
        || extension.eq_ignore_ascii_case(CHECKSUM);
    if !is_named {
        return Ok(false);
    }
    let label = stream.label();
    Ok(match sample(stream, &FileOptions::default()).map_err(|error| broken(&label, 0, error))? {
        Sample::Lines(lines) => !matches!(Layout::recognise(&lines), Ok(Some(_))),
        Sample::Json => false,
        Sample::TooLong => true,
    })
}

fn plan(stream: Stream, options: &FileOptions, is_entry: bool) -> Result<Planned> {
    let label = stream.label();
    let broken = |error: io::Error| broken(&label, 0, error);
    let mut lines = match sample(&stream, options).map_err(broken)? {
        Sample::Lines(lines) if lines.is_empty() => return Ok(Planned::Empty),
        Sample::Lines(lines) => lines,
        Sample::Json => vec![b"{".to_vec()],
        Sample::TooLong => {
            let rule = "must have a first line of at most 65536 bytes, which ends with LF or CRLF";
            return Err(Error::invalid("files.format", "input", &label, rule));
        }
    };
    let recognised = match options.columns {
        Some(_) => None,
        None => Layout::recognise(&lines).map_err(|error| error.with_context("file", &label))?,
    };
    let mut layout = match (&options.columns, recognised, options.format) {
        (Some(columns), ..) => columns.layout(&lines[0])?,
        // The hint decides ambiguous content, for example six numbers.
        (_, Some(layout), Some(format)) => layout.with_format(format, &lines),
        (_, Some(layout), None) => layout,
        (_, None, Some(format)) => Layout::of_format(format),
        (_, None, None) => {
            let rule = "must have a known format: set the format (`qi import --input-format`) or \
                        the columns (`--columns time=0,price=1,quantity=2`)";
            return Err(Error::invalid("files.format", "input", &label, rule));
        }
    };
    let mut pair = String::new();
    if layout.is_json {
        (lines, pair) = sample_json(&stream).map_err(broken)?;
        let found = lines.iter().find_map(|line| Layout::of_json(std::str::from_utf8(line).ok()?));
        layout = found.unwrap_or(layout);
    }
    if let (None, Some(format)) = (&options.columns, options.format)
        && layout.kind != format.kind()
        && !layout.is_of(format)
    {
        let kind = if layout.kind == Kind::Candles { "candles" } else { "trades" };
        let rule = format!("must not be set for this file: the file contains {kind}");
        return Err(Error::invalid("files.kind", "format", format, rule).with_context("file", &label));
    }
    let texts: Vec<&str> = lines
        .iter()
        .filter(|line| layout.header.as_ref() != Some(*line) && layout.title.as_ref() != Some(*line))
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let by_columns = || {
        let is_complete = layout.columns.exchange.is_some() || layout.exchange.is_some();
        (layout.columns.symbol.is_some() && is_complete).then_some(InstrumentSource::Columns)
    };
    let of_pair = || format!("kraken:{pair}").parse::<Instrument>().ok();
    let of_name = if layout.is_json { of_pair() } else { name::instrument(&stream, &layout) };
    let symbol = if layout.is_json {
        of_name.as_ref().map(|instrument| instrument.symbol().to_string())
    } else {
        name::symbol(&stream, &layout).map(str::to_owned)
    };
    let instrument_source = match &options.instrument {
        Some(instrument) => Some(InstrumentSource::One(instrument.clone())),
        None => by_columns().or_else(|| of_name.map(InstrumentSource::One)),
    };
    let Some(instrument_source) =
        instrument_source.or_else(|| texts.is_empty().then_some(InstrumentSource::Columns))
    else {
        let rule = "must have an instrument in its name: set --instrument EXCHANGE:SYMBOL";
        return Err(Error::invalid("files.instrument", "input", &label, rule));
    };
    let mut parser = LineParser::new(layout, instrument_source, false, None);
    let has_column = parser.layout.columns.id.is_some();
    // Trades with textual ids are numbered like trades without ids.
    parser.has_ids = has_column && texts.iter().any(|line| parser.is_id(line));
    let first = match &parser.instrument_source {
        InstrumentSource::One(instrument) => Some(instrument.clone()),
        InstrumentSource::Columns => texts.iter().find_map(|line| parser.instrument(line).ok()),
    };
    let symbol = texts.iter().find_map(|line| parser.symbol(line)).or(symbol);
    if let Some(symbol) = symbol.as_deref().or(first.as_ref().map(|instrument| instrument.symbol().as_str()))
    {
        parser.layout.order_volumes(symbol);
    }
    let interval = match parser.layout.kind {
        Kind::Trades => None,
        Kind::Candles => match interval(&stream, &mut parser, &texts, options, is_entry)? {
            None => return Ok(Planned::OtherInterval),
            found => found,
        },
    };
    let LineParser { layout, instrument_source, has_ids, .. } = parser;
    let plan = Plan { stream, layout, instrument_source, has_ids, interval };
    Ok(Planned::Read(Box::new(Opening { plan, first, symbol })))
}

/// Returns the interval of the candles of a stream. None for an entry of an archive whose name states another interval
/// than the option.
fn interval(
    stream: &Stream,
    parser: &mut LineParser,
    texts: &[&str],
    options: &FileOptions,
    is_entry: bool,
) -> Result<Option<Interval>> {
    let reject = |rule: String| Err(Error::invalid("files.interval", "input", stream.label(), rule));
    let in_lines: Vec<_> = texts.iter().filter_map(|line| parser.interval_of(line)).collect();
    // The close time of one candle can be wrong, for example that of the last candle of an outage.
    let is_wanted = |found: &&Result<Interval, String>| match options.interval {
        Some(wanted) => **found == Ok(wanted),
        None => found.is_ok(),
    };
    let in_lines = in_lines.iter().find(is_wanted).or(in_lines.first()).cloned();
    let counts = |named: &NamedInterval| is_entry || named.is_published || options.interval.is_none();
    let stated =
        in_lines.or(name::interval(stream, &parser.layout).filter(counts).map(|named| named.interval));
    let wanted = options.interval.map(Ok).or_else(|| stated.clone());
    if matches!(wanted, None | Some(Ok(Interval::W1))) && has_other_weeks(parser, texts) {
        let rule = "must have weeks that begin on Monday, or another interval as --input-interval: the rows are weeks \
                    apart and begin at another time, like the weeks of Kraken's REST interface on Thursday";
        return reject(rule.to_owned());
    }
    match (options.interval, stated) {
        (Some(wanted), Some(found)) if found != Ok(wanted) => {
            if is_entry {
                return Ok(None);
            }
            let found = found.map_or_else(|text| text, |interval| interval.to_string());
            return reject(format!(
                "must have candles of {wanted}, as --input-interval states, not of {found}"
            ));
        }
        (Some(wanted), _) => return Ok(Some(wanted)),
        (None, Some(Ok(interval))) => return Ok(Some(interval)),
        (None, Some(Err(found))) => {
            let known: Vec<_> = Interval::ALL.iter().map(|interval| interval.as_str()).collect();
            let rule = format!("must have candles of one of {}, not of {found}", known.join(" "));
            let hint = if is_entry { "; --input-interval selects other entries of the archive" } else { "" };
            return reject(rule + hint);
        }
        (None, None) => {}
    }
    let label = stream.label();
    let mut detector = IntervalDetector::default();
    let mut records =
        Records::open(stream, &parser.layout, &Progress::default()).map_err(|e| broken(&label, 0, e))?;
    loop {
        match records.next().map_err(|e| broken(&label, records.number(), e))? {
            Line::End => break,
            Line::Bad(..) => {}
            Line::Text => {
                if let Ok(time) = parser.time(records.text()) {
                    detector.add(time);
                }
            }
        }
    }
    match detector.interval() {
        None => reject("must have an interval in its name or rows: set --input-interval".to_owned()),
        found => Ok(found),
    }
}

/// Returns whether the first lines are weeks apart and begin at another time than Monday 00:00 UTC.
fn has_other_weeks(parser: &mut LineParser, texts: &[&str]) -> bool {
    let mut times: Vec<_> = texts.iter().filter_map(|line| parser.time(line).ok()).collect();
    // A row can be repeated.
    times.sort_unstable();
    times.dedup();
    let are_weeks_apart =
        |pair: &[Timestamp]| (pair[1].as_micros() - pair[0].as_micros()) % Interval::W1.as_micros() == 0;
    times.len() > 1
        && times.windows(2).all(are_weeks_apart)
        && times.iter().all(|time| Interval::W1.floor(*time) != *time)
}

fn broken(label: &str, line: u64, error: io::Error) -> Error {
    let error = Error::new(ErrorKind::CorruptData, "files.broken", "read")
        .with_message("reading the input failed")
        .with_context("file", label)
        .with_source(error);
    if line > 0 { error.with_context("line", line) } else { error }
}

/// The lines of a stream without empty lines, the title and the header, or the arrays of a JSON document.
enum Records {
    Lines(Lines, [Option<Vec<u8>>; 2]),
    Arrays(Box<Arrays>),
}

impl Records {
    fn open(stream: &Stream, layout: &Layout, progress: &Progress) -> io::Result<Self> {
        let bytes = stream.open(progress)?;
        Ok(if layout.is_json {
            Self::Arrays(Box::new(Arrays::new(bytes, layout.kind == Kind::Candles)))
        } else {
            Self::Lines(Lines::new(bytes), [layout.header.clone(), layout.title.clone()])
        })
    }

    fn next(&mut self) -> io::Result<Line> {
        match self {
            Self::Arrays(arrays) => arrays.next(),
            Self::Lines(lines, headers) => loop {
                match lines.next()? {
                    Line::End => return Ok(Line::End),
                    // Each part of a concatenated file has a header.
                    _ if headers.iter().flatten().any(|header| header == lines.raw()) => {}
                    Line::Text if lines.raw().trim_ascii().is_empty() => {}
                    line => return Ok(line),
                }
            },
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Arrays(arrays) => arrays.text(),
            Self::Lines(lines, _) => lines.text(),
        }
    }

    fn number(&self) -> u64 {
        match self {
            Self::Arrays(arrays) => arrays.number,
            Self::Lines(lines, _) => lines.number,
        }
    }
}

type Parse<T> = Box<dyn FnMut(&mut LineParser, &str, &mut TimestampOrdinals) -> Result<T> + Send>;

/// A reader of the streams of the plans, one after the other.
struct Reader<T> {
    plans: VecDeque<Plan>,
    open: Option<Opened>,
    progress: Progress,
    parse: Parse<T>,
}

struct Opened {
    label: String,
    records: Records,
    parser: LineParser,
    ordinals: TimestampOrdinals,
}

impl<T> Reader<T> {
    fn new(plans: Vec<Plan>, progress: Progress, parse: Parse<T>) -> Self {
        Self { plans: plans.into(), open: None, progress, parse }
    }

    fn begin(&mut self, plan: Plan) -> Input {
        let Plan { stream, layout, instrument_source, has_ids, interval } = plan;
        let label = stream.label();
        let records = match Records::open(&stream, &layout, &self.progress) {
            Ok(records) => records,
            Err(error) => return self.give_up(broken(&label, 0, error)),
        };
        let trade_ids = if !has_ids || layout.kind == Kind::Candles || layout.is_aggregated {
            TradeIds::None
        } else if layout.exchange == Some("binance") {
            TradeIds::Consecutive
        } else {
            TradeIds::Sparse
        };
        let parser = LineParser::new(layout, instrument_source, has_ids, interval);
        self.open =
            Some(Opened { label: label.clone(), records, parser, ordinals: TimestampOrdinals::default() });
        Input::File(FileStart { name: label, has_ids, trade_ids, is_verified: stream.verified })
    }

    /// Ends the source, because later files may depend on a damaged file.
    fn give_up(&mut self, error: Error) -> Input {
        self.plans.clear();
        self.open = None;
        Input::Fatal(error)
    }
}

impl<T> Iterator for Reader<T> {
    type Item = Result<T, Input>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(open) = &mut self.open else {
                let plan = self.plans.pop_front()?;
                return Some(Err(self.begin(plan)));
            };
            let Opened { label, records, parser, ordinals } = open;
            let line = match records.next() {
                Ok(line) => line,
                Err(error) => {
                    let error = broken(label, records.number(), error);
                    return Some(Err(self.give_up(error)));
                }
            };
            let outcome = match line {
                Line::End => {
                    self.open = None;
                    continue;
                }
                Line::Text => (self.parse)(parser, records.text(), ordinals),
                Line::Bad(rule, start) => Err(Error::invalid("files.line", "line", start, rule)),
            };
            return Some(outcome.map_err(|error| {
                Input::BadLine(
                    error
                        .with_operation("read")
                        .with_context("file", &*label)
                        .with_context("line", records.number()),
                )
            }));
        }
    }
}

/// Returns whether two paths are one file.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}
