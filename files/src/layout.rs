//! The layouts of files: the columns and their meanings.

use std::fmt;
use std::str::FromStr;

use qi_core::{Error, Interval, Result, Timestamp};

use crate::lines::{Fields, MAX_FIELDS};
use crate::number::{units, whole};
use crate::row::field;
use crate::time::{ANY, TimeUnit, is_clock, is_time};

/// The kind of records in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Trades.
    Trades,
    /// Candles.
    Candles,
}

/// A format hint for files whose content does not determine it: the layout of lines without a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Trades of Binance: `trades` or `aggTrades`.
    Binance,
    /// Trades of Kraken's bulk files: `seconds,price,quantity`.
    Kraken,
    /// Trades of Kraken's REST interface, as JSON or as `price,quantity,seconds,side,order type,id`.
    KrakenRest,
    /// Trades of Bybit.
    Bybit,
    /// Trades of OKX.
    Okx,
    /// Trades of Tardis.
    Tardis,
    /// Candles: `time,open,high,low,close,volume`.
    Candles,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 7] =
        [Self::Binance, Self::Kraken, Self::KrakenRest, Self::Bybit, Self::Okx, Self::Tardis, Self::Candles];

    /// Returns the name, for example `kraken-rest`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Binance => "binance",
            Self::Kraken => "kraken",
            Self::KrakenRest => "kraken-rest",
            Self::Bybit => "bybit",
            Self::Okx => "okx",
            Self::Tardis => "tardis",
            Self::Candles => "candles",
        }
    }

    /// Returns the kind of records of the format.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Candles => Kind::Candles,
            _ => Kind::Trades,
        }
    }

    /// Returns the layout for a file whose content does not determine it.
    fn fallback(self) -> Layout {
        let headers: &[&str] = match self {
            Self::Binance => &["trade_id", "price", "quantity", "quote", "time", "buyer_maker", "best"],
            Self::Kraken => &["time_s", "price", "quantity"],
            Self::KrakenRest => &["price", "quantity", "time_s", "side", "order_type", "trade_id"],
            Self::Bybit => &["id", "timestamp", "price", "volume", "side"],
            Self::Okx => &["trade_id", "side", "size", "price", "created_time"],
            Self::Tardis => {
                &["exchange", "symbol", "timestamp", "local_timestamp", "id", "side", "price", "amount"]
            }
            Self::Candles => &["time", "open", "high", "low", "close", "volume"],
        };
        Layout::of_names(self.as_str(), headers, false)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::as_str).join(" ");
        let found = Self::ALL.into_iter().find(|format| format.as_str() == text);
        found.ok_or_else(|| Error::invalid("files.format", "format", text, format!("must be one of {names}")))
    }
}

/// The index of each column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Columns {
    pub(crate) time: Option<usize>,
    /// The column of the date, if the column of the time may have only the time of day.
    pub(crate) date: Option<usize>,
    pub(crate) price: Option<usize>,
    pub(crate) quantity: Option<usize>,
    pub(crate) side: Option<usize>,
    pub(crate) buyer_maker: Option<usize>,
    pub(crate) id: Option<usize>,
    pub(crate) symbol: Option<usize>,
    pub(crate) exchange: Option<usize>,
    pub(crate) open: Option<usize>,
    pub(crate) high: Option<usize>,
    pub(crate) low: Option<usize>,
    pub(crate) close: Option<usize>,
    pub(crate) volume: Option<usize>,
    pub(crate) quote_volume: Option<usize>,
    pub(crate) count: Option<usize>,
    pub(crate) close_time: Option<usize>,
}

/// A column of `--columns`.
const ROLES: [&str; 17] = [
    "time",
    "date",
    "price",
    "quantity",
    "side",
    "buyer_maker",
    "id",
    "symbol",
    "exchange",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "count",
    "close_time",
];

