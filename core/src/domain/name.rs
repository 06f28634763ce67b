//! Names: exchanges, symbols, instruments, and sources of snapshots.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::text::text_name;
use crate::{Error, Result};

text_name!(
    /// An exchange, or an aggregator that publishes like one: `binance`, `coingecko`.
    Exchange,
    "domain.exchange",
    "exchange",
    "must match [a-z0-9_-]{1,32}",
    |text| (1..=32).contains(&text.len())
        && text.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
);
text_name!(
    /// The exchange's own name of a traded pair, contract or asset, byte for byte: `BTC-USDT`, `kPEPE`, `@107`,
    /// `币安人生USDT`.
    ///
    /// Characters of every script are allowed. Control characters, white space and characters without a shape (such as
    /// U+200B, the zero-width space) are rejected, because two symbols that look the same would be different keys.
    /// Symbols are ordered by their bytes. [`Symbol::unified`] converts the names of several exchanges to one spelling.
    Symbol,
    "domain.symbol",
    "symbol",
    "must be 1 to 64 visible characters",
    |text| !text.is_empty() && text.chars().take(65).count() <= 64 && text.chars().all(is_visible)
);

impl Symbol {
    /// The longest symbol in bytes: 64 characters of 4 bytes.
    pub const MAX_BYTES: usize = 256;

    /// Returns the symbol in one spelling: ASCII letters in upper case, and `-` in place of `/`, `_` and `:`.
    ///
    /// Symbols keep the spelling of their exchange. Use this method to compare exchanges, or to store one spelling.
    /// Several symbols of one exchange may have the same unified spelling.
    ///
    /// ```
    /// use qi_core::Symbol;
    /// assert_eq!(Symbol::new("btc_usdt")?.unified(), Symbol::new("BTC/USDT")?.unified());
    /// assert_eq!(Symbol::new("BTC/USDT")?.unified().as_str(), "BTC-USDT");
    /// # Ok::<(), qi_core::Error>(())
    /// ```
    #[must_use]
    pub fn unified(&self) -> Self {
        let unify = |c: char| if matches!(c, '/' | '_' | ':') { '-' } else { c.to_ascii_uppercase() };
        // Each visible character maps to one visible character, so the result is valid.
        Self(self.0.chars().map(unify).collect::<String>().into())
    }
}

/// Returns whether a character is visible. Variation selectors and combining marks count, because they
/// change the character before them.
fn is_visible(c: char) -> bool {
    // The default-ignorable code points of Unicode without the variation selectors, and the blank characters that are
    // not white space.
    let is_shapeless = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}');
    !(c.is_control() || c.is_whitespace() || is_shapeless)
}
text_name!(
    /// The publisher of a snapshot: `coingecko`.
    Provider,
    "domain.source",
    "source",
    "must be 1 to 64 printable ASCII characters",
    |text| (1..=64).contains(&text.len()) && text.bytes().all(|c| matches!(c, b' '..=b'~'))
);

/// One symbol on one exchange, displayed as `binance:BTC-USDT`.
///
/// Instruments are ordered by the bytes of the exchange, then of the symbol, never by the displayed text. Cloning an
/// instrument costs one reference count.
///
/// ```
/// use qi_core::Instrument;
/// let instrument: Instrument = "binance:BTC-USDT".parse()?;
/// assert_eq!(instrument.symbol().as_str(), "BTC-USDT");
/// assert!("binance:BTC USDT".parse::<Instrument>().is_err());
/// # Ok::<(), qi_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Instrument(Arc<(Exchange, Symbol)>);

impl Instrument {
    /// Creates the instrument of a symbol on an exchange.
    pub fn new(exchange: Exchange, symbol: Symbol) -> Self {
        Self(Arc::new((exchange, symbol)))
    }

    /// Returns the exchange.
    pub fn exchange(&self) -> &Exchange {
        &self.0.0
    }

    /// Returns the symbol.
    pub fn symbol(&self) -> &Symbol {
        &self.0.1
    }

    /// Returns a number that is equal for clones of an instrument. It is unique while a clone exists.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Parses `exchange:symbol` like [`FromStr`], and returns a clone if this thread has
    /// recently parsed the same instrument.
    ///
    /// Decoders parse few instruments many times. A clone costs a tenth of a new instrument and shares its memory.
    pub(crate) fn recent(text: &str) -> Result<Self> {
        thread_local! {
            static RECENT: RefCell<Vec<Option<Instrument>>> = const { RefCell::new(Vec::new()) };
        }
        // The hash function is FNV-1a.
        let hash = text.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        RECENT.with_borrow_mut(|recent| {
            recent.resize(MAX_RECENT, None);
            // The high bits of the hash depend on every byte.
            let slot = &mut recent[(hash >> 32) as usize % MAX_RECENT];
            match slot {
                Some(known) if known.has_text(text) => Ok(known.clone()),
                _ => Ok(slot.insert(text.parse()?).clone()),
            }
        })
    }

