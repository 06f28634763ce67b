//! Deserializes a section into a struct. Rejects unknown keys and reports the exact location of an error.
//!
//! A custom deserializer is needed for two reasons. The suggestion for an unknown key needs the field list of the
//! struct, and a value from the environment must be converted to the type of its field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use qi_core::{Error, ErrorKind, Result};
use serde::de::{self, Deserialize, DeserializeSeed, IntoDeserializer, Visitor};

use super::tree::{Node, Value, join, unknown_key};
use crate::scalars::Scalar;

/// Deserializes the section at `path`.
pub(super) fn read<'de, T: Deserialize<'de>>(node: &'de Node, path: &str) -> Result<T> {
    T::deserialize(Reader { node, path: path.to_owned() }).map_err(|e| e.0)
}

/// Returns a number without the underscores between its digits, which TOML allows too.
fn plain(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let separates = |at: usize| is_digit(at.checked_sub(1)) && is_digit(Some(at + 1));
    let mut underscores = text.match_indices('_').map(|(at, _)| at).peekable();
    if underscores.peek().is_none() || !underscores.all(separates) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace('_', ""))
}

/// A configuration error, wrapped for serde.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Failure(#[from] Error);

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(Error::new(ErrorKind::Config, "config.value", "load").with_message(message))
    }

    // The message omits the value, because the value may be a password without quotes.
    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = type_name(&found);
        let article = if found.starts_with('i') { "an" } else { "a" };
        Self::custom(format_args!("must be {}, found {article} {found}", plain_words(expected)))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("must be {}; this {} is not", plain_words(expected), type_name(&found)))
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("must be one of {}, found {found}", expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("the key `{field}` is missing"))
    }
}

/// Returns an expectation of serde without the names of Rust's types.
fn plain_words(expected: &dyn de::Expected) -> Cow<'static, str> {
    let expected = expected.to_string();
    let words = match expected.as_str() {
        "u8" => "an integer from 0 to 255",
        "u16" => "an integer from 0 to 65535",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "a non-negative integer",
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "a section",
        "path string" => "a path as text",
        _ => return Cow::Owned(expected),
    };
    Cow::Borrowed(words)
}

fn type_name(found: &de::Unexpected<'_>) -> &'static str {
    match found {
        de::Unexpected::Bool(_) => "boolean",
        de::Unexpected::Unsigned(_) | de::Unexpected::Signed(_) => "integer",
        de::Unexpected::Float(_) => "float",
        de::Unexpected::Str(_) | de::Unexpected::Char(_) => "string",
        de::Unexpected::Seq => "list",
        de::Unexpected::Map => "section",
        _ => "value",
    }
}

#[derive(Clone)]
struct Reader<'de> {
    node: &'de Node,
    path: String,
}

