//! Both hosts, the store, what is on its way, and everything that may happen.

use std::hash::{Hash, Hasher};

use serde_json::json;
use sterna_agent::hypervisor::{Pause, Run, Transfer};
use sterna_agent::vm::decide::{Order, Step};
use sterna_agent::vm::record::{Notes, Title};
use sterna_model::migration::SideState;
use sterna_plan::Action;
use sterna_plan::assignment::assignment;
use sterna_wire::assignment::{Role, VmAssignment};

use super::host::{Deed, Host, Qemu};
use super::store::{HOSTS, Store, VM, name, without_words};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Direct,
    Mover,
}

/// Put in on purpose: a search that lets one pass proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Defect {
    /// A source that said "released" and has no line to the server takes the guest back all the same.
    TakesBackWhatItReleased,
    /// That it said so is lost with its agent.
    ForgetsThatItReleased,
    /// A copy runs before it is written down that it does.
    RunsBeforeItIsNoted,
}

impl Defect {
    pub const ALL: [Defect; 3] =
        [Defect::TakesBackWhatItReleased, Defect::ForgetsThatItReleased, Defect::RunsBeforeItIsNoted];
}

/// How many faults of each kind come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    pub way: Way,
    pub defect: Option<Defect>,
    /// QEMUs that end.
    pub deaths: u8,
    /// Agents that are killed, also in the midst of a step.
    pub agents: u8,
    /// Hosts that lose their power and come back.
    pub reboots: u8,
    /// Times that a host's line to the server is down for a while.
    pub silences: u8,
    /// Transactions of a leader that has lost its place, written later.
    pub late_writes: u8,
    /// Orders that arrive later.
    pub late_orders: u8,
    /// Transfers that fail by themselves.
    pub failures: u8,
    pub cancels: u8,
}

impl Bounds {
    fn none(way: Way) -> Self {
        Self {
            way,
            defect: None,
            deaths: 0,
            agents: 0,
            reboots: 0,
            silences: 0,
            late_writes: 0,
            late_orders: 0,
            failures: 0,
            cancels: 0,
        }
    }

    fn kinds(&mut self) -> [&mut u8; 8] {
        [
            &mut self.deaths,
            &mut self.agents,
            &mut self.reboots,
            &mut self.silences,
            &mut self.late_writes,
            &mut self.late_orders,
            &mut self.failures,
            &mut self.cancels,
        ]
    }

    /// One fault of each kind, with a transaction and an order that are late.
    pub fn each_fault(way: Way) -> Vec<Self> {
        (0..8)
            .map(|kind| {
                let mut bounds = Self { late_writes: 1, ..Self::none(way) };
                *bounds.kinds()[kind] = 1;
                bounds
            })
            .collect()
    }

    pub fn each_pair(way: Way) -> Vec<Self> {
        let pairs = (0..8).flat_map(|first| (first..8).map(move |second| (first, second)));
        pairs
            .map(|(first, second)| {
                let mut bounds = Self { late_writes: 1, ..Self::none(way) };
                *bounds.kinds()[first] += 1;
                *bounds.kinds()[second] += 1;
                bounds
            })
            .collect()
    }

    pub fn for_defect(defect: Defect) -> Vec<Self> {
        let defect = Some(defect);
        [Way::Direct, Way::Mover]
            .into_iter()
            .flat_map(|way| {
                let none = Self { defect, ..Self::none(way) };
                [Self { agents: 1, silences: 1, ..none }, Self { agents: 1, deaths: 1, ..none }]
            })
            .collect()
    }
}

#[derive(Clone)]
pub struct World {
    pub store: Store,
    pub hosts: [Host; 2],
    pub is_silent: [bool; 2],
    /// A transaction that will be tried later.
    pub late: Option<Action>,
    /// An order on its way to a host, and the revision that it was made from.
    pub mail: Option<(usize, u64, Order)>,
    /// The end of the stream is on its way to the target.
    pub has_end: bool,
    pub left: Bounds,
    /// All of it that matters, as text.
    pub print: String,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.print)
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}

impl World {
    pub fn new(bounds: Bounds) -> Self {
        let mut world = Self {
            store: Store::new(bounds.way),
            hosts: [Host::new(), Host::new()],
            is_silent: [false; 2],
            late: None,
            mail: None,
            has_end: false,
            left: bounds,
            print: String::new(),
        };
        // The VM runs on the first.
        for _ in 0..4 {
            world.hear(0);
            world.act(0, true, None);
        }
        world.tell(0);
        assert!(world.runs(0), "{:?}", world.hosts[0]);
        world.seal();
        world
    }

