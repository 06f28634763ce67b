//! Configuration from a TOML file and the environment, which selects the backends.
//!
//! ```toml
//! [store]
//! backend = "timescale"       # or QI__STORE__BACKEND; selects the backend
//! auto_schema = true
//! [store.timescale]
//! url = "postgres://qi@127.0.0.1:5432/qi"   # the password comes from QI__STORE__TIMESCALE__PASSWORD
//! [store.timescale.retention]
//! ticks = "90d"
//! [store.timeout]
//! call = "10s"
//! [bus]
//! backend = "redpanda"
//! [bus.redpanda]
//! brokers = "broker-1:9092,broker-2:9092"
//! delivery_timeout = "1m"
//! ```
//!
//! A duration is text: a whole number and a unit (`ms`, `s`, `m`, `h`, `d`), such as `"250ms"`, `"30s"` or `"7d"`.
//! [The page on the configuration](../../qi_core/guide/configuration/index.html) lists every key with its default.
//!
//! The environment variable `QI__` plus the full path overrides a key: `QI__STORE__MEMORY__MAX_ROWS=500`. One file may
//! contain the sections of all backends, whether or not they are compiled in. An unknown key, in the file or in the
//! environment, is an error that names the nearest known key.
//!
//! ```
//! use qi_adapters::Config;
//! # async fn example() -> qi_core::Result<()> {
//! let config = Config::builder().toml("[store]\nbackend = \"memory\"\nauto_schema = true").build()?;
//! let store = config.open_store().await?;
//! # drop(store); Ok(())
//! # }
//! ```

mod backends;
mod de;
mod effective;
mod environment;
mod forms;
mod layers;
mod renamed;
mod section;
mod sections;
mod tree;

use std::path::Path;
use std::sync::Arc;

use qi_core::Datasets;
use qi_core::bus::TopicCatalogue;
use qi_core::layer::{NoPropagator, Propagator, PurgeGuard};
use qi_core::{Error, ErrorKind, MessageBus, PriceStore, Result};

pub use crate::clickhouse::ClickHouseConfig;
pub use crate::durations::DatasetDurations;
pub use crate::redpanda::config::{
    MessageCompression, Profile, PropertyValue, RedpandaConfig, RedpandaTlsSection, SaslMechanism,
    SaslSection,
};
pub use crate::sqlite::config::{SqliteConfig, Synchronous};
pub use crate::timescale::config::{
    ColumnstoreLayout, Hypertables, PoolSection, Pooler, ServerLimitsSection, TimescaleConfig, TlsMode,
    TlsSection, WriteSection,
};
pub use backends::{Backends, BackendsBuilder};
pub use effective::Setting;
pub use layers::{
    CircuitBreakerSection, LimitSection, MetricsSection, RetrySection, TimeoutSection, TracingSection,
};
pub use section::Section;
pub use sections::TopicSection;

use sections::{BusSection, Port, StoreSection};
use tree::Node;

/// A validated configuration: every key is known and every value is valid. The backends are opened in a separate step.
#[derive(Debug)]
pub struct Config {
    store: Port<StoreSection>,
    bus: Port<BusSection>,
    backends: Backends,
    propagator: Arc<dyn Propagator>,
    /// All keys with their origins.
    root: Node,
}

/// Builds a configuration from a file or text, which environment variables override.
#[derive(Debug)]
pub struct ConfigBuilder {
    root: Option<Result<Node>>,
    variables: Vec<(String, String)>,
    /// Names of `QI__` variables that are not valid UTF-8.
    non_utf8: Vec<String>,
    backends: Backends,
    datasets: Datasets,
    propagator: Arc<dyn Propagator>,
}

impl Default for ConfigBuilder {
    fn default() -> Self {
        Self {
            root: None,
            variables: Vec::new(),
            non_utf8: Vec::new(),
            backends: Backends::default(),
            datasets: Datasets::standard(),
            propagator: Arc::new(NoPropagator),
        }
    }
}

