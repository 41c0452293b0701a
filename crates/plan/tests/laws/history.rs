//! Histories: what people, hosts and time do to a world. Hosts here are the shortest agents that keep the contract.

#![allow(clippy::unwrap_used, clippy::too_many_arguments, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use sterna_base::units::Bytes;
use sterna_model::health::HealthReport;
use sterna_model::host::LinkState;
use sterna_model::key::{Column, Key, Kind};
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationReport, Outcome, SideState};
use sterna_model::vm::{CopyState, Exit, Power, RestartPolicy, VmReport};
use sterna_model::volume::VolumeReport;
use sterna_plan::assignment::assignment;
use sterna_plan::round;
use sterna_wire::assignment::{Owner, Purpose, Role, VmAssignment};
use uuid::Uuid;

use crate::hold;
use crate::world::{World, name};

/// How a host fares with what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Luck {
    Good,
    /// What is begun goes on, and no further.
    Slow,
    Bad,
}

#[derive(Debug, Clone, Copy)]
pub enum Op {
    Create {
        vm: u8,
        size: u8,
        pool: u8,
    },
    Power {
        vm: u8,
        power: Power,
    },
    Policy {
        vm: u8,
        never: bool,
    },
    Delete {
        vm: u8,
    },
    Migrate {
        vm: u8,
        to: Option<u8>,
    },
    Cancel {
        vm: u8,
    },
    /// Obeys its assignment.
    Work {
        host: u8,
        luck: Luck,
    },
    Crash {
        host: u8,
        vm: u8,
        exit: u8,
    },
    /// Everything that ran is gone.
    Reboot {
        host: u8,
    },
    Link {
        host: u8,
        connected: bool,
    },
    Drain {
        host: u8,
        draining: bool,
    },
    Cordon {
        host: u8,
        cordoned: bool,
    },
    Remove {
        host: u8,
    },
    Join {
        host: u8,
    },
    Pass {
        seconds: u8,
    },
}

impl Arbitrary for Op {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let vm = || 0..4u8;
        let host = || 0..3u8;
        let power = prop_oneof![
            3 => Just(Power::Running),
            1 => Just(Power::Paused),
            2 => Just(Power::Stopped),
            1 => Just(Power::Off),
        ];
        let luck = prop_oneof![5 => Just(Luck::Good), 2 => Just(Luck::Slow), 1 => Just(Luck::Bad)];
        prop_oneof![
            4 => (vm(), any::<u8>(), any::<u8>()).prop_map(|(vm, size, pool)| Op::Create { vm, size, pool }),
            3 => (vm(), power).prop_map(|(vm, power)| Op::Power { vm, power }),
            1 => (vm(), any::<bool>()).prop_map(|(vm, never)| Op::Policy { vm, never }),
            1 => vm().prop_map(|vm| Op::Delete { vm }),
            5 => (vm(), prop::option::of(host())).prop_map(|(vm, to)| Op::Migrate { vm, to }),
            1 => vm().prop_map(|vm| Op::Cancel { vm }),
            16 => (host(), luck).prop_map(|(host, luck)| Op::Work { host, luck }),
            3 => (host(), vm(), any::<u8>()).prop_map(|(host, vm, exit)| Op::Crash { host, vm, exit }),
            1 => host().prop_map(|host| Op::Reboot { host }),
            2 => (host(), any::<bool>()).prop_map(|(host, connected)| Op::Link { host, connected }),
            1 => (host(), any::<bool>()).prop_map(|(host, draining)| Op::Drain { host, draining }),
            1 => (host(), any::<bool>()).prop_map(|(host, cordoned)| Op::Cordon { host, cordoned }),
            1 => host().prop_map(|host| Op::Remove { host }),
            1 => host().prop_map(|host| Op::Join { host }),
            2 => (0..60u8).prop_map(|seconds| Op::Pass { seconds }),
        ]
        .boxed()
    }
}

const HOSTS: [&str; 3] = ["a1", "a2", "a3"];
const VMS: [&str; 4] = ["v0", "v1", "v2", "v3"];
const SIZES: [Bytes; 3] = [Bytes::mib(64), Bytes::mib(700), Bytes::mib(1400)];
const MEMORY: Bytes = Bytes::gib(3);

/// A world and what its hosts durably remember.
pub struct Story {
    pub world: World,
    pub ledger: hold::Ledger,
    /// The highest epoch of a VM that a host acted upon.
    seen: BTreeMap<(Name, Uuid), u64>,
    migrations: u32,
}

