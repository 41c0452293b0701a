//! What will happen, soonest first; of what happens at one instant, what was said first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::rc::Rc;

use sterna_guard::core::event;
use sterna_guard::core::event::{StartRefusal, VmUnderLease};
use sterna_guard::core::guard::{StartOrder, Status};
use sterna_guard::core::message::Message;

use crate::lease::store::{Op, Rows};

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Happening {
    Packet {
        from: usize,
        to: usize,
        packet: Packet,
    },
    /// A guard's timer.
    Wake {
        machine: usize,
        life: u64,
        number: u64,
    },
    /// Over the socket between the agent and its guard: in order, and gone with either end.
    ToGuard {
        machine: usize,
        life: u64,
        ask: Ask,
    },
    ToAgent {
        machine: usize,
        life: u64,
        note: Note,
    },
    AgentTick {
        machine: usize,
        life: u64,
    },
    /// A QEMU that was begun is there.
    Spawn {
        machine: usize,
        life: u64,
        order: StartOrder,
    },
    /// A killed process is gone.
    Reap {
        copy: u64,
    },
    WatchdogFires {
        machine: usize,
        boot: u64,
    },
    Boot {
        machine: usize,
    },
    GuardStarts {
        machine: usize,
        boot: u64,
    },
    AgentStarts {
        machine: usize,
        boot: u64,
    },
    ControllerTick {
        controller: usize,
        life: u64,
    },
    ControllerStarts {
        controller: usize,
    },
    AtStore {
        from: usize,
        life: u64,
        op: Op,
    },
    FromStore {
        to: usize,
        life: u64,
        reply: Reply,
    },
    StoreIsBack,
    Fault(usize),
    Judge,
}

#[derive(Debug, Clone)]
pub enum Packet {
    Guard(Message),
    Order(StartOrder),
    Report(Rc<HostReport>),
}

/// What an agent tells controllers.
#[derive(Debug, Clone)]
pub struct HostReport {
    pub host: usize,
    pub held: Option<u64>,
    /// VMs that are here or may come, by number, with their epochs.
    pub vms: Vec<(usize, u64)>,
    /// Of each VM the highest epoch that was begun here: none up to it will be begun again.
    pub done: Vec<u64>,
}

#[derive(Debug, Clone)]
pub enum Ask {
    Event(event::Event),
    /// The list with one that is starting, and whether it may.
    Start {
        list: Vec<VmUnderLease>,
        order: StartOrder,
    },
    Poll {
        number: u64,
    },
}

#[derive(Debug, Clone)]
pub enum Note {
    Status { number: u64, status: Box<Status> },
    Start { order: StartOrder, answer: Result<(), StartRefusal> },
    ProcessGone { vm: usize, epoch: u64 },
}

#[derive(Debug, Clone)]
pub enum Reply {
    Rows(Rc<Rows>),
    Joined { token: u64, epoch: u64 },
}

#[derive(Debug)]
struct Entry {
    at: u64,
    number: u64,
    happening: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[derive(Debug, Default)]
pub struct Queue {
    heap: BinaryHeap<Entry>,
    count: u64,
}

impl Queue {
    pub fn push(&mut self, at: u64, happening: Happening) {
        if at == u64::MAX {
            return;
        }
        self.count += 1;
        self.heap.push(Entry { at, number: self.count, happening });
    }

    pub fn pop(&mut self) -> Option<(u64, Happening)> {
        self.heap.pop().map(|entry| (entry.at, entry.happening))
    }
}
