//! The configuration. One key selects the backend, environment variables override keys by their full path, and every
//! error names its location and the nearest key.

#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::sync::Arc;

use qi_adapters::{Backends, Config};
use qi_core::bus::TopicName;
use qi_core::{Error, ErrorKind, PriceStore, Result};
use qi_testkit::store::{MemoryStore, MemoryStoreConfig};
use serde::Deserialize;

const NONE: [(&str, &str); 0] = [];

fn build(toml: &str, variables: impl IntoIterator<Item = (&'static str, &'static str)>) -> Result<Config> {
    Config::builder().toml(toml).variables(variables).build()
}

fn rejected(toml: &str, variables: impl IntoIterator<Item = (&'static str, &'static str)>) -> Error {
    let error = build(toml, variables).expect_err(toml);
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    error
}

#[tokio::test]
async fn an_empty_configuration_uses_memory_with_all_layers() {
    let config = build("", NONE).unwrap();
    let (store, bus) = (config.open_store().await.unwrap(), config.open_bus().await.unwrap());
    assert_eq!((store.info().backend, bus.info().backend), ("memory", "memory"));
    assert_eq!(
        (store.to_string().as_str(), bus.to_string().as_str()),
        (
            "Traced(Metered(Retry(CircuitBreaker(Timeout(Limit(memory))))))",
            "Traced(Metered(Retry(CircuitBreaker(Timeout(Limit(memory))))))"
        )
    );
}

#[tokio::test]
async fn open_creates_the_schema_only_with_auto_schema() {
    use qi_core::PriceTick;
    use qi_core::store::{InstrumentQuery, PriceStoreExt as _};
    let query = InstrumentQuery::new(PriceTick::DATASET);
    let plain = build("", NONE).unwrap().open_store().await.unwrap();
    assert_eq!(plain.instruments(&query).await.unwrap_err().kind(), ErrorKind::SchemaMismatch);
    let ready = build("[store]\nauto_schema = true", NONE).unwrap().open_store().await.unwrap();
    assert!(ready.instruments(&query).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_purge_of_ticks_requires_stored_bars_if_configured() {
    use qi_core::store::{PersistRequest, PriceStoreExt as _};
    use qi_core::{Interval, PriceTick, Timestamp};
    let file = "[store]\nauto_schema = true\npurge_requires_bars = \"1m\"";
    let config = build(file, NONE).unwrap();
    let shown = config.settings().unwrap();
    assert!(
        shown.iter().any(|s| (s.key.as_str(), s.value.as_str()) == ("store.purge_requires_bars", "1m")),
        "{shown:?}"
    );
    for store in [config.open_store().await.unwrap(), config.connect_store("memory").await.unwrap()] {
        store.ensure_schema().await.unwrap();
        assert!(store.to_string().starts_with("PurgeGuard(Traced("), "{store}");
        let tick = PriceTick::new(
            "x:Y".parse().unwrap(),
            Timestamp::from_secs(1_700_000_040).unwrap(),
            1,
            "1".parse().unwrap(),
        );
        let tick = tick.unwrap();
        store.insert_tick(&tick).await.unwrap();
        let cutoff = Timestamp::from_secs(1_700_000_100).unwrap();
        let error = store.purge_before(PriceTick::DATASET, cutoff).await.unwrap_err();
        assert_eq!(error.code(), "layer.purge_guard.bars");
        let request = PersistRequest::new(tick.instrument().clone(), Interval::M1, cutoff);
        assert_eq!(store.persist_bars(request).await.unwrap().written, 1);
        store.purge_before(PriceTick::DATASET, cutoff).await.unwrap();
    }
    let unset = build(file, [("QI__STORE__PURGE_REQUIRES_BARS", "")]).unwrap();
    assert!(unset.open_store().await.unwrap().to_string().starts_with("Traced("));
    let error = rejected("[store]\npurge_requires_bars = \"7m\"", NONE);
    assert_eq!(error.context_value("key"), Some("store.purge_requires_bars"), "{error}");

    // A retention of the store would remove ticks without the guard.
    let retention = format!("{file}\n[store.memory.retention.ticks]\nmax_age = \"1d\"");
    let error = build(&retention, NONE).unwrap().open_store().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.context_value("key"), error.context_value("origin")),
        (ErrorKind::Config, Some("store.purge_requires_bars"), Some("toml")),
        "{error}"
    );
    let other = format!("{file}\n[store.memory.retention.quotes]\nmax_age = \"1d\"");
    build(&other, NONE).unwrap().open_store().await.unwrap();
}

#[test]
fn one_key_selects_among_all_backends_of_a_file() {
    let file = "
        [store]
        backend = \"memory\"
        [store.memory]
        max_rows = 7
        [store.timescale]
        url = \"postgres://qi:secret@db/qi\"
        [store.clickhouse]
        url = \"http://qi:secret@ch\"
        [bus.redpanda]
        brokers = \"127.0.0.1:9092\"";
    assert_eq!(build(file, NONE).unwrap().store_backend(), "memory");
    let swapped = build(file, [("QI__STORE__BACKEND", "timescale")]).unwrap();
    assert_eq!(swapped.store_backend(), "timescale");
    assert!(!format!("{swapped:?}").contains("secret"));
}

#[tokio::test]
async fn an_unavailable_backend_is_a_config_error() {
    let open = async |word| {
        let config = Config::builder().variables([("QI__STORE__BACKEND", word)]).build().unwrap();
        config.open_store().await.unwrap_err()
    };
    for (word, feature) in
        [("timescale", "timescale"), ("postgres", "timescale"), ("clickhouse", "clickhouse")]
    {
        let error = open(word).await;
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            // An available backend lacks an address.
            ["config.backend.not_compiled", "store.timescale.config", "store.clickhouse.config"]
                .contains(&error.code()),
            "{error}"
        );
        if error.code() == "config.backend.not_compiled" {
            assert!(
                error.message().unwrap().contains(&format!("feature `{feature}` of qi-adapters")),
                "{error}"
            );
        }
    }
    let unknown = open("memroy").await;
    assert_eq!(unknown.code(), "config.backend.unknown");
    assert!(unknown.message().unwrap().contains("did you mean `memory`"), "{unknown}");
    for word in ["redpanda", "kafka"] {
        let bus = Config::builder().variables([("QI__BUS__BACKEND", word)]).build().unwrap();
        let error = bus.open_bus().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(["config.backend.not_compiled", "bus.redpanda.config"].contains(&error.code()), "{error}");
    }
}

#[test]
fn an_unknown_key_is_rejected_with_the_nearest_key() {
    for (toml, message) in [
        ("[stroe]", "unknown key `stroe`; did you mean `store`?"),
        ("[store]\nbakcend = \"memory\"", "unknown key `store.bakcend`; did you mean `store.backend`?"),
        (
            "[store.memory]\nmax_row = 1",
            "unknown key `store.memory.max_row`; did you mean `store.memory.max_rows`?",
        ),
        (
            "[store.circuit_braker]",
            "unknown key `store.circuit_braker`; did you mean `store.circuit_breaker`?",
        ),
        (
            "[bus.limit]\nconcurency = 1",
            "unknown key `bus.limit.concurency`; did you mean `bus.limit.concurrency`?",
        ),
        (
            "[bus.circuit_breaker]\nopendur = 1",
            "unknown key `bus.circuit_breaker.opendur`; did you mean `bus.circuit_breaker.open_duration`?",
        ),
        (
            "[store.metrics]\nenable = true",
            "unknown key `store.metrics.enable`; did you mean `store.metrics.enabled`?",
        ),
        (
            "[bus.retry]\nmax_atempts = 1",
            "unknown key `bus.retry.max_atempts`; did you mean `bus.retry.max_attempts`?",
        ),
        (
            "[bus.redpanda]\nbroker = \"x\"",
            "unknown key `bus.redpanda.broker`; did you mean `bus.redpanda.brokers`?",
        ),
        (
            "[store.timescale]\nurls = \"x\"",
            "unknown key `store.timescale.urls`; did you mean `store.timescale.url`?",
        ),
        (
            "[bus.topics.x]\npartition = 1",
            "unknown key `bus.topics.x.partition`; did you mean `bus.topics.x.partitions`?",
        ),
    ] {
        let error = rejected(toml, NONE);
        assert_eq!((error.message(), error.code()), (Some(message), "config.unknown_key"));
    }
    let error = rejected("", [("QI__STORE__MEMORY__MAX_ROW", "5")]);
    assert!(error.message().unwrap().ends_with("did you mean `store.memory.max_rows`?"), "{error}");
    assert_eq!(error.context_value("origin"), Some("QI__STORE__MEMORY__MAX_ROW"));
}