impl Story {
    pub fn new() -> Self {
        let mut world = World::new();
        for host in HOSTS {
            world.add_host(host, MEMORY);
        }
        Self { world, ledger: hold::Ledger::default(), seen: BTreeMap::new(), migrations: 0 }
    }

    /// Rounds until nothing changes, each held to the laws.
    pub fn plan(&mut self) {
        for _ in 0..30 {
            let actions = round(&self.world.view, self.world.now);
            hold::actions(&self.world, &mut self.ledger, &actions);
            for action in &actions {
                action
                    .puts
                    .iter()
                    .for_each(|(key, value)| self.world.commit(&key.to_string(), Some(value.to_string())));
                action.deletes.iter().for_each(|key| self.world.commit(&key.to_string(), None));
            }
            hold::view(&self.world.view);
            if actions.is_empty() {
                return;
            }
        }
        panic!("rounds do not come to rest: {:#?}", round(&self.world.view, self.world.now));
    }

    pub fn act(&mut self, op: Op) {
        match op {
            Op::Create { vm, size, pool } => {
                let vm = VMS[usize::from(vm)];
                let is_free = !self.world.view.vms.contains_key(vm)
                    && !self.world.view.volumes.contains_key(format!("{vm}-boot").as_str());
                if is_free {
                    let pool = [None, None, Some("san"), Some("local")][usize::from(pool) % 4];
                    self.world.add_vm(vm, SIZES[usize::from(size) % SIZES.len()], pool);
                }
            }
            Op::Power { vm, power } => self.change_vm(vm, |spec| {
                spec.power = power;
                spec.power_request += 1;
            }),
            Op::Policy { vm, never } => self.change_vm(vm, |spec| {
                spec.restart = if never { RestartPolicy::Never } else { RestartPolicy::OnFailure };
            }),
            Op::Delete { vm } => {
                let now = self.world.now;
                if self.world.view.vms.contains_key(VMS[usize::from(vm)]) {
                    self.world.change_vm(VMS[usize::from(vm)], |object| {
                        object.meta.deleting.get_or_insert(now);
                    });
                }
            }
            Op::Migrate { vm, to } => {
                // Names that several people may have chosen at once: nobody looks whether another move is under way.
                self.migrations += 1;
                let to = to.map(|host| HOSTS[usize::from(host)]);
                self.world.migrate(&format!("m{}", self.migrations), VMS[usize::from(vm)], to);
            }
            Op::Cancel { vm } => {
                let vm = name(VMS[usize::from(vm)]);
                let names: Vec<_> = self
                    .world
                    .view
                    .active_migrations()
                    .filter(|(_, spec, _)| spec.vm == vm)
                    .map(|(name, ..)| name.to_string())
                    .collect();
                names.iter().for_each(|name| self.world.cancel(name));
            }
            Op::Crash { host, vm, exit } => self.crash(HOSTS[usize::from(host)], VMS[usize::from(vm)], exit),
            Op::Reboot { host } => self.forget_all(HOSTS[usize::from(host)]),
            Op::Work { host, luck } => self.work(HOSTS[usize::from(host)], luck),
            Op::Pass { seconds } => self.world.now = self.world.now + Duration::from_secs(u64::from(seconds)),
            _ => self.act_on_host(op),
        }
    }

    fn act_on_host(&mut self, op: Op) {
        let host = |host: u8| HOSTS[usize::from(host)];
        let is_there = |world: &World, host: &str| world.view.host(&name(host)).is_some();
        match op {
            Op::Link { host: h, connected } if is_there(&self.world, host(h)) => {
                let link = if connected { LinkState::Connected } else { LinkState::Silent };
                self.world.report_host(host(h), |report| report.link = link);
            }
            Op::Drain { host: h, draining } if is_there(&self.world, host(h)) => {
                self.world.change_host(host(h), |spec| spec.draining = draining);
            }
            Op::Cordon { host: h, cordoned } if is_there(&self.world, host(h)) => {
                self.world.change_host(host(h), |spec| spec.cordoned = cordoned);
            }
            // The first host serves the network block devices: the API keeps it.
            Op::Remove { host: h } if h > 0 && is_there(&self.world, host(h)) => {
                self.world.remove(Key::spec(Kind::Host, &name(host(h))));
                self.world.remove(Key::report(Kind::Host, &name(host(h))));
            }
            Op::Join { host: h } if !is_there(&self.world, host(h)) => {
                self.world.add_host(host(h), MEMORY);
                self.seen.retain(|(owner, _), _| owner.as_str() != host(h));
                self.forget_all(host(h));
            }
            _ => {}
        }
    }

