//! Binance spot: `SYMBOL@trade` streams, `GET /api/v3/historicalTrades`, and `GET /api/v3/trades` for the latest trade.
//!
//! The stream (by its URL) and the requests (by a header) use microseconds, as the files that Binance publishes since 2025.
//! The same trade therefore has the same key from every source.

use std::time::Duration;

use hyper::StatusCode;
use qi_core::{Instrument, Result, Side};
use qi_files::fields;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::protocol::{
    Frame, HistoryPage, Position, Protocol, Trade, corrupt, is_permanent, json, rejected, temporary,
};

/// The number of trades in one page of the history.
const PAGE: usize = 1_000;
const NAME: &str = "binance";

/// The protocol of Binance spot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Binance;

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "e")]
    kind: Option<String>,
    error: Option<Failure>,
    /// An error without the key `error`.
    code: Option<i64>,
    msg: Option<String>,
    id: Option<Box<RawValue>>,
    /// `null` in an acknowledgement.
    #[serde(default, deserialize_with = "present")]
    result: Option<Box<RawValue>>,
}

/// Reads a value, which may be null. None is an absent value.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct Failure {
    code: i64,
    msg: String,
}

#[derive(Deserialize)]
struct TradeEvent {
    #[serde(rename = "s")]
    symbol: String,
    #[serde(rename = "t")]
    id: u64,
    #[serde(rename = "p")]
    price: String,
    #[serde(rename = "q")]
    quantity: String,
    #[serde(rename = "T")]
    time: u64,
    #[serde(rename = "m")]
    is_buyer_maker: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: u64,
    price: String,
    qty: String,
    time: u64,
    is_buyer_maker: bool,
}

fn trade(id: u64, time: u64, price: &str, quantity: &str, is_buyer_maker: bool) -> Result<Trade> {
    Ok(Trade {
        id,
        time: fields::time(&time.to_string())?,
        price: fields::price(price)?,
        quantity: fields::quantity(quantity)?,
        side: if is_buyer_maker { Side::Sell } else { Side::Buy },
    })
}

impl Protocol for Binance {
    fn exchange(&self) -> &'static str {
        NAME
    }

    fn stream_url(&self) -> &'static str {
        "wss://stream.binance.com:9443/ws?timeUnit=MICROSECOND"
    }

    fn rest_url(&self) -> &'static str {
        "https://api.binance.com"
    }

    fn request_interval(&self) -> Duration {
        // A request has weight 25, and an address has 6,000 a minute. Half of this is left to other programs.
        Duration::from_millis(500)
    }

    fn max_connection_age(&self) -> Option<Duration> {
        // The server closes a connection after 24 hours.
        Some(Duration::from_hours(23))
    }

    fn symbol(&self, instrument: &Instrument) -> Result<String> {
        let symbol = instrument.symbol().as_str().replace(['-', '/'], "");
        let is_valid = |c: char| (c.is_alphanumeric() && !c.is_lowercase()) || c == '_';
        if symbol.is_empty() || !symbol.chars().all(is_valid) {
            return Err(rejected(
                NAME,
                instrument.symbol().as_str(),
                "it must have the form BTC-USDT or BTCUSDT, in upper case",
            ));
        }
        Ok(symbol)
    }

    fn subscribe(&self, symbol: &str) -> String {
        let stream = format!("{}@trade", symbol.to_lowercase());
        serde_json::json!({ "method": "SUBSCRIBE", "params": [stream], "id": 1 }).to_string()
    }

    fn frame(&self, symbol: &str, text: &str) -> Result<Frame> {
        let event: Event = json(NAME, text)?;
        let bare = event.code.zip(event.msg).map(|(code, msg)| Failure { code, msg });
        if let Some(Failure { code, msg }) = event.error.or(bare) {
            // The codes 0 to 3 describe a malformed request.
            return Ok(Frame::Rejected {
                reason: format!("{msg} ({code})"),
                is_permanent: (0..=3).contains(&code),
            });
        }
        match event.kind.as_deref() {
            Some("trade") => {
                let event: TradeEvent = json(NAME, text)?;
                if event.symbol != symbol {
                    return Err(corrupt(
                        NAME,
                        format_args!("a trade of another symbol: {:.40}", event.symbol),
                    ));
                }
                let TradeEvent { id, time, price, quantity, is_buyer_maker, .. } = event;
                Ok(Frame::Trades(vec![trade(id, time, &price, &quantity, is_buyer_maker)?]))
            }
            Some("serverShutdown") => Ok(Frame::Closing),
            Some(_) => Ok(Frame::Other),
            None if event.id.is_some() && event.result.as_deref().map(RawValue::get) == Some("null") => {
                Ok(Frame::Subscribed)
            }
            None => Err(corrupt(NAME, "not an event")),
        }
    }

    fn history_path(&self, symbol: &str, from: Option<Position>) -> String {
        let encode = |byte: u8| match byte {
            b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let symbol: String = symbol.bytes().map(encode).collect();
        match from {
            Some(Position { id, .. }) => {
                format!("/api/v3/historicalTrades?symbol={symbol}&fromId={id}&limit={PAGE}")
            }
            None => format!("/api/v3/trades?symbol={symbol}&limit=1"),
        }
    }

    fn history(
        &self,
        symbol: &str,
        from: Option<Position>,
        status: StatusCode,
        body: &str,
    ) -> Result<HistoryPage> {
        if !status.is_success() {
            let reason = json::<Failure>(NAME, body).map_or_else(
                |_| format!("HTTP status {status}"),
                |Failure { code, msg }| format!("{msg} ({code}), HTTP status {status}"),
            );
            return Err(if is_permanent(status) {
                rejected(NAME, symbol, reason)
            } else {
                temporary(NAME, reason, None)
            });
        }
        let mut trades = json::<Vec<Row>>(NAME, body)?
            .iter()
            .map(|row| trade(row.id, row.time, &row.price, &row.qty, row.is_buyer_maker))
            .collect::<Result<Vec<_>>>()?;
        trades.sort_unstable_by_key(|trade| trade.id);
        let last = trades.last().map(|trade| trade.id);
        let covers =
            from.zip(last).filter(|(from, last)| from.id <= *last).map(|(from, last)| from.id..=last);
        Ok(HistoryPage { trades, covers })
    }
}
