//! The series to which records belong.

use std::borrow::Cow;
use std::fmt::{self, Debug};
use std::sync::Arc;

use serde::Serialize;

use crate::{Error, Exchange, Instrument, Interval, Provider, Result, Scope, Symbol};

/// The owner of a series without its Rust type: an instrument or a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// An instrument.
    Instrument(Instrument),
    /// A name in its stored form. Names are ordered by their bytes.
    Name(Arc<str>),
}

/// A borrowed [`Owner`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnerRef<'a> {
    /// An instrument.
    Instrument(&'a Instrument),
    /// A name in its stored form.
    Name(Cow<'a, str>),
}

impl OwnerRef<'_> {
    /// Returns an owned copy of the owner.
    pub fn to_owned(&self) -> Owner {
        match self {
            Self::Instrument(instrument) => Owner::Instrument(Instrument::clone(instrument)),
            Self::Name(name) => Owner::Name(Arc::from(&**name)),
        }
    }
}

impl Owner {
    /// Returns the instrument, or None if the owner is a name.
    pub fn instrument(&self) -> Option<&Instrument> {
        match self {
            Self::Instrument(instrument) => Some(instrument),
            Self::Name(_) => None,
        }
    }

    /// Returns the name, or None if the owner is an instrument.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Instrument(_) => None,
            Self::Name(name) => Some(name),
        }
    }

    /// Returns a borrowed owner.
    pub fn as_ref(&self) -> OwnerRef<'_> {
        match self {
            Self::Instrument(instrument) => OwnerRef::Instrument(instrument),
            Self::Name(name) => OwnerRef::Name(Cow::Borrowed(name)),
        }
    }
}

/// Displays the instrument or the name, which is the key of messages. The empty name, the stored form of
/// [`Scope::Global`], is displayed as `global`.
impl fmt::Display for OwnerRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instrument(instrument) => fmt::Display::fmt(instrument, f),
            Self::Name(name) if name.is_empty() => f.pad("global"),
            Self::Name(name) => f.pad(name),
        }
    }
}

/// Displays the same text as [`OwnerRef`].
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_ref(), f)
    }
}

impl Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A series without its Rust type. Series are ordered by the owner, then by the interval.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SeriesKey {
    /// The instrument or the name.
    pub owner: Owner,
    /// The interval, if it is part of the series.
    pub interval: Option<Interval>,
}

/// A borrowed [`SeriesKey`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesRef<'a> {
    /// The instrument or the name.
    pub owner: OwnerRef<'a>,
    /// The interval, if it is part of the series.
    pub interval: Option<Interval>,
}

impl SeriesRef<'_> {
    /// Returns a number that is equal for the same instrument in memory. None for a name.
    pub(crate) fn address(&self) -> Option<usize> {
        match self.owner {
            OwnerRef::Instrument(instrument) => Some(instrument.address()),
            OwnerRef::Name(_) => None,
        }
    }

    /// Returns an owned copy of the series.
    pub fn to_owned(&self) -> SeriesKey {
        SeriesKey { owner: self.owner.to_owned(), interval: self.interval }
    }
}

impl SeriesKey {
    /// Returns a borrowed series.
    pub fn as_ref(&self) -> SeriesRef<'_> {
        SeriesRef { owner: self.owner.as_ref(), interval: self.interval }
    }
}

impl fmt::Display for SeriesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.interval {
            None => fmt::Display::fmt(&self.owner, f),
            Some(interval) => write!(f, "{}|{interval}", self.owner),
        }
    }
}