impl<'de> Reader<'de> {
    /// Adds the key and its origin to an error, unless a nested value already did.
    fn with_location<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|Failure(error)| {
            if error.context_value("key").is_some() {
                return Failure(error);
            }
            Failure(error.with_context("key", &self.path).with_context("origin", self.node.origin()))
        })
    }

    fn parse<T: std::str::FromStr>(&self, text: &str, expected: &str) -> Result<T, Failure> {
        self.with_location(
            plain(text.trim()).parse().map_err(|_| de::Error::custom(format_args!("must be {expected}"))),
        )
    }

    fn fields(&self, table: &'de BTreeMap<String, Node>) -> Fields<'de> {
        Fields { path: self.path.clone(), rest: table.iter(), value: None }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty, $expected:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            match &self.node.value {
                Value::Text(text) => {
                    let number = self.parse::<$type>(text, $expected)?;
                    self.with_location(visitor.$visit(number))
                }
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Reader<'de> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let result = match &self.node.value {
            Value::Text(text) | Value::Scalar(toml::Value::String(text)) => visitor.visit_str(text),
            Value::Scalar(toml::Value::Integer(number)) => visitor.visit_i64(*number),
            Value::Scalar(toml::Value::Float(number)) => visitor.visit_f64(*number),
            Value::Scalar(toml::Value::Boolean(truth)) => visitor.visit_bool(*truth),
            Value::Scalar(toml::Value::Datetime(time)) => visitor.visit_string(time.to_string()),
            Value::Scalar(_) => Err(de::Error::custom("unsupported type of value")),
            Value::Table(table) => visitor.visit_map(self.fields(table)),
            Value::Array(items) => visitor.visit_seq(Items { path: &self.path, rest: items.iter() }),
            Value::Unset => visitor.visit_unit(),
        };
        self.with_location(result)
    }

    numbers! {
        deserialize_bool visit_bool bool, "true or false";
        deserialize_i8 visit_i64 i64, "an integer";
        deserialize_i16 visit_i64 i64, "an integer";
        deserialize_i32 visit_i64 i64, "an integer";
        deserialize_i64 visit_i64 i64, "an integer";
        deserialize_u8 visit_u64 u64, "a non-negative integer";
        deserialize_u16 visit_u64 u64, "a non-negative integer";
        deserialize_u32 visit_u64 u64, "a non-negative integer";
        deserialize_u64 visit_u64 u64, "a non-negative integer";
        deserialize_f32 visit_f64 f64, "a number";
        deserialize_f64 visit_f64 f64, "a number";
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match &self.node.value {
            // The other system parses numbers without underscores. A secret or the name of a rack is not a number.
            Value::Text(text)
                if name == Scalar::NAME
                    && !["password", "secret", "rack"].into_iter().any(|end| self.path.ends_with(end)) =>
            {
                let number = plain(text.trim());
                let text = if number.parse::<f64>().is_ok() { &*number } else { text.as_str() };
                self.with_location(visitor.visit_str(text))
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        if let Value::Table(table) = &self.node.value
            && let Some((key, node)) = table.iter().find(|(key, _)| !fields.contains(&key.as_str()))
        {
            return Err(Failure(unknown_key(&self.path, key, node.origin(), fields.iter().copied())));
        }
        self.deserialize_map(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.node.value {
            Value::Table(table) => {
                let result = visitor.visit_map(self.fields(table));
                self.with_location(result)
            }
            _ => self.with_location(Err(de::Error::custom("must be a section"))),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.node.value {
            // A list in the environment is separated by commas.
            Value::Text(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                self.with_location(visitor.visit_seq(de::value::SeqDeserializer::new(items)))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match &self.node.value {
            Value::Text(text) | Value::Scalar(toml::Value::String(text)) => {
                self.with_location(visitor.visit_enum(text.as_str().into_deserializer()))
            }
            _ => self.with_location(Err(de::Error::custom("must be a string"))),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Fields<'de> {
    path: String,
    rest: std::collections::btree_map::Iter<'de, String, Node>,
    value: Option<Reader<'de>>,
}

impl<'de> de::MapAccess<'de> for Fields<'de> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        let Some((key, node)) = self.rest.find(|(_, node)| !node.is_unset()) else { return Ok(None) };
        let reader = Reader { node, path: join(&self.path, key) };
        let key = reader.with_location(seed.deserialize(key.as_str().into_deserializer()))?;
        self.value = Some(reader);
        Ok(Some(key))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Failure> {
        let reader =
            self.value.take().ok_or_else(|| <Failure as de::Error>::custom("a value without a key"))?;
        let location = reader.clone();
        location.with_location(seed.deserialize(reader))
    }
}

struct Items<'a, 'de> {
    path: &'a str,
    rest: std::slice::Iter<'de, Node>,
}

impl<'de> de::SeqAccess<'de> for Items<'_, 'de> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        let Some(node) = self.rest.next() else { return Ok(None) };
        seed.deserialize(Reader { node, path: self.path.to_owned() }).map(Some)
    }
}
