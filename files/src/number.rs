//! Exact decimals in the notations of files, including exponents and leading or trailing points.

use qi_core::{Decimal, Error, Price, Quantity, Result};

/// The maximum length of a number in bytes.
const MAX_TEXT: usize = 64;

/// Returns a number in units of 10⁻¹⁸. None if the text is not a number, is longer than 64 bytes, has an exponent beyond
/// 1,000, or has no exact value in these units.
pub(crate) fn units(text: &str) -> Option<i128> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], rest[at + 1..].parse::<i32>().ok().filter(|e| e.abs() <= 1_000)?),
        None => (rest, 0),
    };
    let (mut digits, mut count, mut places, mut after_point) = (0i128, 0usize, 0i32, false);
    // Trailing zeros are counted and added to the exponent, so they cannot overflow `digits`.
    let mut zeros = 0u32;
    for byte in mantissa.bytes() {
        match byte {
            b'0'..=b'9' => {
                count += 1;
                places += i32::from(after_point);
                if byte == b'0' {
                    zeros += u32::from(digits != 0);
                    continue;
                }
                digits = digits
                    .checked_mul(10i128.checked_pow(zeros + 1)?)?
                    .checked_add(i128::from(byte - b'0'))?;
                zeros = 0;
            }
            b'.' if !after_point => after_point = true,
            _ => return None,
        }
    }
    if count == 0 {
        return None;
    }
    if digits == 0 {
        return Some(0);
    }
    let shift = Decimal::SCALE.cast_signed() + exponent - places + zeros.cast_signed();
    let power = 10i128.checked_pow(shift.unsigned_abs())?;
    let scaled = if shift >= 0 {
        digits.checked_mul(power)?
    } else if digits % power == 0 {
        digits / power
    } else {
        return None;
    };
    (scaled <= Decimal::MAX_UNITS).then_some(if negative { -scaled } else { scaled })
}

/// Returns the error of a field.
pub(crate) fn bad(field: &'static str, value: impl std::fmt::Display, rule: impl std::fmt::Display) -> Error {
    Error::invalid("files.line", field, value, rule)
}

fn exact(field: &'static str, text: &str) -> Result<i128> {
    units(text).ok_or_else(|| bad(field, text, "must be a number below 1e20 with at most 18 places"))
}

pub(crate) fn price(field: &'static str, text: &str) -> Result<Price> {
    Price::from_units(exact(field, text)?).map_err(|error| error.with_context("column", field))
}

pub(crate) fn quantity(field: &'static str, text: &str) -> Result<Quantity> {
    Quantity::from_units(exact(field, text)?).map_err(|error| error.with_context("column", field))
}

/// Parses an integer, including the forms `12.0` and `1.2e1`.
pub(crate) fn whole(field: &'static str, text: &str) -> Result<u64> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let units = units(text).filter(|units| units % Decimal::UNITS_PER_ONE == 0);
    let number = units.and_then(|units| u64::try_from(units / Decimal::UNITS_PER_ONE).ok());
    number.ok_or_else(|| bad(field, text, "must be a whole number"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    #[test]
    fn inexact_numbers_are_rejected() {
        let one = Decimal::UNITS_PER_ONE;
        for (text, wanted) in [
            ("1", Some(one)),
            ("1.50", Some(one * 3 / 2)),
            ("1e-05", Some(one / 100_000)),
            ("1.5E3", Some(one * 1_500)),
            ("-2.5e+1", Some(-one * 25)),
            (".5", Some(one / 2)),
            ("5.", Some(one * 5)),
            ("0e999", Some(0)),
            ("1e-18", Some(1)),
            ("10e-19", Some(1)),
            ("1.000000000000000000000000", Some(one)),
            ("99999999999999999999", Some(one * 99_999_999_999_999_999_999)),
            ("1e-19", None),
            ("1e20", None),
            ("1e2147483648", None),
            ("", None),
            (".", None),
            ("-", None),
            ("e5", None),
            ("1e", None),
            ("1.2.3", None),
            ("nan", None),
            ("inf", None),
            ("0x10", None),
            ("1_000", None),
            ("1,5", None),
        ] {
            assert_eq!(units(text), wanted, "{text}");
        }
        assert_eq!(units(&"9".repeat(65)), None);
        assert_eq!(whole("id", "12.0").unwrap(), 12);
        assert!(whole("id", "12.5").is_err() && whole("id", "-1").is_err());
    }

    proptest::proptest! {
        #[test]
        fn decimals_round_trip(units in -Decimal::MAX_UNITS..=Decimal::MAX_UNITS, shift in -20i32..20) {
            let text = Decimal::from_units(units).unwrap().to_string();
            proptest::prop_assert_eq!(super::units(&text), Some(units));
            // The number times a power of ten.
            let scientific = format!("{units}e{}", -18 + shift);
            let wanted = match shift {
                0.. => units.checked_mul(10i128.pow(shift.unsigned_abs())),
                _ if units % 10i128.pow(shift.unsigned_abs()) == 0 => Some(units / 10i128.pow(shift.unsigned_abs())),
                _ => None,
            };
            proptest::prop_assert_eq!(super::units(&scientific), wanted.filter(|u| u.abs() <= Decimal::MAX_UNITS));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in "[-+0-9.eE]{0,70}|.{0,40}") {
            let _ = units(&text);
        }
    }
}
