//! A fake server: answers what a test tells it to, over the same TLS as the real one, and remembers what was asked.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub body: Value,
}

/// What the fake answers to `METHOD PATH` (without the query): in order, the last one again and again.
struct Answer {
    to: String,
    left: VecDeque<(u16, Value)>,
}

#[derive(Clone)]
pub struct FakeServer {
    dir: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

impl FakeServer {
    /// Starts it and writes a context for it into `dir`.
    pub async fn start(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(vec!["sterna-server".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
        let context = format!("server = \"{address}\"\ntoken = \"secret\"\nca = \"ca.pem\"\n");
        std::fs::write(dir.join("config.toml"), context).unwrap();
        let fake = Self { dir: dir.to_owned(), asked: Arc::default(), answers: Arc::default() };
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (serving, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = serving.serve(stream).await;
                    }
                });
            }
        });
        fake
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// `to` is `METHOD /path`.
    pub fn answer(&self, to: &str, status: u16, body: Value) -> &Self {
        let mut answers = self.answers.lock().unwrap();
        match answers.iter_mut().find(|answer| answer.to == to) {
            Some(answer) => answer.left.push_back((status, body)),
            None => answers.push(Answer { to: to.to_owned(), left: [(status, body)].into() }),
        }
        self
    }

    pub fn list(&self, path: &str, items: Value) -> &Self {
        self.answer(&format!("GET {path}"), 200, json!({"items": items, "next": null, "revision": 9}))
    }

    /// What was asked, without reads.
    pub fn writes(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.method != "GET").cloned().collect()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn next(&self, to: &str) -> (u16, Value) {
        let mut answers = self.answers.lock().unwrap();
        match answers.iter_mut().find(|answer| answer.to == to) {
            None => (404, json!({"code": "not-found", "message": format!("the fake has no answer to {to}")})),
            Some(answer) if answer.left.len() > 1 => answer.left.pop_front().unwrap(),
            Some(answer) => answer.left[0].clone(),
        }
    }

    async fn serve(
        &self,
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut length) = (String::new(), 0);
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let mut header = String::new();
            while stream.read_line(&mut header).await? > 2 {
                if let Some((name, value)) = header.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().unwrap();
                }
                header.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            let mut words = line.split(' ');
            let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
            let to = format!("{method} {}", path.split('?').next().unwrap());
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            self.asked.lock().unwrap().push(Asked { method, path, body });
            let (status, answer) = self.next(&to);
            let text = answer.to_string();
            let head = format!(
                "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                text.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(text.as_bytes()).await?;
            stream.flush().await?;
        }
    }
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: u8,
    pub data: String,
    pub talk: String,
}

/// Runs a command line against the fake.
pub async fn sterna(fake: &FakeServer, line: &str) -> Ran {
    use clap::Parser;
    let config = fake.config();
    let words = ["sterna", "--config", config.to_str().unwrap()].into_iter().chain(line.split_whitespace());
    let parsed = sterna_cli::Sterna::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
    let sterna_cli::Task::Api(task) = parsed.task() else { panic!("{line} acts on this machine") };
    let (data, talk) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let terminal = sterna_cli::Terminal::captured(data.clone(), talk.clone());
    let code = sterna_cli::run(task, terminal, sterna_cli::command()).await;
    let text = |bytes: &Arc<Mutex<Vec<u8>>>| String::from_utf8(bytes.lock().unwrap().clone()).unwrap();
    Ran { code, data: text(&data), talk: text(&talk) }
}

pub fn meta(name: &str) -> Value {
    json!({"name": name, "uid": "018f2f6e-0000-7000-8000-000000000000", "created": "2026-11-22T12:00:00Z"})
}

pub fn vm(name: &str, state: &str) -> Value {
    json!({"kind": "vm", "meta": meta(name), "revision": 4,
        "spec": {"image": "tiny", "cpus": 1, "memory": "256MiB", "nics": [{"network": "lan"}]},
        "decision": {"owner": {"host": "a1", "epoch": 1}, "power_request": 0, "since": "2026-11-22T12:00:00Z",
            "why": "most free memory",
            "hardware": {"machine": "pc-q35-10.0", "cpu_model": "qemu64", "accel": "tcg", "cpus": 1, "memory": "256MiB",
                "volumes": [], "nics": [{"network": "lan", "mac": "52:54:00:00:00:01", "address": "10.100.0.7"}]}},
        "status": {"state": state, "message": "on host a1"}})
}

pub fn operation(goal: Value, state: &str, message: &str) -> Value {
    json!({"kind": "operation", "meta": meta("op-1"), "revision": 5,
        "spec": {"goal": goal, "started": "2026-11-22T12:00:00Z", "actor": "root"},
        "status": {"state": state, "message": message}})
}
