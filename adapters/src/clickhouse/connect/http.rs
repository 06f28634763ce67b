//! The HTTP transport of the client, without Nagle's algorithm and with custom certificate authorities.

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
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use super::bounded::Bounded;
use crate::root_certs::authorities;

/// The time after which the client drops an idle connection. The server closes it after 3 s (`keep_alive_timeout`).
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
const TCP_KEEPALIVE: Duration = Duration::from_mins(1);
/// The connect timeout. An unreachable server must not use up the time limit of a call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connector that bounds error responses and counts the connections.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<HttpConnector>,
    opened: Arc<AtomicU64>,
}

type HttpStream = TokioIo<MaybeHttpsStream<TokioIo<TcpStream>>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Bounded<HttpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, opened) = (self.https.call(uri), self.opened.clone());
        Box::pin(async move {
            let connection = connecting.await?;
            opened.fetch_add(1, Ordering::SeqCst);
            Ok(TokioIo::new(Bounded::new(TokioIo::new(connection))))
        })
    }
}

/// Creates a client without an address. `opened` counts the connections that the client opens.
pub(super) fn client(root_cert: Option<&str>, opened: Arc<AtomicU64>) -> Result<Client> {
    let mut http = HttpConnector::new();
    // An insert ends with a short packet. With Nagle's algorithm it would wait for the acknowledgement
    // of the previous packet.
    http.set_nodelay(true);
    http.set_keepalive(Some(TCP_KEEPALIVE));
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.enforce_http(false);
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls(root_cert)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(Connector { https, opened });
    Ok(Client::with_http_client(client))
}

/// Returns the certificate authorities of the file, or the public certificate authorities if there is no file.
fn roots(root_cert: Option<&str>) -> Result<RootCertStore> {
    let Some(file) = root_cert else { return Ok(webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()) };
    std::fs::read(file).and_then(|pem| authorities(&pem)).map_err(|error| {
        Error::new(ErrorKind::Config, "store.clickhouse.root_cert", "open")
            .with_backend(super::super::BACKEND)
            .with_message("cannot read the file of certificate authorities")
            .with_context("key", "store.clickhouse.root_cert")
            .with_context("value", file)
            .with_source(error)
    })
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
        .with_root_certificates(roots(root_cert)?)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_authorities_of_the_file_are_trusted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), crate::root_certs::tests::authority()).unwrap();
        assert_eq!(roots(file.path().to_str()).unwrap().len(), 1);
        assert_eq!(roots(None).unwrap().len(), webpki_roots::TLS_SERVER_ROOTS.len());
    }
}
