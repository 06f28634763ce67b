//! Where records come from: recorded files, line by line, or the simulated market.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use clap::ValueEnum;
use flate2::read::MultiGzDecoder;
use qi_core::{
    BarValues, Decimal, Error, ErrorKind, Instrument, Interval, Ohlcv, Price, PriceTick, Quantity, Result,
    Side, Timestamp,
};

/// The formats of recorded files, plain or gzip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Trades with the header `trade_id,price,quantity,time_ms,buyer_maker`.
    Binance,
    /// Trades without a header: `unix seconds,price,quantity`. The trades of one second are numbered in the order of the
    /// file, after those of the second that the store already has from another file.
    Kraken,
    /// Trades with the header `price,quantity,time_s,side,order_type,trade_id`; times are cut to the microsecond.
    KrakenRest,
    /// Bars with the header `timestamp,open,high,low,close,volume`; the interval is that of the file.
    Candles,
}

impl Format {
    fn header(self) -> Option<&'static str> {
        match self {
            Self::Binance => Some("trade_id,price,quantity,time_ms,buyer_maker"),
            Self::Kraken => None,
            Self::KrakenRest => Some("price,quantity,time_s,side,order_type,trade_id"),
            Self::Candles => Some("timestamp,open,high,low,close,volume"),
        }
    }
}

/// Why a source gave no record.
#[derive(Debug)]
pub enum Input {
    /// This line holds none; the next one may.
    BadLine(Error),
    /// The input cannot be read any further.
    Broken(Error),
    /// The trades from here on have no ids: each `seq` is an ordinal among the trades of its timestamp in this source.
    Ordinals,
}

/// Records, and what is wrong with some lines.
pub type Source<T> = Box<dyn Iterator<Item = Result<T, Input>> + Send>;

/// The longest line that is read, in bytes. A longer one is a bad line.
const MAX_LINE: u64 = 64 << 10;
/// How much of a longer line is read past before the input counts as broken: what has no lines is no input.
const MAX_SKIP: u64 = 16 << 20;
/// How many distinct timestamps are remembered to number the ties of a file without trade ids.
pub(super) const MAX_TIES: usize = 65_536;
/// How many bars are looked at to find the interval of a file of candles.
const CANDLES_AHEAD: usize = 1_000;

/// The trades of a file.
///
/// # Errors
/// `InvalidInput` if the file cannot be opened or the format has no trades.
pub fn trades(path: &Path, format: Format, instrument: &Instrument) -> Result<Source<PriceTick>> {
    let (lines, name) = (Lines::open(path, format.header())?, instrument.clone());
    Ok(match format {
        Format::Binance => Box::new(lines.records(move |fields| binance(&name, fields))),
        Format::KrakenRest => Box::new(lines.records(move |fields| kraken_rest(&name, fields))),
        Format::Kraken => {
            let mut ties = Ties::default();
            let records = lines.records(move |fields| kraken(&name, &mut ties, fields));
            Box::new(std::iter::once(Err(Input::Ordinals)).chain(records))
        }
        Format::Candles => {
            return Err(Error::invalid("pipeline.format", "format", "candles", "has bars, not trades"));
        }
    })
}

/// The bars of a file, and their interval: the smallest distance of two neighbours among the first thousand, in the
/// order of time.
///
/// # Errors
/// `InvalidInput` if the file cannot be opened, has no two bars to tell the interval by, or that distance is no
/// interval.
pub fn candles(path: &Path, instrument: &Instrument) -> Result<(Source<Ohlcv>, Interval)> {
    let interval = candle_interval(path)?;
    let (lines, name) = (Lines::open(path, Format::Candles.header())?, instrument.clone());
    Ok((Box::new(lines.records(move |fields| candle(&name, interval, fields))), interval))
}

fn candle_interval(path: &Path) -> Result<Interval> {
    let times = Lines::open(path, Format::Candles.header())?.records(|fields| {
        let [time, ..] = exactly::<6>(fields)?;
        time.parse::<Timestamp>()
    });
    let mut times: Vec<Timestamp> = times.take(CANDLES_AHEAD).filter_map(Result::ok).collect();
    times.sort_unstable();
    let distance = times.windows(2).map(|pair| pair[1].since(pair[0])).filter(|d| !d.is_zero()).min();
    let refuse = |value: &str, rule| Err(Error::invalid("pipeline.candles", "input", value, rule));
    let Some(distance) = distance else {
        return refuse(&path.display().to_string(), "must have two bars at least, to tell their interval by");
    };
    match Interval::ALL.iter().copied().find(|i| i.duration() == distance) {
        Some(interval) => Ok(interval),
        None => refuse(&format!("{distance:?}"), "must have bars of a known interval"),
    }
}