    fn has_text(&self, text: &str) -> bool {
        let symbol = text.strip_prefix(self.exchange().as_str()).and_then(|rest| rest.strip_prefix(':'));
        symbol == Some(self.symbol().as_str())
    }
}

/// The number of instruments that [`Instrument::recent`] keeps for each thread. An instrument takes about 150 bytes.
const MAX_RECENT: usize = 1_024;

impl PartialEq for Instrument {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0 == other.0
    }
}

impl Eq for Instrument {}

impl Ord for Instrument {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.is_same(other) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Instrument {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Instrument {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl FromStr for Instrument {
    type Err = Error;

    /// Parses `exchange:symbol`. The first colon is the separator, because only a symbol may contain a colon.
    fn from_str(text: &str) -> Result<Self> {
        let (exchange, symbol) = text.split_once(':').ok_or_else(|| {
            Error::invalid("domain.instrument", "instrument", text, "must be EXCHANGE:SYMBOL")
        })?;
        Ok(Self::new(Exchange::new(exchange)?, Symbol::new(symbol)?))
    }
}

super::text_conversions!(static Instrument);

impl fmt::Display for Instrument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.width().is_some() || f.precision().is_some() {
            return f.pad(&format!("{self:?}"));
        }
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Debug for Instrument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.0.as_str())?;
        f.write_str(":")?;
        f.write_str(self.0.1.as_str())
    }
}

impl Serialize for Instrument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}:{}", self.0.0, self.0.1))
    }
}

impl<'de> Deserialize<'de> for Instrument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::text::from_text_with(deserializer, "an instrument as exchange:symbol", Self::recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_names_are_rejected_with_field_and_value() {
        for bad in ["", "Binance", "bin ance", "binancé", &"a".repeat(33)] {
            let error = Exchange::new(bad).unwrap_err();
            assert_eq!(
                (error.context_value("field"), error.context_value("value")),
                (Some("exchange"), Some(bad))
            );
        }
        let long = "\u{1f600}".repeat(65);
        for bad in
            ["", " ", "BTC USDT", "BTC\0", "BTC\n", "BTC\u{200b}", "\u{feff}BTC", "\u{a0}", "\u{3000}", &long]
        {
            assert!(Symbol::new(bad).is_err(), "{bad:?}");
        }
        for good in [
            "A",
            "btc",
            ".BXBT",
            "@107",
            "$MYRO_USDT",
            "tBTCF0:USTF0",
            "币安人生USDT",
            "\u{2764}\u{fe0f}",
            &long[4..],
        ] {
            assert_eq!(Symbol::new(good).unwrap().as_str(), good);
            assert!(good.len() <= Symbol::MAX_BYTES);
        }
    }

    #[test]
    fn names_convert_from_text_and_are_found_by_text() {
        let symbol = Symbol::from_static("BTC-USDT");
        assert_eq!(Symbol::try_from("BTC-USDT").unwrap(), symbol);
        assert_eq!(Symbol::try_from(String::from("BTC-USDT")).unwrap(), symbol);
        assert!(Symbol::try_from("BTC USDT").is_err());
        let by_hash = std::collections::HashMap::from([(symbol.clone(), 1)]);
        let by_order = std::collections::BTreeMap::from([(symbol, 1)]);
        assert_eq!((by_hash.get("BTC-USDT"), by_order.get("BTC-USDT")), (Some(&1), Some(&1)));
        let panic = std::panic::catch_unwind(|| Exchange::from_static("Binance")).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("value=Binance"));
    }

    #[test]
    fn instruments_order_by_exchange_then_symbol_not_by_display() {
        let mut names =
            ["a1:X", "a-b:X", "a:X", "a:AB", "a:A.B", "a:A-B"].map(|n| n.parse::<Instrument>().unwrap());
        names.sort();
        assert_eq!(names.map(|n| n.to_string()), ["a:A-B", "a:A.B", "a:AB", "a:X", "a-b:X", "a1:X"]);
    }

    #[test]
    fn instruments_with_colons_in_the_symbol_round_trip() {
        let name: Instrument = "okx:BTC:PERP".parse().unwrap();
        assert_eq!((name.exchange().as_str(), name.symbol().as_str()), ("okx", "BTC:PERP"));
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"okx:BTC:PERP\"");
        assert_eq!(serde_json::from_str::<Instrument>("\"okx:BTC:PERP\"").unwrap(), name);
    }
}