#[test]
fn an_unknown_key_without_a_similar_key_lists_all_keys() {
    let error = rejected("[store.retry]\nzzz = 1", NONE);
    assert!(error.message().unwrap().contains("known here: enabled, max_attempts, "), "{error}");
}

#[tokio::test]
async fn the_environment_overrides_the_file_by_full_path() {
    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Mongo {
        password: String,
        pool: u16,
        hosts: Vec<String>,
        tls: bool,
    }
    let seen = Arc::new(std::sync::Mutex::new(None));
    let kept = Arc::clone(&seen);
    let backends = Backends::builder()
        .register_store("mongo", move |section| {
            *kept.lock().unwrap() = Some(section.deserialize::<Mongo>()?);
            Ok(Arc::new(MemoryStore::new(MemoryStoreConfig::default())?))
        })
        .unwrap()
        .build();
    let config = Config::builder()
        .backends(backends)
        .toml("[store]\nbackend = \"mongo\"\n[store.mongo]\npassword = \"x\"\npool = 1\nhosts = [\"a\"]\ntls = false")
        .variables([
            ("QI__STORE__MONGO__PASSWORD", "12345"),
            ("QI__STORE__MONGO__POOL", "9"),
            ("QI__STORE__MONGO__HOSTS", "a, b,c"),
            ("QI__STORE__MONGO__TLS", "true"),
            ("PATH", "/bin"),
        ])
        .build()
        .unwrap();
    config.open_store().await.unwrap();
    let hosts = ["a", "b", "c"].map(String::from).to_vec();
    let wanted = Mongo { password: "12345".to_owned(), pool: 9, hosts, tls: true };
    assert_eq!(seen.lock().unwrap().take(), Some(wanted), "a password of digits stays text");
}

#[tokio::test]
async fn a_registered_backend_validates_its_section_on_open() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Mongo {
        #[allow(dead_code, reason = "only its presence matters")]
        url: String,
    }
    let backends = Backends::builder()
        .register_store("mongo", |section| {
            section.deserialize::<Mongo>()?;
            Ok(Arc::new(MemoryStore::new(MemoryStoreConfig::default())?))
        })
        .unwrap()
        .build();
    let open = async |toml: &str| {
        let config = Config::builder().backends(backends.clone()).toml(toml).build().unwrap();
        config.open_store_as("mongo").await
    };
    assert!(open("[store.mongo]\nurl = \"x\"").await.is_ok());
    let missing = open("").await.unwrap_err();
    assert_eq!(
        (missing.message(), missing.context_value("key")),
        (Some("the key `url` is missing"), Some("store.mongo"))
    );
    let unknown = open("[store.mongo]\nurll = \"x\"").await.unwrap_err();
    assert!(unknown.message().unwrap().ends_with("did you mean `store.mongo.url`?"), "{unknown}");
}

#[test]
fn a_reserved_backend_name_is_rejected() {
    for name in [
        "memory",
        "timescale",
        "retry",
        "limit",
        "circuit_breaker",
        "metrics",
        "tracing",
        "auto_schema",
        "backend",
        "",
        "Mongo",
        "a__b",
    ] {
        let taken = Backends::builder().register_store(name, |_| unreachable!());
        assert_eq!(taken.unwrap_err().code(), "config.backend.name", "{name}");
    }
}

#[test]
fn an_invalid_value_is_rejected_with_its_key_and_origin() {
    for (toml, key) in [
        ("[store.memory]\nmax_rows = \"many\"", "store.memory.max_rows"),
        ("[store.memory]\nmax_rows = -1", "store.memory.max_rows"),
        ("[store]\nauto_schema = \"yes\"", "store.auto_schema"),
        ("[store]\nbackend = 5", "store.backend"),
        ("store = 5", "store"),
        ("[store]\nmemory = 5", "store.memory"),
        ("[store.metrics]\nenabled = 1", "store.metrics.enabled"),
        ("[bus.topics.\"a b\"]\npartitions = 1", "bus.topics.a b"),
        ("[bus.topics.x]\npartitions = 0", "bus.topics.x.partitions"),
    ] {
        let error = rejected(toml, NONE);
        assert!(error.context().any(|(k, v)| k == "key" && v == key), "{toml}: {error}");
    }
    for (variable, value) in [
        ("QI__STORE__MEMORY__MAX_ROWS", "many"),
        ("QI__STORE__AUTO_SCHEMA", "yes"),
        ("QI__STORE__MEMORY", "5"),
        ("QI__STORE____X", "5"),
        ("QI__STORE__BACKEND__X", "5"),
    ] {
        let error = rejected("[store]\nbackend = \"memory\"\n[store.memory]", [(variable, value)]);
        assert_eq!(error.context_value("origin"), Some(variable), "{error}");
    }
}

#[test]
fn variables_that_differ_only_in_case_are_rejected() {
    let (upper, lower) = (("QI__STORE__BACKEND", "memory"), ("QI__STORE__backend", "timescale"));
    for pair in [[upper, lower], [lower, upper]] {
        let error = rejected("", pair);
        assert_eq!((error.code(), error.context_value("origin")), ("config.variable", Some(pair[1].0)));
    }
}

#[test]
fn a_syntax_error_names_the_line_without_its_text() {
    let error = rejected("[store]\nbackend = \"memory\"\nurl = \"postgres://a:secret@b\" oops", NONE);
    assert_eq!((error.code(), error.context_value("line")), ("config.syntax", Some("3")));
    assert!(!error.report().contains("secret"), "{}", error.report());
}

#[test]
fn a_file_is_read_and_a_missing_file_is_rejected() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "[store]\nbackend = \"clickhouse\"").unwrap();
    let config = Config::builder().file(file.path()).build().unwrap();
    assert_eq!(config.store_backend(), "clickhouse");
    let missing = Config::builder().file("does/not/exist.toml").build().unwrap_err();
    assert_eq!((missing.code(), missing.context_value("file")), ("config.file", Some("does/not/exist.toml")));
}

#[tokio::test]
async fn layers_can_be_disabled() {
    let file = "
        [store.retry]
        enabled = false
        [store.tracing]
        enabled = false
        [bus.timeout]
        enabled = false
        [bus.limit]
        enabled = false
        [bus.metrics]
        enabled = false";
    let config = build(file, [("QI__BUS__CIRCUIT_BREAKER__ENABLED", "false")]).unwrap();
    let store = config.open_store().await.unwrap();
    assert_eq!(store.to_string(), "Metered(CircuitBreaker(Timeout(Limit(memory))))");
    assert_eq!(config.open_bus().await.unwrap().to_string(), "Traced(Retry(memory))");
}