fn binance(instrument: &Instrument, fields: &str) -> Result<PriceTick> {
    let [id, price, quantity, millis, buyer_maker] = exactly(fields)?;
    // The maker bought, so the taker sold.
    let side = match buyer_maker {
        "true" => Side::Sell,
        "false" => Side::Buy,
        other => return Err(Error::invalid("pipeline.line", "buyer_maker", other, "must be true or false")),
    };
    let time = Timestamp::from_millis(integer("time_ms", millis)?)?;
    let tick = PriceTick::new(instrument.clone(), time, integer("trade_id", id)?, price.parse()?)?;
    Ok(tick.with_quantity(quantity.parse::<Quantity>()?).with_side(side))
}

fn kraken(instrument: &Instrument, ties: &mut Ties, fields: &str) -> Result<PriceTick> {
    let [time, price, quantity] = exactly(fields)?;
    let (time, price, quantity) = (seconds(time)?, price.parse()?, quantity.parse::<Quantity>()?);
    Ok(PriceTick::new(instrument.clone(), time, ties.next(time)?, price)?.with_quantity(quantity))
}

fn kraken_rest(instrument: &Instrument, fields: &str) -> Result<PriceTick> {
    let [price, quantity, time, side, _order_type, id] = exactly(fields)?;
    let tick = PriceTick::new(instrument.clone(), seconds(time)?, integer("trade_id", id)?, price.parse()?)?;
    Ok(tick.with_quantity(quantity.parse::<Quantity>()?).with_side(side.parse::<Side>()?))
}

fn candle(instrument: &Instrument, interval: Interval, fields: &str) -> Result<Ohlcv> {
    let [time, open, high, low, close, volume] = exactly(fields)?;
    let price = |text: &str| text.parse::<Price>();
    let values = BarValues {
        open: price(open)?,
        high: price(high)?,
        low: price(low)?,
        close: price(close)?,
        volume: Some(volume.parse()?),
        quote_volume: None,
        count: None,
    };
    Ohlcv::new(instrument.clone(), interval, time.parse()?, values)
}

/// Exactly so many fields.
fn exactly<const N: usize>(line: &str) -> Result<[&str; N]> {
    let wrong = || Error::invalid("pipeline.line", "line", line, format_args!("must have {N} fields"));
    let mut fields = line.split(',');
    let mut found = [""; N];
    for field in &mut found {
        *field = fields.next().ok_or_else(wrong)?.trim();
    }
    if fields.next().is_some() { Err(wrong()) } else { Ok(found) }
}

fn integer<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::invalid("pipeline.line", field, text, "must be a whole number"))
}

/// Unix seconds with any number of places up to 18, cut to the microsecond.
fn seconds(text: &str) -> Result<Timestamp> {
    const UNITS_PER_MICRO: i128 = Decimal::UNITS_PER_ONE / 1_000_000;
    let refuse = || {
        Error::invalid("pipeline.line", "time", text, "must be Unix seconds from 1970-01-05 to 2262-01-31")
    };
    let seconds = text.parse::<Decimal>().map_err(|_| refuse())?;
    let micros = i64::try_from(seconds.units().div_euclid(UNITS_PER_MICRO)).map_err(|_| refuse())?;
    Timestamp::from_micros(micros).map_err(|_| refuse())
}

/// Numbers the records of one timestamp in the order in which they come. A bounded number of timestamps is
/// remembered; a record from before them would be numbered wrongly and is refused.
#[derive(Debug, Default)]
struct Ties {
    next: BTreeMap<Timestamp, u64>,
    forgotten: Option<Timestamp>,
}

impl Ties {
    fn next(&mut self, time: Timestamp) -> Result<u64> {
        if self.forgotten.is_some_and(|forgotten| time <= forgotten) {
            let rule = format!("must not be more than {MAX_TIES} timestamps out of order");
            return Err(Error::invalid("pipeline.line", "time", time, rule));
        }
        let next = self.next.entry(time).or_insert(0);
        let seq = *next;
        *next += 1;
        if self.next.len() > MAX_TIES {
            self.forgotten = self.next.pop_first().map(|(time, _)| time);
        }
        Ok(seq)
    }
}

/// The lines of a file, plain or gzip, with their numbers.
struct Lines {
    file: String,
    reader: Box<dyn BufRead + Send>,
    header: Option<&'static str>,
    line: u64,
    broken: bool,
}