impl Config {
    /// Returns a builder without any source. Both backends default to `memory`.
    pub fn builder() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// Loads the file at `path`. The environment of this process overrides its keys.
    ///
    /// # Errors
    /// `Config` for a file that cannot be read, an unknown key or an invalid value.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().file(path).environment().build()
    }

    /// Opens the configured store and wraps it in its layers. Calls `ensure_schema` if `auto_schema` is set. Otherwise
    /// does not wait for the server.
    ///
    /// # Errors
    /// `Config` for an unknown backend, a backend that is not compiled in, or invalid settings. For a backend that is
    /// not compiled in, the error names the feature that enables it. With `auto_schema`, the errors include those of
    /// `ensure_schema`.
    pub async fn open_store(&self) -> Result<Arc<dyn PriceStore>> {
        self.open_store_as(&self.store.backend).await
    }

    /// Opens another store of the same file, for example to copy data between two stores.
    ///
    /// # Errors
    /// The errors of [`Config::open_store`].
    pub async fn open_store_as(&self, backend: &str) -> Result<Arc<dyn PriceStore>> {
        let store = self.open_store_without_schema(backend)?;
        if self.store.keys.auto_schema {
            store.ensure_schema().await?;
        }
        Ok(store)
    }

    /// Opens a store of the file without `auto_schema`, for a program that must not change the schema. Performs no I/O.
    ///
    /// # Errors
    /// `Config`, as for [`Config::open_store`].
    pub fn open_store_without_schema(&self, backend: &str) -> Result<Arc<dyn PriceStore>> {
        let store = self.open_bare_store(backend)?;
        let layers = self.store.layers()?.with_propagator(self.propagator.clone());
        Ok(self.guard_purges(layers.wrap_store(store)))
    }

    /// Opens a store of the file without `auto_schema`, and pings it once. The layer `Retry` does not repeat this ping, so
    /// an interactive program reports an unreachable server after one attempt.
    ///
    /// # Errors
    /// `Config`, as for [`Config::open_store`]; a retryable error of `ping`. Other errors of `ping` are ignored, because
    /// the next call returns them.
    pub async fn connect_store(&self, backend: &str) -> Result<Arc<dyn PriceStore>> {
        let store = self.open_bare_store(backend)?;
        let layers = self.store.layers()?.with_propagator(self.propagator.clone());
        let mut once = layers.clone();
        once.retry = None;
        match once.wrap_store(store.clone()).ping().await {
            Err(error) if error.retry().is_retryable() => Err(error),
            _ => Ok(self.guard_purges(layers.wrap_store(store))),
        }
    }

    fn open_bare_store(&self, backend: &str) -> Result<Arc<dyn PriceStore>> {
        let store = self.backends.open_store(backend, &self.store);
        let checked = store.and_then(|store| {
            self.store.keys.check_retention(&store.info())?;
            Ok(store)
        });
        checked.map_err(|error| self.root.with_origin(error))
    }

    /// Wraps a store in the guard of `purge_requires_bars`.
    fn guard_purges(&self, store: Arc<dyn PriceStore>) -> Arc<dyn PriceStore> {
        match self.store.keys.purge_requires_bars {
            Some(interval) => Arc::new(PurgeGuard::new(store, interval)),
            None => store,
        }
    }

    /// Opens the configured bus and wraps it in its layers. Performs no I/O.
    ///
    /// # Errors
    /// The errors of [`Config::open_store`].
    pub async fn open_bus(&self) -> Result<Arc<dyn MessageBus>> {
        self.open_bus_as(&self.bus.backend).await
    }

    /// Opens another bus of the same file.
    ///
    /// # Errors
    /// The errors of [`Config::open_store`].
    // Async like `open_store_as`, so that a future backend may await without a breaking change.
    #[expect(clippy::unused_async, reason = "one shape for stores and buses")]
    pub async fn open_bus_as(&self, backend: &str) -> Result<Arc<dyn MessageBus>> {
        let located = |error| self.root.with_origin(error);
        let bus = self.backends.open_bus(backend, &self.bus).map_err(located)?;
        self.bus.check_publish(bus.info().delivery_timeout).map_err(located)?;
        Ok(self.bus.layers()?.with_propagator(self.propagator.clone()).wrap_bus(bus))
    }

    /// Returns true if [`Config::open_store`] creates the schema.
    pub fn auto_schema(&self) -> bool {
        self.store.keys.auto_schema
    }

    /// Returns the name of the store's backend.
    pub fn store_backend(&self) -> &str {
        &self.store.backend
    }

    /// Returns the name of the bus's backend.
    pub fn bus_backend(&self) -> &str {
        &self.bus.backend
    }

    /// Returns the standard topics with the changes and additions of `[bus.topics.NAME]`.
    ///
    /// The catalogue does not contain the topics of datasets that [`ConfigBuilder::datasets`] adds.
    /// [`TopicCatalogue::of`] creates a catalogue from datasets.
    ///
    /// # Errors
    /// `Config` for invalid settings of a topic.
    pub fn catalogue(&self) -> Result<TopicCatalogue> {
        self.bus.keys.catalogue()
    }
}