#[tokio::test]
async fn the_environment_overrides_a_rate_limit_of_the_file() {
    use qi_core::PriceTick;
    use qi_core::store::{InstrumentQuery, PriceStoreExt as _};
    let file = "
        [store]
        auto_schema = true
        [store.limit]
        concurrency = 1
        rate = 0.5
        burst = 1";
    let query = InstrumentQuery::new(PriceTick::DATASET);
    // `auto_schema` takes the first token of the rate limit when the store is opened, so the first call
    // waits for a token.
    let limited = build(file, NONE).unwrap().open_store().await.unwrap();
    let second = tokio::time::timeout(std::time::Duration::from_millis(100), limited.instruments(&query));
    assert!(second.await.is_err(), "one in two seconds");
    let free = build(file, [("QI__STORE__LIMIT__RATE", "1000")]).unwrap().open_store().await.unwrap();
    free.instruments(&query).await.unwrap();
}

#[test]
fn an_out_of_range_layer_value_is_rejected() {
    let permits = "must lie from 1 to 2305843009213693951";
    let rate = "must lie from 0.001 to 1000000 calls per second";
    for (section, field, value, shown, rule) in [
        ("retry", "max_attempts", "0", "0", "must be at least 1"),
        ("retry", "max_delay", "\"99ms\"", "99ms", "must not be below min_delay"),
        ("retry", "factor", "0.5", "0.5", "must be finite and at least 1"),
        ("retry", "factor", "inf", "inf", "must be finite and at least 1"),
        ("retry", "factor", "nan", "NaN", "must be finite and at least 1"),
        ("retry", "jitter", "1.5", "1.5", "must lie from 0 to 1"),
        ("retry", "jitter", "-0.1", "-0.1", "must lie from 0 to 1"),
        ("retry", "jitter", "nan", "NaN", "must lie from 0 to 1"),
        ("timeout", "call", "\"0s\"", "0s", "must be at least 1ms"),
        ("timeout", "bulk", "\"0s\"", "0s", "must be at least 1ms"),
        ("timeout", "publish", "\"0s\"", "0s", "must be at least 1ms"),
        ("limit", "concurrency", "0", "0", permits),
        ("limit", "concurrency", "9223372036854775807", "9223372036854775807", permits),
        ("limit", "rate", "0.0", "0", rate),
        ("limit", "rate", "-1", "-1", rate),
        ("limit", "rate", "inf", "inf", rate),
        ("limit", "rate", "nan", "NaN", rate),
        ("limit", "burst", "0", "0", "must be at least 1"),
        ("circuit_breaker", "failure_threshold", "0", "0", "must be at least 1"),
        ("circuit_breaker", "open_duration", "\"0ms\"", "0s", "must lie from 1ms to 5s"),
        ("circuit_breaker", "open_duration", "\"5001ms\"", "5001ms", "must lie from 1ms to 5s"),
    ] {
        for port in ["store", "bus"] {
            let file = format!("[{port}.{section}]\n{field} = {value}");
            let error = rejected(&file, NONE);
            let key = format!("{port}.{section}.{field}");
            assert_eq!((error.kind(), error.code()), (ErrorKind::Config, "config.value"), "{file}");
            assert_eq!(error.context_value("key"), Some(&*key), "{file}");
            assert_eq!((error.context_value("value"), error.message()), (Some(shown), Some(rule)), "{file}");
            build(&format!("[{port}.{section}]\nenabled = false\n{field} = {value}"), NONE).unwrap();
        }
    }
}

#[tokio::test]
async fn a_publish_timeout_below_twice_the_delivery_timeout_is_rejected() {
    let memory = "[bus.memory]\ndelivery_timeout = \"1s\"\n[bus.timeout]\npublish";
    let error = build(&format!("{memory} = \"1999ms\""), NONE).unwrap().open_bus().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Config, "config.value"));
    assert_eq!(error.context_value("key"), Some("bus.timeout.publish"));
    assert_eq!(error.context_value("value"), Some("1999ms"));
    assert_eq!(error.message(), Some("must be at least twice the delivery timeout of the bus, 2s"));
    for fits in ["\"2s\"", "\"1999ms\"\nenabled = false"] {
        build(&format!("{memory} = {fits}"), NONE).unwrap().open_bus().await.unwrap();
    }
}

#[test]
fn topics_of_the_catalogue_can_be_changed_and_added() {
    let catalogue = build(
        "[bus.topics.crypto-prices]\npartitions = 3\n[bus.topics.mine]\nretention = \"2h\"\nsettings = { \"a.b\" = \"c\" }",
        [("QI__BUS__TOPICS__CRYPTO-PRICES__REPLICATION", "3")],
    )
    .unwrap()
    .catalogue()
    .unwrap();
    let topic = |name: &str| catalogue.get(&TopicName::new(name).unwrap()).unwrap().clone();
    let prices = topic("crypto-prices");
    assert_eq!(
        (prices.partitions, prices.replication, prices.max_message_bytes),
        (3, Some(3), Some(2 << 20))
    );
    let mine = topic("mine");
    assert_eq!((mine.partitions, mine.retention.unwrap().as_secs()), (1, 7_200));
    assert_eq!(mine.settings["a.b"], "c");
    assert_eq!(catalogue.topics().count(), 5);
}

#[cfg(feature = "timescale")]
mod timescale {
    use qi_core::PriceTick;
    use qi_core::store::Retention;

    use super::*;

    fn open(section: &str) -> impl Future<Output = Result<Arc<dyn PriceStore>>> {
        let file = format!("[store]\nbackend = \"timescale\"\n[store.timescale]\n{section}");
        let config = build(&file, NONE);
        async move { config?.open_store().await }
    }

    #[tokio::test]
    async fn an_invalid_url_is_rejected_without_its_secret() {
        for url in [
            "postgres://qi:SECRET@host:no-port/qi",
            "postgres://qi:SECRET@[::1/qi",
            "postgres://qi:SEC%ffRET@host/qi",
            "postgres://qi:SECRET@host/qi?sslmode=nonsense",
            "postgres://qi:SECRET@host/qi?port=x",
            "postgres://qi@host/qi?passwrod=SECRET",
            "postgres://qi:abc?SECRET@host/qi",
            "postgres://qi@host/qi?password=abc&SECRET",
            "postgres://qi@host/qi?password=abc&SECRET=1",
            "SECRET",
            "http://qi:SECRET@host/qi",
        ] {
            let error = open(&format!("url = \"{url}\"")).await.expect_err(url);
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            let shown = format!("{error} {error:?} {}", error.report());
            assert!(!shown.contains("SECRET") && !shown.contains("ffRET"), "{shown}");
        }
    }

    #[test]
    fn an_unquoted_password_is_not_shown() {
        for value in ["4711471147", "-4711471147", "4711471147.5", "[4711471147]"] {
            for key in ["url", "password"] {
                let file = format!("[store.timescale]\n{key} = {value}");
                let error = rejected(&file, NONE);
                let shown = format!("{error} {error:?} {}", error.report());
                assert!(!shown.contains("4711471147"), "{shown}");
                assert!(shown.contains(key), "{shown}");
            }
        }
    }

