//! Fake QEMUs and their shims on every host: what a process does by itself, and what it does when it is told.
//!
//! Each guest counts in its memory and writes every number to its disk, so that two writers, or memory that went back,
//! show at once. The rules of a transfer are those measured on QEMU 7.2 and 10.0: until the source says `completed`, any
//! failure makes it run again by itself if it ran before; a target that fails before it has everything ends; `completed`
//! shows on the two sides in either order.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use sterna_agent::hypervisor::{Happened, Pause, Run, Transfer};
use sterna_model::line::Line;
use sterna_model::meta::Name;
use sterna_wire::shim::ExitRecord;
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use crate::carrier::{Arrival, Way};
use crate::direct::Direct;
use crate::disk::Disks;

/// One process.
#[derive(Debug)]
pub struct Qemu {
    pub host: usize,
    pub uid: Uuid,
    pub vm: Name,
    /// What it was started under.
    pub epoch: u64,
    pub run: Run,
    pub transfer: Transfer,
    /// The number that the guest counted to; absent before it booted, or before memory arrived.
    pub memory: Option<u64>,
    /// May write to the disk.
    pub has_disk: bool,
    /// Milliseconds of the world when it was started.
    pub born: u64,
    /// Its CPUs ran at least once.
    pub has_run: bool,
    /// It was started to take in a migration.
    pub is_target: bool,
    pub listens: Option<SocketAddr>,
    /// How whoever calls it there must do so.
    pub line: Option<Line>,
    /// Told to run before its memory was there.
    pub runs_when_loaded: bool,
    pub wants_cancel: bool,
    pub sent: u64,
    /// Stopped by a signal: it does and answers nothing.
    pub is_frozen: bool,
    /// Stopped by the host's guard: likewise.
    pub is_iced: bool,
    /// All of the host stands still.
    pub host_stands: bool,
    /// It hangs in the kernel: a kill does not end it.
    pub is_stuck: bool,
    /// The guest does nothing, though its CPUs run.
    pub is_hung: bool,
    /// The guest's agent does not answer.
    pub is_mute: bool,
    /// Source: the mover carries it away.
    pub way: Option<Way>,
    /// Source: its disks go straight, beside its memory.
    pub direct: Option<Direct>,
    /// Target: the session that it is filled by.
    pub arrival: Option<Arrival>,
    pub told: Option<UnboundedSender<Happened>>,
}

