//! The ticks of the axes: their positions and labels.

use qi_core::Timestamp;

/// Returns round values in a range, about `count` of them, with their labels.
pub(super) fn numbers(low: f64, high: f64, count: usize) -> Vec<(f64, String)> {
    #[expect(clippy::cast_precision_loss, reason = "the number of labels is small")]
    let rough = (high - low) / count.max(1) as f64;
    // Rounding errors must not change a power of ten.
    let floor = |value: f64| (value.log10() + 1e-9).floor();
    let power = 10_f64.powf(floor(rough));
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = factors
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough * (1.0 - 1e-9))
        .unwrap_or(rough);
    let first = (low / step - 1e-9).ceil();
    // 2.5 has a decimal more than its power of ten.
    let extra = if (step / power - 2.5).abs() < 0.01 { 1.0 } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let decimals = (extra - floor(step)).clamp(0.0, 18.0) as usize;
    let values = (0..=2 * count.max(1)).map(|at| {
        #[expect(clippy::cast_precision_loss, reason = "the number of labels is small")]
        let at = at as f64;
        (first + at) * step
    });
    values
        .take_while(|value| *value <= high + step * 1e-9)
        .map(|value| (value, grouped(value, decimals)))
        .collect()
}

/// Returns a number with separators between groups of three digits.
fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.split_at(usize::from(whole.starts_with('-')));
    let mut shown = sign.to_owned();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    if fraction.is_empty() { shown } else { format!("{shown}.{fraction}") }
}

/// Returns a volume with a suffix instead of many digits.
pub(super) fn volume(value: f64) -> String {
    let scales = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")];
    if value >= 1e15 || (value > 0.0 && value < 1e-6) {
        return format!("{value:.1e}");
    }
    match scales.iter().find(|(scale, _)| value >= *scale) {
        Some((scale, suffix)) => format!("{}{suffix}", rounded(value / scale)),
        None => rounded(value),
    }
}

/// Returns three significant digits without zeros at the end.
fn rounded(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let decimals = (2.0 - value.abs().log10().floor()).clamp(0.0, 9.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
/// The distances between two labels of less than a month, in microseconds.
const STEPS: [i64; 20] = [
    SECOND,
    5 * SECOND,
    15 * SECOND,
    30 * SECOND,
    60 * SECOND,
    300 * SECOND,
    600 * SECOND,
    900 * SECOND,
    1_800 * SECOND,
    HOUR,
    2 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    3 * DAY,
    7 * DAY,
    10 * DAY,
    14 * DAY,
];
/// The distances between two labels in months.
const MONTHS: [i64; 9] = [1, 2, 3, 6, 12, 24, 60, 120, 600];

/// Returns round times in a range, at most `count` of them, with their labels in UTC.
pub(super) fn times(start: i64, end: i64, count: usize) -> Vec<(i64, String)> {
    let count = i64::try_from(count.max(1)).unwrap_or(i64::MAX);
    let least = (end - start) / count;
    if let Some(step) = STEPS.into_iter().find(|step| *step >= least) {
        let first = start.div_euclid(step) * step;
        let values = (0..=count + 1).map(|at| first + at * step).filter(|at| (start..=end).contains(at));
        return values.filter_map(|at| Some((at, label(at, step)?))).collect();
    }
    let step = MONTHS.into_iter().find(|months| months * 30 * DAY >= least).unwrap_or(600);
    let Some((year, month)) = year_and_month(start) else { return Vec::new() };
    let first = (year * 12 + month).div_euclid(step) * step;
    let months = (0..=count + 2).map(|at| first + at * step);
    let values = months.filter_map(|months| {
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        let time: Timestamp = format!("{year:04}-{month:02}-01T00:00:00Z").parse().ok()?;
        let label = if step >= 12 { format!("{year:04}") } else { format!("{year:04}-{month:02}") };
        Some((time.as_micros(), label))
    });
    values.filter(|(at, _)| (start..=end).contains(at)).collect()
}

/// Returns the date at midnight, and otherwise the time of day.
fn label(at: i64, step: i64) -> Option<String> {
    let text = Timestamp::from_micros(at).ok()?.to_string();
    let range = match at.rem_euclid(DAY) {
        0 => 0..10,
        _ if step < 60 * SECOND => 11..19,
        _ => 11..16,
    };
    text.get(range).map(str::to_owned)
}

/// Returns the year and the month from 0.
fn year_and_month(at: i64) -> Option<(i64, i64)> {
    let text = Timestamp::from_micros(at).ok()?.to_string();
    let month: i64 = text.get(5..7)?.parse().ok()?;
    Some((text.get(0..4)?.parse().ok()?, month - 1))
}

/// Returns a time as text with minutes, or with seconds if the time has some.
pub(super) fn moment(time: Timestamp) -> String {
    let text = time.to_string();
    let end = if time.as_micros().rem_euclid(60 * SECOND) == 0 { 16 } else { 19 };
    text.get(0..end).unwrap_or(&text).replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_round_and_have_the_decimals_of_their_step() {
        let labels = |low, high, count| -> Vec<String> {
            numbers(low, high, count).into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(99.0, 101.0, 4), ["99.0", "99.5", "100.0", "100.5", "101.0"]);
        assert_eq!(
            labels(0.000_000_009_9, 0.000_000_010_1, 2),
            ["0.0000000099", "0.0000000100", "0.0000000101"]
        );
        assert_eq!(
            labels(9.9e14, 1.01e15, 2),
            ["990,000,000,000,000", "1,000,000,000,000,000", "1,010,000,000,000,000"]
        );
        assert_eq!(labels(0.0, 1.0, 4), ["0.00", "0.25", "0.50", "0.75", "1.00"]);
    }

    #[test]
    fn volume_labels_are_abbreviated() {
        let shown = [0.0, 0.000_000_01, 0.25, 999.0, 1_000.0, 1_234_567.0, 2.5e12, 1e17].map(volume);
        assert_eq!(shown, ["0", "1.0e-8", "0.25", "999", "1k", "1.23M", "2.5T", "1.0e17"]);
    }

    #[test]
    fn time_labels_are_round() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap().as_micros();
        let labels = |start: &str, end: &str, count| -> Vec<String> {
            times(at(start), at(end), count).into_iter().map(|(_, label)| label).collect()
        };
        let day = labels("2024-01-31T20:30:00Z", "2024-02-01T08:30:00Z", 4);
        assert_eq!(day, ["21:00", "2024-02-01", "03:00", "06:00"]);
        assert_eq!(
            labels("2024-01-31T20:30:01Z", "2024-01-31T20:30:04Z", 3),
            ["20:30:01", "20:30:02", "20:30:03", "20:30:04"]
        );
        assert_eq!(
            labels("2023-11-15T00:00:00Z", "2024-02-15T00:00:00Z", 4),
            ["2023-12", "2024-01", "2024-02"]
        );
        assert_eq!(
            labels("2000-06-01T00:00:00Z", "2024-02-15T00:00:00Z", 5),
            ["2005", "2010", "2015", "2020"]
        );
    }
}
