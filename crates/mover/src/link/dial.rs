//! The side that calls: keeps each connection up, for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sterna_base::backoff::Backoff;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::connection::{self, Lost, Wire};
use super::hello::{self, Hello};
use super::shared::{Misbehaved, Shared};
use super::tls::{Dialer, Fingerprint};
use super::{Ended, Refusal};
use crate::frame::{Frame, Kind};

const RETRY_FIRST: Duration = Duration::from_millis(50);
/// For TCP, TLS and the hello: three round trips of a very long line, and a lost packet.
const CONNECT_WITHIN: Duration = Duration::from_secs(4);

pub(super) fn spawn(shared: &Arc<Shared>, target: SocketAddr, dialer: &Dialer) {
    for number in 0..=shared.options.streams.clamp(1, hello::STREAMS_MAX) {
        let (shared, dialer) = (Arc::clone(shared), dialer.clone());
        tokio::spawn(async move {
            let stop = shared.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = keep_up(&shared, number, target, &dialer) => {}
            }
        });
    }
}

async fn keep_up(shared: &Shared, number: u8, target: SocketAddr, dialer: &Dialer) {
    let mut backoff = Backoff::new(RETRY_FIRST, shared.options.retry_ceiling);
    while !shared.has_ended() {
        let joined = tokio::time::timeout(CONNECT_WITHIN, join(shared, number, target, dialer)).await;
        let lost = match joined {
            Ok(Ok(wire)) => {
                backoff.reset();
                connection::run(shared, number, wire).await
            }
            Ok(Err(lost)) => lost,
            Err(_) => Lost::Silent,
        };
        tracing::debug!(session = ?shared.session, number, error = %lost, "connection lost");
        if shared.has_ended() {
            return;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn join(
    shared: &Shared,
    number: u8,
    target: SocketAddr,
    dialer: &Dialer,
) -> Result<Wire<TlsStream<TcpStream>>, Lost> {
    let tcp = TcpStream::connect(target).await?;
    prepare(&tcp);
    let tls = dialer.connector.connect(dialer.name.clone(), tcp).await?;
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(Fingerprint::of);
    if certificate.is_none_or(|peer| shared.admit(peer).is_err()) {
        shared.end(Ended::Refused(Refusal::OtherPeer));
        return Err(Lost::Closed);
    }
    let mut wire = Wire::new(tls);
    wire.write(&Frame::unnumbered(Kind::Hello, shared.hello(number).payload())).await?;
    let answer = wire.read().await?;
    match answer.kind {
        Kind::Welcome => {
            let hello = Hello::parse(&answer.payload).map_err(|_| Misbehaved::OutOfPlace(answer.kind))?;
            shared.on_hello(&hello, Instant::now())?;
            Ok(wire)
        }
        Kind::Refused => {
            shared.end(Ended::Refused(hello::parse_refusal(&answer.payload)));
            Err(Lost::Closed)
        }
        kind => Err(Misbehaved::OutOfPlace(kind).into()),
    }
}

/// Frames are urgent or large, never worth waiting for more. BBR does not take loss on a long line for congestion;
/// where the kernel has none, its default serves. Buffers are left to the kernel: by hand they would only get smaller.
pub(super) fn prepare(tcp: &TcpStream) {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    if let Err(error) = rustix::net::sockopt::set_tcp_congestion(tcp, "bbr") {
        tracing::debug!(%error, "no BBR");
    }
}
