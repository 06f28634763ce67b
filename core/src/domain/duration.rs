//! Durations as text with a unit: `250ms`, `30s`, `5m`, `2h` or `7d`.
//!
//! The functions [`serialize`] and [`deserialize`] make a field of a configuration struct such a text:
//!
//! ```
//! use std::time::Duration;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Settings {
//!     #[serde(with = "qi_core::domain::duration")]
//!     timeout: Duration,
//! }
//!
//! let settings: Settings = serde_json::from_str("{\"timeout\":\"90s\"}").unwrap();
//! assert_eq!(settings.timeout, Duration::from_secs(90));
//! assert_eq!(serde_json::to_string(&settings).unwrap(), "{\"timeout\":\"90s\"}");
//! ```

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Visitor};
use serde::ser::Serializer;

use crate::{Error, Result};

/// The units and their lengths in milliseconds, the longest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses a whole number with a unit.
///
/// ```
/// use std::time::Duration;
/// use qi_core::domain::duration;
/// assert_eq!(duration::parse("7d")?, Duration::from_hours(7 * 24));
/// assert!(duration::parse("30").is_err(), "the unit is missing");
/// # Ok::<(), qi_core::Error>(())
/// ```
///
/// # Errors
/// `InvalidInput` for any other text, and for a duration of more than 2⁶⁴ milliseconds.
pub fn parse(text: &str) -> Result<Duration> {
    parse_or_rule(text).map_err(|rule| Error::invalid("domain.duration", "duration", text, rule))
}

/// Parses a duration, or returns the rule that the text breaks.
fn parse_or_rule(text: &str) -> Result<Duration, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit).filter(|_| digits > 0);
    let (_, millis) = unit.ok_or("must be a whole number with the unit ms, s, m, h or d")?;
    let total = number.parse().ok().and_then(|number: u64| number.checked_mul(*millis));
    total.map(Duration::from_millis).ok_or("is too long")
}

/// Returns the text of a duration, with the longest unit that needs no fraction. Drops fractions of a millisecond.
///
/// ```
/// use std::time::Duration;
/// use qi_core::domain::duration;
/// assert_eq!(duration::format(Duration::from_millis(90_000)), "90s");
/// ```
pub fn format(duration: Duration) -> String {
    let millis = duration.as_millis();
    let fits = |(_, length): &&(&str, u64)| {
        millis >= u128::from(*length) && millis.is_multiple_of(u128::from(*length))
    };
    let (unit, length) = UNITS.iter().find(fits).unwrap_or(&("s", 1_000));
    format!("{}{unit}", millis / u128::from(*length))
}

/// Serializes a duration as text.
///
/// # Errors
/// As the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// Deserializes a duration from text.
///
/// # Errors
/// An error of the deserializer for any other value.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Text;

    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration with a unit, such as \"250ms\", \"30s\" or \"7d\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
            parse_or_rule(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text)
}

/// Optional durations, for `#[serde(with = "qi_core::domain::duration::option")]`.
pub mod option {
    use serde::{Deserialize, Serialize};

    use super::{Deserializer, Duration, Result, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Text(#[serde(with = "super")] Duration);

    /// Serializes an optional duration as text.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        duration.map(Text).serialize(serializer)
    }

    /// Deserializes an optional duration from text.
    ///
    /// # Errors
    /// An error of the deserializer for any other value.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(|Text(duration)| duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("90s", 90_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(millis), "{text}");
            assert_eq!(format(Duration::from_millis(millis)), text);
        }
        assert_eq!(format(parse("60s").unwrap()), "1m");
        for text in
            ["", "60", "s", "-1s", "1.5s", " 1s", "1 s", "1S", "1w", "99999999999999999999s", "999999999999d"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
