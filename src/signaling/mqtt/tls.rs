//! TLS to the broker: whom we trust, and how we prove ourselves. Built by us, from ring: the MQTT library's own default would
//! take another crypto library, and would panic where the system's certificates cannot be read.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};

use super::broker::Complaint;

/// How to speak TLS with the broker. Its name is always checked against the certificate.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

/// A certificate of ours and its key, as PEM.
pub struct ClientPem<'a> {
    pub certificate: &'a [u8],
    pub key: &'a [u8],
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "this machine has no root certificates; install the package ca-certificates, or name the broker's CA file here"
    )]
    NoSystemRoots,
    #[error("there is no certificate in this file; it has to be PEM, beginning with -----BEGIN CERTIFICATE-----")]
    NoAuthority,
    #[error("there is no certificate in this file; it has to be PEM, beginning with -----BEGIN CERTIFICATE-----")]
    NoClientCertificate,
    #[error("there is no unencrypted private key in this file; it has to be PEM (PKCS #8, PKCS #1 or SEC1)")]
    NoClientKey,
    #[error("the certificate and its key do not go together: {0}")]
    Mismatch(String),
}

impl Tls {
    /// Trusts the certificates in `authority`, or where there is none, those that this machine trusts.
    ///
    /// # Errors
    /// Files that hold no certificate or key, or a machine that trusts nobody.
    pub fn new(authority: Option<&[u8]>, client: Option<&ClientPem<'_>>) -> Result<Self, TlsError> {
        let roots = match authority {
            Some(pem) => own_roots(pem)?,
            None => system_roots()?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Mismatch(error.to_string()))?
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let certificates = certificates(client.certificate).ok_or(TlsError::NoClientCertificate)?;
                let key = PrivateKeyDer::from_pem_slice(client.key).map_err(|_| TlsError::NoClientKey)?;
                let mismatch = |error: Error| TlsError::Mismatch(error.to_string());
                builder.with_client_auth_cert(certificates, key).map_err(mismatch)?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(…)")
    }
}

/// Whether a certificate can be for this host: a DNS name or an address.
pub fn is_host(host: &str) -> bool {
    ServerName::try_from(host).is_ok()
}

fn own_roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(pem).ok_or(TlsError::NoAuthority)?);
    if added == 0 { Err(TlsError::NoAuthority) } else { Ok(roots) }
}

/// Those that can be read; a broken one among them must not keep us from the others.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 { Err(TlsError::NoSystemRoots) } else { Ok(roots) }
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().ok()?;
    Some(certificates).filter(|certificates| !certificates.is_empty())
}

/// What is wrong with the broker's certificate or ours, and the remedy; `None`: something else failed.
pub(super) fn explain(error: &io::Error) -> Option<Complaint> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(problem) => explain_certificate(problem),
        Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied,
        ) => Complaint {
            slug: "client-certificate",
            words: format!(
                "the broker does not take this device's certificate ({error}); see client_cert_file and client_key_file"
            ),
        },
        Error::InvalidMessage(_) => Complaint {
            slug: "no-tls",
            words: "what answers there does not speak TLS; see that url names the broker's TLS port, often 8883".into(),
        },
        other => Complaint { slug: "tls", words: format!("TLS with the broker fails: {other}") },
    })
}

fn explain_certificate(problem: &CertificateError) -> Complaint {
    let (slug, words) = match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => (
            "certificate-expired",
            "the broker's certificate has expired; renew it on the broker, or set this device's clock if that is wrong",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            "certificate-not-yet-valid",
            "the broker's certificate is not valid yet; see that this device's clock is right",
        ),
        CertificateError::UnknownIssuer => (
            "certificate-unknown-issuer",
            "the broker's certificate is of a CA that this device does not trust; name that CA's file in ca_file",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "certificate-wrong-name",
            "the broker's certificate is for another host name; write in url the name that the certificate has",
        ),
        CertificateError::Revoked => {
            ("certificate-revoked", "the broker's certificate was revoked; renew it on the broker")
        }
        other => {
            let words = format!("the broker's certificate cannot be used: {other:?}");
            return Complaint { slug: "certificate", words };
        }
    };
    Complaint { slug, words: words.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn an_own_authority_and_a_client_certificate_are_taken() {
        let (certificate, key) = pair();
        let client = ClientPem { certificate: certificate.as_bytes(), key: key.as_bytes() };
        assert!(Tls::new(Some(certificate.as_bytes()), Some(&client)).is_ok());
    }

    #[test]
    fn a_file_that_is_not_pem_is_said_to_be_none() {
        let (certificate, _) = pair();
        assert!(matches!(Tls::new(Some(b"hello"), None), Err(TlsError::NoAuthority)));
        let client = ClientPem { certificate: certificate.as_bytes(), key: b"hello" };
        assert!(matches!(Tls::new(Some(certificate.as_bytes()), Some(&client)), Err(TlsError::NoClientKey)));
    }

    #[test]
    fn a_key_of_another_certificate_is_found_out() {
        let (certificate, _) = pair();
        let (_, key) = pair();
        let client = ClientPem { certificate: certificate.as_bytes(), key: key.as_bytes() };
        assert!(matches!(Tls::new(Some(certificate.as_bytes()), Some(&client)), Err(TlsError::Mismatch(_))));
    }

    #[test]
    fn a_wrong_certificate_is_explained_with_the_remedy() {
        let error = io::Error::other(Error::InvalidCertificate(CertificateError::Expired));
        assert!(explain(&error).unwrap().words.contains("clock"));
        let error = io::Error::other(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(explain(&error).unwrap().words.contains("ca_file"));
        assert_eq!(explain(&io::Error::other("something else")), None);
    }
}