impl Columns {
    fn role(&mut self, role: &str) -> Option<&mut Option<usize>> {
        Some(match role {
            "time" => &mut self.time,
            "date" => &mut self.date,
            "price" => &mut self.price,
            "quantity" => &mut self.quantity,
            "side" => &mut self.side,
            "buyer_maker" => &mut self.buyer_maker,
            "id" => &mut self.id,
            "symbol" => &mut self.symbol,
            "exchange" => &mut self.exchange,
            "open" => &mut self.open,
            "high" => &mut self.high,
            "low" => &mut self.low,
            "close" => &mut self.close,
            "volume" => &mut self.volume,
            "quote_volume" => &mut self.quote_volume,
            "count" => &mut self.count,
            "close_time" => &mut self.close_time,
            _ => return None,
        })
    }

    fn kind(&self) -> Option<Kind> {
        let bars = [self.open, self.high, self.low, self.close];
        match (self.time, self.price) {
            (Some(_), _) if bars.iter().all(Option::is_some) => Some(Kind::Candles),
            (Some(_), Some(_)) if bars.iter().all(Option::is_none) => Some(Kind::Trades),
            _ => None,
        }
    }
}

/// The published headers without underscores and spaces, and their exchanges. A file with another header has no
/// exchange, even if it has the same names in part. Bybit's header of derivatives is also the header of `BitMEX`.
const PUBLISHED: [(&str, &str, &str); 10] = [
    ("bybit", "bybit-spot", "id,timestamp,price,volume,side"),
    (
        "bybit",
        "bybit",
        "timestamp,symbol,side,size,price,tickdirection,trdmatchid,grossvalue,homenotional,foreignnotional",
    ),
    ("okx", "okx", "tradeid,side,size,price,createdtime"),
    ("okx", "okx", "instrumentname,tradeid,side,price,size,createdtime"),
    ("binance", "binance", "id,price,qty,quoteqty,time,isbuyermaker,isbestmatch"),
    ("binance", "binance", "tradeid,price,qty,quoteqty,time,isbuyermaker,isbestmatch"),
    (
        "binance",
        "binance",
        "aggtradeid,price,quantity,firsttradeid,lasttradeid,transacttime,isbuyermaker,isbestmatch",
    ),
    ("binance", "binance-futures", "id,price,qty,quoteqty,time,isbuyermaker"),
    ("binance", "binance-futures", "id,price,qty,baseqty,time,isbuyermaker"),
    (
        "binance",
        "binance-futures",
        "aggtradeid,price,quantity,firsttradeid,lasttradeid,transacttime,isbuyermaker",
    ),
];

/// Returns the role of a column name that exchanges and pandas use.
fn role_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "time" | "timestamp" | "ts" | "date" | "datetime" | "unix" | "open_time" | "opentime"
        | "created_time" | "transact_time" | "trade_time" | "exchange_timestamp" | "start_time" | "t" => {
            "time"
        }
        "price" | "px" | "p" | "trade_price" => "price",
        "quantity" | "qty" | "size" | "amount" | "sz" | "q" | "trade_quantity" => "quantity",
        "side" | "taker_side" | "direction" => "side",
        "buyer_maker" | "is_buyer_maker" | "isbuyermaker" | "buyer_is_maker" | "m" => "buyer_maker",
        "id" | "trade_id" | "tradeid" | "agg_trade_id" | "aggtradeid" | "trdmatchid" | "a" | "exec_id" => {
            "id"
        }
        "symbol" | "instrument_name" | "instrument" | "inst_id" | "instid" | "pair" => "symbol",
        "exchange" => "exchange",
        "open" | "o" => "open",
        "high" | "h" => "high",
        "low" | "l" => "low",
        "close" | "c" => "close",
        "volume" | "vol" | "v" | "base_volume" => "volume",
        "quote_volume" | "quote_asset_volume" | "quotevolume" | "turnover" => "quote_volume",
        "count" | "trades" | "number_of_trades" | "trade_count" | "tradecount" => "count",
        "close_time" | "closetime" => "close_time",
        _ => return None,
    })
}

