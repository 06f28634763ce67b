//! The values of records: times, exact numbers, names.
//!
//! No type in this module can hold an invalid value. Every constructor and every deserialisation validates, and an
//! error names the field and the value.

mod decimal;
pub mod duration;
mod interval;
mod name;
mod range;
mod scope;
mod side;
mod text;
mod time;

pub use decimal::{Decimal, ExactSum, Percent, Price, Quantity, Sum18, Sum36};
pub use interval::Interval;
pub use name::{Exchange, Instrument, Provider, Symbol};
pub use range::{Keys, Selection, TimeRange};
pub use scope::Scope;
pub use side::Side;
pub(crate) use text::{from_text, text_conversions, text_name};
pub use time::{Clock, SystemClock, Timestamp};

use crate::{Error, Result};

/// The largest counter of a record, such as a sequence number or a count of trades. Databases store it as a signed
/// 64-bit integer.
pub const MAX_COUNTER: u64 = i64::MAX.unsigned_abs();

/// Checks that a counter of a record is at most [`MAX_COUNTER`].
pub(crate) fn counter(field: &'static str, value: u64) -> Result<u64> {
    if value <= MAX_COUNTER {
        Ok(value)
    } else {
        Err(Error::invalid("domain.counter.range", field, value, "must be at most 9223372036854775807"))
    }
}
