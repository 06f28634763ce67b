//! The HTTP under the client: without Nagle's delay, and with authorities of one's own.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use clickhouse::Client;
use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use qi_core::{Error, ErrorKind, Result};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use super::bounded::Bounded;

/// Below the 3 s after which the server closes a connection that is idle (`keep_alive_timeout`).
const IDLE: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_mins(1);
/// How long a connection may take to be made: a server that is away must not use up a call's time.
const CONNECT: Duration = Duration::from_secs(5);

/// A connector that bounds error responses and counts the connections.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<HttpConnector>,
    made: Arc<AtomicU64>,
}

type Secured = TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>;
type Source = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Bounded<Secured>>;
    type Error = Source;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Source>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Source>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, made) = (self.https.call(uri), self.made.clone());
        Box::pin(async move {
            let connection = connecting.await?;
            made.fetch_add(1, Ordering::SeqCst);
            Ok(TokioIo::new(Bounded::new(TokioIo::new(connection))))
        })
    }
}

/// A client that has no address yet. It adds the connections that it makes to `made`.
pub(super) fn client(root_cert: Option<&str>, made: Arc<AtomicU64>) -> Result<Client> {
    let mut http = HttpConnector::new();
    // The end of an insert is a short packet: it would wait for the acknowledgement of the one before.
    http.set_nodelay(true);
    http.set_keepalive(Some(KEEPALIVE));
    http.set_connect_timeout(Some(CONNECT));
    http.enforce_http(false);
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls(root_cert)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .build(Connector { https, made });
    Ok(Client::with_http_client(client))
}

/// The authorities of the file; without a file, the public authorities.
fn authorities(root_cert: Option<&str>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = root_cert {
        let wrong = |source: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Config, "store.clickhouse.root_cert", "open")
                .with_backend(super::super::BACKEND)
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
    } else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Ok(roots)
}

fn tls(root_cert: Option<&str>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            Error::new(ErrorKind::Internal, "store.clickhouse.tls", "open")
                .with_backend(super::super::BACKEND)
                .with_source(error)
        })?
        .with_root_certificates(authorities(root_cert)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_authorities_of_the_file_are_trusted() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), params.self_signed(&key).unwrap().pem()).unwrap();
        assert_eq!(authorities(file.path().to_str()).unwrap().len(), 1);
        assert_eq!(authorities(None).unwrap().len(), webpki_roots::TLS_SERVER_ROOTS.len());
    }
}
