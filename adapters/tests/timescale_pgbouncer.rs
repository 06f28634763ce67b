//! The contract of the price store through Debian's PgBouncer in session mode and in transaction mode, and what a pooler
//! could break: the settings of a session, the schema, and prepared statements.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers;
mod timescale_rig;

use std::process::ExitCode;
use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Arguments;
use qi_adapters::config::Pooler;
use qi_adapters::timescale::TimescaleStore;
use qi_core::{ErrorKind, Instrument, PriceStore, PriceStoreExt, PriceTick, Timestamp};
use qi_testkit::store::contract::{Suite, Wrapper};
use servers::{namespace, runs_long_tests, trial};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use timescale_rig::{Server, drop_schema};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let (mut suite, mut trials, mut pgbouncers) = (Suite::new(), Vec::new(), Vec::new());
    // Debian 12's PgBouncer before PostgreSQL cannot track prepared statements; Debian 13's before TimescaleDB can.
    for ([name, maintained], server, pooler) in [
        (["session", "session_maintained"], Server::postgres(), Pooler::Session),
        (["session", "session_maintained"], Server::timescale(), Pooler::Session),
        (["transaction", "transaction_maintained"], Server::postgres(), Pooler::Transaction),
        (["transaction", "transaction_maintained"], Server::timescale(), Pooler::Transaction),
        (
            ["transaction_prepared", "transaction_prepared_maintained"],
            Server::timescale(),
            Pooler::TransactionPrepared,
        ),
    ] {
        let (server, pgbouncer) = server.behind_pgbouncer(pooler);
        pgbouncers.extend(pgbouncer);
        let wrapper = Wrapper { name, ..Wrapper::PLAIN };
        let maintained = Wrapper { name: maintained, ..Wrapper::MAINTAINED };
        suite = match (pooler, server.hypertables()) {
            _ if runs_long_tests() => suite.on(server.clone(), [wrapper]).on_datasets(
                server.clone().with_materialized_bars(),
                [maintained],
                &["ticks"],
            ),
            // A subset of `TransactionPrepared` on the same server, and of `Session` on the other server.
            (Pooler::Transaction | Pooler::Session, true) => suite,
            // Each statement of maintenance may use another session of the server.
            (Pooler::Transaction, false) => {
                suite.on_datasets(server.clone().with_materialized_bars(), [maintained], &["ticks"])
            }
            _ => suite.on_datasets(server.clone(), [wrapper], &["ticks"]),
        };
        if pooler == Pooler::Transaction && !server.hypertables() {
            trials.push(trial(&server, "transaction/a_wrong_pool_mode_is_a_configuration_error", wrong_mode));
        }
        trials.extend([
            trial(&server, &format!("{name}/the_tables_are_in_the_schema"), schema),
            trial(&server, &format!("{name}/two_schemas_do_not_mix"), two_schemas),
            trial(&server, &format!("{name}/the_timeouts_are_effective"), timeouts),
            trial(
                &server,
                &format!("{name}/unsupported_startup_parameter_is_a_configuration_error"),
                rejected,
            ),
        ]);
    }
    trials.extend(suite.trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(pgbouncers);
    conclusion.exit_code()
}

fn tick(symbol: &str, price: &str) -> PriceTick {
    let instrument: Instrument = format!("x:{symbol}").parse().unwrap();
    let ts = Timestamp::from_secs(1_700_000_000).unwrap();
    PriceTick::new(instrument, ts, 1, price.parse().unwrap()).unwrap()
}

async fn schema(server: Server) {
    let (store, schema) = server.open().unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_tick(&tick("A", "1")).await.unwrap();
    let mut direct = PgConnection::connect(server.direct_url()).await.unwrap();
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename IN \
                  ('ticks', 'quotes', 'bars', 'snapshots', 'instruments', 'qi_migrations')";
    let count = |schema: String| sqlx::query_scalar::<_, i64>(tables).bind(schema);
    assert_eq!(count(schema.clone()).fetch_one(&mut direct).await.unwrap(), 6);
    assert_eq!(count("public".to_owned()).fetch_one(&mut direct).await.unwrap(), 0);
    let rows = AssertSqlSafe(format!("SELECT count(*) FROM {schema}.ticks"));
    assert_eq!(sqlx::query_scalar::<_, i64>(rows).fetch_one(&mut direct).await.unwrap(), 1);
    store.close().await.unwrap();
    drop_schema(server.direct_url(), &schema).await;
}

