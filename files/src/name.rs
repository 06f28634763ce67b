//! Instrument and interval from the names of published files.

use qi_core::{Exchange, Instrument, Interval, Symbol};

use crate::layout::{Kind, Layout};
use crate::unpack::Stream;

/// Returns the name without the extensions of compression and format.
fn stem(name: &str) -> &str {
    let mut stem = name;
    for end in [".gz", ".zst", ".zip", ".csv", ".txt", ".json"] {
        let at = stem.len().saturating_sub(end.len());
        if stem.get(at..).is_some_and(|found| found.eq_ignore_ascii_case(end)) {
            stem = &stem[..at];
        }
    }
    stem
}

/// Returns the instrument in the name, if the publisher includes it.
pub(crate) fn instrument(stream: &Stream, layout: &Layout) -> Option<Instrument> {
    let symbol = symbol(stream, layout)?;
    let exchange = match (layout.name, layout.exchange) {
        ("binance", exchange) => binance(stream, layout, exchange, symbol)?,
        (_, exchange) => exchange?,
    };
    Some(Instrument::new(Exchange::new(exchange).ok()?, Symbol::new(symbol).ok()?))
}

/// Returns the symbol in the name, if the publisher includes it.
pub(crate) fn symbol<'a>(stream: &'a Stream, layout: &Layout) -> Option<&'a str> {
    let stem = stem(stream.name());
    match layout.name {
        // BTCUSDT-trades-2025-01-01, BTCUSD_PERP-1m-2025-01, 币安人生USDT-trades-2025-10-10
        "binance" => stem.split_once('-').map(|(symbol, _)| symbol).filter(|symbol| is_code(symbol)),
        // XBTUSD, XBTUSD_60, XBTUSD-2025, AAPLxUSD
        "kraken" => {
            let end = stem.split_once('_').filter(|(_, rest)| is_number(rest));
            // Other digits after a hyphen are the date of a future of another exchange.
            let end = end.or_else(|| stem.split_once('-').filter(|(_, rest)| is_year(rest)));
            let symbol = end.map_or(stem, |(symbol, _)| symbol);
            Some(symbol).filter(|symbol| symbol.is_ascii() && is_code(symbol))
        }
        // BTCUSDT2025-01-01, BTCUSDT_2025-01-01, BTCUSDT-2022-11
        "bybit" => {
            let end =
                stem.len() - stem.bytes().rev().take_while(|b| b.is_ascii_digit() || *b == b'-').count();
            let dated = dated(stem, end)?;
            Some(dated.trim_end_matches(['_', '-'])).filter(|symbol| is_code(symbol))
        }
        // BTC-USDT-SWAP-trades-2025-01-01
        "okx" => {
            stem.split_once("-trades-").or_else(|| stem.split_once("-aggtrades-")).map(|(symbol, _)| symbol)
        }
        _ => None,
    }
}

/// Returns the part before the date at the end of a name. The digits before a date belong to the symbol.
fn dated(stem: &str, end: usize) -> Option<&str> {
    let tail = &stem[end..];
    let at = [10, 7].into_iter().find_map(|length| {
        let at = tail.len().checked_sub(length)?;
        let date = tail.as_bytes().get(at..)?;
        date.iter().enumerate().all(|(n, b)| (*b == b'-') == matches!(n, 4 | 7)).then_some(at)
    })?;
    Some(&stem[..end + at])
}

/// Determines spot or futures from the columns, or from the folders of the published tree. None if unknown.
fn binance(
    stream: &Stream,
    layout: &Layout,
    exchange: Option<&'static str>,
    symbol: &str,
) -> Option<&'static str> {
    let folders: Vec<_> = stream.path.iter().filter_map(|part| part.to_str()).collect();
    let in_folder = |name: &str| folders.contains(&name);
    let (futures, coin) = (in_folder("futures"), symbol.contains("USD_"));
    match exchange {
        Some("binance-futures") if in_folder("cm") || coin => Some("binance-delivery"),
        Some(exchange) => Some(exchange),
        None if layout.kind == Kind::Candles => match (in_folder("spot"), futures) {
            (true, false) => Some("binance"),
            (false, true) if in_folder("cm") => Some("binance-delivery"),
            (false, true) if in_folder("um") => Some("binance-futures"),
            _ => None,
        },
        None => None,
    }
}

