//! Certificates and authorities in PEM.

use std::io::{Error, ErrorKind, Result};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Returns the authorities of a PEM, and no others.
///
/// # Errors
/// `InvalidData` for a PEM without a certificate, or with one that is no authority.
pub(crate) fn authorities(pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(invalid)?;
    }
    if roots.is_empty() {
        return Err(invalid("the file of authorities holds no certificate"));
    }
    Ok(roots)
}

/// Returns the certificates of a PEM.
///
/// # Errors
/// `InvalidData` for a PEM that cannot be read.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<_, _>>().map_err(invalid)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, error)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A new authority, in PEM.
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
