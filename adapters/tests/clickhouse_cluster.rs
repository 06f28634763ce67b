//! The statements that the adapter sends with `cluster` configured. The tests use no cluster. A local port
//! receives the statements and responds like a server without any tables. The statements are compared literally,
//! so that any change is noticed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clickhouse_fake;

use std::sync::{Arc, Mutex};

use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_core::store::{DeleteQuery, PriceStoreExt as _, RangeQuery};
use qi_core::{PriceStore, PriceTick, Selection, TimeRange, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A request: its address, with the settings, and its body.
#[derive(Debug, Clone)]
struct Request {
    address: String,
    body: String,
}

impl Request {
    async fn read(client: &mut TcpStream) -> Option<Self> {
        let mut seen = Vec::new();
        loop {
            if client.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                return None;
            }
            let text = String::from_utf8_lossy(&seen).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let whole = match length {
                Some(length) => body.len() >= length.parse().unwrap(),
                None => seen.ends_with(b"\r\n0\r\n\r\n"),
            };
            if whole {
                let address = head.split(' ').nth(1).unwrap().to_owned();
                let body = if length.is_some() { body.to_owned() } else { String::new() };
                return Some(Self { address, body });
            }
        }
    }

    fn has(&self, setting: &str) -> bool {
        self.address.split(['?', '&']).any(|pair| pair == setting)
    }
}

/// Returns the response of a server that has no database at first, one old partition and no rows.
fn response(request: &Request, made: &[Request]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let made = |start: &str| made.iter().any(|request| request.body.starts_with(start));
    match request.body.as_str() {
        sql if sql.contains("system.settings") => 1_u64.to_le_bytes().to_vec(),
        sql if sql.contains("qi_migrations FINAL") && made("INSERT INTO m_qi_migrations") => {
            1_u64.to_le_bytes().to_vec()
        }
        sql if sql.contains("system.columns") && made("CREATE TABLE") => {
            clickhouse_fake::columns("m_", &[("_local", true), ("", false)])
        }
        sql if sql.contains("formatQuery") => vec![u8::from(made("ALTER TABLE m_ticks_local"))],
        sql if sql.contains("SELECT DISTINCT table") => Vec::new(),
        sql if sql.contains("system.parts") => text("202001"),
        _ => Vec::new(),
    }
}

async fn recorded_requests(log: &Mutex<Vec<Request>>) -> Vec<Request> {
    // The log is complete after all responses.
    tokio::task::yield_now().await;
    std::mem::take(&mut *log.lock().unwrap())
}

