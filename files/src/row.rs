//! Conversion of CSV lines to trades and bars.

use qi_core::{
    Bar, BarValues, Error, Exchange, Instrument, Interval, PriceTick, Result, Side, Symbol, Timestamp,
};

use crate::layout::Layout;
use crate::lines::{Fields, MAX_FIELDS};
use crate::number::{bad, price, quantity, units, whole};
use crate::ordinals::TimestampOrdinals;

pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Parses a side. Tardis writes `unknown` for a side that the exchange does not publish.
#[expect(clippy::option_option, reason = "an unknown side differs from a text that is no side")]
fn side(text: &str) -> Option<Option<Side>> {
    match text {
        "b" | "B" => Some(Some(Side::Buy)),
        "s" | "S" => Some(Some(Side::Sell)),
        "" => Some(None),
        _ if text.eq_ignore_ascii_case("buy") => Some(Some(Side::Buy)),
        _ if text.eq_ignore_ascii_case("sell") => Some(Some(Side::Sell)),
        _ if text.eq_ignore_ascii_case("unknown") => Some(None),
        _ => None,
    }
}

pub(crate) fn is_side(text: &str) -> bool {
    !text.is_empty() && side(text).is_some()
}

/// The origin of the instrument of a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum InstrumentSource {
    /// The instrument of all lines. If there is a symbol column, its value must be the same in every line. The value is
    /// not compared with the instrument.
    One(Instrument),
    /// The columns of the line.
    Columns,
}

/// The parser of the lines of one stream.
pub(crate) struct LineParser {
    pub(crate) layout: Layout,
    pub(crate) instrument_source: InstrumentSource,
    /// True if the ids of the trades are numbers.
    pub(crate) has_ids: bool,
    /// The interval of the bars; None for trades.
    pub(crate) interval: Option<Interval>,
    pub(crate) fields: Fields,
    /// The symbol of the first line.
    first_symbol: Option<String>,
    /// The instrument of the previous line, for reuse.
    last_instrument: Option<Instrument>,
}

impl LineParser {
    pub(crate) fn new(
        layout: Layout,
        instrument_source: InstrumentSource,
        has_ids: bool,
        interval: Option<Interval>,
    ) -> Self {
        Self {
            layout,
            instrument_source,
            has_ids,
            interval,
            fields: Fields::default(),
            first_symbol: None,
            last_instrument: None,
        }
    }

    /// Splits a line and passes its fields to `read`. Rejects a wrong number of fields.
    fn with_fields<T>(
        &mut self,
        line: &str,
        read: impl FnOnce(&mut Self, &[&str]) -> Result<T>,
    ) -> Result<T> {
        let mut out = [""; MAX_FIELDS];
        let mut fields = std::mem::take(&mut self.fields);
        let outcome = match fields.split(line, self.layout.delimiter, &mut out) {
            None => Err(bad(
                "line",
                line,
                format_args!("must have at most {MAX_FIELDS} fields and no unclosed quote"),
            )),
            Some(count) => match self.layout.width {
                // An empty additional field is a delimiter at the end of the line.
                Some(width) if count != width && !(count == width + 1 && out[width].is_empty()) => {
                    Err(bad("line", line, format_args!("must have {width} fields")))
                }
                _ => read(self, &out[..count]),
            },
        };
        self.fields = fields;
        outcome
    }

    fn instrument_of(&mut self, fields: &[&str]) -> Result<Instrument> {
        let columns = self.layout.columns;
        let symbol = columns.symbol.map(|at| field(fields, Some(at), "symbol")).transpose()?;
        if let (InstrumentSource::One(instrument), symbol) = (&self.instrument_source, symbol) {
            return match (symbol, &self.first_symbol) {
                (Some(symbol), None) => {
                    self.first_symbol = Some(symbol.to_owned());
                    Ok(instrument.clone())
                }
                (Some(symbol), Some(first)) if symbol != first => {
                    let rule = format!(
                        "must be {first}, as in the previous lines: the file was opened for one instrument"
                    );
                    Err(bad("symbol", symbol, rule))
                }
                _ => Ok(instrument.clone()),
            };
        }
        let exchange = match columns.exchange {
            Some(at) => field(fields, Some(at), "exchange")?,
            None => self.layout.exchange.unwrap_or(""),
        };
        let symbol = symbol.unwrap_or("");
        if let Some(last) = &self.last_instrument
            && last.symbol().as_str() == symbol
            && last.exchange().as_str() == exchange
        {
            return Ok(last.clone());
        }
        let found = Instrument::new(Exchange::new(exchange)?, Symbol::new(symbol)?);
        // Ordinals are counted per timestamp, so two instruments would share the numbers.
        if !self.has_ids
            && self.interval.is_none()
            && let Some(last) = &self.last_instrument
        {
            let rule = format!(
                "must be {last}, as in the previous lines: trades without ids must be of one instrument"
            );
            return Err(bad("symbol", found, rule));
        }
        self.last_instrument = Some(found.clone());
        Ok(found)
    }

    /// Returns the instrument of a line.
    pub(crate) fn instrument(&mut self, line: &str) -> Result<Instrument> {
        self.with_fields(line, Self::instrument_of)
    }

    /// Returns the value of the symbol column of a line, if there is one.
    pub(crate) fn symbol(&mut self, line: &str) -> Option<String> {
        let at = self.layout.columns.symbol?;
        self.with_fields(line, |_, fields| field(fields, Some(at), "symbol").map(str::to_owned)).ok()
    }

