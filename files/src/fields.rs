//! The values of fields in files and messages of exchanges, with exact decimals.

use qi_core::{Price, Quantity, Result, Timestamp};

use crate::{number, time};

/// Parses a price. Exponents such as `1e-3` are accepted.
///
/// # Errors
/// `InvalidInput` for a text that is not a number, or that has more than 18 places.
pub fn price(text: &str) -> Result<Price> {
    number::price("price", text)
}

/// Parses a quantity, with the rules of [`price`].
///
/// # Errors
/// `InvalidInput`, as [`price`]; also for a negative number.
pub fn quantity(text: &str) -> Result<Quantity> {
    number::quantity("quantity", text)
}

/// Parses a time: a number of seconds, milliseconds, microseconds or nanoseconds, or a date. The size of the number
/// determines the unit. Digits after the microsecond are truncated.
///
/// # Errors
/// `InvalidInput` for another text, and for a time outside the years 1971 to 2199.
pub fn time(text: &str) -> Result<Timestamp> {
    time::parse(text, time::ANY)
}
