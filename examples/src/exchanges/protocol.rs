//! The parts of an exchange's protocol that differ between exchanges.

use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::StatusCode;
use qi_core::{
    Error, ErrorKind, Instrument, Price, PriceTick, Quantity, Result, RetryAdvice, Side, Timestamp,
};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// A trade of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trade {
    /// The exchange's id, which ascends within an instrument.
    pub id: u64,
    /// The time.
    pub time: Timestamp,
    /// The price.
    pub price: Price,
    /// The amount of the base currency.
    pub quantity: Quantity,
    /// The side of the taker.
    pub side: Side,
}

impl Trade {
    /// Returns the trade as a tick, whose sequence number is the id.
    ///
    /// # Errors
    /// `InvalidInput` for a time or an id outside the bounds of records.
    pub fn tick(&self, instrument: &Instrument) -> Result<PriceTick> {
        let tick = PriceTick::new(instrument.clone(), self.time, self.id, self.price)?;
        Ok(tick.with_quantity(self.quantity).with_side(self.side))
    }
}

/// A message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Trades of the subscribed instrument.
    Trades(Vec<Trade>),
    /// The acknowledgement of the subscription.
    Subscribed,
    /// The rejection of the subscription.
    Rejected {
        /// The text of the exchange.
        reason: String,
        /// True if another attempt has the same result.
        is_permanent: bool,
    },
    /// The state of the trading engine: None if it is online, else its name, for example `maintenance`.
    Status(Option<String>),
    /// The announcement that the server closes the connection.
    Closing,
    /// A message without information for this reader, for example a heartbeat.
    Other,
}

/// The start of a request for history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The first id.
    pub id: u64,
    /// The time of an earlier trade, at or shortly before the time of the trade `id`.
    pub after: Timestamp,
}

/// One page of an exchange's history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HistoryPage {
    /// The trades, ascending by id.
    pub trades: Vec<Trade>,
    /// The ids that the page covers: the exchange has no other trade with an id of this range.
    pub covers: Option<RangeInclusive<u64>>,
}

/// The protocol of an exchange.
pub trait Protocol: Send + Sync + 'static {
    /// Returns the name of the exchange, as in instruments.
    fn exchange(&self) -> &'static str;

    /// Returns the default address of the stream.
    fn stream_url(&self) -> &'static str;

    /// Returns the default address of the REST interface.
    fn rest_url(&self) -> &'static str;

    /// Returns the minimum time between two requests to the REST interface.
    fn request_interval(&self) -> Duration;

    /// Returns the maximum age of a connection, if the exchange limits it.
    fn max_connection_age(&self) -> Option<Duration>;

    /// Returns the exchange's symbol of an instrument.
    ///
    /// # Errors
    /// `InvalidInput` for a symbol that the exchange cannot have.
    fn symbol(&self, instrument: &Instrument) -> Result<String>;

    /// Returns the message that subscribes to the trades of a symbol.
    fn subscribe(&self, symbol: &str) -> String;

    /// Reads a message of the stream.
    ///
    /// # Errors
    /// `CorruptData` for a message that cannot be decoded.
    fn frame(&self, symbol: &str, text: &str) -> Result<Frame>;

    /// Returns path and query of a request for the history from a position on, or for the latest trade.
    fn history_path(&self, symbol: &str, from: Option<Position>) -> String;

    /// Reads a response to a request for history.
    ///
    /// # Errors
    /// A retryable error for a temporary condition; `InvalidInput` with the symbol if the exchange rejects the request.
    fn history(
        &self,
        symbol: &str,
        from: Option<Position>,
        status: StatusCode,
        body: &str,
    ) -> Result<HistoryPage>;
}

/// Returns the error of a message or response that cannot be decoded.
pub(super) fn corrupt(exchange: &'static str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::CorruptData, "live.frame", "read")
        .with_backend(exchange)
        .with_message(why)
        .with_retry(RetryAdvice::Backoff)
}

/// Returns the error of a temporary condition of an exchange.
pub(super) fn temporary(
    exchange: &'static str,
    why: impl std::fmt::Display,
    pause: Option<Duration>,
) -> Error {
    let advice = pause.map_or(RetryAdvice::Backoff, RetryAdvice::After);
    Error::new(ErrorKind::Unavailable, "live.rest", "history")
        .with_backend(exchange)
        .with_message(why)
        .with_retry(advice)
}

/// Returns the permanent error of a symbol that the exchange rejects.
pub(super) fn rejected(exchange: &'static str, symbol: &str, why: impl std::fmt::Display) -> Error {
    Error::invalid("live.symbol", "symbol", symbol, format_args!("must be accepted by the exchange: {why}"))
        .with_backend(exchange)
        .with_retry(RetryAdvice::Never)
}

pub(super) fn json<T: DeserializeOwned>(exchange: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| corrupt(exchange, "invalid JSON").with_source(error))
}

/// Returns a number or a string without its quotes. Numbers keep all their digits.
pub(super) fn plain(value: &RawValue) -> &str {
    value.get().trim_matches('"')
}

/// Returns whether the status code is permanent, because the request itself is invalid.
pub(super) fn is_permanent(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 404 | 405 | 414 | 451)
}
