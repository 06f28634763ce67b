//! Kraken spot: the channel `trade` of WebSocket version 2, and `GET /0/public/Trades`.
//!
//! The stream has times in microseconds. The history has the same times as floating-point numbers, which are multiples of
//! 238 ns. A time of the history therefore does not determine the microsecond of the stream, and both can differ by one.
//! [`super::LiveFeed`] therefore publishes an id only once.

use std::collections::HashMap;
use std::time::Duration;

use hyper::StatusCode;
use qi_core::{Instrument, Result, Side};
use qi_files::fields;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::protocol::{
    Frame, HistoryPage, Position, Protocol, Trade, corrupt, is_permanent, json, plain, rejected, temporary,
};

const NAME: &str = "kraken";
/// The pause after the error that too many requests were sent. The counter of Kraken falls by one a second.
const RATE_LIMIT_PAUSE: Duration = Duration::from_secs(15);
/// The longest difference between the times of one trade in the stream and in the history, in nanoseconds.
const TIME_ERROR_NANOS: i64 = 2_000;

/// The protocol of Kraken spot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kraken;

#[derive(Deserialize)]
struct Message {
    channel: Option<String>,
    method: Option<String>,
    success: Option<bool>,
    error: Option<String>,
    data: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct SystemStatus {
    system: String,
}

#[derive(Deserialize)]
struct TradeData {
    symbol: String,
    side: String,
    price: Box<RawValue>,
    qty: Box<RawValue>,
    trade_id: u64,
    timestamp: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    error: Vec<String>,
    result: Option<HashMap<String, Box<RawValue>>>,
}

/// Reads a row of the history: price, quantity, time in seconds, side, order type, miscellaneous, id.
fn row(cells: &[Box<RawValue>]) -> Result<Trade> {
    let [price, quantity, time, taker, _, _, id, ..] = cells else {
        return Err(corrupt(NAME, "a row has fewer than 7 fields"));
    };
    Ok(Trade {
        id: json(NAME, id.get())?,
        time: fields::time(plain(time))?,
        price: fields::price(plain(price))?,
        quantity: fields::quantity(plain(quantity))?,
        side: side(plain(taker))?,
    })
}

/// Returns the common code of an asset, which the stream uses.
fn common_code(code: &str) -> &str {
    match code {
        "XBT" => "BTC",
        "XDG" => "DOGE",
        other => other,
    }
}

/// Returns the code of an asset in the history.
fn history_code(code: &str) -> &str {
    match code {
        "BTC" => "XBT",
        "DOGE" => "XDG",
        other => other,
    }
}

fn side(text: &str) -> Result<Side> {
    match text {
        "buy" | "b" => Ok(Side::Buy),
        "sell" | "s" => Ok(Side::Sell),
        _ => Err(corrupt(NAME, "the side is neither buy nor sell")),
    }
}

/// Returns whether an error text of Kraken describes a fault of the request.
fn is_request_at_fault(text: &str) -> bool {
    ["Unknown asset pair", "Invalid arguments", "not supported", "Invalid pair", "not found", "Malformed"]
        .iter()
        .any(|part| text.contains(part))
}

impl Protocol for Kraken {
    fn exchange(&self) -> &'static str {
        NAME
    }

