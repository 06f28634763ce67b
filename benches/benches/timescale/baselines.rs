//! Typical hand-written statements.

use std::fmt::Write as _;
use std::path::Path;

use qi_adapters::timescale::{Pg, TimescaleStore};
use qi_core::{Price, PriceTick, Quantity, Side, Timestamp};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, QueryBuilder};

use crate::setup::Setup;
use crate::ticks::INSTRUMENTS;

/// Creates a table with names as text, and with the indexes that `create_hypertable` adds by default.
pub(crate) fn hand_written_table(setup: &Setup, schema: &str) {
    setup.sql(&format!(
        "CREATE TABLE {schema}.trades (
            exchange text        NOT NULL,
            symbol   text        NOT NULL,
            ts       timestamptz NOT NULL,
            seq      bigint      NOT NULL,
            price    numeric     NOT NULL,
            quantity numeric,
            side     text,
            PRIMARY KEY (exchange, symbol, ts, seq)
        );
        SELECT public.create_hypertable('{schema}.trades', 'ts');"
    ));
}

/// Copies a CSV file into a table with `\copy`.
pub(crate) fn copy_csv(setup: &Setup, table: &str, file: &Path) {
    setup.psql(&[&format!("\\copy {table} FROM '{}' WITH (FORMAT csv)", file.display())]);
}

/// Copies a file into a temporary table, and merges it with one plain upsert.
pub(crate) fn staged_upsert(setup: &Setup, schema: &str, file: &Path) {
    setup.psql(&[
        &format!("CREATE TEMPORARY TABLE incoming (LIKE {schema}.ticks)"),
        &format!("\\copy incoming FROM '{}' WITH (FORMAT csv)", file.display()),
        &format!(
            "INSERT INTO {schema}.ticks SELECT * FROM incoming ON CONFLICT (instrument_id, ts, seq) \
             DO UPDATE SET price = EXCLUDED.price, quantity = EXCLUDED.quantity, side = EXCLUDED.side"
        ),
    ]);
}

/// Upserts with statements of 1,000 rows of bound values, in binary and prepared once, which is the fastest variant.
/// The connection has the settings of the server.
pub(crate) async fn values_upsert(url: &str, schema: &str, ticks: &[PriceTick]) {
    let options: PgConnectOptions = url.parse().expect("a URL");
    let options = options.options([("search_path", schema)]);
    let mut connection = PgConnection::connect_with(&options).await.expect("a connection");
    for part in ticks.chunks(1_000) {
        let mut statement = QueryBuilder::<Postgres>::new(
            "INSERT INTO trades (exchange, symbol, ts, seq, price, quantity, side) ",
        );
        statement.push_values(part, |mut row, tick| {
            row.push_bind(tick.instrument().exchange().as_str())
                .push_bind(tick.instrument().symbol().as_str())
                .push_bind(Pg(tick.ts()))
                .push_bind(Pg(tick.seq()))
                .push_bind(Pg(tick.price()))
                .push_bind(tick.quantity().map(Pg))
                .push_bind(tick.side().map(Side::as_str));
        });
        statement.push(
            " ON CONFLICT (exchange, symbol, ts, seq) DO UPDATE SET \
             price = EXCLUDED.price, quantity = EXCLUDED.quantity, side = EXCLUDED.side",
        );
        statement.build().execute(&mut connection).await.expect("an upsert");
    }
    connection.close().await.expect("a connection that closes");
}

/// Upserts with statements of 1,000 rows of literals, which are parsed and planned each time, like those of `psql` and
/// most object-relational mappers.
pub(crate) async fn literal_upsert(url: &str, schema: &str, ticks: &[PriceTick]) {
    let mut connection = PgConnection::connect(url).await.expect("a connection");
    for part in ticks.chunks(1_000) {
        let mut statement =
            format!("INSERT INTO {schema}.trades (exchange, symbol, ts, seq, price, quantity, side) VALUES ");
        for (at, tick) in part.iter().enumerate() {
            let (exchange, symbol) = (tick.instrument().exchange(), tick.instrument().symbol());
            let (ts, seq, price) = (tick.ts(), tick.seq(), tick.price());
            let quantity = tick.quantity().expect("a quantity");
            let side = tick.side().map_or("", Side::as_str);
            let separator = if at == 0 { "" } else { ", " };
            write!(
                statement,
                "{separator}('{exchange}', '{symbol}', '{ts}', {seq}, {price}, {quantity}, '{side}')"
            )
            .expect("room for a text");
        }
        statement.push_str(
            " ON CONFLICT (exchange, symbol, ts, seq) DO UPDATE SET \
             price = EXCLUDED.price, quantity = EXCLUDED.quantity, side = EXCLUDED.side",
        );
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("an upsert");
    }
    connection.close().await.expect("a connection that closes");
}

/// Upserts with statements with one array for each column, 10,000 rows each, into the adapter's table.
pub(crate) async fn unnest_upsert(store: &TimescaleStore, ticks: &[PriceTick]) {
    const SQL: &str = "INSERT INTO ticks (instrument_id, ts, seq, price, quantity, side) \
        SELECT * FROM unnest($1::int[], $2::timestamptz[], $3::bigint[], $4::numeric[], $5::numeric[], $6::smallint[]) \
        ON CONFLICT (instrument_id, ts, seq) DO UPDATE SET \
        price = EXCLUDED.price, quantity = EXCLUDED.quantity, side = EXCLUDED.side";
    for part in ticks.chunks(10_000) {
        let ids: Vec<i32> = part.iter().map(id_of).collect();
        let times: Vec<Pg<Timestamp>> = part.iter().map(|tick| Pg(tick.ts())).collect();
        let seqs: Vec<Pg<u64>> = part.iter().map(|tick| Pg(tick.seq())).collect();
        let prices: Vec<Pg<Price>> = part.iter().map(|tick| Pg(tick.price())).collect();
        let quantities: Vec<Option<Pg<Quantity>>> = part.iter().map(|tick| tick.quantity().map(Pg)).collect();
        let sides: Vec<Option<i16>> =
            part.iter().map(|tick| tick.side().map(|side| if side == Side::Buy { 1 } else { 2 })).collect();
        let statement = sqlx::query(SQL).bind(ids).bind(times).bind(seqs).bind(prices);
        statement.bind(quantities).bind(sides).execute(store.pool()).await.expect("an upsert");
    }
}

/// Returns the instrument's id, which the files of rows use too.
fn id_of(tick: &PriceTick) -> i32 {
    let number = usize::try_from(tick.seq()).expect("a small number") % INSTRUMENTS;
    i32::try_from(number + 1).expect("at most 100")
}
