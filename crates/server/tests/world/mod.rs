//! A server on loopback with its TLS, a person's client and an agent's; every answer is held against the API document.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod agent;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use sterna_server::{Config, Server};
use sterna_store::{History, Memory, Sqlite, Store};
use tokio_util::sync::CancellationToken;

pub struct World {
    pub dir: tempfile::TempDir,
    pub address: std::net::SocketAddr,
    pub store: Arc<dyn Store>,
    pub history: Arc<History>,
    pub token: String,
    pub join_token: String,
    pub ca: String,
    pub http: reqwest::Client,
    document: Value,
    cancel: CancellationToken,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Memory,
    Sqlite,
}

impl World {
    pub async fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::at(dir, kind).await
    }

    pub async fn at(dir: tempfile::TempDir, kind: Kind) -> Self {
        Self::with(dir, kind, |_| {}).await
    }

    /// The same with other settings.
    pub async fn with(dir: tempfile::TempDir, kind: Kind, change: impl FnOnce(&mut Config)) -> Self {
        let store: Arc<dyn Store> = match kind {
            Kind::Memory => Arc::new(Memory::default()),
            Kind::Sqlite => Arc::new(Sqlite::open(&dir.path().join("store.db")).unwrap()),
        };
        let history = Arc::new(History::open(&dir.path().join("history.db")).unwrap());
        let mut config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            data_dir: dir.path().to_owned(),
            ..Config::default()
        };
        change(&mut config);
        let ready = sterna_server::init(&config, &store).await.unwrap();
        let server = Server::bind(config, Arc::clone(&store), Arc::clone(&history)).await.unwrap();
        let address = server.addresses().unwrap()[0];
        let cancel = CancellationToken::new();
        let serving = tokio::spawn(server.serve(cancel.clone()));
        let document = serde_json::from_str(&sterna_server::openapi::document()).unwrap();
        Self {
            http: client(&ready.ca, None, true),
            dir,
            address,
            store,
            history,
            token: ready.admin_token.unwrap_or_default(),
            join_token: ready.join_token,
            ca: ready.ca,
            document,
            cancel,
            serving,
        }
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.serving.await.unwrap().unwrap();
    }

    /// The server starts again over the same directory.
    pub async fn again(self) -> Self {
        let Self { dir, store, history, cancel, serving, token, .. } = self;
        cancel.cancel();
        serving.await.unwrap().unwrap();
        drop((store, history));
        let path = dir.path().join("store.db");
        // Tasks that wait for an agent have it open for a few seconds more.
        eventually("the store is free", async || Sqlite::open(&path).ok().map(drop)).await;
        Self { token, ..Self::at(dir, Kind::Sqlite).await }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, self.url(path)).bearer_auth(&self.token)
    }

    /// Sends, checks the answer against the document, and returns it.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> (StatusCode, Value) {
        let request = request.build().unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let response = self.http.execute(request).await.unwrap();
        let status = response.status();
        let bytes = response.bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| panic!("{method} {path}: {status}: no JSON: {bytes:?}"));
        self.check(&method, &path, status, &body);
        (status, body)
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(self.request(Method::GET, path)).await;
        assert_eq!(status, StatusCode::OK, "GET {path}: {body}");
        body
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(self.request(Method::PATCH, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// An image object and a VM that boots from it.
    pub async fn make_vm(&self, name: &str) -> Value {
        let (status, _) = self.post("/v1/images", json!({"name": "tiny", "spec": {}})).await;
        assert!(matches!(status.as_u16(), 202 | 409), "{status}");
        let (status, body) = self.post("/v1/vms", json!({"name": name, "spec": {"image": "tiny"}})).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        body
    }

    fn check(&self, method: &Method, path: &str, status: StatusCode, body: &Value) {
        let Some(operation) = self.operation(method, path) else {
            // What the document does not know is refused with the one error type.
            assert!(status.is_client_error() && body["code"].is_string(), "{method} {path}: {status} {body}");
            return;
        };
        let responses = &operation["responses"];
        let described = responses
            .get(status.as_str())
            .or_else(|| (!status.is_success()).then(|| responses.get("default")).flatten());
        let described =
            described.unwrap_or_else(|| panic!("{method} {path}: status {status} is not documented"));
        let mut schema = described["content"]["application/json"]["schema"].clone();
        assert!(schema.is_object(), "{method} {path}: {status} has no schema: {described}");
        schema["components"] = self.document["components"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<_> = validator.iter_errors(body).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{method} {path}: {status}: {errors:#?}\n{body:#}");
    }

    fn operation(&self, method: &Method, path: &str) -> Option<&Value> {
        let asked: Vec<&str> = path.split('/').collect();
        let fits = |template: &str| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == asked.len()
                && parts.iter().zip(&asked).all(|(part, asked)| part.starts_with('{') || part == asked)
        };
        let paths = self.document["paths"].as_object().unwrap();
        let (_, item) = paths.iter().find(|(template, _)| fits(template))?;
        item.get(method.as_str().to_ascii_lowercase())
    }
}

/// A TLS client that trusts `ca`, with the certificate and key (PEM) of a host or without.
pub fn client(ca: &str, identity: Option<(&str, &str)>, http2: bool) -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(ca, identity, if http2 { &["h2", "http/1.1"] } else { &["http/1.1"] }))
        .timeout(Duration::from_secs(30))
        .no_proxy();
    builder.build().unwrap()
}

pub fn tls(ca: &str, identity: Option<(&str, &str)>, protocols: &[&str]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// Polls until `look` answers; a test that waits longer has failed.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let end = tokio::time::Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn golden(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert!(expected == actual, "{} is not up to date; run with UPDATE_GOLDEN=1", path.display());
}
