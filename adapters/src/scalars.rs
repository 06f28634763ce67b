//! Configuration values (text, numbers and booleans) that another system receives as text.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::SecretString;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serializer};

/// The text that is shown instead of a secret.
pub(crate) const HIDDEN: &str = "***";

/// A value of a configuration, as text.
pub(crate) struct Scalar(String);

impl Scalar {
    /// The name for a deserializer that knows the source of a value. No Rust type can have this name.
    pub(crate) const NAME: &'static str = "qi::Scalar";
}

impl From<Scalar> for String {
    fn from(Scalar(text): Scalar) -> Self {
        text
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(Self::NAME, ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number or a boolean")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar(text.to_owned()))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Scalar, E> {
        Ok(Scalar(flag.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Scalar, E> {
        Ok(Scalar(number.to_string()))
    }
}

/// Deserializes a table of such values.
///
/// # Errors
/// The errors of the deserializer.
pub(crate) fn texts<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let scalars = BTreeMap::<String, Scalar>::deserialize(deserializer)?;
    Ok(scalars.into_iter().map(|(name, scalar)| (name, scalar.into())).collect())
}

/// Serializes a secret as [`HIDDEN`].
///
/// # Errors
/// The errors of the serializer.
#[allow(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn hidden<S: Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(_) => serializer.serialize_str(HIDDEN),
        None => serializer.serialize_none(),
    }
}
