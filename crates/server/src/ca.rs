//! The cluster's own certificate authority: signs this server and the hosts that join.
//!
//! A host is recognised by two names in its certificate that the server sets and the host cannot choose:
//! `URI:sterna:host:NAME` and `URI:sterna:uid:UID`. A deleted host's certificate says a uid that no host object has.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use sterna_base::file;
use sterna_model::meta::Name;
use sterna_wire::join::host_dns_name;
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 86_400);
const HOST_LIFE: Duration = Duration::from_secs(365 * 86_400);
const SERVER_LIFE: Duration = Duration::from_secs(2 * 365 * 86_400);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use {path}")]
    Io { path: String, source: std::io::Error },
    /// The files of the CA are there but cannot be used.
    #[error("{path} is damaged: {why}")]
    Damaged { path: String, why: String },
    /// The request of a joining host is no valid certificate request.
    #[error("the certificate request cannot be read or is not signed by its own key")]
    Request,
    #[error("cannot sign a certificate")]
    Sign(#[from] rcgen::Error),
}

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

/// A certificate with its key, as the TLS library takes them.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Ca {
    /// Opens the CA in `dir`; makes one if there is none.
    pub fn open_or_create(dir: &Path) -> Result<Self, Error> {
        let (pem_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let read = |path: &Path| {
            file::read_if_there(path).map_err(|source| Error::Io { path: path.display().to_string(), source })
        };
        match (read(&pem_path)?, read(&key_path)?) {
            (Some(pem), Some(key)) => Self::parse(&pem, &key, &pem_path),
            (None, None) => Self::create(&pem_path, &key_path),
            // Making another CA would lock every host out without a word.
            _ => Err(Error::Damaged {
                path: dir.display().to_string(),
                why: "of ca.pem and ca.key only one is there".to_owned(),
            }),
        }
    }

    /// Opens the CA in `dir`, which must be there.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let (pem_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| Error::Io { path: path.display().to_string(), source })
        };
        Self::parse(&read(&pem_path)?, &read(&key_path)?, &pem_path)
    }

    fn parse(pem: &[u8], key: &[u8], path: &Path) -> Result<Self, Error> {
        let damaged = |why: String| Error::Damaged { path: path.display().to_string(), why };
        let pem = String::from_utf8(pem.to_vec()).map_err(|_| damaged("not text".to_owned()))?;
        let key = std::str::from_utf8(key).map_err(|_| damaged("the key is not text".to_owned()))?;
        let key = KeyPair::from_pem(key).map_err(|error| damaged(error.to_string()))?;
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| damaged(error.to_string()))?;
        Ok(Self { issuer, pem, der })
    }

    fn create(pem_path: &Path, key_path: &Path) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("Sterna CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, CA_LIFE);
        let certificate = params.self_signed(&key)?;
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        for (path, text, mode) in [(key_path, key.serialize_pem(), 0o600), (pem_path, pem.clone(), 0o644)] {
            file::write_durably(path, text.as_bytes(), mode)
                .map_err(|source| Error::Io { path: path.display().to_string(), source })?;
        }
        Ok(Self { issuer: Issuer::new(params, key), pem, der })
    }

    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    #[must_use]
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.der.clone()
    }

    /// Lower-case hex SHA-256 of the certificate: what a join token carries.
    #[must_use]
    pub fn pin(&self) -> String {
        hex(&Sha256::digest(&self.der))
    }

    /// Signs a fresh certificate for this server. Peers trust the CA, so that each start may bring a new one; it is
    /// also kept as `server.pem` and `server.key` for other tools.
    pub fn server_identity(&self, dir: &Path, names: &[String]) -> Result<Identity, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = named("Sterna server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_life(&mut params, SERVER_LIFE);
        let certificate = params.signed_by(&key, &self.issuer)?;
        for (name, text, mode) in
            [("server.key", key.serialize_pem(), 0o600), ("server.pem", certificate.pem(), 0o644)]
        {
            let path = dir.join(name);
            file::write_durably(&path, text.as_bytes(), mode)
                .map_err(|source| Error::Io { path: path.display().to_string(), source })?;
        }
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|why| Error::Damaged { path: "server.key".to_owned(), why: why.to_owned() })?;
        Ok(Identity { chain: vec![certificate.der().clone(), self.der.clone()], key })
    }

    /// Signs the key of a certificate request for the host `name`. Of the request nothing but the key is taken.
    pub fn sign_host(&self, csr: &str, name: &Name, uid: Uuid) -> Result<String, Error> {
        let mut request = CertificateSigningRequestParams::from_pem(csr).map_err(|_| Error::Request)?;
        let text = |text: String| Ia5String::try_from(text).map_err(Error::Sign);
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name.as_str());
        params.subject_alt_names = vec![
            SanType::URI(text(format!("{HOST}{name}"))?),
            SanType::URI(text(format!("{UID}{uid}"))?),
            SanType::DnsName(text(host_dns_name(name))?),
        ];
        // Hosts call each other to move guests.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_life(&mut params, HOST_LIFE);
        request.params = params;
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

const HOST: &str = "sterna:host:";
const UID: &str = "sterna:uid:";

/// Who a client certificate says its holder is. Only meaningful after TLS has verified the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    pub name: Name,
    pub uid: Uuid,
}

impl HostIdentity {
    /// `None` when the certificate is no host's.
    #[must_use]
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let uris: Vec<&str> = names
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                x509_parser::extensions::GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let name = uris.iter().find_map(|uri| uri.strip_prefix(HOST))?;
        let uid = uris.iter().find_map(|uri| uri.strip_prefix(UID))?;
        Some(Self { name: Name::new(name).ok()?, uid: uid.parse().ok()? })
    }
}

/// The names a server's certificate is made for: what was configured, and where it listens.
#[must_use]
pub fn server_names(config: &crate::config::Config) -> Vec<String> {
    // The first is what clients and agents check, whatever address they dial.
    let mut names = ["sterna-server", "localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    let listen = config.listen.iter().map(|at| at.ip()).filter(|ip: &IpAddr| !ip.is_unspecified());
    names.extend(listen.map(|ip| ip.to_string()));
    let advertised = config.advertise.as_deref().and_then(|at| at.rsplit_once(':'));
    names.extend(advertised.map(|(host, _)| host.trim_matches(['[', ']']).to_owned()));
    names.extend(config.names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Starts a day early, so that a peer whose clock is behind accepts it.
fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + life).into();
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_gets_the_names_the_server_chose_and_not_those_it_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path()).unwrap();
        let again = Ca::open_or_create(dir.path()).unwrap();
        assert_eq!(ca.pin(), again.pin());

        let mut asked = CertificateParams::new(vec!["evil".to_owned()]).unwrap();
        asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let csr = asked.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let (name, uid) = (Name::new("a1").unwrap(), Uuid::from_u128(7));
        let pem = again.sign_host(&csr, &name, uid).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(HostIdentity::read(&der), Some(HostIdentity { name, uid }));
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!parsed.is_ca());
        assert!(!format!("{:?}", parsed.subject_alternative_name()).contains("evil"));
    }

    #[test]
    fn half_a_ca_is_refused_instead_of_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Ca::open_or_create(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(Ca::open_or_create(dir.path()), Err(Error::Damaged { .. })));
    }
}
