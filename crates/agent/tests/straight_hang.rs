//! The target's disk hangs when the guest is about to be stopped: QEMU waits for it in its main thread, guest and all.
#![allow(clippy::unwrap_used)]

mod straight_world;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sterna_model::line::{DiskLine, Line};
use sterna_model::migration::SideState;
use straight_world::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use world::{eventually, owns, qemu};

#[test]
fn shim_entry() {
    world::shim_entry();
}

/// What passes between two QEMUs on its way.
#[derive(Clone, Default)]
struct Relay {
    /// Something has passed.
    is_used: Arc<AtomicBool>,
    /// Nothing passes any more, and nothing ends.
    hangs: Arc<AtomicBool>,
}

impl Relay {
    /// Answers where it is.
    async fn start(&self, to: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let relay = self.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(to).await.unwrap();
                let ((near_reads, near_writes), (far_reads, far_writes)) =
                    (near.into_split(), far.into_split());
                tokio::spawn(relay.clone().pass(near_reads, far_writes));
                tokio::spawn(relay.clone().pass(far_reads, near_writes));
            }
        });
        at
    }

    async fn pass(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            self.is_used.store(true, Ordering::Relaxed);
            if self.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_at_the_switchover_costs_the_guest_some_seconds_and_no_more() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let apart = Apart::new(&qemu, in_clear(0), 8 * MIB).await;
        let a = &apart.a;
        let (to, line) = apart.prepare(4).await;
        let (memory, disk) = (Relay::default(), Relay::default());
        let line = line.unwrap();
        let there = line.disks.clone().unwrap();
        let port = disk.start(SocketAddr::new(to.ip(), there.port)).await.port();
        let line = Line { disks: Some(DiskLine { port, ..there }), ..line };
        let to = memory.start(to).await;
        // Once memory goes, each write of the guest waits for the target's disk.
        let (begun, hangs) = (Arc::clone(&memory.is_used), Arc::clone(&disk.hangs));
        let hanging = tokio::spawn(async move {
            eventually("memory goes", || begun.load(Ordering::Relaxed)).await;
            hangs.store(true, Ordering::Relaxed);
        });
        a.order(vec![sends(a, (3, 4), &(to, Some(line)), false)]);
        hanging.await.unwrap();
        let why = kept(a, 3).await;
        eprintln!("{}: {why}", qemu.1);
        assert!(!matches!(side(a, 3), Some(SideState::Released { .. })));
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        writes(a).await;
        apart.end().await;
    }
}
