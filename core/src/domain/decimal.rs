//! Exact decimals: an `i128` that counts units of 10⁻¹⁸, with a magnitude below 10²⁰.
//!
//! The domain equals ClickHouse's `Decimal(38, 18)` and fits into PostgreSQL's `numeric`. A price never passes through
//! a float. Parsing is exact or an error, and [`ExactSum`] computes sums and products in 256 bits.
//!
//! ```
//! use qi_core::{Decimal, Price};
//!
//! let price: Price = "63421.50".parse()?;
//! assert_eq!(price.to_string(), "63421.5");
//! assert!("0".parse::<Price>().is_err());
//! assert!("1.0000000000000000001".parse::<Decimal>().is_err(), "a 19th place is not rounded away");
//! # Ok::<(), qi_core::Error>(())
//! ```

use std::fmt;
use std::str::FromStr;

use ethnum::I256;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, ErrorKind, Result};

/// The longest text that is parsed as a number, in bytes. Longer texts are rejected.
const MAX_TEXT: usize = 64;

/// A signed exact decimal with at most [`Decimal::SCALE`] places and a magnitude below 10²⁰.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Decimal(i128);

impl Decimal {
    /// The number of decimal places.
    pub const SCALE: u32 = 18;
    /// The number of units in 1.
    pub const UNITS_PER_ONE: i128 = 1_000_000_000_000_000_000;
    /// The largest magnitude in units: 10³⁸ - 1.
    pub const MAX_UNITS: i128 = 99_999_999_999_999_999_999_999_999_999_999_999_999;
    /// The decimal 0.
    pub const ZERO: Self = Self(0);
    /// The decimal 1.
    pub const ONE: Self = Self(Self::UNITS_PER_ONE);
    /// The largest decimal, 10²⁰ - 10⁻¹⁸.
    pub const MAX: Self = Self(Self::MAX_UNITS);
    /// The smallest decimal, the negative of [`Decimal::MAX`].
    pub const MIN: Self = Self(-Self::MAX_UNITS);

    /// Creates the decimal with this number of units of 10⁻¹⁸.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a magnitude of 10³⁸ units (10²⁰) or more.
    pub fn from_units(units: i128) -> Result<Self> {
        if units.unsigned_abs() > Self::MAX_UNITS.unsigned_abs() {
            return Err(Error::invalid(
                "domain.decimal.range",
                "decimal",
                format_args!("{units}e-18"),
                "must be below 1e20 in magnitude",
            ));
        }
        Ok(Self(units))
    }

    /// Creates the decimal that equals this integer. Every `i64` fits.
    pub const fn from_int(value: i64) -> Self {
        // The magnitude of an `i64` is below 9.3e18, so the product stays below 1e37.
        Self(value as i128 * Self::UNITS_PER_ONE)
    }

    /// Returns the number of units of 10⁻¹⁸. ClickHouse stores this number, and sums add it.
    pub const fn units(self) -> i128 {
        self.0
    }