    pub fn seal(&mut self) {
        let host = |host: &Host| {
            let order = match &host.order {
                Order::Given(order) => of_order(order),
                other => format!("{other:?}"),
            };
            let Host { qemu, exit, is_cancelling, is_overdue, .. } = host;
            let seen = without_words(&json!(host.seen));
            let notes = without_words(&json!(host.notes));
            let exit = exit.as_ref().map(|exit| exit.epoch);
            format!("{qemu:?} {exit:?} {seen} {notes} {order} {is_cancelling} {is_overdue}")
        };
        let late = self.late.as_ref().map(|action| {
            let puts: Vec<_> =
                action.puts.iter().map(|(key, value)| (key.to_string(), without_words(value))).collect();
            (self.store.still_holds(action), puts)
        });
        let mail = self.mail.as_ref().map(|(to, revision, order)| {
            let is_new = *revision > self.hosts[*to].revision;
            (
                *to,
                is_new,
                if let Order::Given(order) = order { of_order(order) } else { format!("{order:?}") },
            )
        });
        self.print = format!(
            "{:?}\n{}\n{}\n{:?} {late:?} {mail:?} {} {:?}",
            self.store.changed,
            host(&self.hosts[0]),
            host(&self.hosts[1]),
            self.is_silent,
            self.has_end,
            self.left,
        );
    }

    pub fn runs(&self, host: usize) -> bool {
        self.hosts[host].qemu.as_ref().is_some_and(|qemu| qemu.run == Run::Running && !qemu.is_frozen)
    }

    fn order_for(&self, host: usize) -> (u64, Order) {
        let whole = assignment(&self.store.view, &name(HOSTS[host]));
        let vm = whole.vms.into_iter().find(|vm| vm.name == name(VM));
        (whole.revision, vm.map_or(Order::Absent, |vm| Order::Given(Box::new(vm))))
    }

    /// The host gets what is decided now.
    pub fn hear(&mut self, host: usize) {
        let (revision, order) = self.order_for(host);
        self.take_order(host, revision, order);
    }

    pub fn post(&mut self, host: usize) {
        let (revision, order) = self.order_for(host);
        self.mail = Some((host, revision, order));
    }

    pub fn take_order(&mut self, host: usize, revision: u64, order: Order) {
        let it = &mut self.hosts[host];
        if revision >= it.revision {
            (it.revision, it.order) = (revision, order);
        }
    }

    /// The store learns what is on the host.
    pub fn tell(&mut self, host: usize) {
        self.hosts[host].look();
        let report = self.hosts[host].report();
        self.store.put_report(host, report.as_ref());
    }

    /// One step of an agent, or the first `most` deeds of it.
    pub fn act(&mut self, host: usize, is_line_up: bool, most: Option<usize>) {
        self.hosts[host].look();
        let step = self.hosts[host].next();
        let has_released = self.hosts[host].notes.as_ref().is_some_and(Notes::is_handed_over);
        if self.left.defect == Some(Defect::TakesBackWhatItReleased) && has_released && !is_line_up {
            self.carry_out(host, Deed::TakeBack);
            return;
        }
        let deeds = self.hosts[host].deeds(&step, is_line_up, self.left.defect);
        if step == Step::CancelSend {
            self.hosts[host].is_cancelling = true;
        }
        if step == Step::Send {
            self.hosts[host].is_cancelling = false;
        }
        for deed in deeds.into_iter().take(most.unwrap_or(usize::MAX)) {
            self.carry_out(host, deed);
        }
    }

    fn carry_out(&mut self, host: usize, deed: Deed) {
        let it = &mut self.hosts[host];
        match deed {
            Deed::Remember(seen) => it.seen = Some(seen),
            Deed::Note(notes) => it.notes = notes,
            Deed::Clear => it.exit = None,
            Deed::Spawn { is_target } => {
                let run = if is_target { Run::Incoming } else { Run::Paused(Pause::NotStarted) };
                it.qemu = Some(Qemu { run, transfer: Transfer::None, is_stale: false, is_frozen: false });
            }
            Deed::Kill => {
                it.end_qemu();
                it.look();
                self.on_end(host);
            }
            Deed::Run => self.run(host),
            Deed::TakeBack => {
                it.qemu.iter_mut().for_each(|qemu| {
                    qemu.is_frozen = false;
                    if matches!(qemu.transfer, Transfer::Held) {
                        qemu.transfer = Transfer::Cancelled;
                    }
                });
                self.run(host);
            }
            Deed::Send => self.send(host),
            Deed::Cancel => self.end_transfer(Transfer::Cancelled),
            Deed::Freeze => it.qemu.iter_mut().for_each(|qemu| qemu.is_frozen = true),
            Deed::Grant => self.has_end = true,
        }
    }

    /// Guest CPUs run here: memory everywhere else is old from now on.
    fn run(&mut self, host: usize) {
        let other = 1 - host;
        if let Some(qemu) = &mut self.hosts[host].qemu {
            qemu.run = Run::Running;
        }
        if let Some(qemu) = &mut self.hosts[other].qemu {
            let has_memory = !matches!(qemu.transfer, Transfer::None | Transfer::Going) || other == 0;
            qemu.is_stale |= has_memory;
        }
    }

