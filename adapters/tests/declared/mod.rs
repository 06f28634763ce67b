//! Records that a program declares, for the tests of several stores.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]

use std::time::Duration;

use qi_core::record::{Enumeration, Level, Levels, Text};
use qi_core::{Decimal, Instrument, Interval, Record, Timestamp};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Enumeration)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mood {
    Calm,
    Wild,
}

/// Every column type, required and optional. Some names are SQL keywords, or aliases in the adapter's statements.
#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "order")]
pub(crate) struct Everything {
    #[series]
    pub(crate) instrument: Instrument,
    #[time]
    pub(crate) time: Timestamp,
    #[seq]
    pub(crate) n: u64,
    pub(crate) select: Decimal,
    pub(crate) key: u64,
    pub(crate) t: i64,
    pub(crate) x: bool,
    pub(crate) user: Text<40>,
    pub(crate) mood: Mood,
    pub(crate) at: Timestamp,
    pub(crate) every: Interval,
    pub(crate) bids: Levels<3>,
    pub(crate) asks: Levels<50>,
    pub(crate) a: Option<Decimal>,
    pub(crate) b: Option<u64>,
    pub(crate) c: Option<i64>,
    pub(crate) d: Option<bool>,
    pub(crate) e: Option<Text<40>>,
    pub(crate) f: Option<Mood>,
    pub(crate) g: Option<Timestamp>,
    pub(crate) h: Option<Interval>,
}

/// A series that consists of a name and an interval.
#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "signals")]
pub(crate) struct Signal {
    #[series]
    pub(crate) strategy: Text<32>,
    #[interval]
    pub(crate) interval: Interval,
    #[time]
    pub(crate) open_time: Timestamp,
    pub(crate) score: Decimal,
}

/// A record without values, which consists of its key.
#[derive(Debug, Clone, PartialEq, Record)]
#[record(name = "heartbeats")]
pub(crate) struct Heartbeat {
    #[series]
    pub(crate) process: Text<32>,
    #[time]
    pub(crate) ts: Timestamp,
    #[seq]
    pub(crate) seq: u64,
}

pub(crate) fn time(secs: u64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000).unwrap().checked_add(Duration::from_secs(secs)).unwrap()
}

pub(crate) fn decimal(text: &str) -> Decimal {
    text.parse().unwrap()
}

pub(crate) fn level(price: &str, quantity: &str) -> Level {
    Level { price: price.parse().unwrap(), quantity: quantity.parse().unwrap() }
}

pub(crate) const MAX_DECIMAL: &str = "99999999999999999999.999999999999999999";
pub(crate) const MIN_DECIMAL: &str = "-99999999999999999999.999999999999999999";

pub(crate) fn everything(n: u64) -> Everything {
    let odd = n % 2 == 1;
    Everything {
        instrument: "x:Y".parse().unwrap(),
        time: time(n / 3 * 86_400),
        n,
        select: decimal(if odd { MAX_DECIMAL } else { "-0.000000000000000001" }),
        key: if odd { i64::MAX.cast_unsigned() } else { n },
        t: if odd { i64::MIN } else { i64::MAX },
        x: odd,
        user: (if odd { "a 'quoted' \\ {\"text\"}, ü" } else { "" }).parse().unwrap(),
        mood: if odd { Mood::Wild } else { Mood::Calm },
        at: if odd { Timestamp::MIN } else { Timestamp::MAX },
        every: if odd { Interval::M1 } else { Interval::W1 },
        bids: Levels::new(if odd {
            vec![]
        } else {
            vec![level(MAX_DECIMAL, "0"), level("1.50", MAX_DECIMAL)]
        })
        .unwrap(),
        asks: Levels::new(vec![level("0.000000000000000001", "2"); 50]).unwrap(),
        a: odd.then(|| decimal(MIN_DECIMAL)),
        b: odd.then_some(0),
        c: odd.then_some(-1),
        d: odd.then_some(false),
        e: odd.then(|| "NULL".parse().unwrap()),
        f: odd.then_some(Mood::Calm),
        g: odd.then(|| time(n)),
        h: odd.then_some(Interval::D1),
    }
}
