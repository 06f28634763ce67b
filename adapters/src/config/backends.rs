//! The registry of backends: built-in backends and backends that a program registers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use qi_core::{Error, ErrorKind, MessageBus, PriceStore, Result};

use super::layers::LayerSections;
use super::section::Section;
use super::sections::{BusSection, Port, PortKeys, StoreSection};
use super::tree::nearest;
#[cfg(feature = "redpanda")]
use crate::redpanda::RedpandaConfig;

type StoreFactory = Arc<dyn Fn(&Section) -> Result<Arc<dyn PriceStore>> + Send + Sync>;
type BusFactory = Arc<dyn Fn(&Section) -> Result<Arc<dyn MessageBus>> + Send + Sync>;

/// The backends that a configuration may name: the built-in backends and the backends that the program registered. The
/// registry is an ordinary value, not global state.
///
/// ```
/// use std::sync::Arc;
/// use qi_adapters::{Backends, Config};
/// # fn open_mongo(_: String) -> qi_core::Result<Arc<dyn qi_core::PriceStore>> { unreachable!() }
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Mongo { url: String }
///
/// let backends = Backends::builder()
///     .register_store("mongo", |section| open_mongo(section.deserialize::<Mongo>()?.url))?
///     .build();
/// let config = Config::builder()
///     .backends(backends)
///     .toml("[store]\nbackend = \"mongo\"\n[store.mongo]\nurl = \"mongodb://localhost\"")
///     .build()?;
/// assert_eq!(config.store_backend(), "mongo");
/// # Ok::<(), qi_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Backends {
    stores: BTreeMap<String, StoreFactory>,
    buses: BTreeMap<String, BusFactory>,
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backends")
            .field("stores", &self.store_names())
            .field("buses", &self.bus_names())
            .finish()
    }
}

/// The names of the built-in backends, each with the Cargo feature that it needs.
const STORES: &[(&str, &str)] = &[
    ("memory", "memory"),
    ("timescale", "timescale"),
    ("postgres", "timescale"),
    ("clickhouse", "clickhouse"),
    ("sqlite", "sqlite"),
];
const BUSES: &[(&str, &str)] = &[("memory", "memory"), ("redpanda", "redpanda"), ("kafka", "redpanda")];

impl Backends {
    /// Returns a builder that already contains the built-in backends.
    pub fn builder() -> BackendsBuilder {
        BackendsBuilder(Self::default())
    }

    pub(super) fn store_names(&self) -> Vec<String> {
        STORES.iter().map(|(name, _)| (*name).to_owned()).chain(self.stores.keys().cloned()).collect()
    }

    pub(super) fn bus_names(&self) -> Vec<String> {
        BUSES.iter().map(|(name, _)| (*name).to_owned()).chain(self.buses.keys().cloned()).collect()
    }

    /// Checks that a store has this name, even if it is not compiled in.
    pub(super) fn check_store(&self, backend: &str) -> Result<()> {
        let names = self.store_names();
        if names.iter().any(|name| name == backend) {
            return Ok(());
        }
        Err(cannot_open("store", backend, STORES, &names))
    }

    pub(super) fn open_store(&self, backend: &str, port: &Port<StoreSection>) -> Result<Arc<dyn PriceStore>> {
        let section = port.section(backend);
        if let Some(factory) = self.stores.get(backend) {
            return factory(&section);
        }
        match backend {
            #[cfg(feature = "memory")]
            "memory" => {
                Ok(Arc::new(qi_testkit::store::MemoryStore::new(super::sections::memory(&section)?)?))
            }
            #[cfg(feature = "timescale")]
            "timescale" => {
                let mut config = super::sections::timescale(&section)?;
                config.purge_requires_bars = port.keys.purge_requires_bars.is_some();
                Ok(Arc::new(crate::timescale::TimescaleStore::open(config)?))
            }
            #[cfg(feature = "timescale")]
            "postgres" => {
                Ok(Arc::new(crate::timescale::TimescaleStore::open(super::sections::postgres(&section)?)?))
            }
            #[cfg(feature = "clickhouse")]
            "clickhouse" => {
                let mut config = super::sections::clickhouse(&section)?;
                config.purge_requires_bars = port.keys.purge_requires_bars.is_some();
                Ok(Arc::new(crate::clickhouse::ClickHouseStore::open(config)?))
            }
            #[cfg(feature = "sqlite")]
            "sqlite" => Ok(Arc::new(crate::sqlite::SqliteStore::open(super::sections::sqlite(&section)?)?)),
            other => Err(cannot_open("store", other, STORES, &self.store_names())),
        }
    }

