//! The effective settings of a configuration, each with its origin.

use qi_core::Result;

use super::Config;
use super::sections::{Port, PortKeys};
use super::tree::{Node, Value, join};
use crate::scalars::HIDDEN;

/// An effective setting: a default, a value of the file, or a value of the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// The path of the key.
    pub key: String,
    /// The value as text. A secret, and every text or list in the section of a registered backend, is `***`.
    pub value: String,
    /// The name of the file or of the environment variable, or `default`.
    pub origin: String,
}

impl Config {
    /// Returns the effective settings of the selected backends, of the layers and of the topics. A key without a value is
    /// absent. Secrets are hidden, and so is every text in the section of a registered backend.
    ///
    /// ```
    /// use qi_adapters::Config;
    /// let config = Config::builder().variables([("QI__STORE__MEMORY__MAX_ROWS", "1_000")]).build()?;
    /// let settings = config.settings()?;
    /// let max_rows = settings.iter().find(|setting| setting.key == "store.memory.max_rows").unwrap();
    /// assert_eq!((&*max_rows.value, &*max_rows.origin), ("1000", "QI__STORE__MEMORY__MAX_ROWS"));
    /// # Ok::<(), qi_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Config` for an invalid value in the section of a selected backend.
    pub fn settings(&self) -> Result<Vec<Setting>> {
        self.effective(&self.store.backend)
    }

    /// Returns the effective settings for another store of the same file, as [`Config::open_store_as`] opens it. The
    /// origin of `store.backend` remains that of the configuration.
    ///
    /// # Errors
    /// `Config` for an unknown backend, and the errors of [`Config::settings`].
    pub fn settings_as(&self, backend: &str) -> Result<Vec<Setting>> {
        self.backends.check_store(backend)?;
        self.effective(backend)
    }

    fn effective(&self, store: &str) -> Result<Vec<Setting>> {
        let mut settings = Settings { root: &self.root, found: Vec::new() };
        settings.push("store.backend", store.to_owned());
        settings.push("store.auto_schema", self.auto_schema().to_string());
        if let Some(interval) = self.store.keys.purge_requires_bars {
            settings.push("store.purge_requires_bars", interval.to_string());
        }
        settings.port(&self.store, store)?;
        settings.push("bus.backend", self.bus.backend.clone());
        settings.push("bus.codec", self.bus.keys.codec.to_string());
        settings.port(&self.bus, &self.bus.backend)?;
        if let Some(topics) = node_at(&self.root, &["bus", "topics"]) {
            settings.of_tree("bus.topics", topics, false);
        }
        Ok(settings.found)
    }
}

struct Settings<'a> {
    root: &'a Node,
    found: Vec<Setting>,
}

impl Settings<'_> {
    fn push(&mut self, key: &str, value: String) {
        let keys: Vec<&str> = key.split('.').collect();
        self.push_at(&keys, key.to_owned(), value);
    }

    fn push_at(&mut self, keys: &[&str], key: String, value: String) {
        let origin = node_at(self.root, keys).map_or("default", Node::origin).to_owned();
        self.found.push(Setting { key, value, origin });
    }

    fn port<K: PortKeys>(&mut self, port: &Port<K>, backend: &str) -> Result<()> {
        let (section, layers) = port.effective(backend)?;
        match (section, node_at(self.root, &[port.name, backend])) {
            (Some(section), _) => self.of_toml(&mut vec![port.name, backend], &section),
            (None, Some(node)) => self.of_tree(&join(port.name, backend), node, true),
            (None, None) => {}
        }
        self.of_toml(&mut vec![port.name], &layers);
        Ok(())
    }

    fn of_toml<'b>(&mut self, keys: &mut Vec<&'b str>, value: &'b toml::Value) {
        if let toml::Value::Table(table) = value {
            for (key, value) in table {
                keys.push(key);
                self.of_toml(keys, value);
                keys.pop();
            }
        } else {
            let key = keys.iter().fold(String::new(), |path, key| join(&path, &quoted(key)));
            self.push_at(keys, key, text(value));
        }
    }

    /// Adds the values of the file and of the environment below a node.
    fn of_tree(&mut self, path: &str, node: &Node, hide_text: bool) {
        let value = match &node.value {
            Value::Table(table) => {
                for (key, node) in table {
                    self.of_tree(&join(path, &quoted(key)), node, hide_text);
                }
                return;
            }
            Value::Unset => return,
            Value::Scalar(value) if !(hide_text && value.is_str()) => text(value),
            Value::Text(text) if !hide_text => text.clone(),
            Value::Array(items) if !hide_text => format!("[{} values]", items.len()),
            _ => HIDDEN.to_owned(),
        };
        self.found.push(Setting { key: path.to_owned(), value, origin: node.origin().to_owned() });
    }
}

/// Returns a key as in TOML.
fn quoted(key: &str) -> String {
    let is_bare = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if is_bare && !key.is_empty() { key.to_owned() } else { format!("{key:?}") }
}

fn text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(truth) => truth.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        // Each key of a table is a separate setting.
        toml::Value::Table(_) => String::new(),
    }
}

/// Returns the node of a key that has a value.
fn node_at<'a>(root: &'a Node, keys: &[&str]) -> Option<&'a Node> {
    let found = keys.iter().try_fold(root, |node, key| match &node.value {
        Value::Table(table) => table.get(*key),
        _ => None,
    });
    found.filter(|node| !node.is_unset())
}
