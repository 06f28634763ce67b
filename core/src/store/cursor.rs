//! Cursors: opaque, versioned text that works on every backend and only for the query that produced it.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::record::Owner;
use crate::{Error, Result, Timestamp};

/// The end of a page, as text that can be stored and sent.
///
/// A cursor belongs to one query: its dataset, keys, interval, range and order, but not its limit. Every other query
/// rejects it. It works on every backend, so a reader may continue on another backend.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Cursor(String);

/// Maps with this key can be searched by text.
impl std::borrow::Borrow<str> for Cursor {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The position of a cursor: the record after which a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anchor {
    /// Before the first record.
    Start,
    /// After the record with this time and sequence number.
    SortKey(Timestamp, u64),
    /// After the record with this time, in a dataset without sequence numbers.
    Time(Timestamp),
    /// After this owner, for queries whose pages have owners.
    Owner(Owner),
}

/// The fingerprint of a query: a hash of everything that a cursor is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryFingerprint(u64);

/// The first character of a cursor. Cursors of another version of the format have another first character.
const VERSION: char = '1';

impl QueryFingerprint {
    /// Hashes the parts of a query to which its cursors are bound.
    pub(super) fn of(parts: fmt::Arguments<'_>) -> Self {
        let mut hash = Fnv(Fnv::OFFSET);
        let _ = hash.write_fmt(parts);
        Self(hash.0)
    }

    /// Returns the cursor of this query after `anchor`.
    pub(super) fn cursor(self, anchor: &Anchor) -> Cursor {
        let position = match anchor {
            Anchor::Start => "s".to_owned(),
            Anchor::SortKey(ts, seq) => format!("p{}.{seq}", ts.as_micros()),
            Anchor::Time(ts) => format!("t{}", ts.as_micros()),
            Anchor::Owner(Owner::Instrument(instrument)) => format!("i{instrument}"),
            Anchor::Owner(Owner::Name(name)) => format!("n{name}"),
        };
        let checksum = self.checksum(&position);
        Cursor(format!("{VERSION}{checksum:016x}{position}"))
    }

    /// Returns the position of `cursor`, if it belongs to this query.
    pub(super) fn open(self, cursor: &Cursor) -> Result<Anchor> {
        let reject = |rule: &str| Err(Error::invalid("store.cursor", "cursor", &cursor.0, rule));
        let Some(body) = cursor.0.strip_prefix(VERSION) else {
            return reject("must be of format version 1");
        };
        let (Some(checksum), Some(position)) = (body.get(..16), body.get(16..)) else {
            return reject("must be a cursor that a page returned");
        };
        if u64::from_str_radix(checksum, 16).ok() != Some(self.checksum(position)) {
            return reject("must be a cursor of this query");
        }
        parse_anchor(position).map_or_else(|| reject("must be a cursor that a page returned"), Ok)
    }

    /// Hashes the position together with the query, so that a change of either is detected.
    fn checksum(self, position: &str) -> u64 {
        let mut hash = Fnv(self.0);
        let _ = hash.write_str(position);
        hash.0
    }
}

fn parse_anchor(position: &str) -> Option<Anchor> {
    let time = |text: &str| text.parse().ok().and_then(|micros| Timestamp::from_micros(micros).ok());
    let (kind, rest) = position.split_at_checked(1)?;
    match kind {
        "s" => rest.is_empty().then_some(Anchor::Start),
        "p" => {
            let (ts, seq) = rest.split_once('.')?;
            Some(Anchor::SortKey(time(ts)?, seq.parse().ok()?))
        }
        "t" => time(rest).map(Anchor::Time),
        "i" => rest.parse().ok().map(|instrument| Anchor::Owner(Owner::Instrument(instrument))),
        "n" => Some(Anchor::Owner(Owner::Name(rest.into()))),
        _ => None,
    }
}

/// The 64-bit FNV-1a hash. Source: Fowler, Noll, Vo, draft-eastlake-fnv.
///
/// It detects mistakes. It does not protect against a forged cursor, because the forger could
/// send the same query anyway.
struct Fnv(u64);

impl Fnv {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(Self::PRIME);
        }
        Ok(())
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({})", self.0)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    /// Takes any text of at most 320 bytes. The query that uses the cursor checks that the cursor belongs to it.
    fn from_str(text: &str) -> Result<Self> {
        if text.len() > 320 {
            return Err(Error::invalid(
                "store.cursor",
                "cursor",
                text,
                "must be a cursor that a page returned",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

crate::domain::text_conversions!(Cursor);

impl Cursor {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Cursor {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors() -> Vec<Anchor> {
        let t = Timestamp::MIN;
        vec![
            Anchor::Start,
            Anchor::SortKey(t, u64::MAX),
            Anchor::Time(Timestamp::MAX),
            Anchor::Owner(Owner::Instrument("okx:BTC:PERP/X.1".parse().unwrap())),
            Anchor::Owner(Owner::Name("".into())),
            Anchor::Owner(Owner::Name("asset:BTC".into())),
        ]
    }

    #[test]
    fn a_cursor_works_only_for_its_query() {
        let (own, other) = (QueryFingerprint::of(format_args!("a")), QueryFingerprint::of(format_args!("b")));
        for anchor in anchors() {
            let cursor = own.cursor(&anchor);
            let text: Cursor = cursor.to_string().parse().unwrap();
            assert_eq!(own.open(&text).unwrap(), anchor);
            assert_eq!(other.open(&cursor).unwrap_err().kind(), crate::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn every_changed_cursor_is_rejected() {
        let own = QueryFingerprint::of(format_args!("a"));
        let good = own.cursor(&Anchor::SortKey(Timestamp::MIN, 7)).to_string();
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] = if bad[at] == b'3' { b'4' } else { b'3' };
            let bad: Cursor = String::from_utf8(bad).unwrap().parse().unwrap();
            assert!(own.open(&bad).is_err(), "{bad}");
        }
        for bad in ["", "1", "é", "1é23456789012345678", &good[..16], &"9".repeat(160)] {
            assert!(own.open(&bad.parse().unwrap()).is_err(), "{bad}");
        }
        assert!("1".repeat(321).parse::<Cursor>().is_err());
    }
}