    #[tokio::test]
    async fn out_of_range_values_are_rejected_before_open() {
        for (section, key) in [
            ("", "store.timescale.url"),
            ("host = \"h\"\nschema = \"Caps\"", "store.timescale.schema"),
            ("host = \"h\"\nschema = \"a b\"", "store.timescale.schema"),
            ("host = \"h\"\nschema = \"x\\\"; DROP\"", "store.timescale.schema"),
            ("host = \"h\"\nschema = \"pg_x\"", "store.timescale.schema"),
            ("host = \"h\"\nschema = \"information_schema\"", "store.timescale.schema"),
            ("host = \"h\"\nschema = \"_timescaledb_internal\"", "store.timescale.schema"),
            ("host = \"h\"\nschema = \"\"", "store.timescale.schema"),
            ("host = \"h\"\nmax_batch = 0", "store.timescale.max_batch"),
            ("host = \"h\"\nmax_batch = 1_000_001", "store.timescale.max_batch"),
            ("host = \"h\"\npool.max_connections = 0", "store.timescale.pool.max_connections"),
            ("host = \"h\"\npool.min_connections = 9", "store.timescale.pool.min_connections"),
            (
                "host = \"h\"\nserver_limits.statement_timeout = \"0s\"",
                "store.timescale.server_limits.statement_timeout",
            ),
            (
                "host = \"h\"\nserver_limits.lock_timeout = \"25d\"",
                "store.timescale.server_limits.lock_timeout",
            ),
            (
                "host = \"h\"\nwrite.max_statement_records = 100_001",
                "store.timescale.write.max_statement_records",
            ),
            ("host = \"h\"\nwrite.connections = 65", "store.timescale.write.connections"),
            ("host = \"h\"\nchunks.ticks = \"0h\"", "store.timescale.chunks.ticks"),
            ("host = \"h\"\nretention.ticks = \"90m\"", "store.timescale.retention.ticks"),
            ("host = \"h\"\nhypertables = \"off\"\ncolumnstore.bars = \"1h\"", "store.timescale.columnstore"),
            ("host = \"h\"\ntls.client_cert = \"a.pem\"", "store.timescale.tls"),
        ] {
            let error = open(section).await.expect_err(section);
            assert_eq!(error.kind(), ErrorKind::Config, "{section}: {error}");
            assert_eq!(error.context_value("key"), Some(key), "{section}: {error}");
        }
    }

    #[tokio::test]
    async fn postgres_is_the_timescale_adapter_without_the_extension() {
        let file = "[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = \"postgres://a:first@one:1/x\"\n\
                    hypertables = \"off\"\n[store.timescale]\nurl = \"postgres://b:first@other:1/x\"";
        let variables = [("QI__STORE__POSTGRES__HOST", "two")];
        let store = build(file, variables).unwrap().open_store().await.unwrap();
        assert!(store.to_string().ends_with("Limit(timescale(two:1/x, schema qi)))))))"), "{store}");
        let shown = format!("{store:?}");
        assert!(shown.contains("hypertables: Off") && !shown.contains("first"), "{shown}");
        for (section, key) in [
            ("", "store.postgres.url"),
            ("host = \"h\"\npool.max_connections = 0", "store.postgres.pool.max_connections"),
            (
                "host = \"h\"\ntls.client_cert = \"none.pem\"\ntls.client_key = \"none.pem\"",
                "store.postgres.tls.client_cert",
            ),
            ("host = \"h\"\nhypertables = \"on\"", "store.postgres.hypertables"),
            ("host = \"h\"\nchunks.ticks = \"1d\"", "store.postgres.chunks"),
            ("host = \"h\"\ncolumnstore.ticks = \"1d\"", "store.postgres.columnstore"),
            ("host = \"h\"\nretention.ticks = \"1d\"", "store.postgres.retention"),
        ] {
            let file = format!("[store]\nbackend = \"postgres\"\n[store.postgres]\n{section}");
            let opened = async { build(&file, NONE)?.open_store().await };
            let error = opened.await.expect_err(section);
            assert_eq!((error.kind(), error.context_value("key")), (ErrorKind::Config, Some(key)), "{error}");
        }
        let error = build("[store.postgres]\nurk = \"x\"", NONE).unwrap_err();
        assert!(error.to_string().contains("store.postgres.url"), "{error}");
    }

    #[tokio::test]
    async fn fields_override_the_url_and_the_environment_overrides_fields() {
        let file = "[store]\nbackend = \"timescale\"\n[store.timescale]\n\
                    url = \"postgres://a:first@one:1/x\"\nport = 2\nretention.ticks = \"48h\"";
        let variables = [
            ("QI__STORE__TIMESCALE__HOST", "two"),
            ("QI__STORE__TIMESCALE__PASSWORD", "second"),
            ("QI__STORE__TIMESCALE__DATABASE", "12345"),
            ("QI__STORE__TIMESCALE__POOL__MAX_CONNECTIONS", "3"),
        ];
        let store = build(file, variables).unwrap().open_store().await.unwrap();
        assert!(store.to_string().ends_with("Limit(timescale(two:2/12345, schema qi)))))))"), "{store}");
        assert_eq!(
            store.info().retention,
            [Retention::Age(PriceTick::DATASET, std::time::Duration::from_hours(48))]
        );
        let shown = format!("{store:?}");
        assert!(!shown.contains("first") && !shown.contains("second"), "{shown}");
        let error = build(file, [("QI__STORE__TIMESCALE__POOL__MAX_CONNECTION", "3")]).unwrap_err();
        assert!(error.to_string().contains("max_connections"), "{error}");
    }
}

/// A dataset of a program.
#[derive(Debug, Clone, PartialEq, qi_core::Record)]
#[record(name = "signals")]
struct FundingRate {
    #[series]
    instrument: qi_core::Instrument,
    #[time]
    ts: qi_core::Timestamp,
    rate: qi_core::Percent,
}

#[tokio::test]
async fn every_store_accepts_the_datasets_of_the_program() {
    use qi_core::Datasets;
    use qi_core::PriceStoreExt as _;
    let datasets = Datasets::standard().with::<FundingRate>().unwrap();
    let file = "[store]\nauto_schema = true\n[store.memory.retention.signals]\nmax_rows_per_series = 7\n\
                [store.clickhouse.retention]\nsignals = \"48h\"\nticks = \"24h\"\n\
                [store.timescale.retention]\nsignals = \"48h\"\n[store.timescale.chunks]\nsignals = \"24h\"";
    let config = Config::builder().datasets(datasets).toml(file).build().unwrap();
    let store = config.open_store().await.unwrap();
    let ts = qi_core::Timestamp::from_secs(1_700_000_000).unwrap();
    let rate = FundingRate { instrument: "x:Y".parse().unwrap(), ts, rate: "0.01".parse().unwrap() };
    store.insert_record(&rate).await.unwrap();
    assert_eq!(store.info().retention[0], qi_core::store::Retention::RowsPerSeries(FundingRate::DATASET, 7));
    // Without these datasets, the file names a dataset that does not exist, whatever store is opened.
    for section in [
        "[store.memory.retention.signals]\nmax_rows_per_series = 7",
        "[store.clickhouse.retention]\nsignals = \"48h\"",
        "[store.timescale.chunks]\nsignals = \"48h\"",
    ] {
        let error = rejected(section, NONE);
        let key = error.context_value("key").unwrap_or_default();
        assert!(key.contains("signals"), "{error}");
    }
    for (section, key) in [("ticks = \"0h\"", "ticks"), ("ticks = 1", "ticks"), ("ticks = \"-1h\"", "ticks")]
    {
        let error = rejected(&format!("[store.clickhouse.retention]\n{section}"), NONE);
        assert!(error.report().contains(key), "{error}");
    }
    let variables = [("QI__STORE__CLICKHOUSE__RETENTION__TICKS", "48h")];
    build("[store.clickhouse]\nurl = \"http://one:1\"", variables).unwrap();
}

/// `qi copy` uses the text to determine whether its progress belongs to these two stores.
#[cfg(feature = "clickhouse")]
#[tokio::test]
async fn the_display_of_a_clickhouse_store_names_its_tables() {
    let file = "[store]\nbackend = \"clickhouse\"\n[store.clickhouse]\nurl = \"http://one:1\"";
    let shown = async |variables: &[(&'static str, &'static str)]| {
        build(file, variables.iter().copied()).unwrap().open_store().await.unwrap().to_string()
    };
    let plain = shown(&[]).await;
    assert!(plain.ends_with("Limit(clickhouse(http://one:1, database qi)))))))"), "{plain}");
    let of_its_own = shown(&[("QI__STORE__CLICKHOUSE__TABLE_PREFIX", "a_")]).await;
    assert!(
        of_its_own.ends_with("Limit(clickhouse(http://one:1, database qi, tables a_*)))))))"),
        "{of_its_own}"
    );
}

