//! The sections of `[store]` and `[bus]`. Each section is a struct that rejects unknown keys, even if its backend
//! is not compiled in.

use std::collections::BTreeMap;
use std::time::Duration;

use qi_core::Datasets;
use qi_core::bus::{Encoding, TopicCatalogue, TopicName, TopicSpec};
use qi_core::domain::duration;
use qi_core::layer::LayerStack;
use qi_core::store::{Retention, StoreInfo};
use qi_core::{Error, ErrorKind, Interval, PriceTick, Result, ResultExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::de;
use super::layers::LayerSections;
use super::section::Section;
use super::tree::{Node, Value, join, unknown_key};
use crate::clickhouse::ClickHouseConfig;
use crate::redpanda::RedpandaConfig;
use crate::sqlite::SqliteConfig;
use crate::timescale::TimescaleConfig;
use crate::timescale::config::Hypertables;

/// `[store]` or `[bus]`: the name of the backend, the sections of all backends, the layers, and the keys that
/// only this port has.
#[derive(Debug)]
pub(super) struct Port<K> {
    pub(super) name: &'static str,
    pub(super) backend: String,
    pub(super) sections: BTreeMap<String, Section>,
    datasets: Datasets,
    layers: LayerSections,
    /// The keys that only this port has.
    pub(super) keys: K,
}

/// The keys that only one of the two ports has.
pub(super) trait PortKeys: DeserializeOwned + Default {
    const KEYS: &'static [&'static str];
    /// Validates the section of a built-in backend. Returns false for any other backend.
    fn check(name: &str, section: &Section) -> Result<bool>;
    /// Returns all settings of a built-in backend, with defaults and without secrets. None for any other backend.
    fn effective(name: &str, section: &Section) -> Result<Option<toml::Value>>;
}

impl<K: PortKeys> Port<K> {
    pub(super) fn read(
        name: &'static str,
        node: Node,
        backends: &[String],
        datasets: &Datasets,
    ) -> Result<Self> {
        let origin = node.origin().to_owned();
        let mut table = node.into_table(name)?;
        let mut port_keys = Node::empty(&origin);
        let mut sections = BTreeMap::new();
        let mut backend = "memory".to_owned();
        let mut layers = LayerSections::default();
        while let Some((key, node)) = table.pop_first() {
            let path = join(name, &key);
            match key.as_str() {
                "backend" if node.is_unset() => {}
                other
                    if node.is_unset()
                        && (LayerSections::KEYS.contains(&other) || backends.iter().any(|b| b == other)) => {}
                "backend" => backend = de::read(&node, &path)?,
                other if LayerSections::KEYS.contains(&other) => layers.read(other, &node, &path)?,
                other if K::KEYS.contains(&other) => {
                    if let Value::Table(table) = &mut port_keys.value {
                        table.insert(key, node);
                    }
                }
                other if backends.iter().any(|b| b == other) => {
                    let section = Section::new(path, node, datasets);
                    K::check(other, &section)?;
                    sections.insert(key, section);
                }
                other => {
                    let valid = std::iter::once("backend").chain(LayerSections::KEYS.iter().copied());
                    let valid =
                        valid.chain(K::KEYS.iter().copied()).chain(backends.iter().map(String::as_str));
                    return Err(unknown_key(name, other, node.origin(), valid));
                }
            }
        }
        let keys = de::read(&port_keys, name)?;
        Ok(Self { name, backend, sections, datasets: datasets.clone(), layers, keys })
    }

    /// Returns the section of a backend, or an empty section if the file has none.
    pub(super) fn section(&self, backend: &str) -> Section {
        let empty = || Section::empty(join(self.name, backend), &self.datasets);
        self.sections.get(backend).cloned().unwrap_or_else(empty)
    }

    /// Returns the settings of a backend and those of the layers, with defaults and without secrets. The settings of a
    /// backend of the program are None.
    pub(super) fn effective(&self, backend: &str) -> Result<(Option<toml::Value>, toml::Value)> {
        let section = K::effective(backend, &self.section(backend))?;
        Ok((section, toml::Value::try_from(&self.layers).permanent("config.value", "show")?))
    }

    pub(super) fn layers(&self) -> Result<LayerStack> {
        self.layers.stack(self.name)
    }

    pub(super) fn check_publish(&self, delivery_timeout: Duration) -> Result<()> {
        self.layers.check_publish(self.name, delivery_timeout)
    }
}

/// The keys of `[store]` that are not sections of backends or layers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StoreSection {
    pub(super) auto_schema: bool,
    /// The interval whose stored bars a purge of ticks requires.
    pub(super) purge_requires_bars: Option<Interval>,
}

