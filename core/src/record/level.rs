//! Levels of order books, and lists of levels.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Price, Quantity, Result};

/// A level of an order book: a price in the quote currency and a quantity in the base currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level {
    /// The price.
    pub price: Price,
    /// The quantity.
    pub quantity: Quantity,
}

/// Serialises the level as the pair `[price, quantity]`.
impl Serialize for Level {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.price, self.quantity).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (price, quantity) = Deserialize::deserialize(deserializer)?;
        Ok(Self { price, quantity })
    }
}

/// At most `MAX` levels of an order book, in the order of the source.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Levels<const MAX: usize>(Vec<Level>);

impl<const MAX: usize> Levels<MAX> {
    /// Creates the list if it has at most `MAX` levels.
    ///
    /// # Errors
    /// `InvalidInput` for more than `MAX` levels.
    pub fn new(levels: Vec<Level>) -> Result<Self> {
        if levels.len() <= MAX {
            return Ok(Self(levels));
        }
        let rule = format_args!("must have at most {MAX} levels");
        Err(Error::invalid("record.levels", "levels", levels.len(), rule))
    }

    /// Returns the levels in the order of the source.
    pub fn as_slice(&self) -> &[Level] {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Levels<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|level| (level.price, level.quantity))).finish()
    }
}

impl<const MAX: usize> Serialize for Levels<MAX> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Levels<MAX> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const MAX: usize>;

        impl<'de, const MAX: usize> serde::de::Visitor<'de> for Visitor<MAX> {
            type Value = Levels<MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} levels as [price, quantity]")
            }

            // The visitor stops at the maximum, so a longer list costs no memory.
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut levels = Vec::new();
                while let Some(level) = seq.next_element()? {
                    if levels.len() == MAX {
                        return Err(serde::de::Error::invalid_length(MAX + 1, &self));
                    }
                    levels.push(level);
                }
                Ok(Levels(levels))
            }
        }

        deserializer.deserialize_seq(Visitor)
    }
}