/// Two stores share the server's sessions. Each reads only its own records.
async fn two_schemas(server: Server) {
    const ROUNDS: usize = 30;
    let stores = [server.open().unwrap(), server.open().unwrap()];
    for (store, _) in &stores {
        store.ensure_schema().await.unwrap();
    }
    let work = stores.iter().enumerate().flat_map(|(n, (store, _))| {
        (0..4).map(move |writer| async move {
            for round in 0..ROUNDS {
                // The two stores give one instrument different prices.
                let own = tick(&format!("W{writer}"), &format!("{}.{round}", n + 1));
                store.insert_tick(&own).await.unwrap();
                assert_eq!(store.latest_tick(own.instrument()).await.unwrap(), Some(own));
            }
        })
    });
    join_all(work).await;
    for (store, schema) in &stores {
        store.close().await.unwrap();
        drop_schema(server.direct_url(), schema).await;
    }
}

/// A statement ends at the configured limit, not at the server's, although another session holds the lock.
async fn timeouts(server: Server) {
    let schema = namespace();
    TimescaleStore::open(server.config(&schema)).unwrap().ensure_schema().await.unwrap();
    let mut direct = PgConnection::connect(server.direct_url()).await.unwrap();
    let mut locked = direct.begin().await.unwrap();
    let lock = AssertSqlSafe(format!("LOCK TABLE {schema}.ticks IN ACCESS EXCLUSIVE MODE"));
    sqlx::query(lock).execute(&mut *locked).await.unwrap();
    let (short, long) = (Duration::from_millis(300), Duration::from_secs(100));
    for (statement, lock, code) in
        [(long, short, "store.timescale.lock_timeout"), (short, long, "store.timescale.statement_timeout")]
    {
        let mut config = server.config(&schema);
        config.server_limits.statement_timeout = statement;
        config.server_limits.lock_timeout = lock;
        let store = TimescaleStore::open(config).unwrap();
        let ticks = vec![tick("A", "1")];
        let error = store.insert_ticks(&ticks).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Timeout, code), "{}", error.report());
        store.close().await.unwrap();
    }
    locked.rollback().await.unwrap();
    direct.close().await.unwrap();
    drop_schema(server.direct_url(), &schema).await;
}

async fn rejected(server: Server) {
    let mut config = server.config("unused");
    config.url = Some(format!("{}?options[jit]=off", server.url()).into());
    let store = TimescaleStore::open(config).unwrap();
    for error in [store.ping().await.map(drop), store.ensure_schema().await.map(drop)] {
        let error = error.unwrap_err();
        assert_eq!(
            (error.kind(), error.code(), error.retry().is_retryable()),
            (ErrorKind::Config, "store.timescale.startup_parameter", false),
            "{}",
            error.report()
        );
    }
    store.close().await.unwrap();
}

/// A named statement of one connection is visible to the next one, because this PgBouncer does not track statements.
async fn wrong_mode(server: Server) {
    for _ in 0..20 {
        let mut config = server.config("unused");
        config.pooler = Pooler::Session;
        let store = TimescaleStore::open(config).unwrap();
        let outcome = store.ping().await;
        store.close().await.unwrap();
        if let Err(error) = outcome {
            let found = (error.kind(), error.retry().is_retryable());
            assert_eq!(found, (ErrorKind::Config, false), "{}", error.report());
            assert!(error.code().starts_with("store.timescale.pooler_"), "{error}");
            assert!(error.to_string().contains("`pooler = \"transaction\"`"), "{error}");
            return;
        }
    }
    panic!("no connection used a session of another connection");
}
