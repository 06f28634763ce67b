//! Files that are damaged, foreign, locked or absent, and paths of the configuration.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod sqlite_rig;

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use qi_adapters::Config;
use qi_adapters::config::Synchronous;
use qi_adapters::sqlite::{SqliteConfig, SqliteStore};
use qi_core::store::{LatestQuery, RangeQuery};
use qi_core::{
    Error, ErrorKind, Instrument, PriceStore, PriceStoreExt, PriceTick, Selection, TimeRange, Timestamp,
};
use sqlite_rig::{Folder, connect, execute};
use sqlx::Row as _;

fn instrument() -> Instrument {
    "x:Y".parse().unwrap()
}

fn tick(n: u64) -> PriceTick {
    let ts = Timestamp::from_secs(1_700_000_000).unwrap().checked_add(Duration::from_secs(n)).unwrap();
    PriceTick::new(instrument(), ts, n, "1.5".parse().unwrap()).unwrap()
}

fn ticks(range: std::ops::Range<u64>) -> Vec<PriceTick> {
    range.map(tick).collect()
}

/// Returns a closed store with 20,000 ticks.
async fn written(folder: &Folder) -> SqliteConfig {
    let config = folder.config();
    let store = SqliteStore::open(config.clone()).unwrap();
    store.ensure_schema().await.unwrap();
    store.insert_ticks(&ticks(0..20_000)).await.unwrap();
    store.close().await.unwrap();
    config
}

/// Returns the errors of a read, a write, a ping and `ensure_schema` on the file of a store.
async fn errors(config: &SqliteConfig) -> [Option<Error>; 4] {
    let store = SqliteStore::open(config.clone()).unwrap();
    let query = RangeQuery::new(instrument(), TimeRange::ALL).with_limit(50_000).unwrap();
    let errors = [
        store.ticks(&query).await.err(),
        store.insert_ticks(&ticks(0..20_000)).await.err(),
        store.ping().await.err(),
        store.ensure_schema().await.err(),
    ];
    store.close().await.unwrap();
    errors
}

fn kinds(errors: &[Option<Error>]) -> Vec<Option<ErrorKind>> {
    errors.iter().map(|error| error.as_ref().map(Error::kind)).collect()
}

/// Checks that each error names the file.
fn check_context(errors: &[Option<Error>], config: &SqliteConfig) {
    for error in errors.iter().flatten() {
        assert_eq!(error.context_value("file"), Some(&*config.path.display().to_string()), "{error}");
        assert_eq!(error.backend(), Some("sqlite"));
    }
}

#[tokio::test]
async fn a_truncated_file_is_corrupt() {
    let folder = Folder::new();
    let config = written(&folder).await;
    let length = std::fs::metadata(&config.path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&config.path).unwrap();
    file.set_len(length / 2 / 4_096 * 4_096).unwrap();
    let errors = errors(&config).await;
    assert_eq!(kinds(&errors), [Some(ErrorKind::CorruptData); 4], "{errors:?}");
    check_context(&errors, &config);
    assert!(errors.iter().flatten().all(|error| !error.retry().is_retryable()));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_corrupt() {
    let folder = Folder::new();
    let config = folder.config();
    std::fs::write(&config.path, "open_time,open,high,low,close\n".repeat(1_000)).unwrap();
    let errors = errors(&config).await;
    assert_eq!(kinds(&errors), [Some(ErrorKind::CorruptData); 4], "{errors:?}");
    check_context(&errors, &config);
    let untouched = std::fs::read_to_string(&config.path).unwrap();
    assert!(untouched.starts_with("open_time,"));
}

#[tokio::test]
async fn a_damaged_page_is_corrupt() {
    let folder = Folder::new();
    let config = written(&folder).await;
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&config.path).unwrap();
    let pages = file.metadata().unwrap().len() / 4_096;
    // Overwrites every page except the first pages, which have the schema.
    for page in 12..pages {
        file.seek(SeekFrom::Start(page * 4_096)).unwrap();
        file.write_all(&[0xA5; 64]).unwrap();
    }
    drop(file);
    let [read, ..] = errors(&config).await;
    assert_eq!(read.as_ref().map(Error::kind), Some(ErrorKind::CorruptData), "{read:?}");
}

