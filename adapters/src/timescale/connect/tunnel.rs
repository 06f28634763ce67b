//! TLS that trusts only the certificate authorities of one file.
//!
//! The driver trusts the public certificate authorities in addition to those of `root_cert`. With `root_cert`, the
//! adapter therefore encrypts the connections itself. The driver connects to a Unix socket in a folder that only this
//! user may enter. The tunnel carries each connection of the driver over a separate TLS connection.

use std::fs::DirBuilder;
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest, ReadHalf, Ready, WriteHalf};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::root_certs::{authorities, certificates};

/// The maximum number of bytes copied with one call in each direction.
const BUFFER_BYTES: usize = 64 * 1024;

/// The time limit for opening an encrypted connection to the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server, and the certificates for its verification. Each PEM is a text or the path of a file.
#[derive(Debug, Clone)]
pub(super) struct TunnelConfig {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) root_cert: String,
    pub(super) client: Option<(String, String)>,
    /// True if the certificate must name the host.
    pub(super) verifies_host: bool,
}

/// A Unix socket that leads to the server. Dropping the tunnel removes the socket. An open connection ends with the
/// driver's connection.
#[derive(Debug)]
pub(super) struct Tunnel {
    folder: PathBuf,
    accepting: AbortHandle,
    failure: Arc<Mutex<Option<Failure>>>,
}

/// The error of the last connection attempt.
type Failure = (ErrorKind, String);

impl Tunnel {
    /// Opens the socket. Must be called inside a tokio runtime.
    pub(super) fn open(config: TunnelConfig) -> io::Result<Self> {
        static NEXT_ID: AtomicU32 = AtomicU32::new(0);
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let name = format!(
            "qi-tls-{}-{}-{:x}",
            std::process::id(),
            NEXT_ID.fetch_add(1, Ordering::Relaxed),
            since.map_or(0, |since| since.subsec_nanos()),
        );
        let folder = std::env::temp_dir().join(name);
        // Fails if the folder exists, so no other user can own the folder.
        DirBuilder::new().mode(0o700).create(&folder)?;
        let listener = UnixListener::bind(folder.join(format!(".s.PGSQL.{}", config.port)));
        let listener = listener.inspect_err(|_| drop(std::fs::remove_dir_all(&folder)))?;
        let failure = Arc::<Mutex<Option<Failure>>>::default();
        let accepting = tokio::spawn(accept(listener, Arc::new(config), failure.clone())).abort_handle();
        Ok(Self { folder, accepting, failure })
    }

