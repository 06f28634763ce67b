//! Stores on the servers of the environment, each in a separate schema.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]

pub(crate) mod converting;

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use qi_adapters::config::{Hypertables, Pooler};
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_core::Datasets;
use qi_core::layer::Layered;
use qi_core::{PriceStore, Result};
use qi_testkit::store::contract::{SECRET, StoreFactory, TestStore};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::servers::{Spare, TestServer, namespace, no_root};

/// A server, and the creation of its stores.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    name: &'static str,
    variable: &'static str,
    url: Option<String>,
    /// The address for the rig's own connections, which do not use the pooler.
    direct_url: Option<String>,
    hypertables: Hypertables,
    pooler: Pooler,
    converts: bool,
    materialized_bars: bool,
    /// The reason why the pooler is absent.
    no_pooler: Option<String>,
}

impl Server {
    /// Returns the TimescaleDB server of the environment.
    pub(crate) fn timescale() -> Self {
        Self {
            name: "timescale",
            variable: "QI_TIMESCALE_URL",
            url: url("QI_TIMESCALE_URL"),
            direct_url: url("QI_TIMESCALE_URL"),
            hypertables: Hypertables::On,
            pooler: Pooler::Session,
            no_pooler: None,
            materialized_bars: false,
            converts: std::env::var("QI_TIMESCALE_CONVERT_CHUNKS").is_ok_and(|word| word == "1"),
        }
    }

    /// Returns the plain PostgreSQL server of the environment.
    pub(crate) fn postgres() -> Self {
        Self {
            name: "postgres",
            variable: "QI_POSTGRES_URL",
            url: url("QI_POSTGRES_URL"),
            direct_url: url("QI_POSTGRES_URL"),
            hypertables: Hypertables::Off,
            pooler: Pooler::Session,
            no_pooler: None,
            materialized_bars: false,
            converts: false,
        }
    }

    /// Returns the server behind a PgBouncer in this pool mode, and the PgBouncer.
    pub(crate) fn behind_pgbouncer(self, pooler: Pooler) -> (Self, Option<Spare>) {
        let mode = if pooler == Pooler::Session { "session" } else { "transaction" };
        let Some(port) = self.url.as_deref().and_then(|url| url.rsplit(':').next()?.split('/').next()) else {
            return (self, None);
        };
        match no_root().map_or_else(|| Spare::start_with("pgbouncer", &[self.name, port, mode]), Err) {
            Ok((pgbouncer, url)) => (Self { url: Some(url), pooler, ..self }, Some(pgbouncer)),
            Err(reason) => (Self { no_pooler: Some(reason), ..self }, None),
        }
    }

    /// Returns the server for stores with materialized bars.
    pub(crate) fn with_materialized_bars(self) -> Self {
        Self { materialized_bars: true, ..self }
    }

    /// Returns true if the tables are hypertables.
    pub(crate) fn hypertables(&self) -> bool {
        self.hypertables == Hypertables::On
    }

    /// Returns the address without the pooler.
    pub(crate) fn direct_url(&self) -> &str {
        self.direct_url.as_deref().unwrap_or_default()
    }

    /// Returns the address. The suites check `absent` first.
    pub(crate) fn url(&self) -> &str {
        self.url.as_deref().unwrap_or_default()
    }

    /// Returns the configuration of a store in a schema.
    pub(crate) fn config(&self, schema: &str) -> TimescaleConfig {
        let mut config = TimescaleConfig::from_url(self.url());
        schema.clone_into(&mut config.schema);
        config.hypertables = self.hypertables;
        config.pooler = self.pooler;
        config.max_batch = 30_000;
        if self.materialized_bars {
            config.materialized_bars = Some(true);
            // Small batches of the tests use COPY and merges.
            config.write.copy_from = 8;
        }
        // In session mode, each idle connection holds a session of the pooler.
        config.pool.max_connections = if self.url == self.direct_url { 6 } else { 4 };
        // Some checks run concurrently on few connections of a shared server.
        config.pool.acquire_timeout = std::time::Duration::from_secs(20);
        config
    }

