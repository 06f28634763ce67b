//! Stores on the server of the environment, each with a unique prefix.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_core::Datasets;
use qi_core::{PriceStore, Result};
use qi_testkit::store::contract::{SECRET, StoreFactory, TestStore};

use crate::servers::{TestServer, namespace};

/// A server, and the creation of its stores.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    url: Option<String>,
    materialized_bars: bool,
}

impl Server {
    /// Returns the server of `QI_CLICKHOUSE_URL`.
    pub(crate) fn clickhouse() -> Self {
        let url = std::env::var("QI_CLICKHOUSE_URL").ok().filter(|url| !url.is_empty());
        Self { url, materialized_bars: false }
    }

    /// Returns the server for stores with materialized bars.
    pub(crate) fn with_materialized_bars(self) -> Self {
        Self { materialized_bars: true, ..self }
    }

    /// Returns the address. The suites check `absent` first.
    pub(crate) fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    /// Returns the configuration of a store with a prefix.
    pub(crate) fn config(&self, prefix: &str) -> ClickHouseConfig {
        let mut config = ClickHouseConfig::from_url(self.url());
        prefix.clone_into(&mut config.table_prefix);
        config.max_batch = 30_000;
        if self.materialized_bars {
            config.materialized_bars = Some(true);
            config.bars_settle = std::time::Duration::ZERO;
        }
        // Some checks run concurrently.
        config.pool.acquire_timeout = std::time::Duration::from_secs(20);
        config
    }

    /// Returns a store with a unique prefix, and the prefix.
    pub(crate) fn open(&self, datasets: &Datasets) -> Result<(ClickHouseStore, String)> {
        let prefix = format!("{}_", namespace());
        Ok((self.with_datasets(&prefix, datasets.clone())?, prefix))
    }

    /// Returns a store of these datasets with a prefix.
    pub(crate) fn with_datasets(&self, prefix: &str, datasets: Datasets) -> Result<ClickHouseStore> {
        ClickHouseStore::open(self.config(prefix).with_datasets(datasets))
    }

    fn test_store(&self, store: ClickHouseStore, prefix: String) -> TestStore {
        let cleanup = {
            let (server, store, prefix) = (self.clone(), store.clone(), prefix.clone());
            async move {
                store.close().await?;
                server.drop_tables(&prefix).await;
                Ok(())
            }
        };
        let server = self.clone();
        let reopen = move |datasets| {
            let opened = server.with_datasets(&prefix, datasets);
            async move { Ok(Arc::new(opened?) as Arc<dyn PriceStore>) }.boxed()
        };
        TestStore::new(Arc::new(store)).with_cleanup(cleanup).with_reopen(reopen)
    }

    /// Removes all tables of a prefix.
    pub(crate) async fn drop_tables(&self, prefix: &str) {
        let store = ClickHouseStore::open(self.config(prefix)).unwrap();
        let named = format!(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, '{prefix}')"
        );
        for table in store.client().query_raw(&named).fetch_all::<String>().await.unwrap() {
            let drop = format!("DROP TABLE IF EXISTS `{table}` SYNC");
            store.client().query_raw(&drop).execute().await.unwrap();
        }
    }
}

impl TestServer for Server {
    fn kind(&self) -> &str {
        self.name()
    }

    fn missing(&self) -> Option<String> {
        self.absent()
    }

    fn with_address(self, url: String) -> Self {
        Self { url: Some(url), ..self }
    }
}

#[async_trait]
impl StoreFactory for Server {
    fn name(&self) -> &'static str {
        "clickhouse"
    }

    fn absent(&self) -> Option<String> {
        self.url.is_none().then(|| "QI_CLICKHOUSE_URL is not set".to_owned())
    }

    async fn without_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        let (store, prefix) = self.open(datasets)?;
        Ok(self.test_store(store, prefix))
    }

    async fn newer_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        let (store, prefix) = self.open(datasets)?;
        store.ensure_schema().await?;
        let insert =
            format!("INSERT INTO {prefix}qi_migrations SELECT 1000000, 'of a later version', now64(6)");
        store.client().query_raw(&insert).execute().await.unwrap();
        Ok(self.test_store(store, prefix))
    }

    async fn unreachable(&self, datasets: &Datasets) -> Result<TestStore> {
        // No server listens on port 1.
        let config = ClickHouseConfig::from_url(format!("http://qi:{SECRET}@127.0.0.1:1"));
        let store = ClickHouseStore::open(config.with_datasets(datasets.clone()))?;
        Ok(TestStore::new(Arc::new(store)))
    }
}