    /// Returns the folder of the socket, in the form that the driver expects.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the error of the last connection attempt, if it failed. The driver sees only that the socket closes.
    pub(super) fn failure(&self) -> Option<Error> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map(|(kind, text)| Error::new(*kind, text.clone()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn accept(listener: UnixListener, config: Arc<TunnelConfig>, failure: Arc<Mutex<Option<Failure>>>) {
    const RETRY_BACKOFF: Duration = Duration::from_millis(50);
    loop {
        match listener.accept().await {
            Ok((driver, _)) => drop(tokio::spawn(forward(driver, config.clone(), failure.clone()))),
            // Too many open files, for example.
            Err(_) => tokio::time::sleep(RETRY_BACKOFF).await,
        }
    }
}

/// Carries one connection of the driver. When one end closes, both ends are closed.
async fn forward(driver: UnixStream, config: Arc<TunnelConfig>, failure: Arc<Mutex<Option<Failure>>>) {
    let connected = tokio::select! {
        connected = tokio::time::timeout(CONNECT_TIMEOUT, config.connect()) => connected,
        // The driver gave up, so no error is recorded.
        () = closed(&driver) => return,
    };
    let connected = connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    *failure.lock().unwrap_or_else(PoisonError::into_inner) =
        connected.as_ref().err().map(|error| (error.kind(), error.to_string()));
    if let Ok(server) = connected {
        let (mut from, mut to) = tokio::io::split(server);
        let _ = tokio::select! {
            ended = send(&driver, &mut to) => ended,
            ended = receive(&mut from, &driver) => ended,
        };
    }
}

/// Copies the data of the driver to the server until the driver closes its end. A server that does not read cannot
/// delay this detection.
async fn send(driver: &UnixStream, server: &mut WriteHalf<TlsStream<TcpStream>>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        driver.readable().await?;
        let bytes = match driver.try_read(&mut buffer) {
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let write = async {
            if bytes.is_empty() {
                return server.shutdown().await;
            }
            server.write_all(bytes).await?;
            server.flush().await
        };
        tokio::select! {
            biased;
            written = write => written?,
            () = closed(driver) => return Ok(()),
        }
        if bytes.is_empty() {
            return Ok(());
        }
    }
}

/// Copies the data of the server to the driver until the server closes its end.
async fn receive(server: &mut ReadHalf<TlsStream<TcpStream>>, driver: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = server.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            driver.writable().await?;
            match driver.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Waits until the driver closes its end. Reads none of the data that the driver sent.
async fn closed(driver: &UnixStream) {
    const POLL_INTERVAL: Duration = Duration::from_millis(500);
    // The runtime reports a closed end only together with other events.
    while !driver.ready(Interest::WRITABLE).await.is_ok_and(Ready::is_write_closed) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

impl TunnelConfig {
    /// Connects as specified in the chapter "SSL Session Encryption" of PostgreSQL's protocol.
    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
        let host = self.host.trim_matches(['[', ']']);
        let mut server = TcpStream::connect((host, self.port)).await?;
        server.set_nodelay(true)?;
        server.write_all(&SSL_REQUEST).await?;
        match server.read_u8().await? {
            b'S' => {}
            b'N' => return Err(invalid("the server does not support TLS")),
            other => {
                return Err(invalid(format!(
                    "unexpected response to SSLRequest: {other:#04x}, expected S or N"
                )));
            }
        }
        // The files are read for every connection, so that they can be replaced.
        let tls = self.tls()?;
        let name = ServerName::try_from(host.to_owned()).map_err(invalid)?;
        TlsConnector::from(Arc::new(tls)).connect(name, server).await
    }

    fn tls(&self) -> io::Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(authorities(&pem(&self.root_cert)?)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
        let verifier = verifier.map_err(invalid)?;
        let verifier: Arc<dyn ServerCertVerifier> =
            if self.verifies_host { verifier } else { Arc::new(AnyHostVerifier(verifier)) };
        let builder = ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(invalid)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some((certificate, key)) = &self.client else { return Ok(builder.with_no_client_auth()) };
        let key = PrivateKeyDer::from_pem_slice(&pem(key)?).map_err(invalid)?;
        builder.with_client_auth_cert(certificates(&pem(certificate)?)?, key).map_err(invalid)
    }
}

/// Returns the bytes of a PEM that is given as a text or as the path of a file.
fn pem(text: &str) -> io::Result<Vec<u8>> {
    if text.trim_start().starts_with("-----BEGIN") {
        Ok(text.as_bytes().to_vec())
    } else {
        std::fs::read(text)
    }
}

/// Returns an error whose kind distinguishes a TLS failure from a network failure.
fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, error)
}

/// A verifier that accepts a certificate of a trusted authority for any host.
#[derive(Debug)]
struct AnyHostVerifier(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyHostVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_removed_with_the_tunnel() {
        use std::os::unix::fs::PermissionsExt as _;
        let config = TunnelConfig {
            host: "127.0.0.1".to_owned(),
            port: 1,
            root_cert: "/no/such/file".to_owned(),
            client: None,
            verifies_host: true,
        };
        let tunnel = Tunnel::open(config).unwrap();
        let folder = tunnel.folder().to_owned();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let mut driver = UnixStream::connect(folder.join(".s.PGSQL.1")).await.unwrap();
        assert_eq!(driver.read(&mut [0]).await.unwrap(), 0, "no listener on port 1");
        assert_eq!(tunnel.failure().unwrap().kind(), ErrorKind::ConnectionRefused);
        drop(tunnel);
        assert!(!folder.exists());
    }

    /// Starts a tunnel connection to a listener. Returns its task and its two ends.
    async fn forwarding(root_cert: &str) -> (JoinHandle<()>, UnixStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = TunnelConfig {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
            root_cert: root_cert.to_owned(),
            client: None,
            verifies_host: false,
        };
        let (driver, end) = UnixStream::pair().unwrap();
        let forwarding = tokio::spawn(forward(end, Arc::new(config), Arc::default()));
        let (mut server, _) = listener.accept().await.unwrap();
        server.read_exact(&mut [0; 8]).await.unwrap();
        (forwarding, driver, server)
    }

    #[tokio::test]
    async fn a_closed_driver_connection_closes_the_server_connection() {
        let (forwarding, mut driver, mut server) = forwarding("/no/such/file").await;
        driver.write_all(b"startup").await.unwrap();
        drop(driver);
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        forwarding.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_times_out() {
        let (forwarding, mut driver, _server) = forwarding("/no/such/file").await;
        tokio::time::timeout(2 * CONNECT_TIMEOUT, forwarding).await.unwrap().unwrap();
        assert_eq!(driver.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn closing_one_end_closes_the_other() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let (pem, issuer) = (authority.pem(), rcgen::Issuer::new(params, key));
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![leaf.der().clone()], key)
                .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        for driver_first in [true, false] {
            let (forwarding, mut driver, mut server) = forwarding(&pem).await;
            server.write_all(b"S").await.unwrap();
            let mut server = acceptor.accept(server).await.unwrap();
            let (sent, received) = (vec![7; 3 * BUFFER_BYTES], &mut vec![0; 3 * BUFFER_BYTES]);
            let write = async {
                driver.write_all(&sent).await.unwrap();
                driver.read_exact(received).await.unwrap();
            };
            let echo = async {
                let mut bytes = vec![0; 3 * BUFFER_BYTES];
                server.read_exact(&mut bytes).await.unwrap();
                server.write_all(&bytes).await.unwrap();
                server.flush().await.unwrap();
            };
            tokio::join!(write, echo);
            assert_eq!(sent, *received);
            // The other end is still open.
            if driver_first {
                drop(driver);
                forwarding.await.unwrap();
                assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
            } else {
                drop(server);
                forwarding.await.unwrap();
                assert_eq!(driver.read(&mut [0]).await.unwrap(), 0);
            }
        }
    }
}
