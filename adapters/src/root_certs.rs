//! Certificates and certificate authorities in PEM format.

use std::io::{Error, ErrorKind, Result};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Returns a root store that contains only the certificate authorities of a PEM file.
///
/// # Errors
/// `InvalidData` if the PEM contains no certificate, or a certificate that cannot serve as a trust anchor.
pub(crate) fn authorities(pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(invalid)?;
    }
    if roots.is_empty() {
        return Err(invalid("the file of certificate authorities contains no certificate"));
    }
    Ok(roots)
}

/// Returns the certificates of a PEM file.
///
/// # Errors
/// `InvalidData` if the PEM cannot be parsed.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<_, _>>().map_err(invalid)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, error)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns a new self-signed certificate authority in PEM format.
    pub(crate) fn authority() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn only_the_authorities_of_the_pem_are_trusted() {
        let pem = authority();
        assert_eq!(authorities(pem.as_bytes()).unwrap().len(), 1);
        assert_eq!(authorities(pem.repeat(2).as_bytes()).unwrap().len(), 2);
        for wrong in [&b""[..], b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            assert_eq!(authorities(wrong).unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }
}
