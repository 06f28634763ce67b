//! The values that records are made of: times, exact numbers, names.
//!
//! No type here can hold an invalid value: every constructor and every deserialisation validates, and a
//! rejection names the field and the value.

mod decimal;
mod interval;
mod name;
mod range;
mod scope;
mod side;
mod text;
mod time;

pub use decimal::{Decimal, ExactSum, Percent, Price, Quantity, Sum18, Sum36};
pub use interval::Interval;
pub use name::{Exchange, Instrument, Source, Symbol};
pub use range::{Selection, TimeRange};
pub use scope::Scope;
pub use side::Side;
pub(crate) use text::{from_text, text_name};
pub use time::{Clock, SystemClock, Timestamp};

use crate::{Error, Result};

/// The largest counter of a record (a sequence number, a count of trades): what both databases hold.
pub const MAX_COUNTER: u64 = i64::MAX.unsigned_abs();

/// Checks a counter of a record.
pub(crate) fn counter(field: &'static str, value: u64) -> Result<u64> {
    if value <= MAX_COUNTER {
        Ok(value)
    } else {
        Err(Error::invalid("domain.counter.range", field, value, "must be at most 9223372036854775807"))
    }
}