impl StoreSection {
    /// Checks that the guard of purges is not bypassed by an automatic removal of ticks.
    ///
    /// # Errors
    /// `Config` if the store removes ticks automatically and `purge_requires_bars` is set.
    pub(super) fn check_retention(&self, info: &StoreInfo) -> Result<()> {
        let Some(interval) = self.purge_requires_bars else { return Ok(()) };
        let is_of_ticks = |retention: &Retention| match retention {
            Retention::Age(dataset, _) | Retention::RowsPerSeries(dataset, _) => {
                *dataset == PriceTick::DATASET
            }
            _ => false,
        };
        if !info.retention.iter().any(is_of_ticks) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Config, "config.value", "open")
            .with_message("must not be set together with a retention of ticks, which checks no bars")
            .with_context("key", "store.purge_requires_bars")
            .with_context("value", interval))
    }
}

impl PortKeys for StoreSection {
    const KEYS: &'static [&'static str] = &["auto_schema", "purge_requires_bars"];

    fn check(name: &str, section: &Section) -> Result<bool> {
        match name {
            #[cfg(feature = "memory")]
            "memory" => memory(section)?.validate()?,
            "timescale" => timescale(section)?.check_bounds()?,
            "postgres" => postgres(section)?.check_bounds()?,
            "clickhouse" => clickhouse(section)?.check_bounds()?,
            "sqlite" => sqlite(section)?.check_bounds()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn effective(name: &str, section: &Section) -> Result<Option<toml::Value>> {
        match name {
            #[cfg(feature = "memory")]
            "memory" => effective(&memory(section)?),
            "timescale" => effective(&timescale(section)?),
            "postgres" => effective(&postgres(section)?),
            "clickhouse" => effective(&clickhouse(section)?),
            "sqlite" => effective(&sqlite(section)?),
            _ => Ok(None),
        }
    }
}

/// Returns the settings of a section.
fn effective(settings: &impl Serialize) -> Result<Option<toml::Value>> {
    toml::Value::try_from(settings).map(Some).permanent("config.value", "show")
}

/// Reads `[store.memory]`.
///
/// # Errors
/// `Config` for an unknown key or an invalid value.
#[cfg(feature = "memory")]
pub(super) fn memory(section: &Section) -> Result<qi_testkit::store::MemoryStoreConfig> {
    let config: qi_testkit::store::MemoryStoreConfig = section.deserialize()?;
    Ok(config.with_datasets(section.datasets().clone()))
}

/// Reads `[store.clickhouse]`.
///
/// # Errors
/// `Config` for an unknown key or an invalid value.
pub(super) fn clickhouse(section: &Section) -> Result<ClickHouseConfig> {
    Ok(section.deserialize::<ClickHouseConfig>()?.with_datasets(section.datasets().clone()))
}

/// Reads `[store.sqlite]`.
///
/// # Errors
/// `Config` for an unknown key or an invalid value.
pub(super) fn sqlite(section: &Section) -> Result<SqliteConfig> {
    Ok(section.deserialize::<SqliteConfig>()?.with_datasets(section.datasets().clone()))
}

/// Reads `[store.timescale]`.
///
/// # Errors
/// `Config` for an unknown key or an invalid value.
pub(super) fn timescale(section: &Section) -> Result<TimescaleConfig> {
    Ok(section.deserialize::<TimescaleConfig>()?.with_datasets(section.datasets().clone()))
}

/// Reads `[store.postgres]`, which accepts the keys of `[store.timescale]` that work without the extension.
///
/// # Errors
/// `Config` for an unknown key, an invalid value, or a key that needs the extension.
pub(super) fn postgres(section: &Section) -> Result<TimescaleConfig> {
    let mut config = timescale(section)?;
    config.section = "store.postgres";
    for key in ["hypertables", "chunks", "columnstore", "columnstore_layout", "retention"] {
        let off = key == "hypertables" && config.hypertables == Hypertables::Off;
        if section.has(key) && !off {
            let rule = "needs the TimescaleDB extension: use the backend `timescale`";
            return Err(config.rules().reject(key, "present", rule));
        }
    }
    config.hypertables = Hypertables::Off;
    Ok(config)
}

/// The keys of `[bus]` that are not sections of backends or layers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BusSection {
    /// The format of published records.
    #[cfg_attr(
        not(any(feature = "memory", feature = "redpanda")),
        allow(dead_code, reason = "a bus of the program has its own settings")
    )]
    pub(super) codec: Encoding,
    topics: BTreeMap<String, TopicSection>,
}

