//! The section of one backend.

use qi_core::Result;
use serde::de::DeserializeOwned;

use super::de;
use super::tree::{Node, Value};

/// The section of one backend.
#[derive(Debug, Clone)]
pub struct Section {
    path: String,
    node: Node,
}

impl Section {
    pub(super) fn new(path: String, node: Node) -> Self {
        Self { path, node }
    }

    pub(super) fn empty(path: String) -> Self {
        Self { path, node: Node::empty("defaults") }
    }

    /// Reads the section into a struct of one's own. A key that the struct does not have is an error that names
    /// the nearest one; a value of the environment becomes what the field asks for.
    ///
    /// # Errors
    /// `Config` with the key and where it came from.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        de::read(&self.node, &self.path)
    }

    /// Returns whether the section has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        matches!(&self.node.value, Value::Table(table) if table.contains_key(key))
    }
}
