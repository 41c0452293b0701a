//! Certificates and clients: who we are, and that the server is ours.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};

use crate::config::Config;

/// The name in the server's certificate, whatever its address is.
pub const SERVER_NAME: &str = "sterna-server";
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A dead peer is noticed even where no packet says so.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path:?} is no usable certificate or key")]
    File { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("the certificates do not fit together")]
    Rustls(#[from] rustls::Error),
    #[error("{server:?} cannot be resolved")]
    Resolve { server: String, source: std::io::Error },
    #[error("{server:?} has no address")]
    NoAddress { server: String },
    #[error("the client cannot be built")]
    Client(#[from] reqwest::Error),
}

/// Files are read anew for each connection: a renewed certificate needs no restart.
#[derive(Debug, Clone)]
pub struct Identity {
    server: String,
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

impl Identity {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            server: config.server.clone(),
            certificate: config.certificate(),
            key: config.key(),
            ca: config.ca(),
        }
    }

    #[must_use]
    pub fn url(&self, path: &str) -> String {
        let port = self.server.rsplit_once(':').map_or("", |(_, port)| port);
        format!("https://{SERVER_NAME}:{port}{path}")
    }

    /// Where the server is now.
    pub async fn address(&self) -> Result<SocketAddr, Error> {
        let found = tokio::net::lookup_host(&self.server).await;
        let mut found = found.map_err(|source| Error::Resolve { server: self.server.clone(), source })?;
        found.next().ok_or_else(|| Error::NoAddress { server: self.server.clone() })
    }

    /// A client of one warm HTTP/2 connection.
    pub async fn client(&self) -> Result<Client, Error> {
        let builder = Client::builder()
            .tls_backend_preconfigured(self.tls(b"h2")?)
            .http2_prior_knowledge()
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_ANSWER_WITHIN)
            .http2_keep_alive_while_idle(true);
        self.build(builder).await
    }

    /// A client whose connections can become raw streams, and whose downloads do not share the other's line.
    pub async fn stream_client(&self) -> Result<Client, Error> {
        let builder = Client::builder().tls_backend_preconfigured(self.tls(b"http/1.1")?).http1_only();
        self.build(builder).await
    }

    async fn build(&self, builder: reqwest::ClientBuilder) -> Result<Client, Error> {
        let address = self.address().await?;
        let builder = builder
            .resolve(SERVER_NAME, address)
            .no_proxy()
            .https_only(true)
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_WITHIN);
        Ok(builder.build()?)
    }

    fn tls(&self, protocol: &[u8]) -> Result<ClientConfig, Error> {
        let file = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::File { path, source }
        };
        let mut roots = RootCertStore::empty();
        for ca in CertificateDer::pem_file_iter(&self.ca).map_err(file(&self.ca))? {
            roots.add(ca.map_err(file(&self.ca))?)?;
        }
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&self.certificate).map_err(file(&self.certificate))?.collect();
        let chain = chain.map_err(file(&self.certificate))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(file(&self.key))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }

    /// The same on all hosts of one installation and on no other: the SHA-256 of its CA's certificate.
    pub fn cluster(&self) -> Result<String, Error> {
        let file = |source| Error::File { path: self.ca.clone(), source };
        let ca = CertificateDer::from_pem_file(&self.ca).map_err(file)?;
        Ok(Sha256::digest(&ca).iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