#[tokio::test]
async fn a_value_that_no_record_can_have_is_corrupt() {
    let folder = Folder::new();
    let config = written(&folder).await;
    for sql in [
        "UPDATE ticks SET price = x'00' WHERE seq = 7",
        "UPDATE ticks SET price = zeroblob(16) WHERE seq = 7",
        "UPDATE ticks SET price = (SELECT price FROM ticks WHERE seq = 8), side = 3 WHERE seq = 7",
    ] {
        execute(&config.path, sql).await;
        let store = SqliteStore::open(config.clone()).unwrap();
        let error = store.ticks(&RangeQuery::new(instrument(), TimeRange::ALL)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptData, "{error}");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn an_empty_file_is_an_empty_store() {
    let folder = Folder::new();
    let config = folder.config();
    std::fs::write(&config.path, "").unwrap();
    let errors = errors(&config).await;
    assert_eq!(
        kinds(&errors),
        [Some(ErrorKind::SchemaMismatch), Some(ErrorKind::SchemaMismatch), None, None],
        "{errors:?}"
    );
}

#[tokio::test]
async fn a_folder_in_place_of_the_file_is_a_wrong_configuration() {
    let folder = Folder::new();
    let config = folder.config();
    std::fs::create_dir(&config.path).unwrap();
    let errors = errors(&config).await;
    assert_eq!(kinds(&errors), [Some(ErrorKind::Config); 4], "{errors:?}");
    assert!(errors[0].as_ref().unwrap().to_string().contains("folder"), "{errors:?}");
    check_context(&errors, &config);
}

#[tokio::test]
async fn a_newer_schema_is_rejected() {
    let folder = Folder::new();
    let config = written(&folder).await;
    execute(&config.path, "PRAGMA user_version = 7").await;
    let store = SqliteStore::open(config).unwrap();
    for error in [store.ensure_schema().await.unwrap_err(), store.plan_schema().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
        assert!(error.to_string().contains("schema version 7"), "{error}");
    }
}

#[tokio::test]
async fn a_database_of_another_program_is_not_changed() {
    let folder = Folder::new();
    let config = folder.config();
    execute(&config.path, "CREATE TABLE ticks (a); INSERT INTO ticks VALUES (1)").await;
    let store = SqliteStore::open(config.clone()).unwrap();
    for error in [store.ensure_schema().await.unwrap_err(), store.plan_schema().await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::SchemaMismatch);
        assert!(error.to_string().contains("another program"), "{error}");
    }
    let error = store.insert_tick(&tick(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SchemaMismatch, "{error}");
    store.close().await.unwrap();
    let mut connection = connect(&config.path).await;
    let row = sqlx::query("SELECT count(*), (SELECT count(*) FROM sqlite_schema) FROM ticks");
    let row = row.fetch_one(&mut connection).await.unwrap();
    assert_eq!((row.get::<i64, _>(0), row.get::<i64, _>(1)), (1, 1));
}

#[tokio::test]
async fn reads_and_plans_create_no_file() {
    let folder = Folder::new();
    let config = folder.config();
    let store = SqliteStore::open(config.clone()).unwrap();
    let query = LatestQuery::new(Selection::All);
    let error = store.latest_ticks(&query).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::SchemaMismatch, "store.sqlite.no_file"));
    assert!(!store.plan_schema().await.unwrap().is_empty());
    store.ping().await.unwrap();
    assert_eq!(store.insert_tick(&tick(0)).await.unwrap_err().kind(), ErrorKind::SchemaMismatch);
    assert!(!config.path.exists());
}

#[tokio::test]
async fn the_plan_equals_the_executed_statements() {
    let folder = Folder::new();
    let (planned, ensured) = (folder.config(), folder.config());
    let store = SqliteStore::open(planned.clone()).unwrap();
    for sql in store.plan_schema().await.unwrap() {
        execute(&planned.path, &sql).await;
    }
    assert!(store.plan_schema().await.unwrap().is_empty());
    let other = SqliteStore::open(ensured.clone()).unwrap();
    other.ensure_schema().await.unwrap();
    let mut schemas = Vec::new();
    for path in [&planned.path, &ensured.path] {
        let rows = sqlx::query("SELECT name, sql FROM sqlite_schema ORDER BY name");
        let rows = rows.fetch_all(&mut connect(path).await).await.unwrap();
        let row = |row: &sqlx::sqlite::SqliteRow| (row.get::<String, _>(0), row.get::<Option<String>, _>(1));
        schemas.push(rows.iter().map(row).collect::<Vec<_>>());
    }
    assert_eq!(schemas[0], schemas[1]);
}

#[tokio::test]
async fn a_lock_of_another_process_is_a_retryable_timeout() {
    let folder = Folder::new();
    let mut config = written(&folder).await;
    config.lock_timeout = Duration::from_millis(50);
    let store = SqliteStore::open(config.clone()).unwrap();
    let mut other = connect(&config.path).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let error = store.insert_tick(&tick(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Timeout, "store.sqlite.busy"), "{error}");
    assert!(error.retry().is_retryable());
    // Readers do not wait for a writer.
    assert_eq!(store.latest_tick(&instrument()).await.unwrap(), Some(tick(19_999)));
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    store.insert_tick(&tick(1)).await.unwrap();
}