    /// Returns the sum, or None beyond the domain.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Self::from_units(self.0.checked_add(other.0)?).ok()
    }

    /// Returns the difference, or None beyond the domain.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        Self::from_units(self.0.checked_sub(other.0)?).ok()
    }

    /// Returns the quotient, rounded once, half away from zero, to 18 places. None for a divisor of
    /// zero or beyond the domain.
    pub fn checked_div(self, divisor: Self) -> Option<Self> {
        let scaled = I256::from(self.0) * I256::from(Self::UNITS_PER_ONE);
        Self::from_wide(div_half_away(scaled, I256::from(divisor.0))?)
    }

    /// Returns the product, rounded once, half away from zero, to 18 places. None beyond the domain.
    pub fn checked_mul(self, factor: Self) -> Option<Self> {
        let product = I256::from(self.0) * I256::from(factor.0);
        Self::from_wide(div_half_away(product, I256::from(Self::UNITS_PER_ONE))?)
    }

    /// Returns the nearest `f64`, which may lose precision. Use it for display and statistics
    /// only, never to compute prices.
    #[expect(clippy::cast_precision_loss, reason = "both casts are exact")]
    pub fn to_f64_lossy(self) -> f64 {
        const EXACT: u128 = 1 << f64::MANTISSA_DIGITS;
        let (digits, places) = self.normalized();
        if digits.unsigned_abs() <= EXACT {
            // A power of ten up to 10^22 is exact, so the division rounds once.
            return digits as f64 / POWERS_OF_TEN[places as usize] as f64;
        }
        // The text is a number, so parsing succeeds. It rounds to the nearest value.
        let mut text: DecimalText = [0; 40];
        self.write_text(&mut text).parse().unwrap_or(f64::NAN)
    }

    fn from_wide(units: I256) -> Option<Self> {
        i128::try_from(units).ok().and_then(|units| Self::from_units(units).ok())
    }
}

impl FromStr for Decimal {
    type Err = Error;

    /// Parses a number such as `-12.5`: an optional sign, digits, and optionally a point and digits. Exponents and
    /// numbers that would need rounding are rejected. Zeros after the 18th place are accepted.
    fn from_str(text: &str) -> Result<Self> {
        let reject = |rule: &str| Error::invalid("domain.decimal.syntax", "decimal", text, rule);
        if text.len() > MAX_TEXT {
            return Err(reject("is longer than 64 characters"));
        }
        let negative = text.starts_with('-');
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text).as_bytes();
        let (whole, places) = match digits.iter().position(|b| *b == b'.') {
            Some(point) => (&digits[..point], &digits[point + 1..]),
            None => (digits, &b"0"[..]),
        };
        if whole.is_empty() || places.is_empty() || !whole.iter().chain(places).all(u8::is_ascii_digit) {
            return Err(reject("must be digits with at most one point between them"));
        }
        let used = places.iter().rposition(|b| *b != b'0').map_or(0, |last| last + 1);
        if used > Self::SCALE as usize {
            return Err(Error::invalid(
                "domain.decimal.places",
                "decimal",
                text,
                "has more than 18 decimal places",
            ));
        }
        let zeros = whole.iter().take_while(|b| **b == b'0').count();
        let whole = &whole[zeros..];
        if whole.len() > 20 {
            return Err(Error::invalid(
                "domain.decimal.range",
                "decimal",
                text,
                "must be below 1e20 in magnitude",
            ));
        }
        // 18 digits fit into 64 bits, so at most two parts have to be added.
        let digits =
            |digits: &[u8]| digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let (high, low) = whole.split_at(whole.len().saturating_sub(18));
        let whole = i128::from(digits(high)) * Self::UNITS_PER_ONE + i128::from(digits(low));
        let places =
            i128::from(digits(&places[..used])) * i128::from(POWERS_OF_TEN[Self::SCALE as usize - used]);
        let units = whole * Self::UNITS_PER_ONE + places;
        Ok(Self(if negative { -units } else { units }))
    }
}

super::text_conversions!(static Decimal);

/// The powers of ten from 10⁰ to 10¹⁸.
const POWERS_OF_TEN: [u64; 19] = {
    let mut powers = [1; 19];
    let mut at = 1;
    while at < powers.len() {
        powers[at] = powers[at - 1] * 10;
        at += 1;
    }
    powers
};

/// A buffer for the longest text of a decimal: a sign, 20 digits, a point and 18 digits.
type DecimalText = [u8; 40];

