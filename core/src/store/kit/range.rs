//! The rest of a range after a cursor.

use crate::record::SortKey;
use crate::store::{Anchor, Order};
use crate::{Result, TimeRange, Timestamp};

/// Returns the part of a range after a cursor, and the last sort key that the cursor has passed.
///
/// Records of the part's first time (its last time, newest first) count only after that sort key. The sort key is None
/// if every record of the part counts.
///
/// # Errors
/// `InvalidInput` for a cursor whose time is outside the domain.
pub fn rest_of(range: TimeRange, order: Order, anchor: &Anchor) -> Result<(TimeRange, Option<SortKey>)> {
    let (start, end) = (range.start(), range.end());
    let next = |time: Timestamp| Timestamp::from_micros(time.as_micros() + 1);
    Ok(match (order, anchor) {
        (Order::Ascending, Anchor::SortKey(ts, seq)) => {
            (TimeRange::new((*ts).max(start).min(end), end)?, Some((*ts, *seq)))
        }
        (Order::Descending, Anchor::SortKey(ts, seq)) => {
            (TimeRange::new(start, next(*ts)?.min(end).max(start))?, Some((*ts, *seq)))
        }
        (Order::Ascending, Anchor::Time(ts)) => (TimeRange::new(next(*ts)?.max(start).min(end), end)?, None),
        (Order::Descending, Anchor::Time(ts)) => (TimeRange::new(start, (*ts).min(end).max(start))?, None),
        (_, Anchor::Start | Anchor::Owner(_)) => (range, None),
    })
}
