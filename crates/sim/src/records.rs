//! What an agent keeps, on a disk and in a memory that live longer than it does.

use std::io;

use sterna_agent::vm::record::{Notes, Records, Seen};
use sterna_model::migration::SideState;
use sterna_wire::assignment::Assignment;
use uuid::Uuid;

use crate::world::World;

/// The records of one host, as one life of its agent reaches them.
pub struct Shelf {
    pub world: World,
    pub host: usize,
    pub life: u64,
}

impl Shelf {
    fn alive(&self) -> io::Result<()> {
        if self.world.is_agent_alive(self.host, self.life) {
            Ok(())
        } else {
            Err(io::Error::other("this agent was killed"))
        }
    }

    fn moment(&self, what: &str) {
        let here = self.world.lock().hosts[self.host].name.clone();
        self.world.moment(&format!("{here}: {what}"));
    }
}

impl Records for Shelf {
    fn seen(&self, uid: Uuid) -> io::Result<Option<Seen>> {
        self.alive()?;
        Ok(self.world.lock().hosts[self.host].seen.get(&uid).cloned())
    }

    fn save_seen(&self, uid: Uuid, seen: &Seen) -> io::Result<()> {
        self.alive()?;
        self.world.lock().hosts[self.host].seen.insert(uid, seen.clone());
        if seen.exit.is_none() {
            self.moment("noted the epoch");
        }
        Ok(())
    }

    fn notes(&self, uid: Uuid) -> io::Result<Option<Notes>> {
        self.alive()?;
        Ok(self.world.lock().hosts[self.host].notes.get(&uid).cloned())
    }

    fn save_notes(&self, uid: Uuid, notes: &Notes) -> io::Result<()> {
        self.alive()?;
        self.world.lock().hosts[self.host].notes.insert(uid, notes.clone());
        match notes.migration.as_ref().map(|report| &report.side) {
            Some(SideState::Sending) => self.moment("noted sending"),
            Some(SideState::Released { .. }) => self.moment("noted released"),
            Some(SideState::Kept { .. }) => self.moment("noted kept"),
            Some(SideState::Seeded { .. }) => self.moment("noted seeded"),
            Some(SideState::Loaded) => self.moment("noted loaded"),
            Some(SideState::Continued { .. }) => self.moment("noted continued"),
            Some(SideState::Listening { .. }) => self.moment("noted listening"),
            None => {}
        }
        Ok(())
    }

    fn remove_notes(&self, uid: Uuid) -> io::Result<()> {
        self.alive()?;
        self.world.lock().hosts[self.host].notes.remove(&uid);
        Ok(())
    }

    fn known(&self) -> io::Result<Vec<Uuid>> {
        self.alive()?;
        let state = self.world.lock();
        let host = &state.hosts[self.host];
        let mut known: Vec<_> = host.seen.keys().chain(host.notes.keys()).copied().collect();
        known.sort();
        known.dedup();
        Ok(known)
    }

    fn assignment(&self) -> io::Result<Option<Assignment>> {
        self.alive()?;
        Ok(self.world.lock().hosts[self.host].assignment.clone())
    }

    fn save_assignment(&self, assignment: &Assignment) -> io::Result<()> {
        self.alive()?;
        self.world.lock().hosts[self.host].assignment = Some(assignment.clone());
        Ok(())
    }
}
