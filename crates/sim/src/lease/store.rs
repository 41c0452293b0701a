//! The store, as a fake: rows of hosts, VMs and the configuration, changed only by compare-and-set.
//!
//! Every operation may arrive late, twice or not at all, and its answer likewise: what it compares has to be enough.

use std::rc::Rc;

use sterna_guard::core::fencer::Proof;
use sterna_guard::core::membership::Configuration;

/// Where a host stands, as the store says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostState {
    Up,
    /// No way back for this epoch.
    Fencing,
    Fenced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRow {
    pub epoch: u64,
    pub state: HostState,
    /// Version of the configuration that its lease rests on.
    pub confirmed: u64,
    /// There was proof for all epochs up to this one.
    pub fenced_to: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmRow {
    /// Host and host's epoch.
    pub owner: Option<(usize, u64)>,
    pub epoch: u64,
}

/// Why a VM's last owner will not run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    First,
    Fenced,
    /// The host holds a lease for a later epoch.
    HostIsPast {
        held: u64,
    },
    /// The host says that it begun this epoch, and that it is over.
    GaveUp,
}

#[derive(Debug, Clone)]
pub struct Rows {
    pub hosts: Vec<HostRow>,
    pub vms: Vec<VmRow>,
    pub configuration: Configuration,
    /// Until every host has confirmed.
    pub former: Option<Configuration>,
}

#[derive(Debug, Clone)]
pub enum Op {
    Read,
    Join { host: usize, expected: u64, configuration: u64, token: u64 },
    Confirm { host: usize, epoch: u64, version: u64 },
    BeginFence { host: usize, epoch: u64 },
    EndFence { proof: Proof, host: usize },
    Own { vm: usize, from: VmRow, to: (usize, u64), why: Why },
    Change { to: Configuration },
    Settle { version: u64 },
}

/// One change of a VM's owner.
#[derive(Debug, Clone)]
pub struct Owned {
    pub vm: usize,
    pub epoch: u64,
    pub owner: (usize, u64),
    pub before: Option<(usize, u64)>,
    pub why: Why,
}

#[derive(Debug)]
pub struct Store {
    pub rows: Rc<Rows>,
    pub is_up: bool,
    pub owned: Vec<Owned>,
    pub proofs: Vec<(usize, Proof)>,
}

impl Store {
    #[must_use]
    pub fn new(hosts: usize, vms: usize, configuration: Configuration) -> Self {
        let host = HostRow { epoch: 0, state: HostState::Fenced, confirmed: 0, fenced_to: 0 };
        let vm = VmRow { owner: None, epoch: 0 };
        let rows = Rows { hosts: vec![host; hosts], vms: vec![vm; vms], configuration, former: None };
        Self { rows: Rc::new(rows), is_up: true, owned: Vec::new(), proofs: Vec::new() }
    }

    /// True when what was compared was so, and the change is made.
    pub fn apply(&mut self, op: &Op) -> bool {
        match op {
            Op::Read => true,
            Op::Join { host, expected, configuration, .. } => self.join(*host, *expected, *configuration),
            Op::Confirm { host, epoch, version } => self.confirm(*host, *epoch, *version),
            Op::BeginFence { host, epoch } => {
                let row = self.rows.hosts[*host];
                let is_so = row.epoch == *epoch && row.state == HostState::Up;
                if is_so {
                    self.change().hosts[*host].state = HostState::Fencing;
                }
                is_so
            }
            Op::EndFence { proof, host } => self.end_fence(proof, *host),
            Op::Own { vm, from, to, why } => self.own(*vm, *from, *to, why),
            Op::Change { to } => {
                let is_next = self.rows.former.is_none() && to.version == self.rows.configuration.version + 1;
                if is_next {
                    let rows = self.change();
                    rows.former = Some(std::mem::replace(&mut rows.configuration, to.clone()));
                }
                is_next
            }
            Op::Settle { version } => self.settle(*version),
        }
    }

    fn change(&mut self) -> &mut Rows {
        Rc::make_mut(&mut self.rows)
    }

    fn join(&mut self, host: usize, expected: u64, configuration: u64) -> bool {
        if self.rows.hosts[host].epoch != expected || self.rows.configuration.version != configuration {
            return false;
        }
        let row = &mut self.change().hosts[host];
        *row = HostRow { epoch: expected + 1, state: HostState::Up, confirmed: configuration, ..*row };
        true
    }

    fn confirm(&mut self, host: usize, epoch: u64, version: u64) -> bool {
        let row = self.rows.hosts[host];
        if row.epoch != epoch || row.confirmed >= version {
            return false;
        }
        self.change().hosts[host].confirmed = version;
        true
    }

    fn end_fence(&mut self, proof: &Proof, host: usize) -> bool {
        let row = self.rows.hosts[host];
        let is_so = row.epoch == proof.epoch.0
            && row.state == HostState::Fencing
            && self.rows.configuration.version == proof.configuration;
        if is_so {
            let row = &mut self.change().hosts[host];
            row.state = HostState::Fenced;
            row.fenced_to = proof.epoch.0;
            self.proofs.push((host, proof.clone()));
        }
        is_so
    }

    fn own(&mut self, vm: usize, from: VmRow, to: (usize, u64), why: &Why) -> bool {
        let target = self.rows.hosts[to.0];
        let is_proven = match (why, from.owner) {
            (Why::First, owner) => owner.is_none(),
            (_, None) => false,
            (Why::Fenced, Some((host, epoch))) => self.rows.hosts[host].fenced_to >= epoch,
            (Why::HostIsPast { held }, Some((_, epoch))) => *held > epoch,
            (Why::GaveUp, Some(_)) => true,
        };
        let is_so = self.rows.vms[vm] == from && target.epoch == to.1 && target.state == HostState::Up;
        if !is_so || !is_proven {
            return false;
        }
        let epoch = from.epoch + 1;
        self.change().vms[vm] = VmRow { owner: Some(to), epoch };
        self.owned.push(Owned { vm, epoch, owner: to, before: from.owner, why: why.clone() });
        true
    }

    /// The former voters count until every host that may hold a lease rests on the new ones.
    fn settle(&mut self, version: u64) -> bool {
        let is_so = self.rows.configuration.version == version
            && self.rows.former.is_some()
            && self.rows.is_confirmed_by_all();
        if is_so {
            self.change().former = None;
        }
        is_so
    }
}

impl Rows {
    #[must_use]
    pub fn is_confirmed_by_all(&self) -> bool {
        let version = self.configuration.version;
        self.hosts.iter().all(|row| row.state == HostState::Fenced || row.confirmed >= version)
    }
}