impl Decimal {
    /// Returns the digits before and after the point.
    fn split(self) -> (u128, u64) {
        const FIVES: u64 = 5_u64.pow(18);
        let magnitude = self.0.unsigned_abs();
        // 10^18 is 5^18 * 2^18. A 64-bit division is several times as fast as a 128-bit division.
        let whole = match u64::try_from(magnitude >> Self::SCALE) {
            Ok(shifted) => u128::from(shifted / FIVES),
            Err(_) => magnitude / Self::UNITS_PER_ONE.unsigned_abs(),
        };
        let part = magnitude - whole * Self::UNITS_PER_ONE.unsigned_abs();
        // The part is below 10^18.
        (whole, u64::try_from(part).unwrap_or(0))
    }

    /// Returns the number as the smallest integer with the fewest decimal places.
    pub(crate) fn normalized(self) -> (i128, u32) {
        let (whole, part) = self.split();
        let (part, places) = without_zeros(part);
        let magnitude = whole * u128::from(POWERS_OF_TEN[places as usize]) + u128::from(part);
        // The magnitude is below 10^38.
        let magnitude = magnitude.cast_signed();
        (if self.0 < 0 { -magnitude } else { magnitude }, places)
    }

    /// Returns 10 to the power of `places`, or None above [`Decimal::SCALE`].
    pub(crate) fn power_of_ten(places: u32) -> Option<i128> {
        POWERS_OF_TEN.get(places as usize).copied().map(i128::from)
    }

    /// Writes the text without trailing zeros, and without a point if there are no places.
    fn write_text(self, text: &mut DecimalText) -> &str {
        let (mut whole, part) = self.split();
        let (mut part, places) = without_zeros(part);
        let mut at = text.len();
        let mut put = |byte| {
            at -= 1;
            text[at] = byte;
        };
        let digit = |number: u64| b'0' + (number % 10).to_le_bytes()[0];
        for _ in 0..places {
            put(digit(part));
            part /= 10;
        }
        if places > 0 {
            put(b'.');
        }
        // 20 digits do not fit into 64 bits.
        while whole > u128::from(u64::MAX) {
            put(digit(u64::try_from(whole % 10).unwrap_or(0)));
            whole /= 10;
        }
        let mut whole = u64::try_from(whole).unwrap_or(0);
        loop {
            put(digit(whole));
            whole /= 10;
            if whole == 0 {
                break;
            }
        }
        if self.0 < 0 {
            put(b'-');
        }
        // The text is ASCII.
        std::str::from_utf8(&text[at..]).unwrap_or_default()
    }
}

/// Removes trailing zeros from 18 decimal places. Returns the digits and the number of places.
fn without_zeros(mut part: u64) -> (u64, u32) {
    if part == 0 {
        return (0, 0);
    }
    let mut places = Decimal::SCALE;
    for zeros in [8, 8, 4, 2, 1, 1] {
        let power = POWERS_OF_TEN[zeros as usize];
        if part.is_multiple_of(power) {
            part /= power;
            places -= zeros;
        }
    }
    (part, places)
}

impl fmt::Display for Decimal {
    /// Writes no trailing zeros, and no point if there are no places.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text: DecimalText = [0; 40];
        let text = self.write_text(&mut text);
        f.pad_integral(self.0 >= 0, "", text.strip_prefix('-').unwrap_or(text))
    }
}

impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text: DecimalText = [0; 40];
        serializer.serialize_str(self.write_text(&mut text))
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::text::from_text(deserializer, "an exact decimal as a string")
    }
}

/// Returns `numerator / divisor`, rounded half away from zero, or None for a divisor of zero.
fn div_half_away(numerator: I256, divisor: I256) -> Option<I256> {
    if divisor == I256::ZERO {
        return None;
    }
    let (quotient, rest) = (numerator / divisor, numerator % divisor);
    // The same as |rest| * 2 >= |divisor|, without a product that could overflow.
    let up = rest.unsigned_abs() >= divisor.unsigned_abs() - rest.unsigned_abs();
    let away = if (numerator < I256::ZERO) == (divisor < I256::ZERO) { I256::ONE } else { -I256::ONE };
    Some(if up && rest != I256::ZERO { quotient + away } else { quotient })
}

