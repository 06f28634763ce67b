//! Decimals in PostgreSQL's binary `numeric` format: digits of base 10,000, the weight of the first digit, a sign and a
//! display scale. `numeric_send` and `numeric_recv` in PostgreSQL's `numeric.c` define the format.

use qi_core::domain::ExactSum;

/// The reason that a `numeric` is not a decimal of the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NumericError {
    /// Bytes that are not a binary `numeric`.
    #[error("malformed binary numeric")]
    Malformed,
    /// NaN or an infinity.
    #[error("numeric is NaN or infinite")]
    NotFinite,
    /// More than 18 decimal places.
    #[error("numeric has more than 18 decimal places")]
    TooFine,
    /// A magnitude of 10²⁰ or more.
    #[error("numeric is 1e20 or more")]
    TooLarge,
}

/// PostgreSQL's epoch, 2000-01-01, in microseconds since the Unix epoch.
pub(super) const PG_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The base of PostgreSQL's digits.
const BASE: u64 = 10_000;
/// The number of decimal places of a decimal of the domain.
const SCALE: u16 = 18;
const NEGATIVE: u16 = 0x4000;

/// Appends the binary form of `units` × 10⁻¹⁸.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "digits are below 10,000, halves below 10^18, and there are at most eleven digits"
)]
pub(super) fn encode(units: i128, out: &mut Vec<u8>) {
    // Twenty decimal places are five digits of base 10,000, so the value is counted in units of 10⁻²⁰. The magnitude is
    // below 10³⁸. It is first split into two halves, because 64-bit arithmetic is much faster than 128-bit arithmetic.
    const FRACTION: u128 = 1_000_000_000_000_000_000;
    let magnitude = units.unsigned_abs();
    let (whole, fraction) = if let Ok(small) = u64::try_from(magnitude) {
        (0, small)
    } else {
        (magnitude / FRACTION, (magnitude % FRACTION) as u64)
    };
    // From the least significant digit: five digits of the fraction (the last has two places), up to
    // six of the integer.
    let (mut whole, mut fraction) = if whole == 0 {
        ((fraction / 1_000_000_000_000_000_000).into(), fraction % 1_000_000_000_000_000_000)
    } else {
        (whole, fraction)
    };
    let mut digits = [0_u16; 16];
    digits[0] = (fraction % 100 * 100) as u16;
    fraction /= 100;
    for digit in &mut digits[1..5] {
        *digit = (fraction % BASE) as u16;
        fraction /= BASE;
    }
    let mut count = 5;
    while u64::try_from(whole).is_err() {
        digits[count] = (whole % u128::from(BASE)) as u16;
        whole /= u128::from(BASE);
        count += 1;
    }
    // The remaining value fits in 64 bits.
    let mut rest = whole as u64;
    while rest > 0 {
        digits[count] = (rest % BASE) as u16;
        rest /= BASE;
        count += 1;
    }
    while count > 0 && digits[count - 1] == 0 {
        count -= 1;
    }
    let mut skip = 0;
    while skip < count && digits[skip] == 0 {
        skip += 1;
    }
    let weight = if count == 0 { 0 } else { count as i16 - 6 };
    let sign = if units < 0 { NEGATIVE } else { 0 };
    out.extend_from_slice(&((count - skip) as u16).to_be_bytes());
    out.extend_from_slice(&weight.to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&SCALE.to_be_bytes());
    for digit in digits[skip..count].iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

/// The parts of a binary numeric.
struct NumericParts<'a> {
    negative: bool,
    /// The power of 10,000 of the first digit.
    weight: i32,
    digits: &'a [u8],
}

