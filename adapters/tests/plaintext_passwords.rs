//! The warning about a password that may cross a network without encryption. Each opened backend logs it once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};

use qi_adapters::clickhouse::{ClickHouseConfig, ClickHouseStore};
use qi_adapters::config::{RedpandaConfig, SaslMechanism, TimescaleConfig, TlsMode};
use qi_adapters::redpanda::RedpandaBus;
use qi_adapters::timescale::TimescaleStore;
use qi_core::{ErrorKind, Result};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

const SECRET: &str = "hunter2";

/// The warnings of a thread, as text.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= Level::WARN {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().unwrap().push(text.0);
        }
    }
}

/// Returns the warnings that are logged while a backend is opened.
fn warnings<T>(open: impl FnOnce() -> Result<T>) -> Vec<String> {
    let warnings = Warnings::default();
    let subscriber = tracing_subscriber::registry().with(warnings.clone());
    drop(tracing::subscriber::with_default(subscriber, open).unwrap());
    std::mem::take(&mut *warnings.0.lock().unwrap())
}

/// Expects one warning with the hosts and without secrets, or no warning.
fn expect<T>(hosts: Option<&str>, open: impl FnOnce() -> Result<T>) {
    let seen = warnings(open);
    match hosts {
        None => assert!(seen.is_empty(), "{seen:?}"),
        Some(hosts) => {
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert!(seen[0].contains("unencrypted connection") && seen[0].contains(hosts), "{seen:?}");
            assert!(!seen[0].contains(SECRET), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn timescale_warns_unless_encryption_is_required() {
    let open = |url: &str, change: &dyn Fn(&mut TimescaleConfig)| {
        let mut config = TimescaleConfig::from_url(url);
        change(&mut config);
        move || TimescaleStore::open(config)
    };
    let remote = format!("postgres://qi:{SECRET}@db.example.com/qi");
    expect(Some("db.example.com"), open(&remote, &|_| ()));
    for mode in ["disable", "allow", "prefer"] {
        expect(Some("db.example.com"), open(&format!("{remote}?sslmode={mode}"), &|_| ()));
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        expect(None, open(&format!("{remote}?sslmode={mode}"), &|_| ()));
    }
    expect(None, open(&remote, &|config| config.tls.mode = Some(TlsMode::Require)));
    expect(Some("db.example.com"), open(&remote, &|config| config.tls.mode = Some(TlsMode::Prefer)));
    // The password and the host from fields and parameters.
    let fields = |config: &mut TimescaleConfig| {
        config.password = Some(SECRET.to_owned().into());
        config.host = Some("10.0.0.1".to_owned());
    };
    expect(Some("10.0.0.1"), open("postgres://qi@localhost/qi", &fields));
    let parameters = format!("postgres://qi@localhost/qi?password={SECRET}&hostaddr=10.0.0.2");
    expect(Some("10.0.0.2"), open(&parameters, &|_| ()));
    // No password, or a server on this machine.
    expect(None, open("postgres://qi@db.example.com/qi", &|_| ()));
    for host in ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "%2Fvar%2Frun%2Fpostgresql"] {
        expect(None, open(&format!("postgres://qi:{SECRET}@{host}/qi"), &|_| ()));
    }
}

#[test]
fn clickhouse_warns_about_http() {
    let open = |url: String| move || ClickHouseStore::open(ClickHouseConfig::from_url(url));
    for host in ["db.example.com", "10.0.0.1", "fe80::1"] {
        let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        expect(Some(host), open(format!("http://qi:{SECRET}@{shown}:8123")));
        expect(None, open(format!("https://qi:{SECRET}@{shown}:8443")));
        expect(None, open(format!("http://qi@{shown}:8123")));
    }
    for host in ["localhost", "LOCALHOST:8123", "127.0.0.1:8123", "[::1]:8123", "[::1]"] {
        expect(None, open(format!("http://qi:{SECRET}@{host}")));
    }
    expect(Some("db.example.com"), || {
        let mut config = ClickHouseConfig::from_url("http://db.example.com");
        config.password = Some(SECRET.to_owned().into());
        ClickHouseStore::open(config)
    });
}

#[tokio::test]
async fn redpanda_warns_about_remote_brokers() {
    let open = |brokers: &str, mechanism, tls: bool| {
        let mut config = RedpandaConfig::from_brokers(brokers);
        config.sasl.mechanism = mechanism;
        config.sasl.username = mechanism.map(|_| "qi".to_owned());
        config.sasl.password = mechanism.map(|_| SECRET.to_owned().into());
        config.tls.enabled = tls;
        move || RedpandaBus::open(config)
    };
    let local = "localhost:9092,127.0.0.1:9092,[::1]:9092";
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256, SaslMechanism::ScramSha512] {
        let mechanism = Some(mechanism);
        expect(None, open(local, mechanism, false));
        let brokers = format!("{local}, kafka-1.example.com:9092,10.0.0.1:9092");
        expect(Some("kafka-1.example.com, 10.0.0.1"), open(&brokers, mechanism, false));
        expect(None, open(&brokers, mechanism, true));
        expect(None, open(&brokers, None, false));
    }
}

#[test]
fn properties_that_disable_verification_are_rejected() {
    for (property, rejected, taken) in [
        ("enable.ssl.certificate.verification", &["false", "0", "f", "no"][..], &["true", "True", "1"][..]),
        ("ssl.endpoint.identification.algorithm", &["none", "NONE", ""], &["https"]),
    ] {
        let open = |value: &str| {
            let mut config = RedpandaConfig::from_brokers("kafka.example.com:9092");
            config.tls.enabled = true;
            config.properties.insert(property.to_owned(), value.into());
            config.validate()
        };
        for value in rejected {
            let error = open(value).unwrap_err();
            assert_eq!((error.kind(), error.context_value("value")), (ErrorKind::Config, Some(property)));
            assert!(error.report().contains("tls.root_cert"), "{}", error.report());
        }
        for value in taken {
            open(value).unwrap();
        }
    }
}