#[test]
fn names_with_dots_need_no_quotes() {
    let quoted = "[bus.redpanda.properties]\n\"linger.ms\" = 5\n\"socket.keepalive.enable\" = true";
    let plain = "[bus.redpanda.properties]\nlinger.ms = 5\nsocket.keepalive.enable = true";
    let keys = |toml: &str, variables: &[(&'static str, &'static str)]| {
        let config =
            build(&format!("bus.backend = \"redpanda\"\n{toml}"), variables.iter().copied()).unwrap();
        let settings = config.settings().unwrap().into_iter();
        let properties = settings.filter(|setting| setting.key.contains(".properties."));
        properties.map(|setting| (setting.key, setting.origin)).collect::<Vec<_>>()
    };
    assert_eq!(keys(plain, &[]), keys(quoted, &[]));
    assert_eq!(keys(plain, &[])[0].0, "bus.redpanda.properties.\"linger.ms\"");
    for name in ["QI__BUS__REDPANDA__PROPERTIES__LINGER__MS", "QI__BUS__REDPANDA__PROPERTIES__LINGER.MS"] {
        assert_eq!(keys(quoted, &[(name, "7")])[0].1, name);
    }
    let twice = "[bus.redpanda.properties]\nlinger.ms = 5\n\"linger.ms\" = 6";
    let error = rejected(twice, NONE);
    assert!(error.message().unwrap().contains("set twice"), "{error}");
    let topic = rejected("[bus.topics.crypto-prices.dlq]\npartitions = 3", NONE);
    assert!(topic.message().unwrap().contains("[bus.topics.\"crypto-prices.dlq\"]"), "{topic}");
    build("[bus.topics.\"crypto-prices.dlq\"]\npartitions = 3", NONE).unwrap();
    let settings = "[bus.topics.x.settings]\nmin.insync.replicas = 2\nunclean.leader.election.enable = false";
    let catalogue = build(settings, NONE).unwrap().catalogue().unwrap();
    let spec = catalogue.get(&"x".parse().unwrap()).unwrap();
    assert_eq!(spec.settings["min.insync.replicas"], "2");
    assert_eq!(spec.settings["unclean.leader.election.enable"], "false");
}

#[test]
fn numbers_in_the_environment_may_have_underscores() {
    let shown = |value: &'static str| {
        let config = build("", [("QI__STORE__MEMORY__MAX_ROWS", value)])?;
        let settings = config.settings()?;
        Ok::<_, Error>(settings.into_iter().find(|s| s.key == "store.memory.max_rows").unwrap().value)
    };
    for value in ["2000000", "2_000_000", "20_00000", " 2_000_000 "] {
        assert_eq!(shown(value).unwrap(), "2000000", "{value}");
    }
    for value in ["2__000", "_2", "2_", "2_x", "0x_1", "2 000", "2,000"] {
        assert_eq!(shown(value).unwrap_err().code(), "config.value", "{value}");
    }
    let rate = build("", [("QI__STORE__LIMIT__RATE", "1_000.5")]).unwrap();
    assert!(rate.settings().unwrap().iter().any(|s| s.key == "store.limit.rate" && s.value == "1000.5"));
    // The settings of other systems are texts.
    let of_topic = |name: &str, value: &'static str| {
        let key = format!("QI__BUS__TOPICS__CRYPTO-PRICES__SETTINGS__{}", name.replace('.', "__"));
        let config = Config::builder().variables([(key.as_str(), value)]).build().unwrap();
        let catalogue = config.catalogue().unwrap();
        catalogue.get(&"crypto-prices".parse().unwrap()).unwrap().settings[name].clone()
    };
    for (value, text) in
        [("1_048_576", "1048576"), ("1_000.5", "1000.5"), ("1_x", "1_x"), ("2_0, 3_0", "2_0, 3_0")]
    {
        assert_eq!(of_topic("segment.bytes", value), text);
    }
    for name in ["own.password", "oauthbearer.client.secret", "client.rack"] {
        assert_eq!(of_topic(name, "1_000"), "1_000", "{name}");
    }
    let clickhouse =
        [("QI__STORE__BACKEND", "clickhouse"), ("QI__STORE__CLICKHOUSE__SETTINGS__MAX_THREADS", "1_6")];
    let settings = build("", clickhouse).unwrap().settings().unwrap();
    let max_threads = settings.iter().find(|s| s.key == "store.clickhouse.settings.max_threads").unwrap();
    assert_eq!(max_threads.value, "16");
    // A password of digits stays as it is.
    let backends = Backends::builder().register_store("own", |section| {
        #[derive(Deserialize)]
        struct Own {
            password: String,
        }
        assert_eq!(section.deserialize::<Own>()?.password, "1_000");
        Ok(Arc::new(MemoryStore::new(MemoryStoreConfig::default())?))
    });
    let own = Config::builder().backends(backends.unwrap().build());
    let own = own.variables([("QI__STORE__OWN__PASSWORD", "1_000")]).build().unwrap();
    own.open_store_without_schema("own").unwrap();
}

#[test]
fn settings_of_other_systems_may_be_numbers() {
    let file = "[store]\nbackend = \"clickhouse\"\n[store.clickhouse.settings]\nmax_threads = 4\nmin_bytes = \"1\"\n\
                ratio = 0.5\nflag = true";
    let settings = build(file, NONE).unwrap().settings().unwrap();
    let of = |name: &str| {
        let key = format!("store.clickhouse.settings.{name}");
        settings.iter().find(|setting| setting.key == key).unwrap().value.clone()
    };
    assert_eq!([of("max_threads"), of("min_bytes"), of("ratio"), of("flag")], ["4", "1", "0.5", "true"]);
    assert_eq!(rejected("[store.clickhouse.settings]\nmax_threads = []", NONE).code(), "config.value");
}

#[test]
fn an_empty_variable_unsets_a_key() {
    let file = "[store]\nauto_schema = true\nbackend = \"clickhouse\"\n[store.memory]\nmax_rows = 5\n\
                [store.limit]\nrate = 5.0";
    let variables = [
        ("QI__STORE__BACKEND", ""),
        ("QI__STORE__AUTO_SCHEMA", ""),
        ("QI__STORE__MEMORY__MAX_ROWS", ""),
        ("QI__STORE__LIMIT__RATE", ""),
        ("QI__BUS__RETRY", ""),
        ("QI__BUS__MEMORY__MAX_BYTES", ""),
    ];
    let config = build(file, variables).unwrap();
    assert_eq!((config.store_backend(), config.auto_schema()), ("memory", false));
    let settings = config.settings().unwrap();
    let rows = settings.iter().find(|setting| setting.key == "store.memory.max_rows").unwrap();
    assert_eq!((&*rows.value, &*rows.origin), ("5000000", "default"));
    assert!(!settings.iter().any(|setting| setting.key == "store.limit.rate"));
    let unknown = rejected(file, [("QI__STORE__MEMORY__MAX_ROW", "")]);
    assert_eq!(unknown.code(), "config.unknown_key");
    assert_eq!(rejected("", [("QI__STROE__BACKEND", "")]).code(), "config.unknown_key");
    assert_eq!(rejected(file, [("QI__STORE__MEMORY", "")]).code(), "config.variable");
}

