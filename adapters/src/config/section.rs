//! The section of one backend.

use qi_core::Datasets;
use qi_core::Result;
use serde::de::DeserializeOwned;

use super::de;
use super::tree::{Node, Value};

/// The section of one backend.
#[derive(Debug, Clone)]
pub struct Section {
    path: String,
    node: Node,
    datasets: Datasets,
}

impl Section {
    pub(super) fn new(path: String, node: Node, datasets: &Datasets) -> Self {
        Self { path, node, datasets: datasets.clone() }
    }

    pub(super) fn empty(path: String, datasets: &Datasets) -> Self {
        Self::new(path, Node::empty("defaults"), datasets)
    }

    /// Reads the section into a struct of one's own. A key that the struct does not have is an error that names
    /// the nearest one; a value of the environment becomes what the field asks for.
    ///
    /// # Errors
    /// `Config` with the key and where it came from.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        de::read(&self.node, &self.path)
    }

    /// Returns the datasets of the program, which a store keeps.
    pub fn datasets(&self) -> &Datasets {
        &self.datasets
    }

    /// Returns whether the section has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        matches!(&self.node.value, Value::Table(table) if table.contains_key(key))
    }
}