fn lines(requests: &[Request]) -> Vec<&str> {
    // Queries that change nothing are sent to a single node.
    requests.iter().map(|request| request.body.as_str()).filter(|sql| !sql.starts_with("SELECT")).collect()
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one history of a cluster")]
async fn every_schema_change_runs_on_all_nodes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = ClickHouseConfig::from_url(format!("http://{}", listener.local_addr().unwrap()));
    let log = Arc::<Mutex<Vec<Request>>>::default();
    let kept = log.clone();
    tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let Some(request) = Request::read(&mut client).await else { continue };
            seen.push(request.clone());
            let (status, body) = if seen.iter().any(|request| request.body.starts_with("CREATE DATABASE")) {
                ("200 OK", response(&request, &seen))
            } else {
                ("404 Not Found", b"Code: 81. DB::Exception: Database qi does not exist.".to_vec())
            };
            kept.lock().unwrap().push(request);
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = client.write_all(&[head.as_bytes(), &body].concat()).await;
        }
    });
    config.cluster = Some("main".to_owned());
    config.table_prefix = "m_".to_owned();
    config.retention.set("ticks", std::time::Duration::from_hours(48));
    let store = ClickHouseStore::open(config).unwrap();

    let planned = store.plan_schema().await.unwrap();
    assert_eq!(lines(&recorded_requests(&log).await), [""; 0], "a plan changes nothing");
    store.ensure_schema().await.unwrap();
    let requests = recorded_requests(&log).await;
    let made = lines(&requests);
    assert_eq!(made, planned);
    assert_eq!(made[0], "CREATE DATABASE IF NOT EXISTS `qi` ON CLUSTER 'main'");
    assert!(!requests[1].address.contains("database="), "the request must not name a missing database");
    assert_eq!(made.len(), 1 + 1 + 2 * 4 + 1 + 2);
    for (at, table) in ["ticks", "quotes", "bars", "snapshots"].into_iter().enumerate() {
        let (local, front) = (made[2 + 2 * at], made[3 + 2 * at]);
        assert!(
            local.starts_with(&format!("CREATE TABLE IF NOT EXISTS m_{table}_local ON CLUSTER 'main' ("))
        );
        assert!(local.contains("ENGINE = ReplicatedReplacingMergeTree\n"), "{local}");
        assert!(front.starts_with(&format!(
            "CREATE TABLE IF NOT EXISTS m_{table} ON CLUSTER 'main' AS m_{table}_local"
        )));
        assert!(
            front.contains(&format!("ENGINE = Distributed('main', `qi`, m_{table}_local, cityHash64(")),
            "{front}"
        );
    }
    assert!(
        made[1].starts_with("CREATE TABLE IF NOT EXISTS m_qi_migrations ON CLUSTER 'main' ("),
        "{}",
        made[1]
    );
    assert!(
        made[10].starts_with("INSERT INTO m_qi_migrations SELECT 1, 'tables'"),
        "the record is the last: {}",
        made[10]
    );
    assert_eq!(
        made[11],
        "ALTER TABLE m_ticks_local ON CLUSTER 'main' MODIFY SETTING \
         ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1"
    );
    assert_eq!(
        made[12],
        "ALTER TABLE m_ticks_local ON CLUSTER 'main' MODIFY TTL \
         toDateTime(least(intDiv(toUnixTimestamp64Micro(ts), 1000000) + 172800, 4294967295))"
    );

    let time = Timestamp::from_secs(1_700_000_000).unwrap();
    let tick = PriceTick::new("x:Y".parse().unwrap(), time, 1, "1.5".parse().unwrap()).unwrap();
    store.insert_ticks(&[tick]).await.unwrap();
    let requests = recorded_requests(&log).await;
    let insert = requests.iter().find(|request| request.address.contains("query=INSERT")).unwrap();
    assert!(insert.address.contains("query=INSERT+INTO+m_ticks+%28exchange"), "{}", insert.address);
    for setting in [
        "insert_quorum=auto",
        "insert_quorum_parallel=0",
        // Half of the time limit of a request.
        "insert_quorum_timeout=12500",
        "distributed_foreground_insert=1",
        "insert_deduplicate=0",
        "deduplicate_insert=disable",
        "async_insert=0",
    ] {
        assert!(insert.has(setting), "{setting}: {}", insert.address);
    }

    store.ticks(&RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL)).await.unwrap();
    let requests = recorded_requests(&log).await;
    assert!(
        requests[0].body.contains("FROM m_ticks FINAL") && requests[0].has("select_sequential_consistency=1")
    );

    let these = Selection::only(["x:Y".parse().unwrap()]).unwrap();
    let range = TimeRange::new(time, Timestamp::MAX).unwrap();
    store.delete_range(&DeleteQuery::ticks(these, range)).await.unwrap();
    store.purge_before(PriceTick::DATASET, time).await.unwrap();
    let requests = recorded_requests(&log).await;
    assert_eq!(
        lines(&requests),
        [
            "DELETE FROM m_ticks_local ON CLUSTER 'main' WHERE (exchange, symbol) IN (('x', 'Y')) \
             AND ts >= fromUnixTimestamp64Micro(1700000000000000, 'UTC') \
             AND ts < fromUnixTimestamp64Micro(9217238400000000, 'UTC') \
             SETTINGS lightweight_deletes_sync = 2, mutations_sync = 2",
            "ALTER TABLE m_ticks_local ON CLUSTER 'main' DROP PARTITION ID '202001'",
            "DELETE FROM m_ticks_local ON CLUSTER 'main' WHERE ts >= fromUnixTimestamp64Micro(345600000000, 'UTC') \
             AND ts < fromUnixTimestamp64Micro(1700000000000000, 'UTC') \
             SETTINGS lightweight_deletes_sync = 2, mutations_sync = 2",
        ]
    );
    assert!(requests.iter().any(|r| r.body.contains("FROM clusterAllReplicas('main', system.parts)")));
}