/// The rules for reading the lines of a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    /// The publisher of such files.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) columns: Columns,
    /// The number of fields. None accepts any number that has the columns.
    pub(crate) width: Option<usize>,
    pub(crate) units: &'static [TimeUnit],
    pub(crate) delimiter: u8,
    /// The first line, if it is a header.
    pub(crate) header: Option<Vec<u8>>,
    /// A line of text before the header, such as the address of the publisher.
    pub(crate) title: Option<Vec<u8>>,
    pub(crate) is_json: bool,
    /// The exchange of such files, if there is only one.
    pub(crate) exchange: Option<&'static str>,
    /// True if an id numbers the trades of one order together.
    pub(crate) is_aggregated: bool,
    /// The columns `volume..`, if there is no column `volume`. Their names do not determine their assets.
    pub(crate) assumed_volumes: Vec<usize>,
    /// True if no name declares the column of the count. A number with decimal places there is no count.
    pub(crate) is_count_assumed: bool,
}

const SECONDS: &[TimeUnit] = &[TimeUnit::Seconds];
const MILLIS: &[TimeUnit] = &[TimeUnit::Millis];
const MICROS: &[TimeUnit] = &[TimeUnit::Micros];
const NANOS: &[TimeUnit] = &[TimeUnit::Nanos];
/// Each unit except seconds.
const SCALED: &[TimeUnit] = &[TimeUnit::Millis, TimeUnit::Micros, TimeUnit::Nanos];
/// The time units of Binance. The spot files have microseconds since 2025.
const BINANCE: &[TimeUnit] = &[TimeUnit::Millis, TimeUnit::Micros];

fn only(unit: TimeUnit) -> &'static [TimeUnit] {
    match unit {
        TimeUnit::Seconds => SECONDS,
        TimeUnit::Millis => MILLIS,
        TimeUnit::Micros => MICROS,
        TimeUnit::Nanos => NANOS,
    }
}

impl Layout {
    /// Returns a layout from column names of this library.
    fn of_names(name: &'static str, headers: &[&str], is_json: bool) -> Self {
        let mut layout = Self {
            name,
            kind: Kind::Trades,
            columns: Columns::default(),
            width: Some(headers.len()),
            units: if name == "binance" { BINANCE } else { ANY },
            delimiter: b',',
            header: None,
            title: None,
            is_json,
            exchange: None,
            is_aggregated: false,
            assumed_volumes: Vec::new(),
            is_count_assumed: false,
        };
        layout.take_names(headers.iter().copied());
        layout.kind = layout.columns.kind().unwrap_or(Kind::Trades);
        layout.exchange = match name {
            "kraken" | "kraken-rest" => Some("kraken"),
            "okx" => Some("okx"),
            "bybit" => Some("bybit-spot"),
            _ => None,
        };
        layout
    }