    /// Returns a store in a new schema, and the name of the schema.
    pub(crate) fn open(&self) -> Result<(TimescaleStore, String)> {
        let schema = namespace();
        Ok((TimescaleStore::open(self.config(&schema))?, schema))
    }

    fn wrapped(&self, store: TimescaleStore) -> Arc<dyn PriceStore> {
        if self.converts {
            Arc::new(Layered::new(store.clone(), converting::Converting(store)))
        } else {
            Arc::new(store)
        }
    }

    fn test_store(&self, config: TimescaleConfig) -> Result<TestStore> {
        let store = TimescaleStore::open(config.clone())?;
        let (url, schema) = (self.direct_url().to_owned(), config.schema.clone());
        let cleanup = {
            let store = store.clone();
            async move {
                store.close().await?;
                drop_schema(&url, &schema).await;
                Ok(())
            }
        };
        let server = self.clone();
        let reopen = move |datasets| -> BoxFuture<'static, Result<Arc<dyn PriceStore>>> {
            let opened = TimescaleStore::open(config.clone().with_datasets(datasets));
            let opened = opened.map(|store| server.wrapped(store));
            Box::pin(async move { opened })
        };
        Ok(TestStore::new(self.wrapped(store)).with_cleanup(cleanup).with_reopen(reopen))
    }
}

fn url(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}

/// Drops a schema and all its contents, on a separate connection.
pub(crate) async fn drop_schema(url: &str, schema: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    // Other trials drop their schemas at the same time. They share the catalog of TimescaleDB, so
    // a deadlock is retried.
    for attempt in 0..10 {
        let drop = AssertSqlSafe(format!("DROP SCHEMA IF EXISTS {schema} CASCADE"));
        match sqlx::query(drop).execute(&mut connection).await {
            Ok(_) => break,
            Err(error) if attempt == 9 => panic!("dropping {schema}: {error}"),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
    connection.close().await.unwrap();
}

impl TestServer for Server {
    fn kind(&self) -> &str {
        self.name()
    }

    fn missing(&self) -> Option<String> {
        self.absent()
    }

    fn with_address(self, url: String) -> Self {
        Self { direct_url: Some(url.clone()), url: Some(url), ..self }
    }
}

#[async_trait]
impl StoreFactory for Server {
    fn name(&self) -> &str {
        self.name
    }

    fn absent(&self) -> Option<String> {
        let unset = || self.url.is_none().then(|| format!("{} is not set", self.variable));
        self.no_pooler.clone().or_else(unset)
    }

    async fn without_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        self.test_store(self.config(&namespace()).with_datasets(datasets.clone()))
    }

    async fn newer_schema(&self, datasets: &Datasets) -> Result<TestStore> {
        let config = self.config(&namespace()).with_datasets(datasets.clone());
        let store = TimescaleStore::open(config.clone())?;
        store.ensure_schema().await?;
        let mut connection = PgConnection::connect(self.direct_url()).await.unwrap();
        sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO {}.qi_migrations (version, description, success, checksum, execution_time) \
             VALUES (1000000, 'of a later version', true, '', 0)",
            config.schema
        )))
        .execute(&mut connection)
        .await
        .unwrap();
        connection.close().await.unwrap();
        store.close().await?;
        self.test_store(config)
    }

    async fn unreachable(&self, datasets: &Datasets) -> Result<TestStore> {
        // No server listens on port 1.
        let mut config = TimescaleConfig::from_url(format!("postgres://qi:{SECRET}@127.0.0.1:1/qi"));
        config.hypertables = self.hypertables;
        config.pool.acquire_timeout = std::time::Duration::from_millis(100);
        config.datasets = datasets.clone();
        Ok(TestStore::new(Arc::new(TimescaleStore::open(config)?)))
    }
}