    fn change_vm(&mut self, vm: u8, change: impl FnOnce(&mut sterna_model::vm::VmSpec)) {
        let vm = VMS[usize::from(vm)];
        if self.world.view.vms.contains_key(vm) {
            self.world.change_vm(vm, |object| change(&mut object.spec));
        }
    }

    fn row(&self, vm: &str, host: &str) -> Option<VmReport> {
        let row = self.world.view.vms.get(vm)?.reports.get(host)?;
        Some((*row.value).clone())
    }

    fn say(
        &mut self,
        vm: &Name,
        host: &str,
        epoch: u64,
        state: CopyState,
        migration: Option<MigrationReport>,
    ) {
        let (health, lease, since) = (HealthReport::default(), None, self.world.now);
        let report = VmReport { epoch, state, migration, reset_request: 0, lease, since, health };
        let known = self.row(vm.as_str(), host);
        if known.is_none_or(|known| VmReport { since: report.since, ..known } != report) {
            self.world.put(Key::new(Kind::Vm, vm, Column::ReportOf(name(host))), &report);
        }
    }

    fn is_connected(&self, host: &str) -> bool {
        self.world.view.host(&name(host)).is_some_and(|host| host.is_connected())
    }

    fn crash(&mut self, host: &str, vm: &str, exit: u8) {
        let Some(row) = self.row(vm, host).filter(|row| row.state.has_process() && self.is_connected(host))
        else {
            return;
        };
        let exit = match exit % 3 {
            0 => Exit::Crashed { why: "signal 9".into() },
            1 => Exit::GuestShutdown,
            _ => Exit::Lost,
        };
        let notes = if exit == Exit::Lost { None } else { row.migration };
        self.say(&name(vm), host, row.epoch, CopyState::Stopped { exit }, notes);
    }

    /// A complete inventory without any copy.
    fn forget_all(&mut self, host: &str) {
        if self.is_connected(host) {
            for vm in VMS {
                if self.row(vm, host).is_some() {
                    self.world.forget(vm, host);
                }
            }
        }
    }

    fn work(&mut self, host: &str, luck: Luck) {
        if !self.is_connected(host) {
            return;
        }
        let told = assignment(&self.world.view, &name(host));
        for volume in &told.volumes {
            let report = match (volume.purpose, luck) {
                (Purpose::Shelve, _) => continue,
                (Purpose::Remove, _) => VolumeReport::Gone,
                (_, Luck::Good) => VolumeReport::Ready { size: volume.size },
                (_, Luck::Slow) => VolumeReport::Making { percent: 50 },
                (_, Luck::Bad) => VolumeReport::Failed { why: "disk full".into() },
            };
            let known = self.world.view.volumes.get(&volume.name).and_then(|entry| entry.report.clone());
            if known.is_none_or(|known| *known != report) {
                self.world.put(Key::report(Kind::Volume, &volume.name), &report);
            }
        }
        for vm in &told.vms {
            self.obey(host, vm, luck);
        }
        for vm in VMS.iter().filter(|vm| !told.vms.iter().any(|told| told.name.as_str() == **vm)) {
            if self.row(vm, host).is_some_and(|row| !row.state.has_process()) {
                self.world.forget(vm, host);
            }
        }
    }

    fn obey(&mut self, host: &str, vm: &VmAssignment, luck: Luck) {
        let row = self.row(vm.name.as_str(), host);
        let alive = row.clone().filter(|row| row.state.has_process());
        let stop = |exit| CopyState::Stopped { exit };
        let remembered = self.seen.get(&(name(host), vm.uid)).copied().unwrap_or(0);
        assert!(
            vm.epoch >= remembered || matches!(vm.role, Role::Release),
            "an order older than one obeyed: {vm:?}"
        );
        match (&vm.role, alive) {
            (Role::Release, Some(row)) => {
                self.say(&vm.name, host, row.epoch, stop(Exit::Released), row.migration)
            }
            (Role::Release, None) => {}
            (Role::Owner(owner), Some(row)) => self.own(host, vm, owner, row, luck),
            (Role::Owner(owner), None) => {
                self.begin(host, vm, owner, row.is_some_and(|row| row.epoch == vm.epoch), luck)
            }
            (Role::Incoming { .. }, Some(row)) => assert_eq!(row.epoch, vm.epoch, "a copy is in the way"),
            (Role::Incoming { .. }, None) if remembered == vm.epoch => {
                self.say(&vm.name, host, vm.epoch, stop(Exit::Lost), None);
            }
            (Role::Incoming { migration, .. }, None) => {
                self.seen.insert((name(host), vm.uid), vm.epoch);
                let side = SideState::Listening { at: "10.0.0.9:4000".into(), line: None };
                let notes = MigrationReport { migration: migration.clone(), side };
                match luck {
                    Luck::Good => self.say(&vm.name, host, vm.epoch, CopyState::Incoming, Some(notes)),
                    Luck::Slow => self.say(&vm.name, host, vm.epoch, CopyState::Incoming, None),
                    Luck::Bad => self.say(
                        &vm.name,
                        host,
                        vm.epoch,
                        stop(Exit::StartFailed { why: "no tap".into() }),
                        None,
                    ),
                }
            }
        }
    }