    /// Finds the columns by their names. The first column with a role is used. A column `date` is the time only if no
    /// other column is; otherwise it completes a time of day.
    fn take_names<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let (mut is_unnamed, mut volumes) = (false, Vec::new());
        for (at, name) in names.enumerate() {
            // OKX writes names in two languages: `price/价格`.
            let name = name.split('/').next().unwrap_or("").trim().to_ascii_lowercase().replace(' ', "_");
            let name = name.as_str();
            is_unnamed |= at == 0 && name.is_empty();
            if name == "date" {
                self.columns.date = self.columns.date.or(Some(at));
                continue;
            }
            let unit = TimeUnit::of_name(name);
            let bare = unit
                .and_then(|_| name.rsplit_once(['_', '(', '[']))
                .map(|(start, _)| start.trim_end_matches('_'));
            let (role, unit) = match (role_of(name), bare.and_then(role_of)) {
                (Some(role), _) => (role, None),
                (None, Some(role @ ("time" | "close_time"))) => (role, unit),
                _ if name.starts_with("volume") || name.starts_with("vol_") => {
                    volumes.push(at);
                    continue;
                }
                _ => continue,
            };
            if let Some(place @ None) = self.columns.role(role) {
                *place = Some(at);
                self.is_aggregated |= role == "id" && matches!(name, "agg_trade_id" | "aggtradeid" | "a");
                if let Some(unit) = unit.filter(|_| role == "time") {
                    self.units = only(unit);
                }
            }
        }
        if self.columns.time.is_none() {
            // pandas writes an index without a name. If another column has the time, the index has row numbers.
            self.columns.time = self.columns.date.take().or(is_unnamed.then_some(0));
        }
        // A trade has one number besides its price, which some publishers call its volume.
        if self.columns.price.is_some() && self.columns.open.is_none() && self.columns.quantity.is_none() {
            self.columns.quantity = self.columns.volume.take();
        }
        // `volumefrom,volumeto` or `Volume BTC,Volume USDT`
        if self.columns.open.is_some() && self.columns.volume.is_none() {
            self.columns.volume = volumes.first().copied();
            self.columns.quote_volume = self.columns.quote_volume.or(volumes.get(1).copied());
            self.assumed_volumes = volumes;
        }
    }

    /// Assigns the columns `volume..` to the base and the quote asset, if their names have the assets of the symbol,
    /// for example `Volume USDT,Volume BTC` for `BTC/USDT`. A single volume of another asset is not used.
    pub(crate) fn order_volumes(&mut self, symbol: &str) {
        let text = String::from_utf8_lossy(self.header.as_deref().unwrap_or_default()).to_ascii_uppercase();
        let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
        let count = fields.split(&text, self.delimiter, &mut out).unwrap_or(0);
        let symbol = symbol.to_ascii_uppercase();
        // True for the volume of the base asset, false for that of the quote asset, None for an unknown asset.
        let is_base = |at: usize| -> Option<bool> {
            let name = out[..count].get(at)?;
            let asset = name.strip_prefix("VOLUME").or_else(|| name.strip_prefix("VOL"))?;
            match asset.trim_matches(|c: char| !c.is_alphanumeric()) {
                "" | "BASE" | "FROM" => Some(true),
                "QUOTE" | "TO" => Some(false),
                asset => {
                    // Some publishers call the dollars of stablecoins USD.
                    let has_dollars = symbol.ends_with("USDT") || symbol.ends_with("USDC");
                    let ends = symbol.ends_with(asset) || (asset == "USD" && has_dollars);
                    let begins = symbol.starts_with(asset);
                    (begins != ends).then_some(begins)
                }
            }
        };
        let is_assumed = |at: &usize| self.assumed_volumes.contains(at);
        let Some(volume) = self.columns.volume.filter(is_assumed) else { return };
        let quote = self.columns.quote_volume;
        let quote_is_base = quote.and_then(|at| if is_assumed(&at) { is_base(at) } else { Some(false) });
        let volume_is_base = is_base(volume);
        if volume_is_base == Some(true) {
            return;
        }
        if quote_is_base == Some(true) || (volume_is_base, quote_is_base) == (Some(false), None) {
            std::mem::swap(&mut self.columns.volume, &mut self.columns.quote_volume);
        } else if volume_is_base == Some(false) || quote.is_none() {
            self.columns.volume = None;
        }
    }

    /// Returns the layout of a header line. None if the line is not a header.
    fn of_header(line: &[u8], delimiter: u8) -> Option<Self> {
        // Old files of OKX have names after the slash that are not UTF-8.
        let text = String::from_utf8_lossy(line);
        let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
        let count = fields.split(&text, delimiter, &mut out)?;
        let names = &out[..count];
        if names.iter().any(|name| units(name).is_some()) {
            return None;
        }
        let has = |wanted: &str| {
            names.iter().any(|name| name.split('/').next().unwrap_or("").eq_ignore_ascii_case(wanted))
        };
        let bare: Vec<&str> = names.iter().map(|name| name.split('/').next().unwrap_or("")).collect();
        let bare = bare.join(",").to_ascii_lowercase().replace(['_', ' '], "");
        let published = PUBLISHED.into_iter().find(|(name, _, header)| match bare.strip_prefix(header) {
            Some("") => true,
            // Bybit has added columns at the end. Binance's header of futures begins its header of spot trades.
            Some(more) => more.starts_with(',') && *name != "binance",
            None => false,
        });
        let name = if has("local_timestamp") && has("exchange") {
            "tardis"
        } else if let Some((name, ..)) = published {
            name
        } else if has("is_buyer_maker")
            || has("buyer_maker")
            || has("isBuyerMaker")
            || has("taker_buy_volume")
        {
            "binance"
        } else {
            "csv"
        };
        let mut layout = Self::of_names(name, names, false);
        layout.columns.kind()?;
        if name == "tardis" {
            layout.units = MICROS;
        }
        layout.exchange = published.map(|(_, exchange, _)| exchange);
        layout.delimiter = delimiter;
        layout.header = Some(line.to_vec());
        Some(layout)
    }

    /// Returns the layout of a line of values without a header.
    fn of_values(fields: &[&str]) -> Option<Self> {
        let number = |at: usize| fields.get(at).is_some_and(|field| units(field).is_some());
        let numbers = |range: std::ops::Range<usize>| range.into_iter().all(number);
        let parse_bool =
            |at: usize| fields.get(at).is_some_and(|field| crate::row::parse_bool(field).is_some());
        let side = |at: usize| fields.get(at).is_some_and(|field| crate::row::is_side(field));
        let time = |at: usize| fields.get(at).is_some_and(|field| is_time(field) || units(field).is_some());
        let is_scaled =
            |at: usize| fields.get(at).is_some_and(|field| crate::time::parse(field, SCALED).is_ok());
        let word =
            |at: usize| fields.get(at).is_some_and(|field| units(field).is_none() && !field.is_empty());
        let mut exchange = None;
        let (name, headers): (_, &[&str]) = match fields.len() {
            // Kraken publishes seconds.
            3 if is_scaled(0) && numbers(1..3) => ("csv", &["time", "price", "quantity"]),
            3 if numbers(0..3) => ("kraken", &["time_s", "price", "quantity"]),
            5 if numbers(0..4) && word(4) && parse_bool(4) => {
                ("binance", &["trade_id", "price", "quantity", "time", "buyer_maker"])
            }
            5 if numbers(0..4) && side(4) => ("bybit", &["id", "timestamp", "price", "volume", "side"]),
            5 if number(0) && side(1) && numbers(2..5) => {
                ("okx", &["trade_id", "side", "size", "price", "created_time"])
            }
            6 if numbers(0..5) && word(5) && parse_bool(5) => {
                exchange = Some("binance-futures");
                ("binance", &["id", "price", "qty", "quote_qty", "time", "is_buyer_maker"])
            }
            6 if numbers(0..3) && side(3) && number(5) => {
                ("kraken-rest", &["price", "quantity", "time_s", "side", "order_type", "trade_id"])
            }
            6 if word(0) && number(1) && side(2) && numbers(3..6) => {
                ("okx", &["instrument_name", "trade_id", "side", "price", "size", "created_time"])
            }
            6 if time(0) && numbers(1..6) => ("candles", &["time", "open", "high", "low", "close", "volume"]),
            7 if numbers(0..5) && word(5) && parse_bool(5) && parse_bool(6) => {
                exchange = Some("binance");
                ("binance", &["id", "price", "qty", "quote_qty", "time", "is_buyer_maker", "is_best_match"])
            }
            7 if numbers(0..6) && word(6) && parse_bool(6) => {
                exchange = Some("binance-futures");
                (
                    "binance",
                    &[
                        "agg_trade_id",
                        "price",
                        "quantity",
                        "first",
                        "last",
                        "transact_time",
                        "is_buyer_maker",
                    ],
                )
            }
            7 if is_scaled(0) && numbers(1..7) => {
                ("csv", &["time", "open", "high", "low", "close", "volume", "trades"])
            }
            7 if numbers(0..7) => ("kraken", &["time_s", "open", "high", "low", "close", "volume", "trades"]),
            8 if numbers(0..6) && word(6) && parse_bool(6) && parse_bool(7) => {
                exchange = Some("binance");
                let names = &[
                    "agg_trade_id",
                    "price",
                    "quantity",
                    "first",
                    "last",
                    "transact_time",
                    "is_buyer_maker",
                    "best",
                ];
                ("binance", names)
            }
            8 if word(0) && word(1) && numbers(2..4) && numbers(6..8) => {
                ("tardis", &["exchange", "symbol", "timestamp_us", "local", "id", "side", "price", "amount"])
            }
            12 if numbers(0..11) => {
                let names = &[
                    "open_time",
                    "open",
                    "high",
                    "low",
                    "close",
                    "volume",
                    "close_time",
                    "quote_volume",
                    "count",
                    "buy",
                    "buy_quote",
                    "ignore",
                ];
                ("binance", names)
            }
            _ => return None,
        };
        let mut layout = Self::of_names(name, headers, false);
        // Bybit and OKX publish their files with a header.
        let of_publisher = layout.exchange.filter(|_| !matches!(name, "bybit" | "okx"));
        layout.exchange = exchange.or(of_publisher);
        layout.is_count_assumed = layout.columns.count == Some(6);
        Some(layout)
    }

    /// Returns the layout of a file from its first lines. None if they do not determine it.
    ///
    /// # Errors
    /// A header without the columns of a trade or a candle.
    pub(crate) fn recognise(lines: &[Vec<u8>]) -> Result<Option<Self>> {
        let mut lines = lines.iter().filter(|line| !line.trim_ascii().is_empty()).peekable();
        if lines.peek().is_some_and(|line| line.trim_ascii_start().starts_with(b"{")) {
            return Ok(Some(Self::of_names("kraken-rest", &JSON_TRADES, true)));
        }
        let title = lines.peek().filter(|line| is_text(line)).map(|line| (*line).clone());
        let mut unknown = None;
        while let Some(line) = lines.next() {
            if line.trim_ascii_start().starts_with(b"#") {
                continue;
            }
            let delimiter = delimiter(line);
            if let Some(mut layout) = Self::of_header(line, delimiter) {
                // Bybit writes seconds, `BitMEX` dates.
                if layout.exchange == Some("bybit")
                    && lines.next().is_some_and(|line| !layout.has_number(line))
                {
                    (layout.name, layout.exchange) = ("csv", None);
                }
                layout.title = title;
                return Ok(Some(layout));
            }
            let text = String::from_utf8_lossy(line);
            let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
            let Some(count) = fields.split(&text, delimiter, &mut out) else { continue };
            if let Some(mut layout) = Self::of_values(&out[..count]) {
                if let Some(error) = unknown {
                    return Err(error);
                }
                // The quote volume of some candles can be a whole number, and a line can be damaged.
                let is_quoted = |line: &Vec<u8>| {
                    let text = String::from_utf8_lossy(line);
                    let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
                    fields.split(&text, delimiter, &mut out).and_then(|count| has_quote_volume(&out[..count]))
                };
                if layout.is_count_assumed {
                    let found: Vec<bool> =
                        std::iter::once(line).chain(lines.by_ref()).filter_map(is_quoted).collect();
                    if found.iter().filter(|is_quoted| **is_quoted).count() * 2 > found.len() {
                        layout = Self::of_names("csv", &QUOTED_CANDLES, false);
                    }
                }
                layout.delimiter = delimiter;
                return Ok(Some(layout));
            }
            // The columns under an unknown header may have any order.
            let names = || out[..count].iter().filter(|field| !field.is_empty());
            let is_value = |field: &&str| units(field).is_some() || is_time(field);
            if names().count() > 1 && !names().any(is_value) {
                let rule = "must have known columns, or `--columns time=timestamp,price=last,quantity=volume` names \
                            them (trades), or `--columns time=..,open=..,high=..,low=..,close=..,volume=..` (candles)";
                unknown.get_or_insert_with(|| Error::invalid("files.format", "header", &text, rule));
            }
        }
        unknown.map_or(Ok(None), Err)
    }

    /// Returns the layout of Kraken's JSON from its first array.
    pub(crate) fn of_json(array: &str) -> Option<Self> {
        let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
        let count = fields.split(array, b',', &mut out)?;
        match count {
            6 => Some(Self::of_names("kraken-rest", &JSON_TRADES[..6], true)),
            7 => Some(Self::of_names("kraken-rest", &JSON_TRADES, true)),
            8 => {
                let names = ["time_s", "open", "high", "low", "close", "vwap", "volume", "count"];
                Some(Self::of_names("kraken-rest", &names, true))
            }
            _ => None,
        }
    }

    /// Returns whether the time of a line is a number.
    fn has_number(&self, line: &[u8]) -> bool {
        let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
        let text = String::from_utf8_lossy(line);
        let count = fields.split(&text, self.delimiter, &mut out);
        count.is_some() && self.columns.time.is_some_and(|at| units(out[at]).is_some())
    }

    /// Returns the time of a line.
    pub(crate) fn time(&self, fields: &[&str]) -> Result<Timestamp> {
        let text = field(fields, self.columns.time, "time")?;
        match self.columns.date {
            Some(date) if is_clock(text) => {
                let date = field(fields, Some(date), "date")?;
                crate::time::parse(&format!("{date} {text}"), self.units)
            }
            _ => crate::time::parse(text, self.units),
        }
    }

    /// Applies a format. A format of the same kind adds its properties, and determines the unit of lines without a
    /// header. A format of another kind is applied if one of the lines without a header has its fields.
    pub(crate) fn with_format(self, format: Format, lines: &[Vec<u8>]) -> Self {
        let hinted = Self::of_format(format);
        if self.kind != hinted.kind {
            let is_hinted = self.header.is_none() && !self.is_of(format);
            return if is_hinted && lines.iter().any(|line| hinted.has_fields(line)) { hinted } else { self };
        }
        let is_same = self.header.is_none() && self.columns == hinted.columns;
        let (name, units) = if is_same { (hinted.name, hinted.units) } else { (self.name, self.units) };
        let exchange = self.exchange.or(hinted.exchange.filter(|_| name == hinted.name));
        Self { name, units, exchange, ..self }
    }

    /// Returns whether the publisher of a format has such files, even with another kind of records.
    pub(crate) fn is_of(&self, format: Format) -> bool {
        let publisher = |name: &'static str| name.split('-').next();
        publisher(self.name) == publisher(format.as_str())
    }

    /// Returns whether a line has the number of fields, the time, the side and the numbers of the layout.
    fn has_fields(&self, line: &[u8]) -> bool {
        let text = String::from_utf8_lossy(line);
        let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
        let count = fields.split(&text, self.delimiter, &mut out).unwrap_or(0);
        let Columns { price, quantity, side, buyer_maker, open, high, low, close, volume, .. } = self.columns;
        self.width == Some(count)
            && self.time(&out[..count]).is_ok()
            && side.is_none_or(|at| crate::row::is_side(out[at]))
            && buyer_maker.is_none_or(|at| crate::row::parse_bool(out[at]).is_some())
            && [price, quantity, open, high, low, close, volume]
                .into_iter()
                .flatten()
                .all(|at| units(out[at]).is_some())
    }

    /// Returns the layout of a format, for a file whose content does not determine it.
    pub(crate) fn of_format(format: Format) -> Self {
        format.fallback()
    }

    /// Returns the interval from the open time to the close time of a line. None without a valid open and close time.
    /// `Err` has a length that is no [`Interval`]. Binance writes close times.
    pub(crate) fn interval_of(&self, fields: &[&str]) -> Option<std::result::Result<Interval, String>> {
        let at = |place: Option<usize>| fields.get(place?).copied();
        let (open, close) = (self.time(fields).ok()?.as_micros(), at(self.columns.close_time)?);
        let close = crate::time::parse(close, self.units).ok()?.as_micros();
        // The close time is the last unit before the next candle.
        let seconds = (close - open + 1_000) / 1_000_000;
        let known = Interval::ALL.iter().copied().find(|i| i.as_micros() == seconds * 1_000_000);
        Some(known.ok_or_else(|| match seconds % 86_400 {
            0 => format!("{} days", seconds / 86_400),
            _ => format!("{seconds} s"),
        }))
    }
}

