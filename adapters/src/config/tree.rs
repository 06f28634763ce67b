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
}

/// `Debug` hides all scalars, because a value may be secret.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(table) => f.debug_map().entries(table).finish(),
            Self::Array(items) => write!(f, "[{} values]", items.len()),
            Self::Scalar(_) | Self::Text(_) => f.write_str("***"),
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

    /// Replaces the text of a key below this node, if the key exists and `edit` returns a new text.
    pub(super) fn edit_text(&mut self, keys: &[&str], edit: impl FnOnce(&str) -> Option<String>) {
        match (&mut self.value, keys.split_first()) {
            (Value::Table(table), Some((key, rest))) => {
                if let Some(node) = table.get_mut(*key) {
                    node.edit_text(rest, edit);
                }
            }
            (Value::Scalar(toml::Value::String(text)), None) => {
                if let Some(edited) = edit(text) {
                    *text = edited;
                }
            }
            _ => {}
        }
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
