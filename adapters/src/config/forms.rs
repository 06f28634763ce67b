//! Keys with special handling: dotted names and file paths.

use std::collections::BTreeMap;
use std::path::Path;

use qi_core::{Error, ErrorKind, Result};

use super::tree::{Node, Value, join};
use crate::sqlite::config::SqliteConfig;

/// The sections whose keys are names of another system and may contain dots, such as `linger.ms`. A name without quotes
/// is a path of tables in TOML.
const DOTTED: &[&[&str]] = &[
    &["bus", "redpanda", "properties"],
    &["bus", "kafka", "properties"],
    &["bus", "topics", "*", "settings"],
    &["store", "clickhouse", "settings"],
];

/// The keys whose values are file paths. A relative path is resolved against the folder of the configuration file.
#[rustfmt::skip]
const PATHS: &[&[&str]] = &[
    &["store", "timescale", "password_file"],
    &["store", "timescale", "tls", "root_cert"],
    &["store", "timescale", "tls", "client_cert"],
    &["store", "timescale", "tls", "client_key"],
    &["store", "postgres", "password_file"],
    &["store", "postgres", "tls", "root_cert"],
    &["store", "postgres", "tls", "client_cert"],
    &["store", "postgres", "tls", "client_key"],
    &["store", "clickhouse", "password_file"],
    &["store", "clickhouse", "root_cert"],
    &["store", "sqlite", "path"],
    &["bus", "redpanda", "sasl", "password_file"],
    &["bus", "redpanda", "tls", "root_cert"],
    &["bus", "redpanda", "tls", "client_cert"],
    &["bus", "redpanda", "tls", "client_key"],
    &["bus", "redpanda", "tls", "client_key_password_file"],
    &["bus", "kafka", "sasl", "password_file"],
    &["bus", "kafka", "tls", "root_cert"],
    &["bus", "kafka", "tls", "client_cert"],
    &["bus", "kafka", "tls", "client_key"],
    &["bus", "kafka", "tls", "client_key_password_file"],
];

/// Joins the keys below a section of [`DOTTED`] into one name, for example `linger` and `ms` into `linger.ms`. Used for
/// environment variables.
pub(super) fn with_dots(mut keys: Vec<String>) -> Vec<String> {
    let matches = |pattern: &&[&str]| {
        pattern.len() < keys.len() && pattern.iter().zip(&keys).all(|(part, key)| *part == "*" || part == key)
    };
    if let Some(length) = DOTTED.iter().copied().find(matches).map(<[&str]>::len) {
        let name = keys.split_off(length).join(".");
        keys.push(name);
    }
    keys
}

/// Joins the tables in the sections of [`DOTTED`] to names with dots. Rejects a topic whose name has a dot and no quotes.
///
/// # Errors
/// `Config` for a name that is set twice, and for such a topic.
pub(super) fn join_dots(root: &mut Node) -> Result<()> {
    for pattern in DOTTED {
        for (section, node) in root.matching("", pattern) {
            if let Value::Table(table) = &mut node.value {
                let mut joined = BTreeMap::new();
                join_table(&section, "", std::mem::take(table), &mut joined)?;
                *table = joined;
            }
        }
    }
    for (_, topics) in root.matching("", &["bus", "topics"]) {
        let Value::Table(topics) = &topics.value else { continue };
        for (topic, node) in topics {
            let Value::Table(keys) = &node.value else { continue };
            let is_topic = |(key, node): &(&String, &Node)| {
                key.as_str() != "settings" && matches!(node.value, Value::Table(_))
            };
            if let Some((rest, node)) = keys.iter().find(is_topic) {
                let name = join(topic, rest);
                return Err(Error::new(ErrorKind::Config, "config.unknown_key", "load")
                    .with_message(format_args!(
                        "unknown section; a topic name with a dot needs quotes: [bus.topics.\"{name}\"]"
                    ))
                    .with_context("key", join("bus.topics", &name))
                    .with_context("origin", node.origin()));
            }
        }
    }
    Ok(())
}

fn join_table(
    section: &str,
    path: &str,
    table: BTreeMap<String, Node>,
    joined: &mut BTreeMap<String, Node>,
) -> Result<()> {
    for (key, node) in table {
        let name = join(path, &key);
        match node.value {
            Value::Table(inner) => join_table(section, &name, inner, joined)?,
            _ if joined.contains_key(&name) => {
                return Err(Error::new(ErrorKind::Config, "config.value", "load")
                    .with_message("is set twice, with and without quotes")
                    .with_context("key", join(section, &name))
                    .with_context("origin", node.origin()));
            }
            _ => drop(joined.insert(name, node)),
        }
    }
    Ok(())
}

/// Resolves the relative paths of a configuration file against its folder. SQLite paths with a scheme stay unchanged,
/// and validation rejects them.
pub(super) fn resolve_paths(root: &mut Node, folder: &Path) {
    for pattern in PATHS {
        for (_, node) in root.matching("", pattern) {
            if let Value::Scalar(toml::Value::String(path)) = &mut node.value
                && !path.is_empty()
                && Path::new(path.as_str()).is_relative()
                && !SqliteConfig::has_scheme(path)
            {
                *path = folder.join(path.as_str()).display().to_string();
            }
        }
    }
}