const JSON_TRADES: [&str; 7] = ["price", "quantity", "time_s", "side", "order_type", "misc", "trade_id"];

const QUOTED_CANDLES: [&str; 7] = ["time", "open", "high", "low", "close", "volume", "other"];

/// Returns whether the last of seven columns is no number of trades. Publishers other than Kraken have the quote volume
/// there, with decimal places. None for lines without this number, and for candles without trades.
fn has_quote_volume(fields: &[&str]) -> Option<bool> {
    let [.., last] = fields else { return None };
    let is_number = fields.len() == 7 && units(last).is_some_and(|units| units != 0);
    is_number.then(|| whole("trades", last).is_err())
}

fn delimiter(line: &[u8]) -> u8 {
    // Only the first few lines are counted, so a simple count is fast enough.
    let count = |wanted: u8| line.split(|byte| *byte == wanted).count();
    // The first delimiter with the largest count.
    [b',', b';', b'\t'].into_iter().rev().max_by_key(|byte| count(*byte)).unwrap_or(b',')
}

/// Returns whether a line has one field, which is no value. Spreadsheets write delimiters for empty fields after it.
fn is_text(line: &[u8]) -> bool {
    let text = String::from_utf8_lossy(line);
    let text = text.trim().trim_end_matches([',', ';', '\t']);
    !text.is_empty() && !text.contains([',', ';', '\t']) && units(text).is_none() && !is_time(text)
}

