//! A whole agent against a server that speaks the protocol: TLS, HTTP/2, order of reports, consoles.
#![allow(clippy::unwrap_used)]

mod world;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use sterna_model::vm::{CopyState, Power};
use sterna_wire::assignment::{Assignment, Owner, VmAssignment};
use sterna_wire::down::{Down, End};
use sterna_wire::up::Up;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use world::{eventually, folder, name, qemu};

const UID: Uuid = Uuid::from_u128(7);

#[test]
fn shim_entry() {
    world::shim_entry();
}

/// What the server is told and says.
struct Server {
    address: SocketAddr,
    assignment: watch::Sender<Assignment>,
    orders: Mutex<Option<mpsc::UnboundedSender<Down>>>,
    heard: Mutex<Vec<Up>>,
    printed: Mutex<Vec<u8>>,
    refuses: AtomicBool,
    connections: Mutex<CancellationToken>,
}

type Shared = Arc<Server>;

impl Server {
    /// Starts it, and writes the agent's certificate, key and CA into `data`.
    async fn start(data: &Path) -> Shared {
        let tls = certificates(data);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let empty = Assignment {
            revision: 1,
            host: name("a1"),
            vms: vec![],
            networks: vec![],
            pools: vec![],
            volumes: vec![],
            tunnel: None,
            paces: Vec::new(),
            probes: Vec::new(),
            probed: None,
            guard: None,
        };
        let server = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            assignment: watch::Sender::new(empty),
            orders: Mutex::default(),
            heard: Mutex::default(),
            printed: Mutex::default(),
            refuses: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let router = Router::new()
            .route("/agent/v1/assignment", get(assignment))
            .route("/agent/v1/report", post(report))
            .route("/agent/v1/attach/{ticket}", get(attach))
            .with_state(Arc::clone(&server));
        tokio::spawn(accept(listener, tls, router, Arc::clone(&server)));
        server
    }

    fn order(&self, change: impl FnOnce(&mut Assignment)) {
        self.assignment.send_modify(|assignment| {
            assignment.revision += 1;
            change(assignment);
        });
    }

    fn state(&self) -> Option<CopyState> {
        let heard = self.heard.lock().unwrap();
        heard.iter().rev().find_map(|up| match up {
            Up::Vm(seen) => Some(seen.report.clone().map(|report| report.state)),
            Up::Inventory { vms, .. } => {
                Some(vms.first().and_then(|seen| seen.report.clone()).map(|r| r.state))
            }
            _ => None,
        })?
    }

    fn inventories(&self) -> usize {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|up| matches!(up, Up::Inventory { complete: true, .. })).count()
    }

    /// What was last said of a VM.
    fn last_of(&self, uid: Uuid) -> Option<CopyState> {
        let heard = self.heard.lock().unwrap();
        heard.iter().rev().find_map(|up| match up {
            Up::Vm(seen) if seen.uid == uid => Some(seen.report.clone().map(|report| report.state)),
            _ => None,
        })?
    }

    /// The inventory of a host that let go of its orders.
    fn held(&self, incarnation: Uuid) -> Option<Vec<sterna_wire::up::VmSeen>> {
        let heard = self.heard.lock().unwrap();
        heard.iter().rev().find_map(|up| match up {
            Up::Inventory { complete: true, vms, held, .. } if *held == Some(incarnation) => {
                Some(vms.clone())
            }
            _ => None,
        })
    }

    /// Every connection breaks.
    fn hang_up(&self) {
        std::mem::take(&mut *self.connections.lock().unwrap()).cancel();
    }
}

fn certificates(data: &Path) -> Arc<rustls::ServerConfig> {
    let write = |file: &str, text: String| std::fs::write(data.join(file), text).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::from_params(&ca, &ca_key);
    write("ca.pem", ca_cert.pem());
    let signed = |host: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (host, host_key) = signed("a1");
    write("host.pem", host.pem());
    write("host.key", host_key.serialize_pem());
    let (server, server_key) = signed("sterna-server");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca_cert.der().clone()).unwrap();
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(vec![server.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

async fn accept(
    listener: tokio::net::TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    server: Shared,
) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, router) = (acceptor.clone(), router.clone());
        let end = server.connections.lock().unwrap().clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper_util::service::TowerToHyperService::new(router);
            let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                () = end.cancelled() => {}
            }
        });
    }
}

async fn assignment(State(server): State<Shared>, request: Request) -> Response {
    assert_eq!(request.version(), Version::HTTP_2);
    let (orders, waiting) = mpsc::unbounded_channel();
    *server.orders.lock().unwrap() = Some(orders);
    let assignments = tokio_stream::wrappers::WatchStream::new(server.assignment.subscribe())
        .map(|assignment| Down::Assignment(Box::new(assignment)));
    let orders = tokio_stream::wrappers::UnboundedReceiverStream::new(waiting);
    let unknown = tokio_stream::once("{\"type\":\"newer-than-you\"}\n".to_owned());
    let lines = assignments.merge(orders).map(|line| serde_json::to_string(&line).unwrap() + "\n");
    Body::from_stream(unknown.chain(lines).map(Ok::<_, Infallible>)).into_response()
}

async fn report(State(server): State<Shared>, body: axum::body::Bytes) -> StatusCode {
    if server.refuses.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    server.heard.lock().unwrap().extend(serde_json::from_slice::<Vec<Up>>(&body).unwrap());
    StatusCode::NO_CONTENT
}

