//! Environment variables that override the configuration file. A name is `QI__` plus the full path of the key,
//! with two underscores between its parts: `QI__STORE__BACKEND`. The path may be in upper or lower case. An empty value
//! removes the value of the file.

use std::collections::BTreeMap;

use qi_core::{Error, ErrorKind, Result};

use super::forms;
use super::tree::{Node, Value};

const PREFIX: &str = "QI__";
/// The maximum number of keys in a path. Bounds the recursion over the tree.
const MAX_DEPTH: usize = 32;

/// Returns the variables of this process with the prefix `QI__`, and the names of variables that are not valid UTF-8.
pub(super) fn process_variables() -> (Vec<(String, String)>, Vec<String>) {
    let (mut prefixed, mut non_utf8) = (Vec::new(), Vec::new());
    for (name, value) in std::env::vars_os() {
        let shown = name.to_string_lossy().into_owned();
        if !shown.starts_with(PREFIX) {
            continue;
        }
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => prefixed.push((name, value)),
            _ => non_utf8.push(shown),
        }
    }
    (prefixed, non_utf8)
}

/// Writes the value of every variable `QI__A__B` to the key `a.b`. Ignores variables without the prefix. Rejects any
/// variable in `non_utf8`.
pub(super) fn overlay(root: &mut Node, variables: Vec<(String, String)>, non_utf8: &[String]) -> Result<()> {
    if let Some(name) = non_utf8.first() {
        return Err(reject(name, "name and value must be valid UTF-8"));
    }
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in variables {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        // Two variables whose names differ only in case would set one key, and the value would depend on their order.
        if let Some(other) = seen.insert(path.to_lowercase(), name.clone()) {
            return Err(reject(&name, &format!("names the same key as {other}")));
        }
        let keys: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        if keys.iter().any(String::is_empty) {
            return Err(reject(&name, "must be `QI__` and a path of keys, separated by two underscores"));
        }
        if keys.len() > MAX_DEPTH {
            return Err(reject("QI__..", &format!("path has {} keys, maximum {MAX_DEPTH}", keys.len())));
        }
        set(root, &forms::with_dots(keys), &name, value)?;
    }
    Ok(())
}

/// Sets the key at the path `keys` below `node`. Creates missing sections.
fn set(node: &mut Node, keys: &[String], variable: &str, text: String) -> Result<()> {
    let Some((key, rest)) = keys.split_first() else {
        if matches!(node.value, Value::Table(_)) {
            return Err(reject(variable, "names a section, not a key"));
        }
        variable.clone_into(&mut node.origin);
        node.value = if text.is_empty() { Value::Unset } else { Value::Text(text) };
        return Ok(());
    };
    let Value::Table(table) = &mut node.value else {
        return Err(reject(variable, "continues after a key that is not a section"));
    };
    let child = table.entry(key.clone()).or_insert_with(|| Node {
        origin: variable.to_owned(),
        value: if rest.is_empty() { Value::Unset } else { Value::Table(BTreeMap::new()) },
    });
    set(child, rest, variable, text)
}

fn reject(variable: &str, rule: &str) -> Error {
    Error::new(ErrorKind::Config, "config.variable", "load")
        .with_message(rule)
        .with_context("origin", variable)
}
