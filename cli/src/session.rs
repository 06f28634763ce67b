//! The backends of a command: opened on first use, and closed at the end of the command.

use std::cell::RefCell;
use std::sync::Arc;

use qi_adapters::Config;
use qi_core::{Datasets, Error, MessageBus, PriceStore, Result};

use crate::app::say;
use crate::migrate;

/// The backends of this process, which are empty at its start and lost at its end.
pub(crate) const MEMORY: &str = "memory";

/// The configuration, and the backends that a command opened.
pub(crate) struct Session<'a> {
    pub(crate) config: &'a Config,
    /// The datasets that stores are opened with.
    pub(crate) datasets: Datasets,
    /// The name of the store's backend: `--store` or `store.backend`.
    pub(crate) backend: String,
    /// True if the stores are opened with more datasets than `qi migrate` without `--all-datasets`.
    pub(crate) has_other_datasets: bool,
    stores: RefCell<Vec<(String, Arc<dyn PriceStore>)>>,
    buses: RefCell<Vec<Arc<dyn MessageBus>>>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        config: &'a Config,
        store: Option<&str>,
        datasets: Datasets,
        has_other_datasets: bool,
    ) -> Self {
        let backend = store.unwrap_or_else(|| config.store_backend()).to_owned();
        let (stores, buses) = (RefCell::default(), RefCell::default());
        Self { config, datasets, backend, has_other_datasets, stores, buses }
    }

    /// Opens the store of the command.
    pub(crate) async fn store(&self) -> Result<Arc<dyn PriceStore>> {
        self.store_of(&self.backend).await
    }

    /// Opens a store without changing its schema, even with `auto_schema`. A store in the memory of this process has no
    /// schema of others.
    pub(crate) async fn store_of(&self, backend: &str) -> Result<Arc<dyn PriceStore>> {
        let store = self.config.connect_store(backend).await?;
        self.stores.borrow_mut().push((backend.to_owned(), store.clone()));
        if self.config.auto_schema() && store.info().backend == MEMORY {
            store.ensure_schema().await?;
        }
        Ok(store)
    }

    /// Opens a store for a command that writes records. Warns of the store in the memory of this process.
    pub(crate) async fn target(&self, backend: &str) -> Result<Arc<dyn PriceStore>> {
        warn_of_memory(backend);
        self.store_of(backend).await
    }

    pub(crate) async fn bus(&self) -> Result<Arc<dyn MessageBus>> {
        let bus = self.config.open_bus().await?;
        self.buses.borrow_mut().push(bus.clone());
        Ok(bus)
    }

    /// Returns the remedy of an error about a missing schema, or None if no command resolves the error.
    pub(crate) async fn remedy(&self, error: &Error) -> Option<String> {
        let stores = self.stores.borrow().clone();
        for (backend, store) in stores {
            let is_origin = error.backend().is_none_or(|origin| origin == store.info().backend);
            if is_origin
                && let Some(hint) = migrate::hint(&*store, error, &self.migrate_command(&backend)).await
            {
                return Some(hint);
            }
        }
        None
    }

    /// Returns the command that creates the schema of a backend.
    pub(crate) fn migrate_command(&self, backend: &str) -> String {
        let mut command = "qi migrate".to_owned();
        if backend != self.config.store_backend() {
            command.push_str(" --store ");
            command.push_str(backend);
        }
        if self.has_other_datasets {
            command.push_str(" --all-datasets");
        }
        command
    }

    /// Closes all backends, even after an error, and returns the errors.
    pub(crate) async fn close(&self) -> Vec<Error> {
        let (stores, buses) = (self.stores.take(), self.buses.take());
        let mut errors = Vec::new();
        for (_, store) in stores {
            errors.extend(store.close().await.err());
        }
        for bus in buses {
            errors.extend(bus.close().await.err());
        }
        errors
    }
}

/// Warns of a store in the memory of this process.
pub(crate) fn warn_of_memory(backend: &str) {
    if backend == MEMORY {
        say(format_args!(
            "the store is in the memory of this process and is lost at its end; set store.backend"
        ));
    }
}