#[test]
fn bounds_are_checked_when_the_file_is_loaded() {
    for (toml, key) in [
        ("[store.timescale]\npool.max_connections = 0", "store.timescale.pool.max_connections"),
        ("[store.timescale]\nurl = \"mysql://host\"", "store.timescale.url"),
        (
            "[store.timescale]\nserver_limits.lock_timeout = \"25d\"",
            "store.timescale.server_limits.lock_timeout",
        ),
        (
            "[store.postgres]\nwrite.max_statement_records = 100_001",
            "store.postgres.write.max_statement_records",
        ),
        ("[store.clickhouse]\nurl = \"host\"", "store.clickhouse.url"),
        ("[store.clickhouse]\nmax_batch = 0", "store.clickhouse.max_batch"),
        ("[store.clickhouse]\nsettings.max_memory_usage = 1", "store.clickhouse.settings"),
        ("[bus.redpanda]\nbrokers = \"host\"", "bus.redpanda.brokers"),
        ("[bus.kafka]\nrequest_timeout = \"1h\"", "bus.kafka.request_timeout"),
        ("[bus.redpanda]\nproperties.acks = 1", "bus.redpanda.properties"),
        ("[bus.redpanda]\nproperties.max.in.flight = 1", "bus.redpanda.properties"),
        ("[bus.kafka]\nproperties.ssl.keystore.location = \"a.p12\"", "bus.kafka.properties"),
        ("[bus.kafka]\nproperties.sasl.kerberos.keytab = \"a.keytab\"", "bus.kafka.properties"),
        ("[bus.kafka]\nproperties.sasl.oauthbearer.assertion.file = \"a.jwt\"", "bus.kafka.properties"),
        ("[bus.topics.x.settings]\nretention.ms = 1", "bus.topics.x.settings.retention.ms"),
        ("[bus.topics.x.settings]\nmax.message.bytes = 1", "bus.topics.x.settings.max.message.bytes"),
    ] {
        let error = rejected(toml, NONE);
        assert_eq!(error.context_value("key"), Some(key), "{toml}: {error}");
    }
    for (key, values) in [
        ("replication", ["0", "32_768"]),
        ("retention", ["\"999ms\"", "\"9223372036854775808ms\""]),
        ("max_message_bytes", ["1_023", "2_147_483_648"]),
    ] {
        for value in values {
            let error = rejected(&format!("[bus.topics.x]\n{key} = {value}"), NONE);
            let named = (error.code(), error.context_value("key"), error.context_value("origin"));
            let expected = format!("bus.topics.x.{key}");
            assert_eq!(named, ("config.topic", Some(expected.as_str()), Some("toml")), "{value}: {error}");
        }
    }
    build("[bus.topics.x]\nreplication = 1\nretention = \"1s\"\nmax_message_bytes = 1_024", NONE).unwrap();
    assert_eq!(rejected("[bus.memory]\nmax_message_bytes = 0", NONE).code(), "bus.memory.config");
    // A section without an address is complete enough for a file that does not select it.
    build("[store.timescale]\nschema = \"a\"\n[store.clickhouse]\ndatabase = \"a\"\n[bus.redpanda]", NONE)
        .unwrap();
}

#[test]
fn settings_show_their_origins_and_no_secrets() {
    let file = "[store]\nbackend = \"timescale\"\n[store.timescale]\nurl = \"postgres://a:hunter1@h/x\"\n\
                password = \"hunter2\"\nretention.ticks = \"7d\"\n[bus]\nbackend = \"redpanda\"\n[bus.redpanda]\n\
                brokers = \"a:1\"\nsasl = { mechanism = \"plain\", username = \"u\", password = \"hunter3\" }\n\
                properties.\"ssl.key.pem\" = \"hunter4\"\n[bus.topics.x]\npartitions = 3";
    let config = build(file, [("QI__STORE__TIMESCALE__SCHEMA", "b")]).unwrap();
    let settings = config.settings().unwrap();
    assert!(!format!("{settings:?}").contains("hunter"), "{settings:?}");
    let of = |key: &str| {
        let setting = settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("{key}"));
        (setting.value.as_str(), setting.origin.as_str())
    };
    assert_eq!(of("store.backend"), ("timescale", "toml"));
    assert_eq!(of("store.auto_schema"), ("false", "default"));
    assert_eq!(of("store.timescale.url"), ("***", "toml"));
    assert_eq!(of("store.timescale.schema"), ("b", "QI__STORE__TIMESCALE__SCHEMA"));
    assert_eq!(of("store.timescale.retention.ticks"), ("7d", "toml"));
    assert_eq!(of("store.timescale.pool.idle_timeout"), ("10m", "default"));
    assert_eq!(of("store.retry.max_attempts"), ("5", "default"));
    assert_eq!(of("bus.redpanda.sasl.password"), ("***", "toml"));
    assert_eq!(of("bus.redpanda.properties.\"ssl.key.pem\""), ("***", "toml"));
    assert_eq!(of("bus.topics.x.partitions"), ("3", "toml"));
    assert!(!settings.iter().any(|setting| setting.key.starts_with("store.memory")));
    // The section of a program may contain a secret under any name.
    let backends = Backends::builder().register_store("own", |_| unreachable!()).unwrap().build();
    let file = "[store]\nbackend = \"own\"\n[store.own]\nwhere = \"hunter5\"\nsize = 5\nlist = [\"hunter6\"]";
    let own = Config::builder().backends(backends).toml(file).build().unwrap().settings().unwrap();
    assert!(!format!("{own:?}").contains("hunter"), "{own:?}");
    assert!(own.iter().any(|setting| setting.key == "store.own.size" && setting.value == "5"), "{own:?}");
}

#[test]
fn paths_in_a_file_begin_at_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qi.toml");
    let file = "[store]\nbackend = \"clickhouse\"\n[store.clickhouse]\nurl = \"https://h\"\nroot_cert = \"certs/ca.pem\"";
    std::fs::write(&path, file).unwrap();
    let shown = |variables: &[(&'static str, &'static str)]| {
        let config = Config::builder().file(&path).variables(variables.iter().copied()).build().unwrap();
        let settings = config.settings().unwrap();
        settings.into_iter().find(|s| s.key == "store.clickhouse.root_cert").unwrap().value
    };
    assert_eq!(shown(&[]), folder.path().join("certs/ca.pem").display().to_string());
    assert_eq!(shown(&[("QI__STORE__CLICKHOUSE__ROOT_CERT", "other.pem")]), "other.pem");
    std::fs::write(&path, file.replace("certs/ca.pem", "/etc/ca.pem")).unwrap();
    assert_eq!(shown(&[]), "/etc/ca.pem");
    // A path within a URL or a property is not resolved, so it must be absolute.
    for parameter in ["sslrootcert", "sslcert", "sslkey"] {
        let file = |path: &str| {
            format!("[store.timescale]\nurl = \"postgres://h/x?sslmode=require&{parameter}={path}\"")
        };
        std::fs::write(&path, file("absent.pem")).unwrap();
        let error = Config::builder().file(&path).build().unwrap_err();
        let named = (error.context_value("key"), error.context_value("value"));
        assert_eq!(named, (Some("store.timescale.url"), Some(parameter)), "{error}");
        assert!(error.message().unwrap().contains("`tls.root_cert`"), "{error}");
        for absolute in ["/etc/a.pem", "%2Fetc%2Fa.pem", "-----BEGIN%20CERTIFICATE-----"] {
            build(&file(absolute), NONE).unwrap();
        }
    }
    build("[bus.redpanda]\nproperties.ssl.keystore.location = \"/etc/a.p12\"", NONE).unwrap();
    build("[bus.redpanda]\nproperties.sasl.kerberos.keytab = \"/etc/a.keytab\"", NONE).unwrap();
}

