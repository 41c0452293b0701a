//! Two sides with certificates, and a line between them that a test can cut.
#![allow(clippy::unwrap_used, dead_code)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sterna_mover::link::listen::Listener;
use sterna_mover::link::tls::Identity;
use sterna_mover::link::{Link, Options, SessionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub const NAME: &str = "mover.test";

/// One CA and certificates it signed.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), root }
    }

    pub fn identity(&self) -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes(), self.root.as_bytes())
            .unwrap()
    }
}

/// Forwards TCP until it is cut; cut, it swallows everything, as a broken line does.
pub struct Relay {
    pub address: SocketAddr,
    cut: watch::Sender<bool>,
    pub forwarded: Arc<AtomicU64>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, watch) = watch::channel(false);
        let forwarded = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&forwarded);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (watch, count) = (watch.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    let far = TcpStream::connect(target).await.unwrap();
                    let ((near_read, near_write), (far_read, far_write)) =
                        (near.into_split(), far.into_split());
                    let there = forward(near_read, far_write, watch.clone(), Arc::clone(&count));
                    tokio::join!(there, forward(far_read, near_write, watch, count));
                });
            }
        });
        Self { address, cut, forwarded }
    }

    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// New connections pass again; those of before never do.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    watch: watch::Receiver<bool>,
    count: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 16 << 10];
    let mut is_broken = false;
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        is_broken |= *watch.borrow();
        if !is_broken {
            count.fetch_add(read as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    }
    // A broken line does not even say that it is.
    if is_broken {
        std::future::pending::<()>().await;
    }
}

/// A line of so much length and width, in each direction, for all that go over it together.
pub struct Narrow {
    pub address: SocketAddr,
    /// Connections that are open.
    pub open: Arc<AtomicU64>,
    pub forwarded: Arc<AtomicU64>,
}

impl Narrow {
    pub async fn to(target: SocketAddr, one_way: Duration, bytes_per_s: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, forwarded): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let (opened, count) = (Arc::clone(&open), Arc::clone(&forwarded));
        let way = || Arc::new(Way { one_way, bytes_per_s, free_at: Mutex::new(Instant::now()) });
        let ways = [way(), way()];
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (ways, opened, count) = (ways.clone(), Arc::clone(&opened), Arc::clone(&count));
                tokio::spawn(async move {
                    let far = TcpStream::connect(target).await.unwrap();
                    opened.fetch_add(1, Ordering::Relaxed);
                    let ((near_read, near_write), (far_read, far_write)) =
                        (near.into_split(), far.into_split());
                    let there = ways[0].carry(near_read, far_write, &count);
                    tokio::join!(there, ways[1].carry(far_read, near_write, &count));
                    opened.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, open, forwarded }
    }
}

struct Way {
    one_way: Duration,
    bytes_per_s: u64,
    /// When what was taken so far has left.
    free_at: Mutex<Instant>,
}

impl Way {
    fn leaves(&self, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().unwrap();
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        *free_at = (*free_at).max(Instant::now()) + takes;
        *free_at
    }

    async fn carry(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: &AtomicU64) {
        let (under_way, mut arriving) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let take = async move {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(read @ 1..) = from.read(&mut buffer).await {
                let leaves = self.leaves(read);
                tokio::time::sleep_until(leaves.into()).await;
                count.fetch_add(read as u64, Ordering::Relaxed);
                if under_way.send((leaves + self.one_way, buffer[..read].to_vec())).is_err() {
                    return;
                }
            }
        };
        let give = async move {
            while let Some((at, bytes)) = arriving.recv().await {
                tokio::time::sleep_until(at.into()).await;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(take, give);
    }
}

/// Two linked sides with a relay between them.
pub struct Pair {
    pub listener: Listener,
    pub relay: Relay,
    pub authority: Authority,
    pub source: Link,
    pub target: Link,
}

pub const SESSION: SessionId = SessionId([9; 16]);

/// Fast to notice, for tests.
pub fn options() -> Options {
    Options {
        silence: Duration::from_millis(400),
        retry_ceiling: Duration::from_millis(100),
        streams: 3,
        ..Options::default()
    }
}

impl Pair {
    pub async fn new(options: Options) -> Self {
        let authority = Authority::new();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = Listener::new(tcp, authority.identity().acceptor().unwrap()).unwrap();
        let relay = Relay::to(listener.address()).await;
        let target = listener.expect(SESSION, options.clone());
        let source = Link::dial(SESSION, relay.address, authority.identity().dialer(NAME).unwrap(), options);
        Self { listener, relay, authority, source, target }
    }
}

/// Waits until the condition holds; tests never sleep for a fixed time.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
