//! Authentication with passwords and certificates on real brokers, and its failures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod redpanda_rig;
mod servers;

use std::net::TcpListener;
use std::time::Duration;

use libtest_mimic::Arguments;
use qi_adapters::config::SaslMechanism;
use qi_adapters::redpanda::{RedpandaBus, RedpandaConfig};
use qi_core::bus::{
    DeliveryState, GroupId, Message, MessageBus, MessageBusExt, PublishOptions, SubscribeRequest, TopicName,
    TopicSpec,
};
use qi_core::{Error, ErrorKind};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use redpanda_rig::tools::tool;
use redpanda_rig::{Brokers, config};
use servers::{Spare, namespace, spare_trial};
use tempfile::TempDir;
use tokio::time::Instant;

const PASSWORD: &str = "a-secret-of-this-test";

fn main() {
    let brokers = Brokers::redpanda();
    // One broker for all of them, because its start takes most of the time.
    let trials = vec![spare_trial(&brokers, "listeners_accept_only_correct_credentials", logins)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

async fn logins(brokers: Brokers, spare: Spare) {
    let authority = Authority::new();
    let (spare, listeners) = with_listeners(spare, &authority).await;
    plain(&listeners).await;
    if cfg!(feature = "redpanda-tls") {
        scram(&brokers, &listeners).await;
        certificates(&authority, &listeners).await;
    }
    drop(spare);
}

/// The listeners of a broker in addition to its plain listener.
#[derive(Debug)]
struct Listeners {
    /// The listener with passwords.
    passwords: String,
    /// The listener with a certificate of the broker.
    encrypted: String,
    /// The listener with certificates of both sides.
    mutual: String,
    folder: TempDir,
}

impl Listeners {
    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Restarts the broker with listeners that require authentication or encryption.
async fn with_listeners(spare: Spare, authority: &Authority) -> (Spare, Listeners) {
    // All three ports are held until each listener has a port, because a released port may be assigned again.
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [passwords, encrypted, mutual] =
        held.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
    drop(held);
    let listeners = Listeners { passwords, encrypted, mutual, folder: tempfile::tempdir().unwrap() };
    let (cert, key) = authority.sign("127.0.0.1", "a broker");
    let server = listeners.file("server.pem", &format!("{key}{cert}"));
    let trusted = listeners.file("ca.pem", &authority.1);
    let settings = listeners.file(
        "settings",
        &format!(
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PASSWORD:SASL_PLAINTEXT,\
             ENCRYPTED:SSL,MUTUAL:SSL\n\
             sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.password.plain.sasl.jaas.config={SECURITY}.plain.PlainLoginModule required \
             user_alice=\"{PASSWORD}\";\n\
             listener.name.password.scram-sha-256.sasl.jaas.config={SECURITY}.scram.ScramLoginModule required;\n\
             listener.name.password.scram-sha-512.sasl.jaas.config={SECURITY}.scram.ScramLoginModule required;\n\
             ssl.keystore.type=PEM\nssl.keystore.location={server}\n\
             ssl.truststore.type=PEM\nssl.truststore.location={trusted}\n\
             listener.name.mutual.ssl.client.auth=required\n"
        ),
    );
    let addresses = format!(
        "PASSWORD://{},ENCRYPTED://{},MUTUAL://{}",
        listeners.passwords, listeners.encrypted, listeners.mutual
    );
    let spare = spare.run_action("kill").await;
    let spare = spare.run_action(format!("start {addresses} {settings}")).await;
    (spare, listeners)
}

const SECURITY: &str = "org.apache.kafka.common.security";

/// A certificate authority that signs certificates.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of this test");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// Returns a certificate for a host, and its key.
    fn sign(&self, host: &str, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// Asserts that a client with this configuration can perform all operations.
async fn assert_accepted(config: RedpandaConfig) {
    let bus = RedpandaBus::open(config).unwrap();
    bus.ping().await.unwrap();
    let topic = TopicName::new(namespace()).unwrap();
    let made = bus.create_topics(&[TopicSpec::new(topic.clone(), 1).unwrap()]).await.unwrap();
    assert!(made[0].result.is_ok(), "{made:?}");
    bus.send(&[Message::new(topic.clone(), "x")]).await.unwrap();
    let group = GroupId::new(topic.as_str()).unwrap();
    let mut sub = bus.subscribe(SubscribeRequest::new(group, [topic]).unwrap()).await.unwrap();
    assert_eq!(sub.recv(1, Duration::from_secs(10)).await.unwrap().len(), 1);
    bus.close().await.unwrap();
}

/// Asserts that every call with this configuration fails soon with this kind, and that no error contains a secret.
async fn assert_rejected(config: RedpandaConfig, kind: ErrorKind) {
    let shown = format!("{config:?}");
    assert!(!shown.contains(PASSWORD), "{shown}");
    let bus = RedpandaBus::open(config).unwrap();
    let assert_failure = |error: Error, started: Instant| {
        assert_eq!(error.kind(), kind, "{}", error.report());
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(6), "the call took {elapsed:?}: {}", error.report());
        let shown = format!("{error:?} {}", error.report());
        assert!(!shown.contains(PASSWORD), "{shown}");
    };
    let started = Instant::now();
    assert_failure(bus.ping().await.unwrap_err(), started);
    let topic = TopicName::new(namespace()).unwrap();
    let started = Instant::now();
    let report = bus.publish(&[Message::new(topic.clone(), "x")], PublishOptions::NONE).await.unwrap();
    let failure = report.into_outcomes().pop().unwrap().unwrap_err();
    assert_eq!(failure.state, DeliveryState::NotSent);
    assert_failure(failure.error, started);
    let group = GroupId::new(topic.as_str()).unwrap();
    let started = Instant::now();
    assert_failure(bus.subscribe(SubscribeRequest::new(group, [topic]).unwrap()).await.unwrap_err(), started);
    let started = Instant::now();
    assert_failure(bus.topics().await.unwrap_err(), started);
    bus.close().await.unwrap();
}

fn with_password(address: &str, mechanism: SaslMechanism, user: &str, password: &str) -> RedpandaConfig {
    let mut config = config(address);
    config.sasl.mechanism = Some(mechanism);
    config.sasl.username = Some(user.to_owned());
    config.sasl.password = Some(password.to_owned().into());
    config
}

async fn plain(listeners: &Listeners) {
    let plain = |user: &str, password: &str| {
        with_password(&listeners.passwords, SaslMechanism::Plain, user, password)
    };
    assert_accepted(plain("alice", PASSWORD)).await;
    assert_rejected(plain("alice", &format!("{PASSWORD}?")), ErrorKind::Unauthorized).await;
    assert_rejected(plain("mallory", PASSWORD), ErrorKind::Unauthorized).await;
    // Without a login, the broker closes the connection without a reason.
    assert_rejected(config(&listeners.passwords), ErrorKind::Unavailable).await;
}

async fn scram(brokers: &Brokers, listeners: &Listeners) {
    for (mechanism, word) in
        [(SaslMechanism::ScramSha256, "SCRAM-SHA-256"), (SaslMechanism::ScramSha512, "SCRAM-SHA-512")]
    {
        let user = format!("user-of-{}", word.to_lowercase());
        let options = format!(
            "--alter --add-config {word}=[iterations=4096,password={PASSWORD}] --entity-type users \
             --entity-name {user}"
        );
        tool(brokers, "kafka.admin.ConfigCommand", &options, "").await;
        assert_accepted(with_password(&listeners.passwords, mechanism, &user, PASSWORD)).await;
        let wrong = format!("{PASSWORD}?");
        assert_rejected(
            with_password(&listeners.passwords, mechanism, &user, &wrong),
            ErrorKind::Unauthorized,
        )
        .await;
    }
}

async fn certificates(ours: &Authority, listeners: &Listeners) {
    let foreign = Authority::new();
    let (known, unknown) = (listeners.file("known.pem", &ours.1), listeners.file("unknown.pem", &foreign.1));
    let encrypted = |address: &str, authority: &str| {
        let mut config = config(address);
        config.tls.enabled = true;
        config.tls.root_cert = Some(authority.to_owned());
        config
    };
    assert_accepted(encrypted(&listeners.encrypted, &known)).await;
    assert_rejected(encrypted(&listeners.encrypted, &unknown), ErrorKind::Unavailable).await;
    // The certificate is valid only for 127.0.0.1.
    let elsewhere = listeners.encrypted.replace("127.0.0.1", "localhost");
    assert_rejected(encrypted(&elsewhere, &known), ErrorKind::Unavailable).await;
    assert_rejected(config(&listeners.encrypted), ErrorKind::Unavailable).await;
    // Certificates of both sides.
    let by = |authority: &Authority, name: &str| {
        let (cert, key) = authority.sign("client", name);
        let mut config = encrypted(&listeners.mutual, &known);
        config.tls.client_cert = Some(listeners.file(&format!("{name}.pem"), &cert));
        config.tls.client_key = Some(listeners.file(&format!("{name}.key"), &key));
        config
    };
    assert_accepted(by(ours, "a-client")).await;
    assert_rejected(by(&foreign, "a-stranger"), ErrorKind::Unavailable).await;
    assert_rejected(encrypted(&listeners.mutual, &known), ErrorKind::Unavailable).await;
}