/// An exact sum in 256 bits with 18 or 36 places, rounded once at the end.
///
/// Every store rounds through this type, so all stores return the same last digit. The addends are decimals (18 places)
/// or products of two decimals (36 places). One sum has only one kind of addends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExactSum<const PLACES: u32>(I256);

/// A sum of decimals.
pub type Sum18 = ExactSum<18>;
/// A sum of products of two decimals, for example a quote volume.
pub type Sum36 = ExactSum<36>;

impl<const PLACES: u32> ExactSum<PLACES> {
    /// The sum of no addends.
    pub const ZERO: Self = Self(I256::ZERO);

    /// The largest sum, in place of a sum beyond 256 bits. Its total is `OutOfRange`.
    pub const MAX: Self = Self(I256::MAX);

    /// Parses the exact value as a decimal integer in units of 10^-`PLACES`, for stores whose server computes sums.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptData`] if `text` is not such an integer.
    pub fn from_units_text(text: &str) -> Result<Self> {
        I256::from_str(text).map(Self).map_err(|_| {
            Error::new(ErrorKind::CorruptData, "domain.sum.syntax", "decode").with_context("value", text)
        })
    }

    /// Creates the exact value from a little-endian, two's complement integer of 256 bits in units of 10^-`PLACES`.
    pub fn from_le_bytes(bytes: [u8; 32]) -> Self {
        Self(I256::from_le_bytes(bytes))
    }

    /// Adds another sum, for stores that sum a range in parts.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] beyond 256 bits.
    pub fn plus_sum(self, other: Self) -> Result<Self> {
        self.add(other.0)
    }

    fn add(self, units: I256) -> Result<Self> {
        self.0.checked_add(units).map(Self).ok_or_else(|| out_of_range("a sum exceeds 256 bits"))
    }

    fn round_to_18(self) -> Result<Decimal> {
        let divisor = I256::from(10u8).pow(PLACES - Decimal::SCALE);
        div_half_away(self.0, divisor)
            .and_then(Decimal::from_wide)
            .ok_or_else(|| out_of_range("a sum is 1e20 or more"))
    }
}

impl Sum18 {
    /// Adds one decimal.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] beyond 256 bits.
    pub fn plus(self, value: impl Into<Decimal>) -> Result<Self> {
        self.add(I256::from(value.into().units()))
    }

    /// Subtracts one decimal, for a moving window.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] beyond 256 bits.
    pub fn minus(self, value: impl Into<Decimal>) -> Result<Self> {
        self.add(-I256::from(value.into().units()))
    }

    /// Returns the sum as a decimal, without rounding.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] at 10²⁰ or more.
    pub fn total(self) -> Result<Decimal> {
        self.round_to_18()
    }

    /// Returns the mean of `count` addends, rounded once, half away from zero, to 18 places. None if `count` is 0.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] at 10²⁰ or more.
    pub fn mean(self, count: u64) -> Result<Option<Decimal>> {
        let Some(mean) = div_half_away(self.0, I256::from(count)) else { return Ok(None) };
        Decimal::from_wide(mean).map(Some).ok_or_else(|| out_of_range("a mean is 1e20 or more"))
    }
}

impl Sum36 {
    /// Adds the exact product of two decimals.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] beyond 256 bits.
    pub fn plus_product(self, a: impl Into<Decimal>, b: impl Into<Decimal>) -> Result<Self> {
        self.add(I256::from(a.into().units()) * I256::from(b.into().units()))
    }

    /// Returns the sum rounded once, half away from zero, to 18 places.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] at 10²⁰ or more.
    pub fn total(self) -> Result<Decimal> {
        self.round_to_18()
    }

