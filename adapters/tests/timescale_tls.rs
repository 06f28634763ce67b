//! Encrypted connections: the requirements of each mode on a real server, and its failures.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod servers;
mod timescale_rig;

use std::path::PathBuf;
use std::time::Duration;

use libtest_mimic::Arguments;
use qi_adapters::config::TlsMode;
use qi_adapters::timescale::{TimescaleConfig, TimescaleStore};
use qi_core::{ErrorKind, PriceStore, PriceStoreExt, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use servers::{Spare, spare_trial};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use timescale_rig::Server;

fn main() {
    let trials = [Server::timescale(), Server::postgres()]
        .map(|server| spare_trial(&server, "each_tls_mode_is_enforced", modes));
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit()
}

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

    /// Returns a certificate for hosts, or for a client of this name, and its key.
    fn sign(&self, hosts: &[&str], name: &str) -> (String, String) {
        let mut params =
            CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// Installs certificates on the server, and creates a role that authenticates with a certificate.
async fn encrypt(root: &mut PgConnection, authority: &Authority) {
    let (cert, key) = authority.sign(&["127.0.0.1"], "server");
    for (file, pem) in [("ca.pem", &authority.1), ("server.pem", &cert), ("server.key", &key)] {
        let line = pem.replace('\n', "~");
        let write =
            format!("COPY (SELECT '{line}') TO PROGRAM 'tr \"~\" \"\\n\" > {file} && chmod 600 {file}'");
        sqlx::query(AssertSqlSafe(write)).execute(&mut *root).await.unwrap();
    }
    let hba = "COPY (SELECT 'hostssl all by_certificate 127.0.0.1/32 cert') TO PROGRAM \
               'cat - pg_hba.conf > pg_hba.new && mv pg_hba.new pg_hba.conf'";
    for statement in [
        hba,
        "CREATE ROLE by_certificate LOGIN",
        "ALTER SYSTEM SET ssl_cert_file = 'server.pem'",
        "ALTER SYSTEM SET ssl_key_file = 'server.key'",
        "ALTER SYSTEM SET ssl_ca_file = 'ca.pem'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    ] {
        sqlx::query(statement).execute(&mut *root).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn modes(server: Server, spare: Spare) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> String {
        let path: PathBuf = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ours, foreign) = (Authority::new(), Authority::new());
    let (known, unknown) = (file("ca.pem", &ours.1), file("foreign.pem", &foreign.1));
    let mut root = PgConnection::connect(server.url()).await.unwrap();
    // Before the server supports TLS, `require` is rejected and `prefer` is accepted.
    assert_eq!(encrypted(&server, |c| c.tls.mode = Some(TlsMode::Prefer)).await.unwrap(), Some(false));
    rejected(&server, |c| c.tls.mode = Some(TlsMode::Require)).await;
    encrypt(&mut root, &ours).await;
    let with = |mode: TlsMode, authority: Option<&str>| {
        let authority = authority.map(str::to_owned);
        move |config: &mut TimescaleConfig| {
            config.tls.mode = Some(mode);
            config.tls.root_cert.clone_from(&authority);
        }
    };
    for (mode, authority, result) in [
        (TlsMode::Disable, None, Some(false)),
        (TlsMode::Prefer, None, Some(true)),
        (TlsMode::Require, None, Some(true)),
        (TlsMode::Require, Some(&known), Some(true)),
        (TlsMode::Require, Some(&unknown), None),
        (TlsMode::VerifyCa, Some(&known), Some(true)),
        (TlsMode::VerifyCa, Some(&unknown), None),
        (TlsMode::VerifyCa, None, None),
        (TlsMode::VerifyFull, Some(&known), Some(true)),
        (TlsMode::VerifyFull, Some(&unknown), None),
    ] {
        let change = with(mode, authority.map(String::as_str));
        match result {
            Some(result) => assert_eq!(encrypted(&server, change).await.unwrap(), Some(result), "{mode:?}"),
            None => rejected(&server, change).await,
        }
    }
    // The certificate is valid only for 127.0.0.1.
    let elsewhere = |mode| {
        let change = with(mode, Some(&known));
        move |config: &mut TimescaleConfig| {
            change(config);
            config.host = Some("localhost".to_owned());
        }
    };
    assert_eq!(encrypted(&server, elsewhere(TlsMode::VerifyCa)).await.unwrap(), Some(true));
    rejected(&server, elsewhere(TlsMode::VerifyFull)).await;
    // The URL has the same effect as the section, and parts of both can be combined.
    let url = |parameters: String| {
        let separator = if server.url().contains('?') { '&' } else { '?' };
        let url = format!("{}{separator}{parameters}", server.url());
        move |config: &mut TimescaleConfig| config.url = Some(url.into())
    };
    for mode in ["require", "verify-ca", "verify-full"] {
        let change = url(format!("sslmode={mode}&sslrootcert={known}"));
        assert_eq!(encrypted(&server, change).await.unwrap(), Some(true), "{mode}");
        rejected(&server, url(format!("sslmode={mode}&sslrootcert={unknown}"))).await;
        rejected(&server, |config| {
            url(format!("sslmode={mode}"))(config);
            config.tls.root_cert = Some(unknown.clone());
        })
        .await;
    }
    // Certificate authorities that would be ignored are rejected, and nothing is sent.
    for mode in [None, Some(TlsMode::Prefer), Some(TlsMode::Disable)] {
        let mut config = server.config("qi");
        (config.tls.mode, config.tls.root_cert) = (mode, Some(known.clone()));
        let error = TimescaleStore::open(config).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Config, "store.timescale.config"));
    }
    // A client that authenticates only with its certificate.
    let (cert, key) = ours.sign(&[], "by_certificate");
    let (cert, key) = (file("client.pem", &cert), file("client.key", &key));
    let by_certificate = |config: &mut TimescaleConfig| {
        with(TlsMode::VerifyFull, Some(&known))(config);
        config.user = Some("by_certificate".to_owned());
        config.tls.client_cert = Some(cert.clone());
        config.tls.client_key = Some(key.clone());
    };
    assert_eq!(encrypted(&server, by_certificate).await.unwrap(), Some(true));
    let without = |config: &mut TimescaleConfig| {
        by_certificate(config);
        (config.tls.client_cert, config.tls.client_key) = (None, None);
    };
    let error = encrypted(&server, without).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.report());
    // A missing file is a configuration error, not an unreachable server.
    let mut config = server.config("qi");
    with(TlsMode::VerifyFull, Some("/no/such/file.pem"))(&mut config);
    let error = TimescaleStore::open(config).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Config, "store.timescale.tls_file"));
    root.close().await.unwrap();
    drop(spare);
}

/// Returns whether a connection with this configuration is encrypted, as reported by the server.
async fn encrypted(server: &Server, change: impl FnOnce(&mut TimescaleConfig)) -> Result<Option<bool>> {
    let mut config = server.config("qi");
    config.pool.acquire_timeout = Duration::from_secs(1);
    change(&mut config);
    let store = TimescaleStore::open(config)?;
    store.wait_ready(Duration::from_secs(2)).await?;
    let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let ssl = sqlx::query_scalar(ssl).fetch_optional(store.pool()).await.unwrap();
    store.close().await?;
    Ok(ssl)
}

async fn rejected(server: &Server, change: impl FnOnce(&mut TimescaleConfig)) {
    let error = encrypted(server, change).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Unavailable, "store.timescale.tls"),
        "{}",
        error.report()
    );
}