#[tokio::test]
async fn a_closed_store_leaves_one_file() {
    let folder = Folder::new();
    let config = written(&folder).await;
    for suffix in ["-wal", "-shm"] {
        let path = format!("{}{suffix}", config.path.display());
        assert!(!Path::new(&path).exists(), "{path}");
    }
    let mut header = [0; 100];
    std::fs::File::open(&config.path).unwrap().read_exact(&mut header).unwrap();
    assert_eq!(&header[68..72], b"qi_p", "the application id");
}

#[tokio::test]
async fn the_settings_of_the_section_are_applied() {
    let folder = Folder::new();
    let mut config = written(&folder).await;
    let synchronous = async |config: &SqliteConfig| -> i64 {
        let store = SqliteStore::open(config.clone()).unwrap();
        sqlx::query("PRAGMA synchronous").fetch_one(store.pool()).await.unwrap().get(0)
    };
    assert_eq!(synchronous(&config).await, 2, "FULL");
    config.synchronous = Synchronous::Normal;
    assert_eq!(synchronous(&config).await, 1, "NORMAL");
    (config.cache_bytes, config.mmap_bytes) = (1 << 20, 1 << 24);
    let store = SqliteStore::open(config).unwrap();
    let number =
        async |sql: &'static str| -> i64 { sqlx::query(sql).fetch_one(store.pool()).await.unwrap().get(0) };
    assert_eq!(number("PRAGMA cache_size").await, -1_024);
    assert_eq!(number("PRAGMA mmap_size").await, 1 << 24);
    let mode: String = sqlx::query("PRAGMA journal_mode").fetch_one(store.pool()).await.unwrap().get(0);
    assert_eq!(mode, "wal");
}

/// A root process may write every file, so this test writes as another user.
#[cfg(unix)]
#[tokio::test]
async fn a_read_only_file_can_be_read_and_is_unauthorized_to_write() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let config = written(&folder).await;
    let set_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(&config.path, 0o444);
    let is_root = std::fs::OpenOptions::new().write(true).open(&config.path).is_ok();
    if is_root {
        // SQLite reports the same code for a file that is opened for reading only.
        let mut connection = sqlx::sqlite::SqliteConnectOptions::new().filename(&config.path).read_only(true);
        connection = connection.create_if_missing(false);
        let mut connection = sqlx::ConnectOptions::connect(&connection).await.unwrap();
        let error = sqlx::query("DELETE FROM ticks").execute(&mut connection).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "8");
    } else {
        let [read, write, ..] = errors(&config).await;
        assert_eq!(read.map(|error| error.kind()), None);
        assert_eq!(write.map(|error| error.kind()), Some(ErrorKind::Unauthorized));
    }
    set_mode(&config.path, 0o644);
}

#[test]
fn a_path_is_relative_to_the_file_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let open = |toml: &str, variables: Vec<(&str, String)>| {
        let file = folder.path().join("qi.toml");
        std::fs::write(&file, toml).unwrap();
        let config = Config::builder().file(&file).variables(variables).build()?;
        runtime.block_on(config.open_store_as("sqlite"))
    };
    open("[store]\nauto_schema = true\n[store.sqlite]\npath = \"prices.db\"", Vec::new()).unwrap();
    assert!(folder.path().join("prices.db").is_file());
    let absolute = folder.path().join("absolute.db");
    let toml = format!("[store]\nauto_schema = true\n[store.sqlite]\npath = \"{}\"", absolute.display());
    open(&toml, Vec::new()).unwrap();
    assert!(absolute.is_file());
    // A variable is relative to the current folder.
    let variable = folder.path().join("variable.db").display().to_string();
    open(&toml, vec![("QI__STORE__SQLITE__PATH", variable.clone())]).unwrap();
    assert!(Path::new(&variable).is_file());
    for (toml, rule) in [
        ("[store.sqlite]\npath = \":memory:\"", "must be the path of a file"),
        ("[store.sqlite]\npath = \"file:x.db\"", "must be the path of a file"),
        ("[store.sqlite]\npath = \"sqlite://x.db\"", "must be the path of a file"),
        ("[store.sqlite]\nreaders = 0", "must lie from 1 to 64"),
        ("[store.sqlite]\ncache_bytes = 5", "must lie from 1048576"),
        ("[store.sqlite]\nlock_timeout = \"2h\"", "must lie from 1ms to 1h"),
        ("[store.sqlite]\nmax_batch = 0", "must lie from 1 to 1000000"),
        ("[store.sqlite]\nsynchronous = \"off\"", "must be one of"),
        ("[store.sqlite]\npaht = \"x.db\"", "did you mean `store.sqlite.path`"),
        ("", "is required"),
    ] {
        let error = open(toml, Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{toml}");
        assert!(error.report().contains(rule), "{toml}: {}", error.report());
    }
}