/// The type of a series: [`Instrument`], `(Instrument, Interval)`, or a name.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the series of a record",
    note = "a series is an `Instrument`, a `Scope`, a `Symbol`, an `Exchange`, a `Provider` or a `Text`"
)]
pub trait Series: Ord + Clone + Debug + Send + Sync + 'static {
    /// The owner: the series without its interval.
    type Owner: Ord + Clone + Debug + Send + Sync + 'static;

    /// The longest name in bytes. None if the owner is an instrument.
    const MAX_NAME: Option<usize>;

    /// Returns the series without its Rust type.
    fn key_ref(&self) -> SeriesRef<'_>;

    /// Returns an owned copy of the series without its Rust type.
    fn key(&self) -> SeriesKey {
        self.key_ref().to_owned()
    }

    /// Returns the series of a key.
    ///
    /// # Errors
    /// `InvalidInput` if the key is of another type.
    fn from_key(key: &SeriesKey) -> Result<Self>;

    /// Returns the owner of the series.
    fn owner(&self) -> Self::Owner;

    /// Returns an owner without its Rust type.
    fn owner_key(owner: &Self::Owner) -> Owner;
}

fn reject<T>(key: &SeriesKey, wanted: &str) -> Result<T> {
    Err(Error::invalid("record.series", "series", key, format_args!("must be {wanted}")))
}

impl Series for Instrument {
    type Owner = Self;

    const MAX_NAME: Option<usize> = None;

    fn key_ref(&self) -> SeriesRef<'_> {
        SeriesRef { owner: OwnerRef::Instrument(self), interval: None }
    }
    fn from_key(key: &SeriesKey) -> Result<Self> {
        match key {
            SeriesKey { owner: Owner::Instrument(instrument), interval: None } => Ok(instrument.clone()),
            _ => reject(key, "an instrument"),
        }
    }
    fn owner(&self) -> Self {
        self.clone()
    }
    fn owner_key(owner: &Self) -> Owner {
        Owner::Instrument(owner.clone())
    }
}

impl<S: Series<Owner = S>> Series for (S, Interval) {
    type Owner = S;

    const MAX_NAME: Option<usize> = S::MAX_NAME;

    fn key_ref(&self) -> SeriesRef<'_> {
        SeriesRef { interval: Some(self.1), ..self.0.key_ref() }
    }
    fn from_key(key: &SeriesKey) -> Result<Self> {
        let Some(interval) = key.interval else { return reject(key, "a series with an interval") };
        Ok((S::from_key(&SeriesKey { owner: key.owner.clone(), interval: None })?, interval))
    }
    fn owner(&self) -> S {
        self.0.clone()
    }
    fn owner_key(owner: &S) -> Owner {
        S::owner_key(owner)
    }
}

/// Implements [`Series`] for names. The arguments are the longest text, the conversion to the stored text,
/// and the conversion from it.
macro_rules! names {
    ($([$($generics:tt)*] $name:ty, $max:expr, |$value:ident| $write:expr, |$text:ident| $read:expr;)*) => {$(
        impl<$($generics)*> Series for $name {
            type Owner = Self;

            const MAX_NAME: Option<usize> = Some($max);

            fn key_ref(&self) -> SeriesRef<'_> {
                let $value = self;
                SeriesRef { owner: OwnerRef::Name($write.into()), interval: None }
            }
            fn from_key(key: &SeriesKey) -> Result<Self> {
                match key {
                    SeriesKey { owner: Owner::Name($text), interval: None } => $read,
                    _ => reject(key, "a name"),
                }
            }
            fn owner(&self) -> Self {
                self.clone()
            }
            fn owner_key($value: &Self) -> Owner {
                Owner::Name(Arc::from(&*$write))
            }
        }
    )*};
}

names! {
    [] Scope, Self::MAX_BYTES, |scope| scope.storage_text(), |text| Self::from_storage_text(text);
    [] Symbol, Self::MAX_BYTES, |value| value.as_str(), |text| Self::new(text);
    [] Exchange, 32, |value| value.as_str(), |text| Self::new(text);
    [] Provider, 64, |value| value.as_str(), |text| Self::new(text);
    [const MAX: usize] super::Text<MAX>, MAX, |value| value.as_str(), |text| Self::new(text);
}