    /// There is no process.
    fn begin(&mut self, host: &str, vm: &VmAssignment, owner: &Owner, has_said: bool, luck: Luck) {
        if has_said {
            return;
        }
        let seen = self.seen.insert((name(host), vm.uid), vm.epoch);
        let state = if owner.continues.is_some() || seen == Some(vm.epoch) {
            CopyState::Stopped { exit: Exit::Lost }
        } else if !owner.power.wants_process() {
            CopyState::Stopped { exit: Exit::Requested { forced: false } }
        } else {
            match luck {
                Luck::Good => CopyState::Running,
                Luck::Slow => CopyState::Starting { step: "waits for its disks".into() },
                Luck::Bad => CopyState::Stopped { exit: Exit::StartFailed { why: "no disk".into() } },
            }
        };
        self.say(&vm.name, host, vm.epoch, state, None);
    }

    /// There is a process.
    fn own(&mut self, host: &str, vm: &VmAssignment, owner: &Owner, row: VmReport, luck: Luck) {
        let side = row.migration.clone();
        let is_left =
            |side: &SideState| matches!(side, SideState::Listening { .. } | SideState::Released { .. });
        let released = side.as_ref().is_some_and(|side| matches!(side.side, SideState::Released { .. }));
        if row.epoch != vm.epoch || row.state == CopyState::Incoming {
            let ours =
                side.filter(|side| owner.continues.as_ref() == Some(&side.migration) && is_left(&side.side));
            let Some(ours) = ours else {
                return self.say(
                    &vm.name,
                    host,
                    row.epoch,
                    CopyState::Stopped { exit: Exit::Released },
                    None,
                );
            };
            let notes =
                MigrationReport { side: SideState::Continued { loading: None, answered: None }, ..ours };
            self.seen.insert((name(host), vm.uid), vm.epoch);
            return match luck {
                Luck::Good => {
                    self.say(&vm.name, host, vm.epoch, CopyState::Running, (!released).then_some(notes))
                }
                Luck::Slow => {}
                Luck::Bad => {
                    let exit = Exit::Crashed { why: "signal 9".into() };
                    self.say(&vm.name, host, vm.epoch, CopyState::Stopped { exit }, None);
                }
            };
        }
        if released {
            return;
        }
        if let Some(outgoing) = &owner.outgoing {
            let ours = side.filter(|side| side.migration == outgoing.migration).map(|side| side.side);
            let (state, side) = match (ours, luck) {
                (Some(SideState::Kept { why }), _) => (CopyState::Running, SideState::Kept { why }),
                (_, _) if outgoing.cancel => {
                    (CopyState::Running, SideState::Kept { why: "cancelled".into() })
                }
                (_, Luck::Bad) => (CopyState::Running, SideState::Kept { why: "no progress".into() }),
                (None, _) | (_, Luck::Slow) => (CopyState::Running, SideState::Sending),
                (Some(_), Luck::Good) => {
                    let released = SideState::Released { outcome: Outcome::default() };
                    (CopyState::Paused { why: "sent away".into() }, released)
                }
            };
            let notes = MigrationReport { migration: outgoing.migration.clone(), side };
            return self.say(&vm.name, host, vm.epoch, state, Some(notes));
        }
        let state = match owner.power {
            Power::Running => CopyState::Running,
            Power::Paused => CopyState::Paused { why: "as asked".into() },
            Power::Stopped | Power::Off if luck == Luck::Slow => CopyState::ShuttingDown,
            Power::Stopped | Power::Off => CopyState::Stopped { exit: Exit::Requested { forced: false } },
        };
        self.say(&vm.name, host, vm.epoch, state, side);
    }

    /// Every host answers and nothing fails any more.
    pub fn heal(&mut self) {
        for host in 0..3 {
            self.act(Op::Link { host, connected: true });
        }
        for _ in 0..24 {
            for host in 0..3 {
                self.act(Op::Work { host, luck: Luck::Good });
                self.plan();
            }
            // In all longer than anything is waited for.
            self.act(Op::Pass { seconds: 181 });
            self.plan();
        }
    }
}