    fn listens(&self) -> bool {
        let target = &self.hosts[1];
        let side = target.notes.as_ref().and_then(|notes| notes.migration.as_ref());
        let is_listening = side.is_some_and(|report| matches!(report.side, SideState::Listening { .. }));
        is_listening && target.qemu.as_ref().is_some_and(|qemu| qemu.transfer == Transfer::None)
    }

    fn send(&mut self, host: usize) {
        let listens = self.listens() && host == 0;
        let failed = Transfer::Failed { why: "refused".to_owned() };
        if let Some(qemu) = &mut self.hosts[host].qemu {
            qemu.transfer = if listens { Transfer::Going } else { failed };
        }
        if listens && let Some(target) = &mut self.hosts[1].qemu {
            target.transfer = Transfer::Going;
        }
    }

    pub fn is_going(&self) -> bool {
        let going = |host: &Host| host.qemu.as_ref().is_some_and(|qemu| qemu.transfer == Transfer::Going);
        going(&self.hosts[0]) && going(&self.hosts[1])
    }

    /// Everything but the end is there (mover), or all of it (direct); the guest stands still.
    pub fn stand_still(&mut self) {
        let is_direct = self.left.way == Way::Direct;
        if let Some(source) = &mut self.hosts[0].qemu {
            source.run = Run::Paused(Pause::Migrated);
            source.transfer = if is_direct { Transfer::Completed } else { Transfer::Held };
        }
        if is_direct && let Some(target) = &mut self.hosts[1].qemu {
            target.transfer = Transfer::Completed;
            target.run = Run::Paused(Pause::Asked);
        }
    }

    /// The target has everything, and its word of that is lost: the source runs on.
    pub fn lose_last_word(&mut self) {
        if let Some(target) = &mut self.hosts[1].qemu {
            target.transfer = Transfer::Completed;
            target.run = Run::Paused(Pause::Asked);
        }
        if let Some(source) = &mut self.hosts[0].qemu {
            source.transfer = Transfer::Failed { why: "no last word".to_owned() };
        }
        self.run(0);
    }

    pub fn end_arrives(&mut self) {
        self.has_end = false;
        if let Some(target) = self.hosts[1].qemu.as_mut().filter(|qemu| qemu.transfer == Transfer::Going) {
            target.transfer = Transfer::Completed;
            target.run = Run::Paused(Pause::Asked);
        }
    }

    /// The source is itself again, and the target's QEMU ends with its stream.
    pub fn end_transfer(&mut self, how: Transfer) {
        let source = self.hosts[0].qemu.as_mut();
        let live =
            |qemu: &&mut Qemu| matches!(qemu.transfer, Transfer::Going | Transfer::Held) && !qemu.is_frozen;
        let Some(source) = source.filter(live) else { return };
        source.transfer = how;
        self.run(0);
        if self.hosts[1].qemu.as_ref().is_some_and(|qemu| qemu.transfer == Transfer::Going) {
            self.hosts[1].end_qemu();
        }
    }

    /// A QEMU of the pair has gone: the other one notices, unless it is frozen.
    pub fn on_end(&mut self, host: usize) {
        if host == 1 {
            self.end_transfer(Transfer::Failed { why: "the other end closed the connection".to_owned() });
        } else if !self.has_end && self.is_target_filling() {
            self.hosts[1].end_qemu();
        }
    }

    fn is_target_filling(&self) -> bool {
        self.hosts[1].qemu.as_ref().is_some_and(|qemu| qemu.transfer == Transfer::Going)
    }

    pub fn die(&mut self, host: usize) {
        self.hosts[host].end_qemu();
        self.on_end(host);
    }

    pub fn reboot(&mut self, host: usize) {
        self.hosts[host].reboot();
        self.on_end(host);
    }

    /// This host owns what it waits for in vain.
    pub fn may_be_overdue(&self, host: usize) -> bool {
        let it = &self.hosts[host];
        let is_incoming = it.notes.as_ref().is_some_and(|notes| matches!(notes.title, Title::Incoming(_)));
        is_incoming && it.order.owner().is_some() && !it.is_overdue
    }
}

fn of_order(order: &VmAssignment) -> String {
    let role = match &order.role {
        Role::Owner(owner) => {
            let sends = owner.outgoing.as_ref().map(|outgoing| outgoing.cancel);
            format!("owner, continues {:?}, sends {sends:?}, {:?}", owner.continues, owner.power)
        }
        Role::Incoming { .. } => "incoming".to_owned(),
        Role::Release => "release".to_owned(),
    };
    format!("{} {role}", order.epoch)
}
