//! The side that is called: takes connections and hands each to the session it names.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::{self, Lost, Wire};
use super::dial::prepare;
use super::hello::{Error, Hello};
use super::shared::{Misbehaved, Shared};
use super::tls::Fingerprint;
use super::{Link, Options, Refusal, SessionId};
use crate::frame::{Frame, Kind};

/// From the first packet to the hello.
const JOIN_WITHIN: Duration = Duration::from_secs(10);
/// Of strangers and of sessions together.
const CONNECTIONS_MAX: usize = 1024;
/// A failing `accept` (no descriptors) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Sessions = Arc<Mutex<HashMap<SessionId, Weak<Shared>>>>;

/// Listens until dropped.
#[derive(Debug)]
pub struct Listener {
    sessions: Sessions,
    address: SocketAddr,
    _stop: DropGuard,
}

impl Listener {
    pub fn new(tcp: TcpListener, acceptor: TlsAcceptor) -> io::Result<Self> {
        let (sessions, stop) = (Sessions::default(), CancellationToken::new());
        let address = tcp.local_addr()?;
        let accept = accept(tcp, acceptor, Arc::clone(&sessions));
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
        Ok(Self { sessions, address, _stop: stop.drop_guard() })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections of this session are welcome. One that was expected under the same name before ends.
    #[must_use]
    pub fn expect(&self, session: SessionId, options: Options) -> Link {
        let (shared, link) = Link::new(session, options);
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, shared| shared.strong_count() > 0);
        if let Some(old) = sessions.insert(session, Arc::downgrade(&shared)).and_then(|old| old.upgrade()) {
            old.stop.cancel();
        }
        link
    }
}

fn lock(sessions: &Sessions) -> MutexGuard<'_, HashMap<SessionId, Weak<Shared>>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(tcp: TcpListener, acceptor: TlsAcceptor, sessions: Sessions) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match tcp.accept().await {
            Ok((tcp, address)) => {
                let (acceptor, sessions) = (acceptor.clone(), Arc::clone(&sessions));
                tokio::spawn(async move {
                    let lost = serve(tcp, acceptor, sessions).await;
                    tracing::debug!(%address, error = %lost, "connection lost");
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, sessions: Sessions) -> Lost {
    match tokio::time::timeout(JOIN_WITHIN, join(tcp, acceptor, sessions)).await {
        Err(_) => Lost::Silent,
        Ok(Err(lost)) => lost,
        Ok(Ok((shared, number, wire))) => {
            let stop = shared.stop.clone();
            tokio::select! {
                () = stop.cancelled() => Lost::Closed,
                lost = connection::run(&shared, number, wire) => lost,
            }
        }
    }
}

type Joined = (Arc<Shared>, u8, Wire<TlsStream<TcpStream>>);

async fn join(tcp: TcpStream, acceptor: TlsAcceptor, sessions: Sessions) -> Result<Joined, Lost> {
    prepare(&tcp);
    let tls = acceptor.accept(tcp).await?;
    let peer = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(Fingerprint::of);
    let peer = peer.ok_or(Lost::Closed)?;
    let mut wire = Wire::new(tls);
    let first = wire.read().await?;
    if first.kind != Kind::Hello {
        return Err(Misbehaved::OutOfPlace(first.kind).into());
    }
    match admit(&first, peer, &sessions) {
        Ok((shared, hello)) => {
            shared.on_hello(&hello, Instant::now())?;
            let welcome = shared.hello(hello.connection).payload();
            wire.write(&Frame::unnumbered(Kind::Welcome, welcome)).await?;
            Ok((shared, hello.connection, wire))
        }
        Err(refusal) => {
            let why = Bytes::copy_from_slice(&[refusal as u8]);
            wire.write(&Frame::unnumbered(Kind::Refused, why)).await?;
            // Until the other side closes: bytes of ours that it has not read would be lost with the connection.
            let _ = wire.read().await;
            Err(Lost::Closed)
        }
    }
}

fn admit(first: &Frame, peer: Fingerprint, sessions: &Sessions) -> Result<(Arc<Shared>, Hello), Refusal> {
    let hello = Hello::parse(&first.payload).map_err(|error| match error {
        Error::Version(_) => Refusal::Version,
        Error::Malformed => Refusal::UnknownSession,
    })?;
    let shared = lock(sessions).get(&hello.session).and_then(Weak::upgrade);
    let shared = shared.filter(|shared| !shared.stop.is_cancelled()).ok_or(Refusal::UnknownSession)?;
    shared.admit(peer)?;
    Ok((shared, hello))
}