impl Lines {
    fn open(path: &Path, header: Option<&'static str>) -> Result<Self> {
        let file = path.display().to_string();
        let refuse = |e: io::Error| {
            Error::invalid("pipeline.input", "input", &file, "must be a file that can be read").with_source(e)
        };
        // Opening a pipe waits for its writer, and nobody could stop that.
        if !path.metadata().map_err(refuse)?.is_file() {
            return Err(refuse(io::Error::other("it is no ordinary file")));
        }
        let mut reader = BufReader::new(File::open(path).map_err(refuse)?);
        let gzip = reader.fill_buf().map_err(refuse)?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn BufRead + Send> =
            if gzip { Box::new(BufReader::new(MultiGzDecoder::new(reader))) } else { Box::new(reader) };
        Ok(Self { file, reader, header, line: 0, broken: false })
    }

    /// The records of all lines that are neither the header nor empty.
    fn records<T>(
        mut self,
        mut parse: impl FnMut(&str) -> Result<T>,
    ) -> impl Iterator<Item = Result<T, Input>> {
        std::iter::from_fn(move || {
            loop {
                let at = |this: &Self, error: Error| {
                    error
                        .with_operation("read")
                        .with_context("file", &this.file)
                        .with_context("line", this.line)
                };
                let text = match self.next_line() {
                    Ok(Some(text)) => text,
                    Ok(None) => return None,
                    Err(Input::BadLine(error)) => return Some(Err(Input::BadLine(at(&self, error)))),
                    Err(Input::Broken(error)) => return Some(Err(Input::Broken(at(&self, error)))),
                    Err(Input::Ordinals) => return Some(Err(Input::Ordinals)),
                };
                let content = text.trim_end_matches(['\r', '\n']);
                let content = if self.line == 1 { content.trim_start_matches('\u{feff}') } else { content };
                if content.is_empty() || (self.line == 1 && Some(content) == self.header) {
                    continue;
                }
                return Some(parse(content).map_err(|error| Input::BadLine(at(&self, error))));
            }
        })
    }

    /// Reads up to the end of the line, but not more than the longest line; whether the line has ended.
    fn piece(&mut self, bytes: &mut Vec<u8>) -> io::Result<bool> {
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', bytes)?;
        Ok(bytes.ends_with(b"\n") || (read as u64) < MAX_LINE)
    }

