//! The expected columns compared with the migrated schema, and the domain types in custom SQL.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers;
mod timescale_rig;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use qi_adapters::timescale::{Pg, TimescaleStore};
use qi_core::Datasets;
use qi_core::domain::Provider;
use qi_core::{
    Bar, BarValues, Decimal, Exchange, Interval, MarketSnapshot, Price, PriceStore, PriceStoreExt, PriceTick,
    Quantity, Quote, QuoteValues, Scope, Side, SnapshotValues, Symbol, Timestamp,
};
use qi_testkit::presence;
use qi_testkit::store::contract::StoreFactory;
use sqlx::{AssertSqlSafe, Decode, Encode, FromRow, Postgres, Type};
use timescale_rig::{Server, drop_schema};

fn main() {
    let mut trials = Vec::new();
    for server in [Server::timescale(), Server::postgres()] {
        trials.push(trial(&server, "the_table_columns_match_the_code", columns));
        trials.push(trial(&server, "values_round_trip", values));
        trials.push(trial(&server, "random_decimals_match_the_server", decimals));
        trials.push(trial(&server, "values_outside_the_domain_are_rejected", foreign));
        trials.push(trial(&server, "records_are_read_from_the_views", records));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

fn trial<F, R>(server: &Server, name: &str, check: F) -> Trial
where
    F: FnOnce(TimescaleStore) -> R + Send + 'static,
    R: Future<Output = ()>,
{
    let server = server.clone();
    let (backend, absent) = (server.name().to_owned(), server.absent());
    presence::trial(format!("{backend}/{name}"), &backend, absent, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (store, schema) = server.open().unwrap();
            store.ensure_schema().await.unwrap();
            check(store.clone()).await;
            store.close().await.unwrap();
            drop_schema(server.url(), &schema).await;
            Ok::<_, Failed>(Completion::Completed)
        })
    })
}

async fn columns(store: TimescaleStore) {
    for dataset in Datasets::standard().iter() {
        assert_eq!(
            store.columns(dataset).await.unwrap(),
            TimescaleStore::expected_columns(dataset),
            "{dataset}"
        );
    }
}

async fn round_trip<T>(store: &TimescaleStore, value: T)
where
    T: Clone + PartialEq + std::fmt::Debug + Send,
    Pg<T>: for<'q> Encode<'q, Postgres> + for<'r> Decode<'r, Postgres> + Type<Postgres> + Send + Unpin,
{
    // Prepared statements are cached by their text, so every type needs a different text.
    let sql = AssertSqlSafe(format!("SELECT $1 /* {} */", std::any::type_name::<T>()));
    let Pg(back): Pg<T> =
        sqlx::query_scalar(sql).bind(Pg(value.clone())).fetch_one(store.pool()).await.unwrap();
    assert_eq!(back, value);
}

fn max_decimal() -> Decimal {
    Decimal::from_units(10_i128.pow(38) - 1).unwrap()
}

async fn values(store: TimescaleStore) {
    for units in [0, 1, -1, 10_i128.pow(18), 10_i128.pow(38) - 1, 1 - 10_i128.pow(38), 12_345_678_901_234_567]
    {
        round_trip(&store, Decimal::from_units(units).unwrap()).await;
    }
    round_trip(&store, Price::new(max_decimal()).unwrap()).await;
    round_trip(&store, Quantity::ZERO).await;
    for time in [Timestamp::MIN, Timestamp::MAX_RECORD, Timestamp::MAX] {
        round_trip(&store, time).await;
    }
    for interval in Interval::ALL {
        round_trip(&store, *interval).await;
    }
    for scope in ["global", "asset:BTC", "exchange:kraken"] {
        round_trip(&store, scope.parse::<Scope>().unwrap()).await;
    }
    round_trip(&store, Side::Buy).await;
    round_trip(&store, Exchange::new("binance").unwrap()).await;
    round_trip(&store, Symbol::new("BTC-USDT").unwrap()).await;
    round_trip(&store, Provider::new("coingecko").unwrap()).await;
    round_trip(&store, i64::MAX.cast_unsigned()).await;
    let none: Option<Pg<Price>> = sqlx::query_scalar("SELECT $1 AS none")
        .bind(None::<Pg<Price>>)
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(none, None);
    let prices = vec![Pg(Price::from_units(1).unwrap()), Pg(Price::new(max_decimal()).unwrap())];
    let back: Vec<Pg<Price>> = sqlx::query_scalar("SELECT x FROM unnest($1) x")
        .bind(&prices[..])
        .fetch_all(store.pool())
        .await
        .unwrap();
    assert_eq!(back, prices);
}

