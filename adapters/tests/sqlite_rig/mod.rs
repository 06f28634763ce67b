//! Stores in files of a temporary folder.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use qi_adapters::sqlite::{SqliteConfig, SqliteStore};
use qi_core::{Datasets, PriceStore, Result};
use qi_testkit::store::contract::{StoreFactory, TestStore};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tempfile::TempDir;

/// A folder for the files of all stores of a test target.
#[derive(Debug, Clone)]
pub(crate) struct Folder(Arc<TempDir>);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(Arc::new(tempfile::tempdir().unwrap()))
    }

    /// Returns the path of a file that does not exist.
    pub(crate) fn path(&self) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        self.0.path().join(format!("{}.db", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Returns the configuration of a store in a new file.
    pub(crate) fn config(&self) -> SqliteConfig {
        let mut config = SqliteConfig::from_path(self.path());
        config.max_batch = 30_000;
        config
    }

    fn test_store(config: SqliteConfig) -> Result<TestStore> {
        let store = SqliteStore::open(config.clone())?;
        let (opened, path) = (store.clone(), config.path.clone());
        let cleanup = async move {
            opened.close().await?;
            // A store without a schema has no file.
            let _ = std::fs::remove_file(path);
            Ok(())
        };
        let reopen = move |datasets| -> futures::future::BoxFuture<'static, Result<Arc<dyn PriceStore>>> {
            let opened = SqliteStore::open(config.clone().with_datasets(datasets));
            Box::pin(async move { Ok(Arc::new(opened?) as Arc<dyn PriceStore>) })
        };
        Ok(TestStore::new(Arc::new(store)).with_cleanup(cleanup).with_reopen(reopen))
    }
}

/// Opens a file without the store.
pub(crate) async fn connect(path: &std::path::Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
}

/// Runs statements on a file without the store.
pub(crate) async fn execute(path: &std::path::Path, sql: &str) {
    let mut connection = connect(path).await;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[async_trait]
impl StoreFactory for Folder {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn not_applicable(&self, check: &str) -> Option<&'static str> {
        (check == "errors::secrets_are_never_shown").then_some("the store has no password")
    }

    async fn without_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        Self::test_store(self.config().with_datasets(datasets.clone()))
    }

    async fn newer_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        let config = self.config().with_datasets(datasets.clone());
        let store = SqliteStore::open(config.clone())?;
        store.ensure_schema().await?;
        store.close().await?;
        execute(&config.path, "PRAGMA user_version = 1000000").await;
        Self::test_store(config)
    }

    async fn unreachable(&self, datasets: &Datasets) -> Result<TestStore> {
        let path = self.0.path().join("missing folder").join("prices.db");
        let store = SqliteStore::open(SqliteConfig::from_path(path).with_datasets(datasets.clone()))?;
        Ok(TestStore::new(Arc::new(store)))
    }
}