/// The columns of a CSV file by number, `time=0,price=1,quantity=2`, or by header name, `time=Date,price=Last`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnMap(Vec<(&'static str, Option<TimeUnit>, String)>);

impl ColumnMap {
    /// Returns the kind of records in the lines.
    pub fn kind(&self) -> Kind {
        if self.0.iter().any(|(role, ..)| *role == "open") { Kind::Candles } else { Kind::Trades }
    }

    /// Returns the layout of a file with this first line.
    pub(crate) fn layout(&self, first: &[u8]) -> Result<Layout> {
        let delimiter = delimiter(first);
        let text = String::from_utf8_lossy(first);
        let (mut fields, mut out) = (Fields::default(), [""; MAX_FIELDS]);
        let count = fields.split(&text, delimiter, &mut out).unwrap_or(0);
        let mut layout = Layout::of_names("csv", &[], false);
        (layout.width, layout.delimiter, layout.kind) = (None, delimiter, self.kind());
        let mut named = false;
        for (role, unit, value) in &self.0 {
            let at = if let Ok(at) = value.parse::<usize>() {
                at
            } else {
                named = true;
                out[..count].iter().position(|name| name == value).ok_or_else(|| {
                    let rule = "must be a number, or a name of the header";
                    Error::invalid("files.columns", "columns", value, rule)
                })?
            };
            if let Some(place) = layout.columns.role(role) {
                *place = Some(at);
            }
            if let Some(unit) = unit {
                layout.units = only(*unit);
            }
        }
        let time = layout.columns.time.and_then(|at| out[..count].get(at));
        // If the time of the first line has no digit, the line is a header.
        if named || time.is_some_and(|time| !time.bytes().any(|byte| byte.is_ascii_digit())) {
            layout.header = Some(first.to_vec());
        }
        Ok(layout)
    }
}

