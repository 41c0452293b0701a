//! Keeps networks, pools and volumes as the assignment says, and tells what became of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use sterna_model::host::PoolSeen;
use sterna_model::meta::Name;
use sterna_wire::assignment::{Assignment, Role};
use sterna_wire::up::{HostSample, Samples, Up, VolumeSeen};
use uuid::Uuid;

use crate::hypervisor::{Guest, Hypervisor};
use crate::link::tls::Identity;
use crate::machine::Assigned;
use crate::network::Networks;
use crate::resources::Resources;
use crate::storage::{self, Fetched, Fetcher, Storage};
use crate::vm::Ports;

/// Somebody may have changed something: looked at again this often without a new assignment.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// Brings images from the server.
pub struct FromServer(pub Identity);

impl Fetcher for FromServer {
    fn fetch(&self, image: Name) -> BoxFuture<'static, std::io::Result<Fetched>> {
        let identity = self.0.clone();
        Box::pin(async move {
            let url = identity.url(&format!("/agent/v1/images/{image}/content"));
            let client = identity.stream_client().await.map_err(std::io::Error::other)?;
            let answer = client.get(url).send().await.map_err(std::io::Error::other)?;
            let answer = answer.error_for_status().map_err(std::io::Error::other)?;
            let length = answer.content_length();
            Ok(Fetched { length, bytes: answer.bytes_stream().map_err(std::io::Error::other).boxed() })
        })
    }
}

/// What the host row says of pools.
#[derive(Default)]
pub struct Pools(Mutex<BTreeMap<Name, PoolSeen>>);

impl Pools {
    #[must_use]
    pub fn seen(&self) -> BTreeMap<Name, PoolSeen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers whether that is news.
    fn set(&self, seen: BTreeMap<Name, PoolSeen>) -> bool {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = *pools != seen;
        *pools = seen;
        is_new
    }
}

pub struct Converger<H: Hypervisor, R> {
    pub ports: Arc<Ports<H, R>>,
    pub storage: Storage,
    pub networks: Arc<Networks>,
    pub assigned: Assigned,
    pub pools: Arc<Pools>,
    /// The host row with these pools.
    pub host: Arc<dyn Fn() -> Up + Send + Sync>,
}

impl<H, R> Converger<H, R>
where
    H: Hypervisor,
    R: Resources,
{
    /// Never ends.
    pub async fn run(mut self) {
        let mut volumes = self.storage.volumes();
        let mut told = BTreeMap::new();
        loop {
            let assignment = self.assigned.borrow_and_update().clone();
            if let Some(assignment) = assignment {
                self.converge(&assignment).await;
            }
            loop {
                let seen = volumes.borrow_and_update().clone();
                self.tell_volumes(&seen, &mut told).await;
                tokio::select! {
                    biased;
                    changed = self.assigned.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    _ = volumes.changed() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => break,
                }
            }
        }
    }

    async fn converge(&self, assignment: &Assignment) {
        let (networks, pools) = tokio::join!(
            self.networks.ensure(&assignment.networks, assignment.tunnel.as_ref()),
            self.storage.ensure_pools(&assignment.pools),
        );
        // After the pools: a volume in a new one would fail and be tried again later.
        self.storage.ensure_volumes(&assignment.volumes);
        match networks {
            Ok(failed) => {
                for (network, error) in failed {
                    tracing::warn!(%network, %error, "a network could not be made");
                }
            }
            Err(error) => tracing::warn!(%error, "networks could not be made"),
        }
        let is_pool_news = self.pools.set(pools);
        if self.networks.is_tunnel_news() || is_pool_news {
            self.ports.reports.report((self.host)());
        }
    }

    async fn tell_volumes(&self, seen: &BTreeMap<Uuid, VolumeSeen>, told: &mut BTreeMap<Uuid, VolumeSeen>) {
        for (uid, volume) in seen {
            if told.get(uid) != Some(volume) {
                self.ports.reports.report(Up::Volume(volume.clone()));
            }
        }
        told.clone_from(seen);
        let Some(assignment) = self.assigned.borrow().clone() else { return };
        self.grow_in_use(&assignment, seen).await;
    }

    /// A volume that a guest has open grows through its QEMU, which tells the guest.
    async fn grow_in_use(&self, assignment: &Assignment, seen: &BTreeMap<Uuid, VolumeSeen>) {
        for volume in &assignment.volumes {
            let pool = assignment.pools.iter().find(|pool| pool.name == volume.pool);
            let (Some(pool), Some(report)) = (pool, seen.get(&volume.uid)) else { continue };
            let Some(size) = storage::grows_online(volume, &report.report, &pool.kind) else { continue };
            let place = volume.in_use_by.and_then(|vm| Some((vm, disk_of(assignment, vm, volume.uid)?)));
            let Some((vm, index)) = place else { continue };
            let Some(guest) = self.ports.guests.get(vm) else { continue };
            match guest.resize_disk(index, size).await {
                Ok(()) => self.storage.recheck(volume.uid),
                Err(error) => tracing::warn!(volume = %volume.name, %error, "a volume did not grow"),
            }
        }
    }
}

fn disk_of(assignment: &Assignment, vm: Uuid, volume: Uuid) -> Option<usize> {
    let vm = assignment.vms.iter().find(|entry| entry.uid == vm)?;
    let Role::Owner(owner) = &vm.role else { return None };
    owner.machine.disks.iter().position(|disk| disk.uid == volume)
}

/// Measures the host now and then. Never ends.
pub async fn measure(mut meter: crate::host::Meter, storage: Storage, reports: Arc<dyn crate::vm::Reports>) {
    let mut every = tokio::time::interval(SAMPLE_EVERY);
    loop {
        every.tick().await;
        match meter.measure() {
            Ok((cpu_milli, memory_used)) => {
                let host = Some(HostSample { cpu_milli, memory_used, pool_free: storage.free().await });
                reports.report(Up::Samples(Samples { host, ..Samples::default() }));
            }
            Err(error) => tracing::warn!(%error, "the host could not be measured"),
        }
    }
}

/// Reports the host anew when something of its lines is. Ends with whoever measures them.
pub async fn tell_lines(
    mut lines: tokio::sync::watch::Receiver<crate::carrier::Lines>,
    host: Arc<dyn Fn() -> Up + Send + Sync>,
    reports: Arc<dyn crate::vm::Reports>,
) {
    while lines.changed().await.is_ok() {
        reports.report(host());
    }
}

/// The address from which the server is reached: no packet is sent.
pub fn address_towards(server: std::net::SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match server {
        std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}
