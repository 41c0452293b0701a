//! How the world is laid out: datacentres, hosts, and the pool that volumes are in.

use std::net::IpAddr;

use sterna_guard::core::id::HostId;
use sterna_model::cluster::ClusterSpec;
use sterna_model::datacentre::DatacentreSpec;
use sterna_model::ha::{HaSettings, Profile};
use sterna_model::host::{Addresses, HostSpec};
use sterna_model::key::Kind;
use sterna_model::pool::{PoolKind, PoolSpec};
use sterna_store::Txn;

use crate::operator::name;
use crate::world::{World, host_name};

/// The one pool.
pub const POOL: &str = "san";
/// Datacentres; hosts take turns.
const SITES: [&str; 2] = ["home", "away"];

/// What decides whether memory goes straight or through the mover.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layout {
    /// Neighbours are in different datacentres.
    pub is_far: bool,
    /// Each host has the pool on its own disk: volumes move with their VM.
    pub is_local: bool,
}

impl Layout {
    fn site_of(self, host: usize) -> &'static str {
        SITES[if self.is_far { host % SITES.len() } else { 0 }]
    }

    fn sites(self) -> &'static [&'static str] {
        &SITES[..if self.is_far { SITES.len() } else { 1 }]
    }

    fn pool(self) -> PoolKind {
        let path = "/san".to_owned();
        if self.is_local { PoolKind::Dir { path } } else { PoolKind::SharedDir { path } }
    }
}

impl World {
    /// Sites, their hosts and a pool that all of them have.
    pub fn found_sites(&self, hosts: usize) {
        let (layout, profile) = {
            let state = self.lock();
            (state.config.layout, state.config.profile)
        };
        let mut txn = Txn::new();
        for site in layout.sites() {
            txn = self.put_new(txn, Kind::Datacentre, site, datacentre(profile));
            let cluster = ClusterSpec { datacentre: name(site), cpu_model: None, reserve: None };
            txn = self.put_new(txn, Kind::Cluster, site, cluster);
        }
        let pool = PoolSpec { kind: layout.pool(), datacentre: None, default: true };
        txn = self.put_new(txn, Kind::Pool, POOL, pool);
        for host in 0..hosts {
            let addresses = Addresses { management: address(host), migration: None, storage: None };
            let site = name(layout.site_of(host));
            let spec = HostSpec {
                datacentre: site.clone(),
                cluster: site,
                addresses,
                cordoned: false,
                draining: false,
                confirmed_dead: None,
                fence: None,
            };
            txn = self.put_new(txn, Kind::Host, host_name(host).as_str(), spec);
        }
        self.submit(txn);
        let mut state = self.lock();
        let state = &mut *state;
        for (host, node) in state.hosts.iter().zip(&mut state.nodes) {
            let found = state.checker.view.host(&host.name).expect("it was submitted");
            node.id = HostId(found.meta.uid);
        }
    }
}

fn datacentre(profile: Profile) -> DatacentreSpec {
    DatacentreSpec { ha: HaSettings { profile }, ..DatacentreSpec::default() }
}

/// The address of a host.
#[must_use]
pub fn address(host: usize) -> IpAddr {
    let last = u8::try_from(host + 1).unwrap_or(u8::MAX);
    IpAddr::from([10, 0, 0, last])
}

/// The host at an address.
#[must_use]
pub fn host_at(ip: IpAddr) -> Option<usize> {
    (0..usize::from(u8::MAX)).find(|host| address(*host) == ip)
}
