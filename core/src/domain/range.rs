//! The extent of a query: a half-open time range, and a selection of keys.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::{Error, Result};

/// A half-open time range `[start, end)`. The start is inside the range, the end is not. A range
/// with equal ends is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawRange")]
pub struct TimeRange {
    start: Timestamp,
    end: Timestamp,
}

#[derive(Deserialize)]
struct RawRange {
    start: Timestamp,
    end: Timestamp,
}

impl TryFrom<RawRange> for TimeRange {
    type Error = Error;
    fn try_from(raw: RawRange) -> Result<Self> {
        Self::new(raw.start, raw.end)
    }
}

impl TimeRange {
    /// The range from [`Timestamp::MIN`] to [`Timestamp::MAX`].
    pub const ALL: Self = Self { start: Timestamp::MIN, end: Timestamp::MAX };

    /// Creates the range `[start, end)`.
    ///
    /// # Errors
    /// `InvalidInput` if the end is before the start.
    pub fn new(start: Timestamp, end: Timestamp) -> Result<Self> {
        if start <= end {
            Ok(Self { start, end })
        } else {
            Err(Error::invalid(
                "domain.range.order",
                "range",
                format_args!("{start}..{end}"),
                "must not end before its start",
            ))
        }
    }

    /// Creates the range from `start` to the end of the domain.
    pub fn since(start: Timestamp) -> Self {
        Self { start, end: Timestamp::MAX }
    }

    /// Creates the range from the beginning of the domain to `end`, exclusive.
    pub fn before(end: Timestamp) -> Self {
        Self { start: Timestamp::MIN, end }
    }

    /// Returns the start of the range, inclusive.
    pub const fn start(self) -> Timestamp {
        self.start
    }

    /// Returns the end of the range, exclusive.
    pub const fn end(self) -> Timestamp {
        self.end
    }

    /// Returns the length of the range.
    pub fn duration(self) -> std::time::Duration {
        self.end.duration_since(self.start)
    }

    /// Returns whether `time` lies inside the range.
    pub fn contains(self, time: Timestamp) -> bool {
        self.start <= time && time < self.end
    }

    /// Returns whether the range is empty.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

impl TryFrom<std::ops::Range<Timestamp>> for TimeRange {
    type Error = Error;
    fn try_from(range: std::ops::Range<Timestamp>) -> Result<Self> {
        Self::new(range.start, range.end)
    }
}

impl fmt::Display for TimeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// All keys, or a list of keys that is not empty. An empty list therefore never selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection<K> {
    /// Every existing key.
    All,
    /// Only these keys, in ascending order without duplicates.
    #[serde(rename = "these")]
    Only(Keys<K>),
}

/// The keys of a [`Selection`]: sorted, without duplicates, at least one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Keys<K>(Vec<K>);

impl<K> std::ops::Deref for Keys<K> {
    type Target = [K];
    fn deref(&self) -> &[K] {
        &self.0
    }
}

impl<K: Ord> Selection<K> {
    /// Creates a selection of these keys. Duplicates count once.
    ///
    /// # Errors
    /// `InvalidInput` for an empty list.
    pub fn only(keys: impl IntoIterator<Item = K>) -> Result<Self> {
        let mut keys: Vec<K> = keys.into_iter().collect();
        if keys.is_empty() {
            return Err(Error::invalid(
                "domain.selection.empty",
                "selection",
                "[]",
                "must name at least one key",
            ));
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(Self::Only(Keys(keys)))
    }

    /// Creates a selection of a single key.
    pub fn one(key: K) -> Self {
        Self::Only(Keys(vec![key]))
    }

    /// Returns whether the key is selected.
    pub fn contains(&self, key: &K) -> bool {
        match self {
            Self::All => true,
            Self::Only(keys) => keys.binary_search(key).is_ok(),
        }
    }
}

impl<'de, K: Ord + Deserialize<'de>> Deserialize<'de> for Selection<K> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Raw<K> {
            All,
            #[serde(rename = "these")]
            Only(Vec<K>),
        }
        match Raw::deserialize(deserializer)? {
            Raw::All => Ok(Self::All),
            Raw::Only(keys) => Self::only(keys).map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_half_open_and_may_be_empty_but_not_reversed() {
        let (a, b) = (Timestamp::from_secs(1_000_000).unwrap(), Timestamp::from_secs(2_000_000).unwrap());
        let range = TimeRange::new(a, b).unwrap();
        assert!(range.contains(a) && !range.contains(b));
        assert!(TimeRange::new(a, a).unwrap().is_empty());
        assert!(TimeRange::new(b, a).is_err());
        let json = serde_json::to_string(&range).unwrap();
        assert_eq!(serde_json::from_str::<TimeRange>(&json).unwrap(), range);
        assert!(
            serde_json::from_str::<TimeRange>("{\"start\":2000000000000,\"end\":1000000000000}").is_err()
        );
    }

    #[test]
    fn selections_are_not_empty_and_have_no_duplicates() {
        assert!(Selection::<u8>::only([]).is_err());
        let Selection::Only(keys) = Selection::only([2, 1, 2]).unwrap() else { panic!() };
        assert_eq!(*keys, [1, 2]);
        assert!(serde_json::from_str::<Selection<u8>>("{\"these\":[]}").is_err());
        assert_eq!(serde_json::from_str::<Selection<u8>>("\"all\"").unwrap(), Selection::All);
    }
}
