//! Connections over `https`, through a TLS proxy with generated certificates in front of the server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clickhouse_rig;
mod servers;

use std::sync::Arc;
use std::time::Duration;

use clickhouse_rig::Server;
use libtest_mimic::Arguments;
use qi_adapters::clickhouse::ClickHouseStore;
use qi_core::store::{RangeQuery, StorePingReport};
use qi_core::{ErrorKind, PriceStore, PriceStoreExt as _, PriceTick, Result, TimeRange, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use servers::{namespace, trial};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

fn main() {
    let server = Server::clickhouse();
    let trials = vec![
        trial(&server, "a_configured_certificate_authority_is_trusted", named),
        trial(&server, "untrusted_certificates_are_rejected", rejected),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit()
}

/// A certificate authority that signs certificates.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// Returns the TLS acceptor of a server for a host.
    fn acceptor(&self, host: &str) -> TlsAcceptor {
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Starts a TLS proxy in front of the server. Returns its URL, with the credentials of the server.
async fn proxy(server: &Server, acceptor: TlsAcceptor) -> String {
    let rest = server.url().split_once("://").unwrap().1.trim_end_matches('/');
    // A server may accept its default user without a password.
    let at = rest.rfind('@').map_or(0, |at| at + 1);
    let (credentials, host) = rest.split_at(at);
    let (listener, host) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), host.to_owned());
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, host) = (acceptor.clone(), host.clone());
            tokio::spawn(async move {
                // A client that does not trust the certificate disconnects.
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut server = TcpStream::connect(host).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    format!("https://{credentials}127.0.0.1:{port}")
}

async fn named(server: Server) {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &authority.1).unwrap();
    let url = proxy(&server, authority.acceptor("127.0.0.1")).await;
    let prefix = format!("{}_", namespace());
    let mut config = server.config(&prefix);
    config.url = Some(url.into());
    config.root_cert = Some(file.to_str().unwrap().to_owned());
    let store = ClickHouseStore::open(config).unwrap();
    store.ensure_schema().await.unwrap();
    let time = Timestamp::from_secs(1_700_000_000).unwrap();
    let ticks: Vec<_> = (0..20_000)
        .map(|n| PriceTick::new("x:Y".parse().unwrap(), time, n, "1.5".parse().unwrap()).unwrap())
        .collect();
    store.insert_ticks(&ticks).await.unwrap();
    let query = RangeQuery::new("x:Y".parse().unwrap(), TimeRange::ALL).with_limit(10_000).unwrap();
    assert_eq!(store.ticks(&query).await.unwrap().items, ticks[..10_000]);
    store.close().await.unwrap();
    server.drop_tables(&prefix).await;
}

async fn rejected(server: Server) {
    let (ours, foreign) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path.to_str().unwrap().to_owned())
    };
    let open = |url: String, root_cert: Option<String>| {
        let mut config = server.config("");
        config.url = Some(url.into());
        config.root_cert = root_cert;
        ClickHouseStore::open(config)
    };
    let ping = async |url: &str, root_cert: Option<String>| -> Result<StorePingReport> {
        open(url.to_owned(), root_cert)?.ping().await
    };
    let url = proxy(&server, ours.acceptor("127.0.0.1")).await;
    let elsewhere = proxy(&server, ours.acceptor("elsewhere.example")).await;
    let (known, unknown) = (file("ca.pem", &ours.1), file("foreign.pem", &foreign.1));
    ping(&url, known.clone()).await.unwrap();
    for (url, root_cert) in [(&url, None), (&url, unknown), (&elsewhere, known)] {
        let error = ping(url, root_cert).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Unavailable, "store.clickhouse.network"),
            "{}",
            error.report()
        );
    }
    // A server without TLS on the remote side.
    let plain = server.url().replace("http://", "https://");
    let error = tokio::time::timeout(Duration::from_secs(20), ping(&plain, None)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    for file in
        [file("empty.pem", ""), file("nonsense.pem", "-----BEGIN"), Some("/no/such/file.pem".to_owned())]
    {
        let error = open(url.clone(), file).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Config, "store.clickhouse.root_cert"));
    }
}