impl FromStr for ColumnMap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let reject = |rule: String| Error::invalid("files.columns", "columns", text, rule);
        let mut map: Vec<(&'static str, Option<TimeUnit>, String)> = Vec::new();
        for part in text.split(',') {
            let (role, value) = part
                .split_once('=')
                .ok_or_else(|| reject("must have the form time=0,price=1,quantity=2".to_owned()))?;
            let (name, unit) = match role.trim().strip_prefix("time_") {
                Some(unit) => (
                    "time",
                    Some(TimeUnit::of_name(unit).ok_or_else(|| {
                        reject("must have one of the units s ms us ns after time_".to_owned())
                    })?),
                ),
                None => (role.trim(), None),
            };
            let known = ROLES.into_iter().find(|known| *known == name);
            let known =
                known.ok_or_else(|| reject(format!("must name only the columns {}", ROLES.join(" "))))?;
            if map.iter().any(|(role, ..)| *role == known) {
                return Err(reject(format!("must name {known} once")));
            }
            if value.trim().parse::<usize>().is_ok_and(|at| at >= MAX_FIELDS) {
                return Err(reject(format!("must have numbers below {MAX_FIELDS}")));
            }
            map.push((known, unit, value.trim().to_owned()));
        }
        let has = |role: &str| map.iter().any(|(known, ..)| *known == role);
        let candles = ["open", "high", "low", "close"];
        let complete = has("time")
            && if candles.iter().any(|role| has(role)) {
                candles.iter().all(|role| has(role))
            } else {
                has("price")
            };
        if complete {
            Ok(Self(map))
        } else {
            Err(reject("must name time and price, or time, open, high, low and close".to_owned()))
        }
    }
}
