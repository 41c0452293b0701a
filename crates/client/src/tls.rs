//! Which server certificate is believed: one that our own CA signed for the fixed name `sterna-server`, whatever address
//! the server was reached at. Addresses change; the CA is what was agreed on when the machine joined.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

/// The name in every server's certificate.
pub const SERVER_NAME: &str = "sterna-server";

/// How the server's CA is known.
#[derive(Debug, Clone)]
pub enum Trust {
    /// PEM text of the CA.
    Ca(Vec<u8>),
    /// Lower-case hex SHA-256 of the CA's certificate (DER); the server sends that certificate with its own.
    Pin(String),
}

/// The text is no certificate or key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotPem(String);

/// A client set-up that believes only `trust`. `identity` is PEM certificate and key, for machines; people use tokens.
pub fn config(
    trust: &Trust,
    identity: Option<(&[u8], &[u8])>,
    protocols: &[&str],
) -> Result<ClientConfig, NotPem> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        Arc::new(FixedName { roots: roots(trust)?, algorithms: provider.signature_verification_algorithms });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| NotPem(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| NotPem(format!("key: {error}")))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| NotPem(error.to_string()))?
        }
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(config)
}

/// Lower-case hex SHA-256 of a certificate: what a join token carries.
#[must_use]
pub fn pin(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate.as_ref()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All certificates of a PEM text; an error when there is none.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, NotPem> {
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| NotPem(format!("certificate: {error}")))?;
    if list.is_empty() { Err(NotPem("there is no certificate in it".to_owned())) } else { Ok(list) }
}

fn roots(trust: &Trust) -> Result<Roots, NotPem> {
    match trust {
        Trust::Pin(pin) => Ok(Roots::Pinned(pin.clone())),
        Trust::Ca(pem) => {
            let mut store = RootCertStore::empty();
            for certificate in certificates(pem)? {
                store.add(certificate).map_err(|error| NotPem(error.to_string()))?;
            }
            Ok(Roots::Known(Arc::new(store)))
        }
    }
}

#[derive(Debug)]
enum Roots {
    Known(Arc<RootCertStore>),
    Pinned(String),
}

/// Checks the chain as always, and the name against [`SERVER_NAME`] instead of the address.
#[derive(Debug)]
struct FixedName {
    roots: Roots,
    algorithms: WebPkiSupportedAlgorithms,
}

impl FixedName {
    /// The CA to check against; with a pin, the one certificate of the presented chain that has this sum.
    fn store(&self, presented: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, rustls::Error> {
        let pinned = match &self.roots {
            Roots::Known(store) => return Ok(store.clone()),
            Roots::Pinned(pinned) => pinned,
        };
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = presented.iter().find(|certificate| pin(certificate) == *pinned).ok_or(unknown)?;
        let mut store = RootCertStore::empty();
        store.add(ca.clone().into_owned())?;
        Ok(Arc::new(store))
    }
}

impl ServerCertVerifier for FixedName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = ServerName::try_from(SERVER_NAME).map_err(|_| CertificateError::NotValidForName)?;
        let chain = WebPkiServerVerifier::builder_with_provider(
            self.store(intermediates)?,
            Arc::new(aws_lc_rs::default_provider()),
        )
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
        chain.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