impl<'a> NumericParts<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, NumericError> {
        let (header, digits) = bytes.split_at_checked(8).ok_or(NumericError::Malformed)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (count, weight, sign) = (word(0), word(2).cast_signed(), word(4));
        let negative = match sign {
            0 => false,
            NEGATIVE => true,
            // NaN, +Infinity, -Infinity.
            0xC000 | 0xD000 | 0xF000 => return Err(NumericError::NotFinite),
            _ => return Err(NumericError::Malformed),
        };
        if digits.len() != usize::from(count) * 2 {
            return Err(NumericError::Malformed);
        }
        // Leading zeros do not count as digits, whatever their weight.
        let zeros = digits.chunks_exact(2).take_while(|pair| *pair == [0, 0]).count();
        let weight = i32::from(weight) - i32::try_from(zeros).map_err(|_| NumericError::Malformed)?;
        let parts = Self { negative, weight, digits: &digits[2 * zeros..] };
        if parts.digits().any(|digit| u64::from(digit) >= BASE) {
            return Err(NumericError::Malformed);
        }
        Ok(parts)
    }

    fn digits(&self) -> impl DoubleEndedIterator<Item = u16> + ExactSizeIterator + use<'a> {
        self.digits.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
    }
}

/// Decodes a decimal as units of 10⁻¹⁸, without rounding.
pub(super) fn decode(bytes: &[u8]) -> Result<i128, NumericError> {
    const LIMIT: u128 = 10_u128.pow(38);
    let parts = NumericParts::read(bytes)?;
    let mut units: u128 = 0;
    for (at, digit) in parts.digits().enumerate() {
        if digit == 0 {
            continue;
        }
        // The value of the digit is digit × 10^(4 × power), or digit × 10^(4 × power + 18) units.
        let power = parts.weight - i32::try_from(at).map_err(|_| NumericError::Malformed)?;
        let digit = u128::from(digit);
        let part = match power {
            -4..=5 => digit.checked_mul(10_u128.pow((4 * power + 18).unsigned_abs())),
            // The last two places of the fifth digit of the fraction are beyond the eighteenth decimal place.
            -5 if digit % 100 == 0 => Some(digit / 100),
            6.. => return Err(NumericError::TooLarge),
            _ => return Err(NumericError::TooFine),
        };
        units = part.and_then(|part| units.checked_add(part)).ok_or(NumericError::TooLarge)?;
    }
    if units >= LIMIT {
        return Err(NumericError::TooLarge);
    }
    let units = i128::try_from(units).map_err(|_| NumericError::TooLarge)?;
    Ok(if parts.negative { -units } else { units })
}

/// Decodes a sum with `PLACES` decimal places (18 or 36). A sum may be far wider than a decimal.
pub(super) fn decode_sum<const PLACES: u32>(bytes: &[u8]) -> Result<ExactSum<PLACES>, NumericError> {
    let parts = NumericParts::read(bytes)?;
    let places = i32::try_from(PLACES).map_err(|_| NumericError::Malformed)?;
    let count = i32::try_from(parts.digits().len()).map_err(|_| NumericError::Malformed)?;
    let mut text = String::with_capacity(80);
    if parts.negative {
        text.push('-');
    }
    text.push('0');
    for digit in parts.digits() {
        let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{digit:04}"));
    }
    // The text counts units of 10^(4 × (weight - count + 1)). It is converted to units of 10^-PLACES.
    let shift = if count == 0 { 0 } else { 4 * (parts.weight - count + 1) + places };
    if shift > 80 {
        return Err(NumericError::TooLarge);
    }
    for _ in 0..shift {
        text.push('0');
    }
    for _ in shift..0 {
        if text.pop() != Some('0') {
            return Err(NumericError::TooFine);
        }
    }
    ExactSum::from_units_text(&text).map_err(|_| NumericError::TooLarge)
}

/// Decodes arbitrary bytes as a decimal and as sums.
///
/// # Panics
/// Panics if an accepted decimal differs after a round trip through encoding and decoding, or differs from the sum.
#[cfg(feature = "fuzzing")]
pub fn fuzz_numeric(bytes: &[u8]) {
    let sums = (decode_sum::<18>(bytes), decode_sum::<36>(bytes).is_ok());
    if let Ok(units) = decode(bytes) {
        let mut out = Vec::new();
        encode(units, &mut out);
        assert_eq!(decode(&out), Ok(units));
        let expected =
            ExactSum::<18>::from_units_text(&units.to_string()).map_err(|_| NumericError::TooLarge);
        assert_eq!(sums, (expected, true));
    }
}