impl PortKeys for BusSection {
    const KEYS: &'static [&'static str] = &["codec", "topics"];

    fn check(name: &str, section: &Section) -> Result<bool> {
        match name {
            #[cfg(feature = "memory")]
            "memory" => section.deserialize::<qi_testkit::bus::MemoryBusConfig>()?.validate()?,
            "redpanda" => section.deserialize::<RedpandaConfig>()?.check_bounds()?,
            "kafka" => {
                RedpandaConfig { section: "bus.kafka", ..section.deserialize()? }.check_bounds()?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn effective(name: &str, section: &Section) -> Result<Option<toml::Value>> {
        match name {
            #[cfg(feature = "memory")]
            "memory" => effective(&section.deserialize::<qi_testkit::bus::MemoryBusConfig>()?),
            "redpanda" | "kafka" => effective(&section.deserialize::<RedpandaConfig>()?),
            _ => Ok(None),
        }
    }
}

impl BusSection {
    pub(super) fn catalogue(&self) -> Result<TopicCatalogue> {
        let mut catalogue = TopicCatalogue::standard()?;
        for (name, section) in &self.topics {
            let invalid_topic = |key: &str, e: Error| {
                Error::new(ErrorKind::Config, "config.topic", "load")
                    .with_message(e.message().unwrap_or_default())
                    .with_context("key", format_args!("bus.topics.{name}{key}"))
                    .with_source(e)
            };
            let topic = TopicName::new(name).map_err(|e| invalid_topic("", e))?;
            section.check_bounds(name)?;
            let standard = catalogue.get(&topic).cloned();
            let partitions =
                section.partitions.or(standard.as_ref().map(|spec| spec.partitions)).unwrap_or(1);
            let mut spec = TopicSpec::new(topic, partitions).map_err(|e| invalid_topic(".partitions", e))?;
            if let Some(standard) = standard {
                spec = standard;
                spec.partitions = partitions;
            }
            if let Some(retention) = section.retention {
                spec = spec.with_retention(retention);
            }
            if let Some(bytes) = section.max_message_bytes {
                spec = spec.with_max_message_bytes(bytes);
            }
            if let Some(replicas) = section.replication {
                spec = spec.with_replication(replicas);
            }
            for (setting, value) in &section.settings {
                if let Some((_, own)) = TOPIC_KEYS.iter().find(|(name, _)| name == setting) {
                    return Err(Error::new(ErrorKind::Config, "config.topic", "load")
                        .with_message(format_args!("is set by the key `{own}`"))
                        .with_context("key", format_args!("bus.topics.{name}.settings.{setting}")));
                }
                spec = spec.with_setting(setting, value);
            }
            catalogue.insert(spec);
        }
        Ok(catalogue)
    }
}

/// The topic settings of a broker that a key of the section sets, each with this key.
const TOPIC_KEYS: &[(&str, &str)] =
    &[("max.message.bytes", "max_message_bytes"), ("retention.ms", "retention")];

/// `[bus.topics.NAME]`: changes a topic of the standard catalogue, or adds a topic with 1 partition by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TopicSection {
    /// The number of partitions.
    pub partitions: Option<u32>,
    /// The replication factor of the topic.
    pub replication: Option<u16>,
    /// The retention time of messages.
    #[serde(with = "duration::option")]
    pub retention: Option<Duration>,
    /// The maximum size of a message, in bytes.
    pub max_message_bytes: Option<usize>,
    /// Further topic settings of the broker, by name.
    #[serde(deserialize_with = "crate::scalars::texts")]
    pub settings: BTreeMap<String, String>,
}

impl TopicSection {
    /// Checks the values against the bounds of a Kafka broker. `TopicSpec` checks the number of partitions.
    fn check_bounds(&self, topic: &str) -> Result<()> {
        let is_retention = |retention: Duration| {
            retention >= Duration::from_secs(1) && i64::try_from(retention.as_millis()).is_ok()
        };
        let is_size = |bytes: usize| bytes >= 1_024 && i32::try_from(bytes).is_ok();
        let is_factor = |replicas: u16| replicas >= 1 && i16::try_from(replicas).is_ok();
        for (key, is_valid, rule) in [
            ("replication", self.replication.is_none_or(is_factor), "must lie from 1 to 32767"),
            (
                "retention",
                self.retention.is_none_or(is_retention),
                "must lie from 1s to 9223372036854775807ms",
            ),
            (
                "max_message_bytes",
                self.max_message_bytes.is_none_or(is_size),
                "must lie from 1024 to 2147483647",
            ),
        ] {
            if !is_valid {
                return Err(Error::new(ErrorKind::Config, "config.topic", "load")
                    .with_message(rule)
                    .with_context("key", format_args!("bus.topics.{topic}.{key}")));
            }
        }
        Ok(())
    }
}
