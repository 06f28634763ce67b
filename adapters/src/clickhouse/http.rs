//! The HTTP under the client: without Nagle's delay, and with authorities of one's own.

use std::time::Duration;

use clickhouse::Client;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use qi_core::{Error, ErrorKind, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Below the 3 s after which the server closes a connection that is idle (`keep_alive_timeout`).
const IDLE: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_mins(1);
/// How long a connection may take to be made: a server that is away must not use up a call's time.
const CONNECT: Duration = Duration::from_secs(5);

/// A client that has no address yet.
pub(super) fn client(root_cert: Option<&str>) -> Result<Client> {
    let mut http = HttpConnector::new();
    // The end of an insert is a short packet: it would wait for the acknowledgement of the one before.
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE));
    http.set_connect_timeout(Some(CONNECT));
    http.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls(root_cert)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .build(connector);
    Ok(Client::with_http_client(client))
}

fn tls(root_cert: Option<&str>) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(file) = root_cert {
        let wrong = |source: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Config, "store.clickhouse.root_cert", "open")
                .with_backend(super::BACKEND)
                .with_message("the file of authorities cannot be read")
                .with_context("key", "store.clickhouse.root_cert")
                .with_context("value", file)
                .with_source(Unreadable(source.to_string()))
        };
        let mut count = 0;
        for certificate in CertificateDer::pem_file_iter(file).map_err(|e| wrong(e.into()))? {
            let certificate = certificate.map_err(|e| wrong(e.into()))?;
            roots.add(certificate).map_err(|e| wrong(e.into()))?;
            count += 1;
        }
        if count == 0 {
            return Err(wrong("it holds no certificate".into()));
        }
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            Error::new(ErrorKind::Internal, "store.clickhouse.tls", "open")
                .with_backend(super::BACKEND)
                .with_source(error)
        })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// Why a file was refused, as text: of several types.
#[derive(Debug)]
struct Unreadable(String);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}