impl ConfigBuilder {
    /// Reads a TOML file. A relative path in the file, for example of a certificate, begins at the folder of the file.
    #[must_use]
    pub fn file(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let name = path.display().to_string();
        let root = std::fs::read_to_string(path)
            .map_err(|e| {
                Error::new(ErrorKind::Config, "config.file", "load")
                    .with_message("cannot read the configuration file")
                    .with_context("file", &name)
                    .with_source(e)
            })
            .and_then(|text| tree::parse(&text, &name))
            .map(|mut root| {
                path.parent().inspect(|folder| forms::resolve_paths(&mut root, folder));
                root
            });
        Self { root: Some(root), ..self }
    }

    /// Reads the configuration from TOML text.
    #[must_use]
    pub fn toml(self, text: &str) -> Self {
        Self { root: Some(tree::parse(text, "toml")), ..self }
    }

    /// Overrides keys of the file with the environment of this process: every variable that begins with `QI__`. An
    /// empty variable removes the key of the file.
    #[must_use]
    pub fn environment(self) -> Self {
        let (prefixed, non_utf8) = environment::process_variables();
        let mut builder = self.variables(prefixed);
        builder.non_utf8.extend(non_utf8);
        builder
    }

    /// Overrides keys of the file with these variables, as if they came from the environment.
    #[must_use]
    pub fn variables<K: Into<String>, V: Into<String>>(
        mut self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.variables.extend(variables.into_iter().map(|(k, v)| (k.into(), v.into())));
        self
    }

    /// Adds registered backends to the built-in ones.
    #[must_use]
    pub fn backends(self, backends: Backends) -> Self {
        Self { backends, ..self }
    }

    /// Sets the datasets of the program. Defaults to [`Datasets::standard`]. The store creates their tables and rejects
    /// other datasets. [`Config::catalogue`] does not contain the topics of added datasets.
    ///
    /// ```
    /// use qi_adapters::Config;
    /// use qi_core::Datasets;
    /// use qi_core::record::Record;
    /// use qi_core::{Instrument, Percent, Timestamp};
    ///
    /// #[derive(Debug, Clone, PartialEq, Record)]
    /// #[record(name = "borrow_rates")]
    /// pub struct BorrowRate {
    ///     #[series]
    ///     instrument: Instrument,
    ///     #[time]
    ///     ts: Timestamp,
    ///     rate: Percent,
    /// }
    ///
    /// let config = Config::builder()
    ///     .datasets(Datasets::standard().with::<BorrowRate>()?)
    ///     .toml("[store.clickhouse.retention]\nborrow_rates = \"48h\"")
    ///     .build()?;
    /// # Ok::<(), qi_core::Error>(())
    /// ```
    #[must_use]
    pub fn datasets(self, datasets: Datasets) -> Self {
        Self { datasets, ..self }
    }

    /// Sets the propagator that carries traces over the bus, if `[bus.tracing]` is enabled. The program selects the
    /// propagator, as it selects the subscriber that collects the spans.
    #[must_use]
    pub fn propagator(self, propagator: Arc<dyn Propagator>) -> Self {
        Self { propagator, ..self }
    }

    /// Validates all sources and returns the configuration.
    ///
    /// # Errors
    /// `Config` for a file that cannot be read, an unknown key or an invalid value.
    pub fn build(self) -> Result<Config> {
        let Self { root, variables, non_utf8, backends, datasets, propagator } = self;
        let mut root = root.unwrap_or_else(|| Ok(Node::empty("defaults")))?;
        forms::join_dots(&mut root)?;
        environment::overlay(&mut root, variables, &non_utf8)?;
        renamed::check(&root)?;
        let located = root.clone();
        Self::read(root, backends, &datasets, propagator).map_err(|error| located.with_origin(error))
    }

    fn read(
        root: Node,
        backends: Backends,
        datasets: &Datasets,
        propagator: Arc<dyn Propagator>,
    ) -> Result<Config> {
        let mut sections = root.clone().into_table("")?;
        let mut section = |name: &str| sections.remove(name).unwrap_or_else(|| Node::empty("defaults"));
        let (store, bus) = (section("store"), section("bus"));
        if let Some((key, node)) = sections.into_iter().next() {
            return Err(tree::unknown_key("", &key, node.origin(), ["store", "bus"].into_iter()));
        }
        let config = Config {
            store: Port::read("store", store, &backends.store_names(), datasets)?,
            bus: Port::read("bus", bus, &backends.bus_names(), datasets)?,
            backends,
            propagator,
            root,
        };
        config.catalogue()?;
        config.store.layers()?;
        config.bus.layers()?;
        Ok(config)
    }
}