    fn stream_url(&self) -> &'static str {
        "wss://ws.kraken.com/v2"
    }

    fn rest_url(&self) -> &'static str {
        "https://api.kraken.com"
    }

    fn request_interval(&self) -> Duration {
        Duration::from_millis(1_100)
    }

    fn max_connection_age(&self) -> Option<Duration> {
        None
    }

    fn symbol(&self, instrument: &Instrument) -> Result<String> {
        let symbol = instrument.symbol().as_str();
        let parts: Vec<&str> = symbol.split(['-', '/']).collect();
        let is_code = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '.');
        let [base, quote] = parts[..] else {
            return Err(rejected(NAME, symbol, "it must have the form BTC-USD"));
        };
        if ![base, quote].iter().all(is_code) {
            return Err(rejected(NAME, symbol, "it must have the form BTC-USD"));
        }
        // Version 2 of the stream uses the common codes.
        Ok(format!("{}/{}", common_code(base), common_code(quote)))
    }

    fn subscribe(&self, symbol: &str) -> String {
        let params = serde_json::json!({ "channel": "trade", "symbol": [symbol], "snapshot": true });
        serde_json::json!({ "method": "subscribe", "params": params, "req_id": 1 }).to_string()
    }

    fn frame(&self, symbol: &str, text: &str) -> Result<Frame> {
        let message: Message = json(NAME, text)?;
        let data = message.data.as_deref().map_or("[]", RawValue::get);
        match (message.method.as_deref(), message.channel.as_deref()) {
            (Some("subscribe"), _) if message.success == Some(true) => Ok(Frame::Subscribed),
            (Some("subscribe"), _) => {
                let reason = message.error.unwrap_or_else(|| "no reason".to_owned());
                let is_permanent = is_request_at_fault(&reason);
                Ok(Frame::Rejected { reason, is_permanent })
            }
            (_, Some("status")) => {
                let Some(SystemStatus { system }) = json::<Vec<_>>(NAME, data)?.pop() else {
                    return Ok(Frame::Other);
                };
                Ok(Frame::Status(Some(system).filter(|system| system != "online")))
            }
            (_, Some("trade")) => {
                let trades = json::<Vec<TradeData>>(NAME, data)?.into_iter().map(|data| {
                    if data.symbol != symbol {
                        return Err(corrupt(
                            NAME,
                            format_args!("a trade of another symbol: {:.40}", data.symbol),
                        ));
                    }
                    Ok(Trade {
                        id: data.trade_id,
                        time: fields::time(&data.timestamp)?,
                        price: fields::price(plain(&data.price))?,
                        quantity: fields::quantity(plain(&data.qty))?,
                        side: side(&data.side)?,
                    })
                });
                Ok(Frame::Trades(trades.collect::<Result<_>>()?))
            }
            (None, None) => match message.error {
                Some(reason) => Err(corrupt(NAME, format_args!("error: {reason:.200}"))),
                None => Err(corrupt(NAME, "neither a method nor a channel")),
            },
            _ => Ok(Frame::Other),
        }
    }

    fn history_path(&self, symbol: &str, from: Option<Position>) -> String {
        let (base, quote) = symbol.split_once('/').unwrap_or((symbol, ""));
        // The code of a tokenized stock ends in a small `x`.
        let class = if base.ends_with('x') { "&asset_class=tokenized_asset" } else { "" };
        let (base, quote) = (history_code(base), history_code(quote));
        match from {
            // The trade before the position is part of the page, so that the page covers the ids after this trade.
            Some(Position { after, .. }) => {
                let since = after.as_nanos().saturating_sub(TIME_ERROR_NANOS);
                format!("/0/public/Trades?pair={base}{quote}&since={since}&count=1000{class}")
            }
            None => format!("/0/public/Trades?pair={base}{quote}{class}"),
        }
    }

    fn history(
        &self,
        symbol: &str,
        _from: Option<Position>,
        status: StatusCode,
        body: &str,
    ) -> Result<HistoryPage> {
        if !status.is_success() {
            let reason = format!("HTTP status {status}");
            return Err(if is_permanent(status) {
                rejected(NAME, symbol, reason)
            } else {
                temporary(NAME, reason, None)
            });
        }
        let answer: Answer = json(NAME, body)?;
        if let Some(error) = answer.error.first() {
            let is_limit = error.contains("Rate limit") || error.contains("Too many requests");
            return Err(if is_request_at_fault(error) {
                rejected(NAME, symbol, error)
            } else {
                temporary(NAME, error, is_limit.then_some(RATE_LIMIT_PAUSE))
            });
        }
        let rows = answer.result.iter().flatten().find(|(key, _)| *key != "last");
        let Some((_, rows)) = rows else { return Err(corrupt(NAME, "no result")) };
        let rows: Vec<Vec<Box<RawValue>>> = json(NAME, rows.get())?;
        let mut trades = rows.iter().map(|cells| row(cells)).collect::<Result<Vec<_>>>()?;
        trades.sort_unstable_by_key(|trade| trade.id);
        let covers = trades.first().zip(trades.last()).map(|(first, last)| first.id..=last.id);
        Ok(HistoryPage { trades, covers })
    }
}