#[cfg(test)]
mod tests {
    use qi_core::domain::{Sum18, Sum36};

    use super::*;

    fn bytes(units: i128) -> Vec<u8> {
        let mut out = Vec::new();
        encode(units, &mut out);
        out
    }

    fn words(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    const ONE: i128 = 1_000_000_000_000_000_000;

    #[test]
    fn decimals_encode_to_known_bytes() {
        for (units, form) in [
            (0, &[0, 0, 0, 18][..]),
            (ONE, &[1, 0, 0, 18, 1]),
            (-ONE, &[1, 0, NEGATIVE, 18, 1]),
            (1, &[1, 0xFFFB, 0, 18, 100]),
            (ONE / 10_000, &[1, 0xFFFF, 0, 18, 1]),
            (ONE * 10_000, &[1, 1, 0, 18, 1]),
            (ONE * 12_345 + ONE / 2, &[3, 1, 0, 18, 1, 2345, 5000]),
            (
                10_i128.pow(38) - 1,
                &[10, 4, 0, 18, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9999, 9900],
            ),
        ] {
            assert_eq!(bytes(units), words(form), "{units}");
            assert_eq!(decode(&words(form)), Ok(units));
        }
    }

    #[test]
    fn encoded_decimals_decode_to_the_same_value() {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for round in 0..200_000_u32 {
            let wide = (u128::from(next()) << 64) | u128::from(next());
            let units = (wide % 10_u128.pow(1 + round % 38)).cast_signed();
            let units = if next() % 2 == 0 { units } else { -units };
            assert_eq!(decode(&bytes(units)), Ok(units));
            let sum = decode_sum::<18>(&bytes(units)).unwrap();
            assert_eq!(sum, Sum18::from_units_text(&units.to_string()).unwrap());
        }
    }

    #[test]
    fn malformed_bytes_are_rejected() {
        use NumericError::{Malformed, NotFinite, TooFine, TooLarge};
        for (form, error) in [
            (&[][..], Malformed),
            (&[1, 0, 0], Malformed),
            (&[1, 0, 0, 0], Malformed),
            (&[0xFFFF, 0, 0, 0, 1], Malformed),
            (&[1, 0, 0, 0, 10_000], Malformed),
            (&[1, 0, 0x1234, 0, 1], Malformed),
            (&[0, 0, 0xC000, 0], NotFinite),
            (&[0, 0, 0xD000, 0], NotFinite),
            (&[0, 0, 0xF000, 0], NotFinite),
            (&[1, 0xFFFB, 0, 19, 10], TooFine),
            (&[1, 0xFFFA, 0, 24, 1], TooFine),
            (&[1, 5, 0, 0, 1], TooLarge),
            (&[1, 0x7FFF, 0, 0, 1], TooLarge),
        ] {
            assert_eq!(decode(&words(form)), Err(error), "{form:?}");
        }
        // Trailing zeros and any display scale are the same value.
        assert_eq!(decode(&words(&[3, 0, 0, 2, 1, 0, 0])), Ok(ONE));
        assert!(decode_sum::<36>(&words(&[1, 0x7FFF, 0, 0, 1])).is_err());
        assert!(decode_sum::<18>(&words(&[1, 0xFFFB, 0, 20, 1])).is_err());
    }

    #[test]
    fn sums_may_exceed_the_range_of_decimals() {
        // 10^40 + 10^-36.
        let mut form = vec![20, 10, 0, 36];
        form.extend([1; 1]);
        form.extend([0; 18]);
        form.push(1);
        let expected = format!("1{}1", "0".repeat(75));
        assert_eq!(decode_sum::<36>(&words(&form)), Ok(Sum36::from_units_text(&expected).unwrap()));
        assert_eq!(decode_sum::<36>(&words(&[0, 0, 0, 0])), Ok(Sum36::ZERO));
        // Zero is zero at any weight.
        for weight in [0x7FFF, 0x8000] {
            assert_eq!(decode_sum::<36>(&words(&[1, weight, 0, 0, 0])), Ok(Sum36::ZERO));
        }
    }
}
