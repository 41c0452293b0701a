//! The accept loop: TCP, TLS with an optional client certificate, HTTP/1.1 or HTTP/2.
//!
//! Handshakes run in their own task under a deadline, so that one slow client holds up nobody. The verified host
//! identity and the address of the peer go to handlers as a request extension.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sterna_base::scope::Scope;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::ca::{Ca, HostIdentity, Identity};

/// A handshake is two round trips; past this the client is not serious.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Time for the head of an HTTP/1 request.
const HEADER_PATIENCE: Duration = Duration::from_secs(15);
/// Open connections at once; bounds memory and descriptors.
const CONNECTIONS_MAX: usize = 4096;
/// Streams of one HTTP/2 connection; an agent needs a handful.
const STREAMS_MAX: u32 = 128;
/// HTTP/2 pings find peers that vanished without a word.
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_PATIENCE: Duration = Duration::from_secs(10);
/// A failing `accept` (no descriptors) must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// Set when the client showed a host's certificate that this CA signed.
    pub host: Option<HostIdentity>,
}

/// Builds the TLS side: certificates of `ca` are accepted from clients, and none is fine too.
pub fn acceptor(ca: &Ca, identity: Identity) -> anyhow::Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain, identity.key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves one listener until `cancel`; connections that are open then are dropped.
pub async fn serve(listener: TcpListener, acceptor: TlsAcceptor, router: Router, cancel: CancellationToken) {
    let scope = Scope::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, address)) => match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => {
                    scope.spawn(connection(tcp, address, acceptor.clone(), router.clone(), slot));
                }
                Err(_) => tracing::warn!(%address, "too many connections; one was closed"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    scope.shut_down().await;
}

async fn connection(
    tcp: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    slot: OwnedSemaphorePermit,
) {
    // Assignments are small and urgent: Nagle's algorithm would hold them back for a round trip.
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%address, %error, "no TCP_NODELAY");
    }
    let tls = match tokio::time::timeout(HANDSHAKE_PATIENCE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "handshake failed"),
        Err(_) => return tracing::debug!(%address, "handshake took too long"),
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = Peer { address, host: certificate.and_then(HostIdentity::read) };
    let service = TowerToHyperService::new(router.layer(axum::Extension(peer)));
    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PONG_PATIENCE);
    if let Err(error) = http.serve_connection_with_upgrades(TokioIo::new(tls), service).await {
        tracing::debug!(%address, %error, "connection ended");
    }
    drop(slot);
}
