//! Bar intervals, aligned by integer arithmetic on microseconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Timestamp;
use crate::{Error, Result};

macro_rules! intervals {
    ($($name:ident $text:literal $seconds:literal),* $(,)?) => {
        /// The length of a bar, from a closed list. Weeks begin on Monday. The list has no months, because months have
        /// no fixed length.
        ///
        /// The enum is closed on purpose, so that a `match` needs no wildcard arm. A new interval is a breaking change.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Interval {
            $(#[doc = concat!("`", $text, "`")] $name),*
        }

        impl Interval {
            /// Every interval, shortest first.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Returns the name of the interval, for example `1m`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Returns the length in microseconds.
            pub const fn as_micros(self) -> i64 {
                match self { $(Self::$name => $seconds * 1_000_000),* }
            }
        }
    };
}

intervals! {
    S1 "1s" 1, S5 "5s" 5, S15 "15s" 15,
    M1 "1m" 60, M3 "3m" 180, M5 "5m" 300, M15 "15m" 900, M30 "30m" 1_800,
    H1 "1h" 3_600, H2 "2h" 7_200, H4 "4h" 14_400, H6 "6h" 21_600, H8 "8h" 28_800, H12 "12h" 43_200,
    D1 "1d" 86_400, W1 "1w" 604_800,
}

impl Interval {
    /// Returns the length of the interval.
    pub const fn duration(self) -> Duration {
        Duration::from_micros(self.as_micros().unsigned_abs())
    }

    /// Returns the start of the bucket that contains `time`. Buckets are counted from [`Timestamp::MIN`], a Monday, so
    /// every bucket of the domain starts at a valid timestamp.
    #[must_use]
    pub const fn floor(self, time: Timestamp) -> Timestamp {
        let since = time.as_micros() - Timestamp::MIN.as_micros();
        Timestamp::from_micros_unchecked(time.as_micros() - since % self.as_micros())
    }

    /// Returns the first bucket start that is not before `time`, or None if it lies beyond the domain.
    pub fn ceil(self, time: Timestamp) -> Option<Timestamp> {
        let floor = self.floor(time);
        if floor == time { Some(time) } else { floor.checked_add(self.duration()) }
    }

    /// Returns whether bars of this interval can be merged into bars of `coarser`, so that each bar
    /// lies within one coarser bar.
    pub const fn divides(self, coarser: Self) -> bool {
        coarser.as_micros() % self.as_micros() == 0
    }
}

impl AsRef<str> for Interval {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl FromStr for Interval {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|i| i.as_str() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|i| i.as_str()).collect();
            let rule = format!("must be one of {}", names.join(" "));
            Error::invalid("domain.interval", "interval", text, rule)
        })
    }
}

super::text_conversions!(Interval);

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::text::from_text(deserializer, "an interval such as 1m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weeks_begin_on_monday() {
        let sunday: Timestamp = "2024-03-03T23:59:59.999999Z".parse().unwrap();
        let monday: Timestamp = "2024-03-04T00:00:00Z".parse().unwrap();
        assert_eq!(Interval::W1.floor(sunday).to_string(), "2024-02-26T00:00:00Z");
        assert_eq!(Interval::W1.floor(monday), monday);
    }

    #[test]
    fn intervals_except_weeks_are_aligned_to_the_unix_epoch() {
        let t: Timestamp = "2031-07-09T13:47:51.123456Z".parse().unwrap();
        for interval in Interval::ALL.iter().filter(|i| **i != Interval::W1) {
            assert_eq!(interval.floor(t).as_micros() % interval.as_micros(), 0, "{interval}");
        }
    }

    #[test]
    fn every_bucket_of_the_domain_starts_and_ends_inside_it() {
        for interval in Interval::ALL {
            assert_eq!(interval.floor(Timestamp::MIN), Timestamp::MIN);
            let last = interval.floor(Timestamp::MAX_RECORD);
            assert!(last.checked_add(interval.duration()).is_some(), "{interval}");
            assert_eq!(interval.ceil(last), Some(last));
        }
    }

    #[test]
    fn unknown_interval_names_are_rejected() {
        for interval in Interval::ALL {
            assert_eq!(interval.as_str().parse::<Interval>().unwrap(), *interval);
        }
        for bad in ["1M", "7m", "60s", "", "hourly"] {
            assert!(bad.parse::<Interval>().is_err(), "{bad}");
        }
        assert!(Interval::M1.divides(Interval::M3) && !Interval::M3.divides(Interval::M5));
    }
}