impl Qemu {
    /// Guest CPUs do something: not those of a stopped process.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.run == Run::Running && !self.is_stopped()
    }

    /// It does and answers nothing, whoever stopped it.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is_frozen || self.is_iced || self.host_stands
    }

    pub fn tell(&self, happened: Happened) {
        if let Some(told) = &self.told {
            // Nobody listens while the agent is down.
            let _ = told.send(happened);
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SIGKILL.
    Killed,
    /// Nobody was left to write down how.
    WithItsShim,
    /// The guest switched itself off.
    ShutDown,
    /// A target whose source went away.
    LoadFailed,
}

#[derive(Debug, Default)]
pub struct Machines {
    pub qemus: BTreeMap<u64, Qemu>,
    /// Run directories of copies that have ended, by host: gone with the host's boot.
    pub ended: BTreeMap<(usize, Uuid), ExitRecord>,
    pub disks: Disks,
    /// Boots of each VM from its disk.
    pub boots: BTreeMap<Uuid, u64>,
    made: u64,
    /// What went wrong and was not told yet.
    wrong: Vec<String>,
}

impl Machines {
    #[must_use]
    pub fn new(is_local: bool) -> Self {
        Self { disks: Disks::new(is_local), ..Self::default() }
    }

    pub fn add(&mut self, qemu: Qemu) -> u64 {
        self.made += 1;
        self.ended.remove(&(qemu.host, qemu.uid));
        self.qemus.insert(self.made, qemu);
        self.made
    }

    /// All of a host stops, or goes on.
    pub fn stand_still(&mut self, host: usize, is_so: bool) {
        for qemu in self.qemus.values_mut().filter(|qemu| qemu.host == host) {
            qemu.host_stands = is_so;
        }
    }

    #[must_use]
    pub fn here(&self, host: usize, uid: Uuid) -> Option<u64> {
        self.qemus.iter().find(|(_, qemu)| qemu.host == host && qemu.uid == uid).map(|(id, _)| *id)
    }

    #[must_use]
    pub fn listener(&self, at: SocketAddr) -> Option<u64> {
        self.qemus.iter().find(|(_, qemu)| qemu.listens == Some(at)).map(|(id, _)| *id)
    }

    /// The process is gone; its shim wrote down how, or the next one who looks does.
    pub fn end(&mut self, id: u64, how: End) {
        let Some(qemu) = self.qemus.remove(&id) else { return };
        let (signal, code, reason, words) = match how {
            End::Killed => (Some(9), None, None, ""),
            End::WithItsShim => (None, None, None, "its shim died"),
            End::ShutDown => (None, Some(0), Some("guest-shutdown"), ""),
            End::LoadFailed => (None, Some(1), None, "load of migration failed"),
        };
        let record = ExitRecord {
            epoch: qemu.epoch,
            code,
            signal,
            shutdown_reason: reason.map(str::to_owned),
            last_words: words.to_owned(),
        };
        self.ended.insert((qemu.host, qemu.uid), record);
        qemu.tell(Happened::Lost);
    }

    /// Lets guest CPUs run. A guest that never ran boots from its disk.
    pub fn run(&mut self, id: u64) {
        let Some(qemu) = self.qemus.get_mut(&id) else { return };
        if qemu.memory.is_none() {
            let (number, newest) = self.disks.boot(qemu.uid, qemu.host);
            self.wrong.extend(newest.map(|newest| {
                format!("S2: {} boots from a disk of {number}, the newest is {newest}", qemu.vm)
            }));
            qemu.memory = Some(number);
            *self.boots.entry(qemu.uid).or_default() += 1;
        }
        qemu.has_disk = true;
        qemu.has_run = true;
        qemu.run = Run::Running;
        qemu.tell(Happened::Resumed);
    }

    pub fn pause(&mut self, id: u64, why: Pause) {
        if let Some(qemu) = self.qemus.get_mut(&id) {
            qemu.run = Run::Paused(why);
            qemu.tell(Happened::Changed);
        }
    }

    /// The guest starts again from its disk, in the same process.
    pub fn reset(&mut self, id: u64) {
        if let Some(qemu) = self.qemus.get_mut(&id) {
            qemu.memory = Some(self.disks.read(qemu.uid, qemu.host));
            (qemu.is_hung, qemu.is_mute) = (false, false);
            if qemu.run == Run::Paused(Pause::Panicked) {
                qemu.run = Run::Paused(Pause::NotStarted);
            }
        }
    }

    /// Every running guest writes once. Answers what is wrong with that.
    pub fn breathe(&mut self) -> Vec<String> {
        let mut wrong = std::mem::take(&mut self.wrong);
        let mut running: BTreeMap<Uuid, u64> = BTreeMap::new();
        for (id, qemu) in &mut self.qemus {
            if !qemu.runs() {
                continue;
            }
            if let Some(other) = running.insert(qemu.uid, *id) {
                wrong.push(format!("S1: {} runs twice: in processes {other} and {id}", qemu.vm));
            }
            if qemu.is_hung {
                continue;
            }
            let disk = self.disks.read(qemu.uid, qemu.host);
            if qemu.memory != Some(disk) {
                let memory = qemu.memory;
                wrong.push(format!("S2: {} remembers {memory:?}, its disk says {disk}", qemu.vm));
            }
            self.disks.write(qemu.uid, qemu.host, disk + 1);
            qemu.memory = Some(disk + 1);
        }
        wrong
    }

    /// Another process of the same VM that may write to its disk.
    #[must_use]
    pub fn other_writer(&self, id: u64) -> Option<u64> {
        let (uid, host) = self.qemus.get(&id).map(|qemu| (qemu.uid, qemu.host))?;
        self.qemus
            .iter()
            .find(|(other, qemu)| {
                **other != id && qemu.uid == uid && qemu.has_disk && self.disks.is_same(host, qemu.host)
            })
            .map(|(other, _)| *other)
    }
}
