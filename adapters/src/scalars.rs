//! Values that another system receives as text: text, numbers and booleans.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serializer};

/// The text that is shown instead of a secret.
pub(crate) const HIDDEN: &str = "***";

/// A value of a configuration, as text.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Scalar {
    Text(String),
    Flag(bool),
    Number(i64),
    Real(f64),
}

impl From<Scalar> for String {
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Text(text) => text,
            Scalar::Flag(flag) => flag.to_string(),
            Scalar::Number(number) => number.to_string(),
            Scalar::Real(number) => number.to_string(),
        }
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
