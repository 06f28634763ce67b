//! The configuration as a tree. Every value records its origin.

use std::collections::BTreeMap;
use std::fmt;

use qi_core::{Error, ErrorKind, Result};

/// A value and its origin: the name of the file or of the environment variable.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(super) origin: String,
    pub(super) value: Value,
}

/// The value of a node.
#[derive(Clone)]
pub(super) enum Value {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    /// A scalar from the file, with its TOML type.
    Scalar(toml::Value),
    /// A value from the environment. The text is converted to the type of the target field, so a password
    /// `12345` stays text.
    Text(String),
    /// An empty value from the environment, which removes the value of the file. The default applies.
    Unset,
}

/// `Debug` hides all scalars, because a value may be secret.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => f.debug_map().entries(table).finish(),
            Self::Array(items) => write!(f, "[{} values]", items.len()),
            Self::Scalar(_) | Self::Text(_) => f.write_str("***"),
            Self::Unset => f.write_str("unset"),
        }
    }
}

/// Parses TOML. Errors name `origin`.
pub(super) fn parse(text: &str, origin: &str) -> Result<Node> {
    let table: toml::Table = toml::from_str(text).map_err(|e| {
        // The parser's own Display quotes the line, which may hold a secret.
        let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        Error::new(ErrorKind::Config, "config.syntax", "load")
            .with_message(e.message())
            .with_context("file", origin)
            .with_context("line", line)
    })?;
    Ok(Node::of(toml::Value::Table(table), origin))
}

impl Node {
    pub(super) fn empty(origin: &str) -> Self {
        Self { origin: origin.to_owned(), value: Value::Table(BTreeMap::new()) }
    }

    fn of(value: toml::Value, origin: &str) -> Self {
        let value = match value {
            toml::Value::Table(table) => {
                Value::Table(table.into_iter().map(|(key, value)| (key, Self::of(value, origin))).collect())
            }
            toml::Value::Array(items) => {
                Value::Array(items.into_iter().map(|v| Self::of(v, origin)).collect())
            }
            scalar => Value::Scalar(scalar),
        };
        Self { origin: origin.to_owned(), value }
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    pub(super) fn is_unset(&self) -> bool {
        matches!(self.value, Value::Unset)
    }

    /// Returns the origin of the key at a path. None for a key that is not set.
    pub(super) fn origin_of(&self, path: &str) -> Option<&str> {
        if path.is_empty() {
            return Some(&self.origin);
        }
        let Value::Table(table) = &self.value else { return None };
        table.iter().find_map(|(key, node)| {
            let rest = path.strip_prefix(key.as_str())?;
            node.origin_of(if rest.is_empty() { rest } else { rest.strip_prefix('.')? })
        })
    }

    /// Adds the origin of the key to an error that names a key without an origin.
    pub(super) fn with_origin(&self, error: Error) -> Error {
        let Some(key) = error.context_value("key").filter(|_| error.context_value("origin").is_none()) else {
            return error;
        };
        let origin = self.origin_of(key).unwrap_or("default").to_owned();
        error.with_context("origin", origin)
    }

    /// Returns the nodes below `path` that match a pattern, with their paths. A `*` matches any key.
    pub(super) fn matching(&mut self, path: &str, pattern: &[&str]) -> Vec<(String, &mut Self)> {
        let Some((key, rest)) = pattern.split_first() else { return vec![(path.to_owned(), self)] };
        let Value::Table(table) = &mut self.value else { return Vec::new() };
        let found = table.iter_mut().filter(|(found, _)| *key == "*" || found == key);
        found.flat_map(|(found, node)| node.matching(&join(path, found), rest)).collect()
    }

    /// Returns the table of a section, or an error if the node is not a section.
    pub(super) fn into_table(self, path: &str) -> Result<BTreeMap<String, Node>> {
        match self.value {
            Value::Table(table) => Ok(table),
            _ => Err(Error::new(ErrorKind::Config, "config.value", "load")
                .with_message("must be a section")
                .with_context("key", path)
                .with_context("origin", self.origin)),
        }
    }
}

/// Returns the error for an unknown key. It suggests the nearest known key.
pub(super) fn unknown_key<'a>(
    path: &str,
    key: &str,
    origin: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Error {
    let full = join(path, key);
    let message = match nearest(key, known.clone()) {
        Some(nearest) => format!("unknown key `{full}`; did you mean `{}`?", join(path, nearest)),
        None => format!("unknown key `{full}`; known here: {}", known.collect::<Vec<_>>().join(", ")),
    };
    Error::new(ErrorKind::Config, "config.unknown_key", "load")
        .with_message(message)
        .with_context("key", full)
        .with_context("origin", origin)
}

/// Returns the known word that is most similar to `word`, if its similarity is above 0.7.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