    /// Returns the trade of a line.
    pub(crate) fn trade(&mut self, line: &str, ordinals: &mut TimestampOrdinals) -> Result<PriceTick> {
        self.with_fields(line, |this, fields| {
            let columns = this.layout.columns;
            let time = this.layout.time(fields)?;
            let price = price("price", field(fields, columns.price, "price")?)?;
            let amount = match columns.quantity {
                Some(at) => Some(quantity("quantity", field(fields, Some(at), "quantity")?)?),
                None => None,
            };
            let side = this.side(fields)?;
            let id = if this.has_ids { Some(whole("id", field(fields, columns.id, "id")?)?) } else { None };
            let instrument = this.instrument_of(fields)?;
            // Taken last, so that a bad line uses no ordinal.
            let seq = id.map_or_else(|| ordinals.next(time), Ok)?;
            Ok(PriceTick::new(instrument, time, seq, price)?.with_quantity(amount).with_side(side))
        })
    }

    fn side(&self, fields: &[&str]) -> Result<Option<Side>> {
        if let Some(at) = self.layout.columns.buyer_maker {
            let text = field(fields, Some(at), "buyer_maker")?;
            let maker = parse_bool(text).ok_or_else(|| bad("buyer_maker", text, "must be true or false"))?;
            // If the buyer was the maker, the taker sold.
            return Ok(Some(if maker { Side::Sell } else { Side::Buy }));
        }
        let Some(at) = self.layout.columns.side else { return Ok(None) };
        let text = field(fields, Some(at), "side")?;
        side(text).ok_or_else(|| bad("side", text, "must be buy, sell or unknown"))
    }

    /// Returns the time of a line.
    pub(crate) fn time(&mut self, line: &str) -> Result<Timestamp> {
        self.with_fields(line, |this, fields| this.layout.time(fields))
    }

    /// Returns the bar of a candle line.
    pub(crate) fn candle(&mut self, line: &str, interval: Interval) -> Result<Bar> {
        self.with_fields(line, |this, fields| {
            let columns = this.layout.columns;
            let text = field(fields, columns.time, "time")?;
            let time = this.layout.time(fields)?;
            if interval.floor(time) != time {
                return Err(bad("time", text, format_args!("must be the start of a candle of {interval}")));
            }
            if let Some(found) = this.layout.interval_of(fields)
                && found != Ok(interval)
            {
                let close = field(fields, columns.close_time, "close_time")?;
                return Err(bad(
                    "close_time",
                    close,
                    format_args!("must be the end of a candle of {interval}"),
                ));
            }
            let value = |at, name: &'static str| price(name, field(fields, at, name)?);
            let optional =
                |at: Option<usize>, name: &'static str| match at.map(|at| field(fields, Some(at), name)) {
                    None => Ok(None),
                    Some(text) => text.map(|text| Some(text).filter(|text| !text.is_empty())),
                };
            let values = BarValues {
                open: value(columns.open, "open")?,
                high: value(columns.high, "high")?,
                low: value(columns.low, "low")?,
                close: value(columns.close, "close")?,
                volume: optional(columns.volume, "volume")?
                    .map(|text| quantity("volume", text))
                    .transpose()?,
                quote_volume: optional(columns.quote_volume, "quote_volume")?
                    .map(|text| quantity("quote_volume", text))
                    .transpose()?,
                count: match optional(columns.count, "count")? {
                    Some(text) if this.layout.is_count_assumed && units(text).is_some() => {
                        whole("count", text).ok()
                    }
                    text => text.map(|text| whole("count", text)).transpose()?,
                },
            };
            let instrument = this.instrument_of(fields)?;
            Bar::new(instrument, interval, time, values)
        })
    }

    /// Returns whether the id of a line is a number that a store can hold.
    pub(crate) fn is_id(&mut self, line: &str) -> bool {
        let found =
            self.with_fields(line, |this, fields| whole("id", field(fields, this.layout.columns.id, "id")?));
        found.is_ok_and(|id| i64::try_from(id).is_ok())
    }

    /// Returns the interval from the open time to the close time of a line. None without a valid open and close time.
    /// `Err` has a length that is no [`Interval`].
    pub(crate) fn interval_of(&mut self, line: &str) -> Option<std::result::Result<Interval, String>> {
        self.with_fields(line, |this, fields| Ok(this.layout.interval_of(fields))).ok().flatten()
    }
}

pub(crate) fn field<'a>(fields: &[&'a str], at: Option<usize>, name: &'static str) -> Result<&'a str, Error> {
    let found = at.and_then(|at| fields.get(at)).copied();
    found.ok_or_else(|| bad("line", fields.join(","), format_args!("must have the column {name}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    #[test]
    fn an_inconsistent_close_time_is_shown_in_its_error() {
        let line = |close: &str| format!("1735689600000,1,1,1,1,1,{close},1,1,1,1,0");
        let layout = Layout::recognise(&[line("1735689659999").into_bytes()]).unwrap().unwrap();
        let source = InstrumentSource::One("binance:BTCUSDT".parse().unwrap());
        let mut parser = LineParser::new(layout, source, false, Some(Interval::M1));
        assert!(parser.candle(&line("1735689659999"), Interval::M1).is_ok());
        let error = parser.candle(&line("1735689899999"), Interval::M1).unwrap_err();
        assert_eq!(error.context_value("field"), Some("close_time"));
        assert_eq!(error.context_value("value"), Some("1735689899999"));
    }
}
