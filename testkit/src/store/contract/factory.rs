//! Where a suite gets its stores from.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use qi_core::record::Datasets;
use qi_core::store::PriceStore;
use qi_core::{Error, ErrorKind, Result};

use crate::store::{MemoryStore, MemoryStoreConfig};

/// A store in a namespace of its own, and how to remove that again.
pub struct Fresh {
    /// The store.
    pub store: Arc<dyn PriceStore>,
    /// Removes the namespace; runs after the check, whatever its outcome, also when the store is closed.
    pub cleanup: BoxFuture<'static, Result<()>>,
    /// Opens the namespace once more, with other datasets, as another version of a program does.
    pub reopen: Option<Reopen>,
}

/// Opens a namespace with some datasets, without `ensure_schema`.
pub type Reopen = Arc<dyn Fn(Datasets) -> BoxFuture<'static, Result<Arc<dyn PriceStore>>> + Send + Sync>;

impl Fresh {
    /// A store that leaves nothing behind.
    pub fn new(store: Arc<dyn PriceStore>) -> Self {
        Self { store, cleanup: Box::pin(async { Ok(()) }), reopen: None }
    }

    /// With what removes its namespace.
    #[must_use]
    pub fn with_cleanup(self, cleanup: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self { cleanup: Box::pin(cleanup), ..self }
    }

    /// With what opens the namespace with other datasets. The checks of schema evolution need it.
    #[must_use]
    pub fn with_reopen(
        self,
        reopen: impl Fn(Datasets) -> BoxFuture<'static, Result<Arc<dyn PriceStore>>> + Send + Sync + 'static,
    ) -> Self {
        Self { reopen: Some(Arc::new(reopen)), ..self }
    }
}

impl fmt::Debug for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fresh").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Makes the stores of one implementation for the contract suite.
///
/// Every call gives a namespace of its own (a schema, a database), so that trials run side by side on one server
/// and none deletes what it did not make. The store's `max_batch` should be small, but at least 30,000, because
/// one check builds a batch that is one record larger.
#[async_trait]
pub trait StoreFactory: fmt::Debug + Send + Sync + 'static {
    /// The name of the implementation in the trials, and in `QI_REQUIRE_BACKENDS`: `memory`, `timescale`.
    fn name(&self) -> &str;

    /// Why the backend cannot be used here at all (no address given, no answer), if it cannot.
    fn absent(&self) -> Option<String> {
        None
    }

    /// Why a check has no meaning for this implementation, if it has none. The trial is shown as ignored with
    /// the reason.
    fn not_applicable(&self, check: &str) -> Option<&'static str> {
        let _ = check;
        None
    }

    /// A store of these datasets whose schema was never ensured.
    async fn without_schema(&self, datasets: &Datasets) -> Result<Fresh>;

    /// A store that meets a schema of a later version of the library.
    async fn newer_schema(&self, datasets: &Datasets) -> Result<Fresh>;

    /// A store whose server does not answer: its address refuses connections, and its configuration holds the
    /// password [`SECRET`].
    async fn unreachable(&self, datasets: &Datasets) -> Result<Fresh>;

    /// A store of these datasets whose schema is ensured.
    async fn fresh(&self, datasets: &Datasets) -> Result<Fresh> {
        let fresh = self.without_schema(datasets).await?;
        fresh.store.ensure_schema().await?;
        Ok(fresh)
    }
}

/// The password in the configuration of [`StoreFactory::unreachable`]; it must not show anywhere.
pub const SECRET: &str = "hunter2-must-not-show";

/// Makes memory stores.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryFactory;

#[async_trait]
impl StoreFactory for MemoryFactory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn not_applicable(&self, check: &str) -> Option<&'static str> {
        match check {
            "schema::newer_schema_is_refused" => Some("the memory store outlives no version of the library"),
            "schema::an_added_column_reads_as_absent"
            | "schema::an_enumeration_takes_new_names"
            | "schema::another_difference_is_refused"
            | "schema::an_older_version_goes_on" => {
                Some("the memory store keeps nothing of another version of the program")
            }
            "schema::unreachable_is_retryable" | "errors::no_secret_is_shown" => {
                Some("the memory store has no server and no password")
            }
            _ => None,
        }
    }

    async fn without_schema(&self, datasets: &Datasets) -> Result<Fresh> {
        let config = MemoryStoreConfig::default().with_max_rows(200_000).with_max_batch(30_000);
        Ok(Fresh::new(Arc::new(MemoryStore::new(config.with_datasets(datasets.clone()))?)))
    }

    async fn newer_schema(&self, _: &Datasets) -> Result<Fresh> {
        Err(unsupported("newer_schema"))
    }

    async fn unreachable(&self, _: &Datasets) -> Result<Fresh> {
        Err(unsupported("unreachable"))
    }
}

fn unsupported(what: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, "contract.memory", what).with_backend("memory")
}