#[cfg(all(feature = "timescale", feature = "clickhouse", feature = "redpanda"))]
#[tokio::test]
async fn passwords_are_read_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qi.toml");
    std::fs::write(folder.path().join("secret"), "hunter2\n").unwrap();
    let stores =
        [("timescale", "host = \"h\""), ("postgres", "host = \"h\""), ("clickhouse", "url = \"http://h:1\"")];
    for (backend, address) in stores {
        let open = |more: &str| {
            let file = format!("[store]\nbackend = \"{backend}\"\n[store.{backend}]\n{address}\n{more}");
            std::fs::write(&path, file).unwrap();
            Config::builder().file(&path).build()?.open_store_without_schema(backend)
        };
        let store = open("password_file = \"secret\"").unwrap();
        assert!(!format!("{store:?}").contains("hunter"), "{store:?}");
        let key = format!("store.{backend}.password_file");
        std::fs::write(folder.path().join("empty"), "\n").unwrap();
        for more in [
            "password_file = \"absent\"",
            "password_file = \"empty\"",
            "password_file = \"secret\"\npassword = \"x\"",
        ] {
            let error = open(more).expect_err(more);
            assert_eq!(
                (error.kind(), error.context_value("key")),
                (ErrorKind::Config, Some(&*key)),
                "{error}"
            );
        }
    }
    let file = "[bus]\nbackend = \"redpanda\"\n[bus.redpanda]\nbrokers = \"a:1\"\n\
                sasl = { mechanism = \"plain\", username = \"u\", password_file = \"secret\" }";
    std::fs::write(&path, file).unwrap();
    let bus = Config::builder().file(&path).build().unwrap().open_bus().await.unwrap();
    assert!(!format!("{bus:?}").contains("hunter"), "{bus:?}");
    bus.close().await.unwrap();
    std::fs::write(&path, file.replace("secret", "absent")).unwrap();
    let error = Config::builder().file(&path).build().unwrap().open_bus().await.unwrap_err();
    assert_eq!(error.context_value("key"), Some("bus.redpanda.sasl.password_file"), "{error}");
}

/// Errors that a check of bounds, an opened backend or a layer finds. Each has the full key and its origin.
#[cfg(all(
    feature = "memory",
    feature = "timescale",
    feature = "clickhouse",
    feature = "redpanda",
    feature = "sqlite"
))]
#[tokio::test]
async fn every_invalid_setting_has_its_full_key_and_its_origin() {
    for (file, key) in [
        ("[store.memory]\nmax_rows = 0", "store.memory.max_rows"),
        ("[store.memory.retention.ticks]\nmax_age = \"0s\"", "store.memory.retention.ticks.max_age"),
        ("[store.timescale.pool]\nmax_connections = 0", "store.timescale.pool.max_connections"),
        ("[store.postgres]\nchunks = { ticks = \"7d\" }", "store.postgres.chunks"),
        ("[store.clickhouse.write]\nmax_request_records = 0", "store.clickhouse.write.max_request_records"),
        ("[store.sqlite]\nreaders = 0", "store.sqlite.readers"),
        ("[store.retry]\nmax_attempts = 0", "store.retry.max_attempts"),
        ("[bus.timeout]\ncall = \"0s\"", "bus.timeout.call"),
        ("[bus.memory]\nmax_message_bytes = 0", "bus.memory.max_message_bytes"),
        ("[bus.redpanda]\nclient_id = \"\"", "bus.redpanda.client_id"),
        ("[bus.topics.x]\npartitions = 0", "bus.topics.x.partitions"),
        ("[bus.redpanda.properties]\nlinger.ms = 5\n\"linger.ms\" = 6", "bus.redpanda.properties.linger.ms"),
    ] {
        let error = rejected(file, NONE);
        let found = (error.context_value("key"), error.context_value("origin"));
        assert_eq!(found, (Some(key), Some("toml")), "{error}");
    }
    let variable = "QI__STORE__SQLITE__READERS";
    let error = rejected("[store.sqlite]\nreaders = 4", [(variable, "0")]);
    assert_eq!(error.context_value("origin"), Some(variable), "{error}");
    // The buffer has its default, which is too small for the configured message.
    let error = rejected("[bus.redpanda]\nmax_message_bytes = 100_000_000", NONE);
    let found = (error.context_value("key"), error.context_value("origin"));
    assert_eq!(found, (Some("bus.redpanda.buffer_bytes"), Some("default")), "{error}");
    // Errors of the opened backends.
    let config = build("[store.clickhouse]\nurl = \"http://\"", NONE).unwrap();
    for (error, key, origin) in [
        (config.open_store_without_schema("clickhouse").unwrap_err(), "store.clickhouse.url", "toml"),
        (config.open_bus_as("redpanda").await.unwrap_err(), "bus.redpanda.brokers", "default"),
    ] {
        let found = (error.context_value("key"), error.context_value("origin"));
        assert_eq!(found, (Some(key), Some(origin)), "{error}");
    }
}

#[cfg(all(feature = "timescale", feature = "clickhouse", feature = "redpanda"))]
#[test]
fn a_wrong_type_is_named_in_plain_words() {
    for (file, key, says) in [
        (
            "[bus.redpanda.properties]\nlinger.ms = [5]",
            "bus.redpanda.properties.linger.ms",
            "must be text, a number or a boolean, found a list",
        ),
        (
            "[store.clickhouse.settings]\nx = [5]",
            "store.clickhouse.settings.x",
            "must be text, a number or a boolean, found a list",
        ),
        (
            "[bus.topics.x.settings]\ny = [5]",
            "bus.topics.x.settings.y",
            "must be text, a number or a boolean, found a list",
        ),
        ("[store.timescale]\nport = 70_000", "store.timescale.port", "must be an integer from 0 to 65535"),
        (
            "[store.timescale]\nport = [1]",
            "store.timescale.port",
            "must be an integer from 0 to 65535, found a list",
        ),
        ("[store.timescale]\npassword_file = 7", "store.timescale.password_file", "must be a path as text"),
        ("[store.retry]\nfactor = [1]", "store.retry.factor", "must be a number, found a list"),
        (
            "[store.timescale]\nhypertables = \"maybe\"",
            "store.timescale.hypertables",
            "must be one of on, off, found maybe",
        ),
        ("[store.timescale]\npool = 7", "store.timescale.pool", "must be a section"),
    ] {
        let error = rejected(file, NONE);
        let found = (error.context_value("key"), error.context_value("origin"));
        assert_eq!(found, (Some(key), Some("toml")), "{error}");
        assert!(error.message().unwrap().contains(says), "{error}");
    }
}

#[cfg(feature = "redpanda")]
mod redpanda {
    use super::*;

    async fn open(section: &str) -> Result<std::sync::Arc<dyn qi_core::MessageBus>, Error> {
        let file = format!("[bus]\nbackend = \"redpanda\"\n[bus.redpanda]\n{section}");
        build(&file, NONE)?.open_bus().await
    }

