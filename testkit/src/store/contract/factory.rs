//! Factories that create the stores of a suite.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use qi_core::Datasets;
use qi_core::store::PriceStore;
use qi_core::{Error, ErrorKind, Result};

use crate::store::{MemoryStore, MemoryStoreConfig};

/// A store in a new namespace, with the cleanup of the namespace.
pub struct TestStore {
    /// The store in the namespace.
    pub store: Arc<dyn PriceStore>,
    /// Removes the namespace. Runs after the check, regardless of its result, and even if the store is closed.
    pub cleanup: BoxFuture<'static, Result<()>>,
    /// Opens the namespace again with other datasets, like another version of a program.
    pub reopen: Option<Reopen>,
}

/// Opens a namespace with the given datasets, without `ensure_schema`.
pub type Reopen = Arc<dyn Fn(Datasets) -> BoxFuture<'static, Result<Arc<dyn PriceStore>>> + Send + Sync>;

impl TestStore {
    /// Creates the result for a store that needs no cleanup.
    pub fn new(store: Arc<dyn PriceStore>) -> Self {
        Self { store, cleanup: Box::pin(async { Ok(()) }), reopen: None }
    }

    /// Sets the cleanup that removes the namespace.
    #[must_use]
    pub fn with_cleanup(self, cleanup: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self { cleanup: Box::pin(cleanup), ..self }
    }

    /// Sets the function that opens the namespace with other datasets. The checks of schema evolution need it.
    #[must_use]
    pub fn with_reopen(
        self,
        reopen: impl Fn(Datasets) -> BoxFuture<'static, Result<Arc<dyn PriceStore>>> + Send + Sync + 'static,
    ) -> Self {
        Self { reopen: Some(Arc::new(reopen)), ..self }
    }
}

impl fmt::Debug for TestStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestStore").field("store", &self.store).finish_non_exhaustive()
    }
}

/// A factory for the stores of one implementation, for the contract suite.
///
/// Every call creates a new namespace (a schema, a database). Trials can therefore run concurrently on one server, and
/// no trial deletes data of another. The store's `max_batch` should be small, but at least 30,000, because one check
/// builds a batch that is one record larger.
#[async_trait]
pub trait StoreFactory: fmt::Debug + Send + Sync + 'static {
    /// Returns the name of the implementation in trials and in `QI_REQUIRE_BACKENDS`, such as `memory` or `timescale`.
    fn name(&self) -> &str;

    /// Returns the reason if the backend is not available here, for example because it has no address
    /// or does not answer.
    fn absent(&self) -> Option<String> {
        None
    }

    /// Returns the reason if a check does not apply to this implementation. The trial is then ignored with the reason.
    fn not_applicable(&self, check: &str) -> Option<&'static str> {
        let _ = check;
        None
    }

    /// Creates a store of these datasets without a schema.
    async fn without_schema(&self, datasets: &Datasets) -> Result<TestStore>;

    /// Creates a store on a namespace with the schema of a later version of the library.
    async fn newer_schema(&self, datasets: &Datasets) -> Result<TestStore>;

    /// Creates a store whose server does not answer. Its address refuses connections, and its configuration
    /// contains the password [`SECRET`].
    async fn unreachable(&self, datasets: &Datasets) -> Result<TestStore>;

    /// Creates a store of these datasets with a schema.
    async fn with_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        let created = self.without_schema(datasets).await?;
        created.store.ensure_schema().await?;
        Ok(created)
    }
}

/// The password in the configuration of [`StoreFactory::unreachable`]. No output may contain it.
pub const SECRET: &str = "hunter2-must-not-show";

/// A factory of empty memory stores.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemoryFactory;

#[async_trait]
impl StoreFactory for MemoryFactory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn not_applicable(&self, check: &str) -> Option<&'static str> {
        match check {
            "schema::newer_schema_is_rejected" => Some("the memory store does not persist its schema"),
            "schema::added_column_reads_as_absent"
            | "schema::enumeration_accepts_appended_variants"
            | "schema::incompatible_declaration_is_rejected"
            | "schema::older_declaration_continues_to_work" => {
                Some("the memory store does not persist records of another program version")
            }
            "schema::unreachable_server_is_retryable" | "errors::secrets_are_never_shown" => {
                Some("the memory store has no server and no password")
            }
            _ => None,
        }
    }

    async fn without_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        let config = MemoryStoreConfig::default().with_max_rows(1_000_000).with_max_batch(30_000);
        Ok(TestStore::new(Arc::new(MemoryStore::new(config.with_datasets(datasets.clone()))?)))
    }

    async fn newer_schema(&self, _: &Datasets) -> Result<TestStore> {
        Err(unsupported("newer_schema"))
    }

    async fn unreachable(&self, _: &Datasets) -> Result<TestStore> {
        Err(unsupported("unreachable"))
    }
}

fn unsupported(what: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, "contract.memory", what).with_backend("memory")
}
