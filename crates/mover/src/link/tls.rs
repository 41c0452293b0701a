//! Certificates, and TLS 1.3 with both sides known to each other.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the {what} cannot be read as PEM")]
    Pem { what: &'static str, source: rustls::pki_types::pem::Error },
    #[error("the certificates do not fit together")]
    Rustls(#[from] rustls::Error),
    #[error("no certificate may be accepted by these roots")]
    Roots(#[from] rustls::server::VerifierBuilderError),
    #[error("{0:?} is no name of a server")]
    Name(String),
}

/// Who this side is, and whom it believes.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl Identity {
    /// From PEM text: own chain, own key, roots that sign the peers' certificates.
    pub fn from_pem(chain: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, Error> {
        let pem = |what| move |source| Error::Pem { what, source };
        let certificates = |what, text| {
            CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().map_err(pem(what))
        };
        let mut store = RootCertStore::empty();
        for root in certificates("roots", roots)? {
            store.add(root)?;
        }
        Ok(Self {
            chain: certificates("certificate", chain)?,
            key: PrivateKeyDer::from_pem_slice(key).map_err(pem("key"))?,
            roots: Arc::new(store),
        })
    }

    /// For the side that calls; `server_name` must be in the other's certificate.
    pub fn dialer(&self, server_name: &str) -> Result<Dialer, Error> {
        let name =
            ServerName::try_from(server_name.to_owned()).map_err(|_| Error::Name(server_name.to_owned()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(Dialer { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// For the side that is called; callers without a certificate of these roots get nothing.
    pub fn acceptor(&self) -> Result<TlsAcceptor, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider))
                .build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Calls one peer.
#[derive(Clone)]
pub struct Dialer {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
}

/// Tells one certificate from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(blake3::Hash);

impl Fingerprint {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(blake3::hash(certificate))
    }
}