    #[tokio::test]
    async fn out_of_range_values_are_rejected_before_connecting() {
        for (section, key) in [
            ("", "bus.redpanda.brokers"),
            ("brokers = \"\"", "bus.redpanda.brokers"),
            ("brokers = \"host\"", "bus.redpanda.brokers"),
            ("brokers = \"kafka://host:9092\"", "bus.redpanda.brokers"),
            ("brokers = \"host:0\"", "bus.redpanda.brokers"),
            ("brokers = \"a:1, b:2,\"", "bus.redpanda.brokers"),
            ("brokers = \"a:1\"\nclient_id = \"\"", "bus.redpanda.client_id"),
            ("brokers = \"a:1\"\nmax_message_bytes = 1", "bus.redpanda.max_message_bytes"),
            ("brokers = \"a:1\"\nbuffer_bytes = 1_000_000", "bus.redpanda.buffer_bytes"),
            ("brokers = \"a:1\"\ndelivery_timeout = \"0s\"", "bus.redpanda.delivery_timeout"),
            ("brokers = \"a:1\"\nrequest_timeout = \"301s\"", "bus.redpanda.request_timeout"),
            ("brokers = \"a:1\"\ncommit_timeout = \"25d\"", "bus.redpanda.commit_timeout"),
            ("brokers = \"a:1\"\nclose_timeout = \"0s\"", "bus.redpanda.close_timeout"),
            ("brokers = \"a:1\"\nstatistics_interval = \"999ms\"", "bus.redpanda.statistics_interval"),
            ("brokers = \"a:1\"\ntls.client_cert = \"a.pem\"", "bus.redpanda.tls"),
            ("brokers = \"a:1\"\ntls.root_cert = \"a.pem\"", "bus.redpanda.tls.enabled"),
            ("brokers = \"a:1\"\nsasl.username = \"u\"", "bus.redpanda.sasl"),
            ("brokers = \"a:1\"\nproperties.\"group.id\" = \"g\"", "bus.redpanda.properties"),
            ("brokers = \"a:1\"\nproperties.acks = 1", "bus.redpanda.properties"),
            ("brokers = \"a:1\"\nproperties.\"topic.acks\" = 1", "bus.redpanda.properties"),
            ("brokers = \"a:1\"\nproperties.\"topic.linger.ms\" = 1", "bus.redpanda.properties"),
            (
                "brokers = \"a:1\"\nproperties.\"delivery.report.only.error\" = true",
                "bus.redpanda.properties",
            ),
            ("brokers = \"a:1\"\nproperties.\"queue.buffering.max.ms\" = 5", "bus.redpanda.properties"),
            ("brokers = \"a:1\"\nproperties.\"lingre.ms\" = 5", "bus.redpanda.properties.lingre.ms"),
            ("brokers = \"a:1\"\nproperties.\"linger.ms\" = \"soon\"", "bus.redpanda.properties.linger.ms"),
        ] {
            let error = open(section).await.expect_err(section);
            assert_eq!(error.kind(), ErrorKind::Config, "{section}: {error}");
            assert_eq!(error.context_value("key"), Some(key), "{section}: {error}");
        }
        let error = open("brokers = \"a:1\"\nproperties.debug = \"hunter2\"").await.unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }

    #[tokio::test]
    async fn unknown_enumeration_values_are_rejected() {
        for (section, word) in [
            ("brokers = \"a:1\"\nprofile = \"fast\"", "fast"),
            ("brokers = \"a:1\"\ncompression = \"brotli\"", "brotli"),
            ("brokers = \"a:1\"\nsasl.mechanism = \"gssapi\"", "gssapi"),
        ] {
            let error = open(section).await.expect_err(section);
            assert_eq!(error.kind(), ErrorKind::Config, "{section}: {error}");
            assert!(error.to_string().contains(word), "{section}: {error}");
        }
    }

    #[tokio::test]
    async fn a_bus_opens_without_brokers_and_shows_no_secret() {
        let section = "brokers = \"a:1, b:2,[::1]:3\"\nprofile = \"low-latency\"\n\
                       sasl.mechanism = \"plain\"\nsasl.username = \"u\"\nsasl.password = \"hunter2\"\n\
                       properties.\"ssl.key.pem\" = \"hunter3\"\nproperties.\"linger.ms\" = 0.5";
        let opened = open(section).await;
        // A build without OpenSSL does not know the keys.
        assert_eq!(opened.is_ok(), cfg!(feature = "redpanda-tls"), "{opened:?}");
        let bus = match opened {
            Ok(bus) => bus,
            Err(error) => {
                assert!(!format!("{error:?}").contains("hunter"), "{error:?}");
                open(&section.replace("properties.\"ssl.key.pem\" = \"hunter3\"\n", "")).await.unwrap()
            }
        };
        let shown = format!("{bus} {bus:?}");
        assert!(shown.contains("redpanda") && !shown.contains("hunter"), "{shown}");
        assert_eq!(bus.info().delivery_timeout, std::time::Duration::from_mins(2));
        bus.close().await.unwrap();
    }

    #[tokio::test]
    async fn the_codec_is_a_setting_of_the_bus() {
        for (backend, section) in [("memory", ""), ("redpanda", "[bus.redpanda]\nbrokers = \"a:1\"")] {
            for encoding in qi_core::bus::Encoding::ALL {
                let file = format!("[bus]\nbackend = \"{backend}\"\ncodec = \"{encoding}\"\n{section}");
                let bus = build(&file, NONE).unwrap().open_bus().await.unwrap();
                assert_eq!(bus.info().encoding, encoding, "{backend}");
                bus.close().await.unwrap();
            }
        }
        let error = build("[bus]\ncodec = \"avro\"", NONE).unwrap_err();
        assert!(error.to_string().contains("json or protobuf"), "{error}");
    }

    #[tokio::test]
    async fn kafka_is_the_redpanda_adapter_with_its_own_section() {
        let file = "[bus]\nbackend = \"kafka\"\n[bus.kafka]\nbrokers = \"one:1\"\n[bus.redpanda]\nbrokers = \"two:2\"";
        let bus = build(file, NONE).unwrap().open_bus().await.unwrap();
        assert_eq!(bus.info().backend, "redpanda");
        bus.close().await.unwrap();
        let file = "[bus]\nbackend = \"kafka\"\n[bus.redpanda]\nbrokers = \"two:2\"";
        let error = build(file, NONE).unwrap().open_bus().await.unwrap_err();
        assert_eq!(error.context_value("key"), Some("bus.kafka.brokers"), "{error}");
        let error = rejected(file, [("QI__BUS__KAFKA__BROKERS", "three")]);
        assert_eq!(error.context_value("value"), Some("three"), "{error}");
    }

    #[tokio::test]
    async fn encryption_without_its_feature_is_rejected() {
        for section in [
            "tls.enabled = true",
            "sasl = { mechanism = \"scram-sha-256\", username = \"u\", password = \"p\" }",
        ] {
            let opened = open(&format!("brokers = \"a:1\"\n{section}")).await;
            assert_eq!(opened.is_ok(), cfg!(feature = "redpanda-tls"), "{opened:?}");
            if let Err(error) = opened {
                assert!(error.to_string().contains("feature `redpanda-tls`"), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn the_environment_overrides_the_file() {
        let file = "[bus]\nbackend = \"redpanda\"\n[bus.redpanda]\nbrokers = \"a:1\"\n[bus.timeout]\nenabled = false";
        let variables = [
            ("QI__BUS__REDPANDA__BROKERS", "b:2"),
            ("QI__BUS__REDPANDA__DELIVERY_TIMEOUT", "30s"),
            ("QI__BUS__REDPANDA__SASL__MECHANISM", "plain"),
            ("QI__BUS__REDPANDA__SASL__USERNAME", "12345"),
            ("QI__BUS__REDPANDA__SASL__PASSWORD", "67890"),
            ("QI__BUS__TOPICS__CRYPTO-PRICES__PARTITIONS", "3"),
        ];
        let config = build(file, variables).unwrap();
        let bus = config.open_bus().await.unwrap();
        assert_eq!(bus.info().delivery_timeout, std::time::Duration::from_secs(30));
        let shown = format!("{bus:?}");
        assert!(shown.contains("b:2") && shown.contains("12345") && !shown.contains("67890"), "{shown}");
        let prices = config.catalogue().unwrap().get(&"crypto-prices".parse().unwrap()).unwrap().partitions;
        assert_eq!(prices, 3);
    }
}