/// 10,000 decimals in one array. The server's text is the same as the library's text, and the
/// returned values are equal.
async fn decimals(store: TimescaleStore) {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let decimals: Vec<Pg<Decimal>> = (0..10_000_u32)
        .map(|at| {
            let wide = (u128::from(next()) << 64) | u128::from(next());
            let units = i128::try_from(wide % 10_u128.pow(1 + at % 38)).unwrap();
            Pg(Decimal::from_units(if next() % 2 == 0 { units } else { -units }).unwrap())
        })
        .collect();
    let rows: Vec<(String, Pg<Decimal>)> = sqlx::query_as(
        "SELECT trim_scale(x.v)::text, x.v::numeric(38,18) FROM unnest($1) WITH ORDINALITY AS x(v, n) ORDER BY x.n",
    )
    .bind(&decimals[..])
    .fetch_all(store.pool())
    .await
    .unwrap();
    assert_eq!(rows.len(), decimals.len());
    for ((text, back), sent) in rows.into_iter().zip(decimals) {
        assert_eq!((text, back), (sent.0.to_string(), sent));
    }
}

async fn foreign(store: TimescaleStore) {
    async fn rejected<T>(store: &TimescaleStore, sql: &'static str)
    where
        Pg<T>: for<'r> Decode<'r, Postgres> + Type<Postgres> + Send + Unpin,
    {
        let found = sqlx::query_scalar::<_, Pg<T>>(sql).fetch_one(store.pool()).await;
        assert!(matches!(found, Err(sqlx::Error::ColumnDecode { .. })), "{sql}");
    }
    rejected::<Decimal>(&store, "SELECT 'NaN'::numeric").await;
    rejected::<Decimal>(&store, "SELECT 'Infinity'::numeric").await;
    rejected::<Decimal>(&store, "SELECT 0.0000000000000000001::numeric").await;
    rejected::<Decimal>(&store, "SELECT 100000000000000000000::numeric").await;
    rejected::<Price>(&store, "SELECT 0::numeric").await;
    rejected::<Quantity>(&store, "SELECT (-1)::numeric").await;
    rejected::<Timestamp>(&store, "SELECT 'infinity'::timestamptz").await;
    rejected::<Timestamp>(&store, "SELECT '1969-01-01+00'::timestamptz").await;
    rejected::<Symbol>(&store, "SELECT 'b tc'::text").await;
    rejected::<Interval>(&store, "SELECT '7m'::text").await;
    rejected::<u64>(&store, "SELECT (-1)::bigint").await;
    assert!(sqlx::query("SELECT $1 AS most").bind(Pg(u64::MAX)).execute(store.pool()).await.is_err());
    // The same through the port: a value outside the domain is corrupt, and is not omitted.
    let tick = PriceTick::new("x:Y".parse().unwrap(), Timestamp::MIN, 0, "1".parse().unwrap()).unwrap();
    store.insert_ticks(std::slice::from_ref(&tick)).await.unwrap();
    sqlx::query("UPDATE ticks SET price = -1").execute(store.pool()).await.unwrap();
    let query = qi_core::store::RangeQuery::new(tick.instrument().clone(), qi_core::TimeRange::ALL);
    let error = store.ticks(&query).await.unwrap_err();
    assert_eq!(error.kind(), qi_core::ErrorKind::CorruptData, "{error}");
}

async fn view<R>(store: &TimescaleStore, sql: &'static str) -> Vec<R>
where
    Pg<R>: for<'r> FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
{
    let rows: Vec<Pg<R>> = sqlx::query_as(sql).fetch_all(store.pool()).await.unwrap();
    rows.into_iter().map(|row| row.0).collect()
}

async fn records(store: TimescaleStore) {
    let (name, ts) = ("x:Y".parse::<qi_core::Instrument>().unwrap(), Timestamp::MIN);
    let price: Price = "1.5".parse().unwrap();
    let tick = PriceTick::new(name.clone(), ts, 7, price).unwrap();
    let ticks = vec![
        tick.clone().with_quantity(Quantity::ZERO).with_side(Side::Sell),
        PriceTick::new(name.clone(), ts, 8, price).unwrap(),
    ];
    store.insert_ticks(&ticks).await.unwrap();
    assert_eq!(view::<PriceTick>(&store, "SELECT * FROM ticks_view ORDER BY ts, seq").await, ticks);

    let values = QuoteValues { ask_price: Some(price), ..QuoteValues::default() };
    let quotes = vec![Quote::new(name.clone(), ts, 7, values).unwrap()];
    store.insert_quotes(&quotes).await.unwrap();
    assert_eq!(view::<Quote>(&store, "SELECT * FROM quotes_view").await, quotes);

    let bars = vec![Bar::new(name, Interval::W1, ts, BarValues::flat(price)).unwrap()];
    store.insert_bars(&bars).await.unwrap();
    assert_eq!(view::<Bar>(&store, "SELECT * FROM bars_view").await, bars);

    let values =
        SnapshotValues { markets: Some(3), source: Provider::new("x").ok(), ..SnapshotValues::default() };
    let snapshots = vec![MarketSnapshot::new(Scope::Global, ts, values).unwrap()];
    store.insert_snapshots(&snapshots).await.unwrap();
    assert_eq!(view::<MarketSnapshot>(&store, "SELECT * FROM snapshots_view").await, snapshots);
}