/// Returns whether a text is written like the symbols of exchanges: in capitals, digits, or another script than Latin.
/// Small letters are accepted only as Kraken's marks `x` and `.d` before a currency in capitals, as in `AAPLxUSD` and
/// `XBT.dUSD`, because other names of files have them too.
fn is_code(text: &str) -> bool {
    let is_small = |b: u8| b.is_ascii_lowercase();
    let has_small = text.bytes().any(is_small);
    let ends_in_capitals = text.len() > 3 && text.bytes().rev().take(3).all(|b| b.is_ascii_uppercase());
    let has_word = text.bytes().next().is_some_and(is_small)
        || text.replacen(".d", "", 1).replacen('x', "", 1).bytes().any(is_small);
    Symbol::new(text).is_ok()
        && text.chars().nth(1).is_some()
        && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'))
        && text.starts_with(char::is_alphanumeric)
        && text.chars().any(|c| c.is_alphabetic() && !c.is_ascii_lowercase())
        && !has_word
        && (ends_in_capitals || !has_small)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Returns whether a text is a day or a month: `2025-01-31`, `2025-01`.
fn is_date(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'-') && dated(text, 0) == Some("")
}

fn is_year(text: &str) -> bool {
    text.len() == 4 && text.starts_with("20") && is_number(text)
}

/// The interval in a name.
pub(crate) struct NamedInterval {
    /// The interval. `Err` has one that is no [`Interval`].
    pub(crate) interval: Result<Interval, String>,
    /// True if the name has the form of the publisher, in which the interval cannot mean something else.
    pub(crate) is_published: bool,
}

/// Returns the interval of candles, if the name has exactly one: `BTCUSDT-1h-2025-01.zip`, `XBTUSD_60.csv`.
pub(crate) fn interval(stream: &Stream, layout: &Layout) -> Option<NamedInterval> {
    let stem = stem(stream.name());
    if layout.name == "kraken" {
        let (_, minutes) = stem.rsplit_once('_').filter(|(symbol, _)| is_code(symbol))?;
        let minutes: i64 = minutes.parse().ok()?;
        let micros = minutes.checked_mul(60_000_000)?;
        let known = Interval::ALL.iter().copied().find(|interval| interval.as_micros() == micros);
        let interval = match (known, minutes) {
            (Some(interval), _) => Ok(interval),
            (None, 21_600) => Err("15d".to_owned()),
            _ => return None,
        };
        return Some(NamedInterval { interval, is_published: true });
    }
    let parse = |part: &str| match part {
        "3d" | "1mo" => Some(Err(part.to_owned())),
        _ => part.parse().ok().map(Ok),
    };
    let mut named = stem.split(['-', '_', '.', ' ']).filter_map(parse);
    let first = named.next()?;
    if named.any(|other| other != first) {
        return None;
    }
    let mut parts = stem.splitn(3, '-').skip(1);
    let is_published =
        parts.next().is_some_and(|part| parse(part).is_some()) && parts.next().is_some_and(is_date);
    Some(NamedInterval { interval: first, is_published })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_in_file_names_are_not_part_of_the_symbol() {
        let of = |stem: &'static str| {
            let end =
                stem.len() - stem.bytes().rev().take_while(|b| b.is_ascii_digit() || *b == b'-').count();
            dated(stem, end)
        };
        assert_eq!(of("BTCUSDT2025-01-01"), Some("BTCUSDT"));
        assert_eq!(of("BTCUSDT_2025-01-01"), Some("BTCUSDT_"));
        assert_eq!(of("BTCUSDT-2022-11"), Some("BTCUSDT-"));
        assert_eq!(of("BTCUSD1232025-01-01"), Some("BTCUSD123"));
        assert_eq!(of("BTCUSDT"), None);
    }

    #[test]
    fn symbols_of_exchanges_are_codes_and_words_are_not() {
        for code in [
            "XBTEUR",
            "BTCUSD_PERP",
            "BTCUSDT_250328",
            "币安人生USDT",
            "AAPLxUSD",
            "1INCHEUR",
            "XBT.dUSD",
            "币安",
        ] {
            assert!(is_code(code), "{code}");
        }
        for word in [
            "trades",
            "Trades",
            "my_trades_2025",
            ".tmpABC",
            "a",
            "2025",
            "XBT-EUR",
            "XBT EUR",
            "USDx",
            "bitstampUSD",
            "coinbaseUSD",
            "krakenEUR",
            "xBTCUSD",
            "BTCxxUSD",
            "_USD",
            "",
        ] {
            assert!(!is_code(word), "{word}");
        }
    }
}