    fn next_line(&mut self) -> Result<Option<String>, Input> {
        if self.broken {
            return Ok(None);
        }
        self.line += 1;
        let mut bytes = Vec::new();
        let read = self.piece(&mut bytes).and_then(|mut ended| {
            let whole = ended;
            // The rest of a line that is too long is read past, a piece at a time.
            let (mut pieces, mut rest) = (0, Vec::new());
            while !ended {
                pieces += 1;
                if pieces * MAX_LINE > MAX_SKIP {
                    return Err(io::Error::other("a line of more than 16 MiB is no line"));
                }
                rest.clear();
                ended = self.piece(&mut rest)?;
            }
            Ok(whole)
        });
        match read {
            Err(e) => {
                self.broken = true;
                let error = Error::new(ErrorKind::CorruptData, "pipeline.input.broken", "read")
                    .with_message("the input cannot be read any further");
                Err(Input::Broken(error.with_source(e)))
            }
            Ok(true) if bytes.is_empty() => Ok(None),
            Ok(false) => Err(Input::BadLine(Error::invalid(
                "pipeline.line",
                "line",
                "",
                "must be at most 65536 bytes long",
            ))),
            Ok(true) => String::from_utf8(bytes).map(Some).map_err(|e| {
                let text = String::from_utf8_lossy(e.as_bytes()).into_owned();
                Input::BadLine(Error::invalid("pipeline.line", "line", text, "must be UTF-8"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn read(content: &[u8], format: Format) -> (Vec<PriceTick>, Vec<Error>) {
        let (file, name) = (file(content), "x:Y".parse().unwrap());
        let (mut ticks, mut errors) = (Vec::new(), Vec::new());
        for record in trades(file.path(), format, &name).unwrap() {
            match record {
                Ok(tick) => ticks.push(tick),
                Err(Input::BadLine(error) | Input::Broken(error)) => errors.push(error),
                Err(Input::Ordinals) => {}
            }
        }
        (ticks, errors)
    }

    #[test]
    fn bad_lines_are_named_and_the_others_go_on() {
        let content = b"trade_id,price,quantity,time_ms,buyer_maker\n1,5,1,1610064000278,true\n\nx,5,1,1,true\n2,0,1,1610064000278,true\r\n\xff\xfe\n3,5,1,1610064000279,no\n4,5,1,1610064000280,false";
        let (ticks, errors) = read(content, Format::Binance);
        assert_eq!(ticks.iter().map(PriceTick::seq).collect::<Vec<_>>(), [1, 4]);
        let lines: Vec<_> = errors.iter().map(|e| e.context_value("line").unwrap()).collect();
        assert_eq!(lines, ["4", "5", "6", "7"]);
        assert_eq!(ticks[0].side(), Some(Side::Sell));
    }

    #[test]
    fn a_line_that_is_too_long_is_one_bad_line() {
        let mut content = vec![b'9'; 200_000];
        content.extend_from_slice(b"\n1000000000,5,1\n");
        let (ticks, errors) = read(&content, Format::Kraken);
        assert_eq!((ticks.len(), errors.len()), (1, 1));
    }

    #[test]
    fn an_input_without_lines_is_broken_and_not_read_for_ever() {
        let (ticks, errors) = read(&vec![0; 20 << 20], Format::Kraken);
        assert_eq!((ticks.len(), errors.len(), errors[0].code()), (0, 1, "pipeline.input.broken"));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let (ticks, errors) = read("\u{feff}1000000000,5,1\n".as_bytes(), Format::Kraken);
        assert_eq!((ticks.len(), errors.len()), (1, 0));
        let (_, errors) = read(b"1e9,5,1\n", Format::Kraken);
        let named = (errors[0].context_value("field"), errors[0].context_value("value"));
        assert_eq!(named, (Some("time"), Some("1e9")));
    }

    #[test]
    fn ties_without_ids_are_numbered_in_the_order_of_the_file() {
        let (ticks, errors) = read(
            b"1000000000,5,1\n1000000000,5,1\n1000000001,5,1\n1000000000.5,5,1\n1000000000,6,1\n",
            Format::Kraken,
        );
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(ticks.iter().map(PriceTick::seq).collect::<Vec<_>>(), [0, 1, 0, 0, 2]);
    }

    #[test]
    fn what_cannot_be_numbered_is_refused_and_not_overwritten() {
        let mut ties = Ties::default();
        for second in 1..=i64::try_from(MAX_TIES).unwrap() + 1 {
            ties.next(Timestamp::from_secs(1_000_000 + second).unwrap()).unwrap();
        }
        assert!(ties.next(Timestamp::from_secs(1_000_001).unwrap()).is_err());
        assert_eq!(ties.next(Timestamp::from_secs(1_000_002).unwrap()).unwrap(), 1);
    }

    #[test]
    fn seven_places_of_a_second_are_cut_not_rounded() {
        assert_eq!(seconds("1762795433.9717449").unwrap().as_micros(), 1_762_795_433_971_744);
    }

    #[test]
    fn a_broken_gzip_ends_the_input_with_an_error() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        for n in 0..10_000 {
            writeln!(gzip, "{},{},1", 1_600_000_000 + n, n * 7_919 % 100_003 + 1).unwrap();
        }
        let mut bytes = gzip.finish().unwrap();
        bytes.truncate(bytes.len() / 2);
        let (ticks, errors) = read(&bytes, Format::Kraken);
        assert!(!ticks.is_empty() && ticks.len() < 10_000);
        assert_eq!(errors.last().unwrap().code(), "pipeline.input.broken");
    }

    #[test]
    fn the_interval_of_candles_is_that_of_the_file() {
        let content = b"timestamp,open,high,low,close,volume\n2022-01-01 00:00:00,1,1,1,1,5\n2022-01-01 00:10:00,1,1,1,1,5\n2022-01-01 00:15:00,1,1,1,1,5\n";
        let (bars, interval) = candles(file(content).path(), &"x:Y".parse().unwrap()).unwrap();
        assert_eq!((bars.count(), interval), (3, Interval::M5));
        let newest_first = b"2022-01-01 02:00:00,1,1,1,1,5\n2022-01-01 01:00:00,1,1,1,1,5\n";
        let (_, interval) = candles(file(newest_first).path(), &"x:Y".parse().unwrap()).unwrap();
        assert_eq!(interval, Interval::H1);
        let single = b"2022-01-01 00:00:00,1,1,1,1,5\n";
        assert!(candles(file(single).path(), &"x:Y".parse().unwrap()).is_err());
        let odd = b"2022-01-01 00:00:00,1,1,1,1,5\n2022-01-01 00:07:00,1,1,1,1,5\n";
        assert!(candles(file(odd).path(), &"x:Y".parse().unwrap()).is_err());
    }
}
