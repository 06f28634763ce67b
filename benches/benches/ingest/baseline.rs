//! A typical hand-written writer: poll, `serde_json`, COPY into a temporary table, upsert, commit.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use qi_core::bus::{Encoding, TopicName};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::Message as _;
use serde::Deserialize;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{PARTITIONS, Running, Setup, TICKS, compare, create, publish, topic, unique, variable};

#[derive(Deserialize)]
struct Tick {
    instrument: String,
    ts: i64,
    seq: u64,
    price: String,
    quantity: Option<String>,
    side: Option<String>,
}

pub(crate) fn run(setup: &Setup) {
    let (Some(brokers), Some(url)) = (variable("QI_KAFKA_BROKERS"), variable("QI_TIMESCALE_URL")) else {
        return println!(
            "baseline: QI_KAFKA_BROKERS or QI_TIMESCALE_URL is not set, so nothing was measured"
        );
    };
    let bus = setup.bus(&brokers);
    let name = setup.block_on(async {
        let name = topic(&*bus, PARTITIONS).await;
        publish(bus.clone(), name.clone(), &setup.ticks, Encoding::Json).await;
        name
    });
    let ours = || {
        setup.block_on(async {
            let store = create("timescale", &url).await;
            let began = Instant::now();
            let running = Running::start(bus.clone(), store, &name).await;
            running.stored(TICKS).await;
            let took = began.elapsed();
            running.stop().await;
            took
        })
    };
    let theirs = || setup.block_on(by_hand(&brokers, &url, &name));
    println!("ingest over a hand-written loop, a full topic of JSON: {}", compare(setup, ours, theirs));
    let _ = setup.block_on(bus.delete_topics(&[name]));
}

async fn by_hand(brokers: &str, url: &str, topic: &TopicName) -> Duration {
    let table = unique();
    let mut connection = PgConnection::connect(url).await.expect("a server that answers");
    let create = format!(
        "CREATE TABLE {table} (instrument text, ts timestamptz, seq bigint, price numeric(38, 18), \
         quantity numeric(38, 18), side text, PRIMARY KEY (instrument, ts, seq)); \
         SELECT create_hypertable('{table}', 'ts', chunk_time_interval => interval '1 day'); \
         CREATE TEMPORARY TABLE incoming (LIKE {table})"
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(create))).await.expect("a table");
    let upsert = format!(
        "INSERT INTO {table} SELECT DISTINCT ON (instrument, ts, seq) * FROM incoming \
         ON CONFLICT (instrument, ts, seq) DO UPDATE SET price = excluded.price, quantity = excluded.quantity, \
         side = excluded.side; TRUNCATE incoming"
    );
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", unique())
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("a consumer");
    consumer.subscribe(&[topic.as_str()]).expect("a topic");
    let (began, mut done) = (Instant::now(), 0);
    while done < TICKS {
        let (mut rows, mut count) = (String::new(), 0);
        while count < 1_000 {
            let wait = if count == 0 { Duration::from_secs(10) } else { Duration::ZERO };
            let Some(message) = consumer.poll(wait) else { break };
            let message = message.expect("brokers that answer");
            let tick: Tick = serde_json::from_slice(message.payload().expect("a payload")).expect("a tick");
            let null = "\\N".to_owned();
            let (quantity, side) = (tick.quantity.unwrap_or_else(|| null.clone()), tick.side.unwrap_or(null));
            let (secs, micros) = (tick.ts.div_euclid(1_000_000), tick.ts.rem_euclid(1_000_000));
            let time = qi_core::Timestamp::from_secs(secs).expect("a time").to_string();
            let _ = writeln!(
                rows,
                "{}\t{}.{micros:06}Z\t{}\t{}\t{quantity}\t{side}",
                tick.instrument,
                time.trim_end_matches('Z'),
                tick.seq,
                tick.price
            );
            count += 1;
        }
        if count == 0 {
            continue;
        }
        let mut copy = connection.copy_in_raw("COPY incoming FROM STDIN").await.expect("a copy");
        copy.send(rows.as_bytes()).await.expect("rows");
        copy.finish().await.expect("rows");
        connection.execute(sqlx::raw_sql(AssertSqlSafe(upsert.clone()))).await.expect("an upsert");
        consumer.commit_consumer_state(CommitMode::Sync).expect("a commit");
        done += count;
    }
    let took = began.elapsed();
    let drop = format!("DROP TABLE {table}");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(drop))).await.expect("a table");
    took
}
