//! Stores on the server that the environment names, each with a prefix of its own.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]

use std::sync::Arc;

use async_trait::async_trait;
use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_core::{PriceStore as _, Result};
use qi_testkit::store::contract::{Fresh, SECRET, StoreFactory};

use crate::servers::{Tested, namespace};

/// A server, and how its stores are made.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    url: Option<String>,
}

impl Server {
    /// The one that `QI_CLICKHOUSE_URL` names.
    pub(crate) fn clickhouse() -> Self {
        Self { url: std::env::var("QI_CLICKHOUSE_URL").ok().filter(|url| !url.is_empty()) }
    }

    /// The address; the suites ask `absent` first.
    pub(crate) fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    /// The configuration of a store with a prefix.
    pub(crate) fn config(&self, prefix: &str) -> ClickHouseConfig {
        let mut config = ClickHouseConfig::from_url(self.url());
        prefix.clone_into(&mut config.table_prefix);
        config.max_batch = 30_000;
        // Some checks run beside each other.
        config.pool.acquire_timeout_ms = 20_000;
        config
    }

    /// A store with a prefix of its own, and the prefix.
    pub(crate) fn open(&self) -> Result<(ClickHouseStore, String)> {
        let prefix = format!("{}_", namespace());
        Ok((ClickHouseStore::open(self.config(&prefix))?, prefix))
    }

    fn fresh_of(&self, store: ClickHouseStore, prefix: String) -> Fresh {
        let server = self.clone();
        let cleanup = {
            let store = store.clone();
            async move {
                store.close().await?;
                server.drop_tables(&prefix).await;
                Ok(())
            }
        };
        Fresh::new(Arc::new(store)).with_cleanup(cleanup)
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

impl Tested for Server {
    fn kind(&self) -> &str {
        self.name()
    }

    fn missing(&self) -> Option<String> {
        self.absent()
    }

    fn at(self, url: String) -> Self {
        Self { url: Some(url) }
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

    async fn fresh(&self) -> Result<Fresh> {
        let fresh = self.without_schema().await?;
        fresh.store.ensure_schema().await?;
        Ok(fresh)
    }

    async fn without_schema(&self) -> Result<Fresh> {
        let (store, prefix) = self.open()?;
        Ok(self.fresh_of(store, prefix))
    }

    async fn newer_schema(&self) -> Result<Fresh> {
        let (store, prefix) = self.open()?;
        store.ensure_schema().await?;
        let insert =
            format!("INSERT INTO {prefix}qi_migrations SELECT 1000000, 'of a later version', now64(6)");
        store.client().query_raw(&insert).execute().await.unwrap();
        Ok(self.fresh_of(store, prefix))
    }

    async fn unreachable(&self) -> Result<Fresh> {
        // Nobody listens on port 1.
        let config = ClickHouseConfig::from_url(format!("http://qi:{SECRET}@127.0.0.1:1"));
        Ok(Fresh::new(Arc::new(ClickHouseStore::open(config)?)))
    }
}
