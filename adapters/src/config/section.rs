//! The configuration section of a registered backend.

use qi_core::Datasets;
use qi_core::Result;
use serde::de::DeserializeOwned;

use super::de;
use super::tree::{Node, Value};

/// The configuration section of one backend, for example `[store.clickhouse]`. The factory of a registered backend
/// receives it; see [`BackendsBuilder::register_store`](super::BackendsBuilder::register_store).
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

    /// Creates an empty section for a backend that the configuration does not contain.
    pub(super) fn empty(path: String, datasets: &Datasets) -> Self {
        Self::new(path, Node::empty("defaults"), datasets)
    }

    /// Deserializes the section into a caller-defined struct. A value from the environment is converted to the
    /// type of the field.
    ///
    /// # Errors
    /// `Config` with the key and its origin. For an unknown key, the error suggests the nearest field of the struct.
    pub fn deserialize<T: DeserializeOwned>(&self) -> Result<T> {
        de::read(&self.node, &self.path)
    }

    /// Returns the datasets of the program. A store must support all of them.
    pub fn datasets(&self) -> &Datasets {
        &self.datasets
    }

    /// Returns whether the section sets this key. An unset key does not count.
    pub(super) fn has(&self, key: &str) -> bool {
        matches!(&self.node.value, Value::Table(table) if table.get(key).is_some_and(|node| !node.is_unset()))
    }
}