    /// Returns the exact sum divided by `divisor`, rounded once, half away from zero, to 18 places, for a weighted
    /// mean. None for a divisor of zero.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] at 10²⁰ or more.
    pub fn divided_by(self, divisor: impl Into<Decimal>) -> Result<Option<Decimal>> {
        let Some(quotient) = div_half_away(self.0, I256::from(divisor.into().units())) else {
            return Ok(None);
        };
        Decimal::from_wide(quotient).map(Some).ok_or_else(|| out_of_range("a quotient is 1e20 or more"))
    }
}

fn out_of_range(what: &str) -> Error {
    Error::new(ErrorKind::OutOfRange, "domain.decimal.overflow", "sum").with_message(what)
}

/// Returns the error of a decimal with the name of the field that it was parsed for.
fn of_field(field: &'static str, error: &Error) -> Error {
    let rule = error.message().unwrap_or_default();
    let rule = rule.strip_prefix("decimal ").unwrap_or(rule).to_owned();
    let value = error.context_value("value").unwrap_or_default().to_owned();
    Error::invalid(error.code().to_owned(), field, value, rule)
}

/// Defines a newtype over [`Decimal`] with a rule.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $field:literal, $code:literal, $rule:literal, |$d:ident| $holds:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Decimal);

        impl $name {
            #[doc = concat!("Creates the number, which ", $rule, ".")]
            ///
            /// # Errors
            /// [`ErrorKind::InvalidInput`] with the field and the value if the rule does not hold.
            pub fn new($d: Decimal) -> Result<Self> {
                if $holds { Ok(Self($d)) } else { Err(Error::invalid($code, $field, $d, $rule)) }
            }

            /// Creates the number from units of 10⁻¹⁸.
            ///
            /// # Errors
            /// [`ErrorKind::InvalidInput`] with the field and the value if the rule does not hold.
            pub fn from_units(units: i128) -> Result<Self> {
                Decimal::from_units(units).map_err(|e| of_field($field, &e)).and_then(Self::new)
            }

            /// Returns the number as a decimal.
            pub const fn decimal(self) -> Decimal {
                self.0
            }

            /// Returns the number of units of 10⁻¹⁸.
            pub const fn units(self) -> i128 {
                self.0.units()
            }
        }

        impl From<$name> for Decimal {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl TryFrom<Decimal> for $name {
            type Error = Error;
            fn try_from(value: Decimal) -> Result<Self> {
                Self::new(value)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                text.parse()
                    .map_err(|e| of_field($field, &e))
                    .and_then(Self::new)
            }
        }

        super::text_conversions!(static $name);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                super::text::from_text(deserializer, "an exact decimal as a string")
            }
        }

        #[cfg(feature = "rust_decimal")]
        impl TryFrom<rust_decimal::Decimal> for $name {
            type Error = Error;
            fn try_from(value: rust_decimal::Decimal) -> Result<Self> {
                Self::new(Decimal::try_from(value)?)
            }
        }
    };
}

number!(
    /// A price in the instrument's quote currency per unit of its base currency. Strictly positive.
    Price, "price", "domain.price.not_positive", "must be greater than zero", |d| d > Decimal::ZERO
);
number!(
    /// An amount of the base currency (volume, size) or of a quote currency (turnover,
    /// market capitalisation). Zero or more.
    Quantity, "quantity", "domain.quantity.negative", "must not be negative", |d| d >= Decimal::ZERO
);
number!(
    /// A signed percentage: 2.5 is 2.5 %.
    Percent, "percent", "domain.percent", "must be a decimal", |d| d >= Decimal::MIN
);

impl Quantity {
    /// The quantity 0.
    pub const ZERO: Self = Self(Decimal::ZERO);
}

#[cfg(feature = "rust_decimal")]
impl TryFrom<rust_decimal::Decimal> for Decimal {
    type Error = Error;

    /// Converts exactly, or returns [`ErrorKind::InvalidInput`]: `rust_decimal` has up to 28 places.
    fn try_from(value: rust_decimal::Decimal) -> Result<Self> {
        value.to_string().parse()
    }
}