/// Keeps what comes from the guest.
async fn attach(
    State(server): State<Shared>,
    UrlPath(ticket): UrlPath<String>,
    request: Request,
) -> Response {
    assert_eq!(ticket, "t1");
    tokio::spawn(async move {
        let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let mut chunk = [0; 64];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            server.printed.lock().unwrap().extend_from_slice(&chunk[..read]);
        }
    });
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, "upgrade".parse().unwrap());
    headers.insert(header::UPGRADE, "sterna-stream".parse().unwrap());
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

struct Agent {
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    fn start(folder: &Path, server: &Server, qemu: &Path) -> Self {
        let text = format!(
            "server = \"{}\"\nhost = \"a1\"\ndata_dir = \"{1}/data\"\nrun_dir = \"{1}/run\"\nqemu = \"{2}\"\naccel = \"tcg\"\n\
             cpus = 2\nmemory = \"1GiB\"\n",
            server.address,
            folder.display(),
            qemu.display()
        );
        std::fs::write(folder.join("agent.toml"), text).unwrap();
        let config = sterna_agent::config::Config::read(&folder.join("agent.toml")).unwrap();
        let shim = vec!["/bin/sh".into(), world::shim_script(folder).into()];
        let cancel = CancellationToken::new();
        let task = tokio::spawn(sterna_agent::run_with(config, shim, cancel.clone()));
        Self { cancel, task }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A VM without disks: its firmware finds nothing to boot and says so on no port we read.
fn diskless(version: sterna_qemu::version::Version, power: Power) -> VmAssignment {
    let mut machine = world::machine_of(version);
    machine.disks.clear();
    machine.hardware.volumes.clear();
    let owner = Owner { power, ..world::owner_of(machine) };
    world::owns(UID, 3, owner)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_reports_obeys_and_comes_back() {
    let Some((qemu, version)) = qemu(10) else { return };
    let folder = folder();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let server = Server::start(&folder.path().join("data")).await;
    let agent = Agent::start(folder.path(), &server, &qemu);
    eventually("an inventory", || server.inventories() == 1).await;
    let is_host = matches!(&server.heard.lock().unwrap()[0], Up::Host(host) if host.cpus == 2
        && host.qemu_version == version.to_string() && host.cpu.models.contains_key("qemu64"));
    assert!(is_host);
    let asked = Instant::now();
    server.order(|assignment| assignment.vms = vec![diskless(version, Power::Running)]);
    eventually("running", || server.state() == Some(CopyState::Running)).await;
    eprintln!("order to running, there and back: {:?}", asked.elapsed());
    let attach = Down::Attach { ticket: "t1".into(), vm: name("web"), uid: UID, end: End::Vnc };
    server.orders.lock().unwrap().as_ref().unwrap().send(attach).unwrap();
    eventually("the screen answers", || server.printed.lock().unwrap().starts_with(b"RFB ")).await;
    let asked = Instant::now();
    server.order(|assignment| assignment.vms = vec![diskless(version, Power::Paused)]);
    eventually("paused", || matches!(server.state(), Some(CopyState::Paused { .. }))).await;
    eprintln!("pause, there and back: {:?}", asked.elapsed());

    // Cut off, and refused for a while: nothing is lost.
    server.refuses.store(true, Ordering::Relaxed);
    server.hang_up();
    server.order(|assignment| assignment.vms = vec![diskless(version, Power::Running)]);
    tokio::time::timeout(Duration::from_secs(1), std::future::pending::<()>()).await.unwrap_err();
    server.refuses.store(false, Ordering::Relaxed);
    eventually("running again", || server.state() == Some(CopyState::Running)).await;

    // A server that came back from a backup: what runs goes on, and a start that waits is let go of.
    let late = world::owns(Uuid::from_u128(8), 1, world::owner_of(world::machine_of(version)));
    let running = diskless(version, Power::Running);
    server.order(|assignment| assignment.vms = vec![running.clone(), late]);
    eventually("a start that waits", || server.last_of(Uuid::from_u128(8)).is_some()).await;
    let incarnation = Uuid::from_u128(99);
    server.orders.lock().unwrap().as_ref().unwrap().send(Down::Hold { incarnation }).unwrap();
    eventually("everything, held", || server.held(incarnation).is_some()).await;
    let held = server.held(incarnation).unwrap();
    assert_eq!(held.iter().map(|seen| seen.uid).collect::<Vec<_>>(), [UID], "{held:?}");
    let state = held[0].report.as_ref().map(|report| &report.state);
    assert_eq!(state, Some(&CopyState::Running));
    server.order(|assignment| assignment.vms = vec![running]);

    // The agent goes and comes; the guest stays.
    let before = world::qemu_of(folder.path(), UID);
    agent.stop().await;
    let inventories = server.inventories();
    let begun = Instant::now();
    let agent = Agent::start(folder.path(), &server, &qemu);
    eventually("an inventory", || server.inventories() > inventories).await;
    eprintln!("back within {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(server.state(), Some(CopyState::Running));
    assert_eq!(world::qemu_of(folder.path(), UID), before);

    server.order(|assignment| assignment.vms = vec![diskless(version, Power::Off)]);
    eventually("off", || matches!(server.state(), Some(CopyState::Stopped { .. }))).await;
    server.order(|assignment| assignment.vms = vec![]);
    eventually("forgotten", || server.state().is_none()).await;
    agent.stop().await;
}