    pub(super) fn open_bus(&self, backend: &str, port: &Port<BusSection>) -> Result<Arc<dyn MessageBus>> {
        let section = port.section(backend);
        if let Some(factory) = self.buses.get(backend) {
            return factory(&section);
        }
        match backend {
            #[cfg(feature = "memory")]
            "memory" => {
                let mut config: qi_testkit::bus::MemoryBusConfig = section.deserialize()?;
                config.codec = port.keys.codec;
                let clock = Arc::new(qi_core::SystemClock);
                Ok(Arc::new(qi_testkit::bus::MemoryBus::new(config, clock)?))
            }
            #[cfg(feature = "redpanda")]
            "redpanda" => Ok(Arc::new(crate::redpanda::RedpandaBus::open(RedpandaConfig {
                codec: port.keys.codec,
                ..section.deserialize()?
            })?)),
            #[cfg(feature = "redpanda")]
            "kafka" => Ok(Arc::new(crate::redpanda::RedpandaBus::open(RedpandaConfig {
                section: "bus.kafka",
                codec: port.keys.codec,
                ..section.deserialize()?
            })?)),
            other => Err(cannot_open("bus", other, BUSES, &self.bus_names())),
        }
    }
}

/// Returns the error for a backend that is unknown or not compiled in.
fn cannot_open(port: &str, backend: &str, own: &[(&str, &str)], names: &[String]) -> Error {
    let (code, message) = if let Some((_, feature)) = own.iter().find(|(name, _)| *name == backend) {
        let message =
            format!("{backend} is not compiled in; the feature `{feature}` of qi-adapters enables it");
        ("config.backend.not_compiled", message)
    } else {
        let message = match nearest(backend, names.iter().map(String::as_str)) {
            Some(nearest) => format!("unknown backend `{backend}`; did you mean `{nearest}`?"),
            None => format!("unknown backend `{backend}`; known: {}", names.join(", ")),
        };
        ("config.backend.unknown", message)
    };
    Error::new(ErrorKind::Config, code, "open")
        .with_message(message)
        .with_context("key", format_args!("{port}.backend"))
        .with_context("value", backend)
}

/// Registers the backends of a program.
#[derive(Debug)]
pub struct BackendsBuilder(Backends);

impl BackendsBuilder {
    /// Registers a store under `name`. Its section is `[store.NAME]`. The factory must not perform I/O.
    ///
    /// # Errors
    /// `Config` if the name is invalid, already taken, or a reserved key of the section.
    pub fn register_store(
        mut self,
        name: &str,
        factory: impl Fn(&Section) -> Result<Arc<dyn PriceStore>> + Send + Sync + 'static,
    ) -> Result<Self> {
        check_name(name, StoreSection::KEYS, &self.0.store_names())?;
        self.0.stores.insert(name.to_owned(), Arc::new(factory));
        Ok(self)
    }

    /// Registers a bus under `name`. Its section is `[bus.NAME]`. The factory must not perform I/O.
    ///
    /// # Errors
    /// `Config` if the name is invalid, already taken, or a reserved key of the section.
    pub fn register_bus(
        mut self,
        name: &str,
        factory: impl Fn(&Section) -> Result<Arc<dyn MessageBus>> + Send + Sync + 'static,
    ) -> Result<Self> {
        check_name(name, BusSection::KEYS, &self.0.bus_names())?;
        self.0.buses.insert(name.to_owned(), Arc::new(factory));
        Ok(self)
    }

    /// Returns the registry with all registered backends.
    pub fn build(self) -> Backends {
        self.0
    }
}

fn check_name(name: &str, keys: &[&str], taken: &[String]) -> Result<()> {
    let is_valid = !name.is_empty() && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !is_valid
        || name.contains("__")
        || name == "backend"
        || LayerSections::KEYS.contains(&name)
        || keys.contains(&name)
        || taken.iter().any(|t| t == name)
    {
        return Err(Error::new(ErrorKind::Config, "config.backend.name", "register")
            .with_message("must match [a-z0-9_]+ without `__`, and must not be reserved or registered")
            .with_context("value", name));
    }
    Ok(())
}