#[cfg(feature = "rust_decimal")]
impl TryFrom<Decimal> for rust_decimal::Decimal {
    type Error = Error;

    /// Converts exactly, or returns [`ErrorKind::OutOfRange`]: `rust_decimal` holds 96 bits of digits.
    fn try_from(value: Decimal) -> Result<Self> {
        let text = value.to_string();
        Self::from_str_exact(&text).map_err(|e| {
            Error::new(ErrorKind::OutOfRange, "domain.decimal.rust_decimal", "convert")
                .with_context("value", text)
                .with_source(e)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    #[test]
    fn parses_only_exact_decimals() {
        assert_eq!(d("0.000000000000000001").units(), 1);
        assert_eq!(d("-12.50"), d("-12.5"));
        assert_eq!(d("99999999999999999999.999999999999999999"), Decimal::MAX);
        assert_eq!(d("1.00000000000000000000"), Decimal::ONE, "zeros past the 18th place change nothing");
        assert_eq!(d("99999999999.123456789012345678").to_string(), "99999999999.123456789012345678");
        for bad in ["", "-", ".", "1.", ".5", "1e5", "1,5", " 1", "1 ", "0x1", "1.2.3", "NaN", "١", "--1"] {
            assert!(bad.parse::<Decimal>().is_err(), "{bad:?}");
        }
        for (bad, code) in [
            ("0.0000000000000000001", "domain.decimal.places"),
            ("100000000000000000000", "domain.decimal.range"),
            ("-100000000000000000000", "domain.decimal.range"),
        ] {
            let error = bad.parse::<Decimal>().unwrap_err();
            assert_eq!((error.code(), error.context_value("value")), (code, Some(bad)));
        }
        assert!("1".repeat(1_000_000).parse::<Decimal>().is_err());
    }

    #[test]
    fn display_has_no_trailing_zeros() {
        for (text, shown) in [("1.500", "1.5"), ("0.0", "0"), ("-0.10", "-0.1"), ("100", "100")] {
            assert_eq!(d(text).to_string(), shown);
        }
        assert_eq!(format!("{:>6}|{:<6}|", d("1.5"), d("-1.5")), "   1.5|-1.5  |");
    }

    #[test]
    fn errors_have_field_and_value() {
        let zero = "0".parse::<Price>().unwrap_err();
        assert_eq!(zero.context_value("field"), Some("price"));
        assert_eq!(zero.message(), Some("price must be greater than zero"));
        let bad = "abc".parse::<Quantity>().unwrap_err();
        assert_eq!((bad.context_value("field"), bad.context_value("value")), (Some("quantity"), Some("abc")));
        assert!("-0.1".parse::<Quantity>().is_err());
        let read = serde_json::from_str::<Price>("\"abc\"").unwrap_err().to_string();
        assert!(read.contains("field=price") && read.contains("value=abc"), "{read}");
        assert_eq!(Price::from_units(i128::MAX).unwrap_err().context_value("field"), Some("price"));
        assert!("-99".parse::<Percent>().is_ok());
    }

    #[test]
    fn rounds_once_half_away_from_zero() {
        for (a, b, quotient) in [
            ("1", "3", "0.333333333333333333"),
            ("2", "3", "0.666666666666666667"),
            ("-2", "3", "-0.666666666666666667"),
            ("0.000000000000000001", "2", "0.000000000000000001"),
            ("-0.000000000000000001", "2", "-0.000000000000000001"),
            ("0.000000000000000001", "2.1", "0"),
        ] {
            assert_eq!(d(a).checked_div(d(b)), Some(d(quotient)), "{a} / {b}");
        }
        assert_eq!(Decimal::ONE.checked_div(Decimal::ZERO), None);
        assert_eq!(Decimal::MAX.checked_div(d("0.5")), None);
        assert_eq!(d("100.5").checked_mul(d("2.25")), Some(d("226.125")));
    }

    #[test]
    fn sums_are_exact_at_the_limit() {
        let sum = Sum36::ZERO.plus_product(d("100.5"), d("2.25")).unwrap();
        assert_eq!(sum.total().unwrap(), d("226.125"));
        let mut many = Sum18::ZERO;
        for _ in 0..10 {
            many = many.plus(Decimal::MAX).unwrap();
        }
        assert_eq!(many.total().unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(many.mean(10).unwrap(), Some(Decimal::MAX), "a mean may pass through a larger sum");
        assert_eq!(Sum18::ZERO.mean(0).unwrap(), None);
        let mut wide = Sum36::ZERO;
        let error = loop {
            match wide.plus_product(Decimal::MAX, Decimal::MAX) {
                Ok(next) => wide = next,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
        assert_eq!(Sum18::MAX.total().unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(Sum36::MAX.total().unwrap_err().kind(), ErrorKind::OutOfRange);
    }

    #[test]
    fn products_round_half_up_at_the_18th_place() {
        // 0.000000001 * 0.0000000005 = 5e-19, half a unit.
        let sum = Sum36::ZERO.plus_product(d("0.000000001"), d("0.0000000005")).unwrap();
        assert_eq!(sum.total().unwrap().units(), 1);
    }

    #[test]
    fn doubles_are_rounded_once() {
        for text in ["1.14", "-1.14", "0.1", "39432.48", "0", "0.000000000000000001", "9007199254740993"] {
            assert_eq!(d(text).to_f64_lossy().to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text}");
        }
    }

    #[test]
    fn serde_form_is_a_validated_string() {
        assert_eq!(serde_json::to_string(&d("1.50")).unwrap(), "\"1.5\"");
        assert_eq!(serde_json::from_str::<Price>("\"1.5\"").unwrap().to_string(), "1.5");
        assert!(serde_json::from_str::<Price>("\"0\"").is_err());
        assert!(serde_json::from_str::<Price>("1.5").is_err(), "a JSON number is a float");
    }

    proptest::proptest! {
        #[test]
        fn text_round_trip(units in -Decimal::MAX_UNITS..=Decimal::MAX_UNITS) {
            let value = Decimal::from_units(units).unwrap();
            proptest::prop_assert_eq!(value.to_string().parse::<Decimal>().unwrap(), value);
        }

        #[test]
        fn doubles_are_the_nearest_to_the_text(
            units in -Decimal::MAX_UNITS..=Decimal::MAX_UNITS,
            digits in 0_i128..1 << 56,
            places in 0_u32..=18,
        ) {
            for units in [units, units % (10 * Decimal::UNITS_PER_ONE), digits * 10_i128.pow(18 - places)] {
                let value = Decimal::from_units(units).unwrap();
                let nearest: f64 = value.to_string().parse().unwrap();
                proptest::prop_assert_eq!(value.to_f64_lossy().to_bits(), nearest.to_bits(), "{}", value);
            }
        }

        #[test]
        fn sums_do_not_depend_on_the_order(mut values in proptest::collection::vec(-1_000_000i64..1_000_000, 0..20)) {
            let sum = |values: &[i64]| values.iter()
                .try_fold(Sum18::ZERO, |sum, v| sum.plus(Decimal::from_int(*v))).unwrap();
            let forward = sum(&values);
            values.reverse();
            proptest::prop_assert_eq!(forward, sum(&values));
        }
    }

    #[cfg(feature = "rust_decimal")]
    #[test]
    fn rust_decimal_conversions_are_exact() {
        let exact = rust_decimal::Decimal::try_from(d("1.25")).unwrap();
        assert_eq!(Decimal::try_from(exact).unwrap(), d("1.25"));
        assert!(rust_decimal::Decimal::try_from(Decimal::MAX).is_err());
        assert!(
            Decimal::try_from("1.0000000000000000001".parse::<rust_decimal::Decimal>().unwrap()).is_err()
        );
    }
}
