//! What siblings of an arriving guest have in memory here, for its source to refer to instead of sending it.
//!
//! Their guests run meanwhile and write: pages are copied first, into a file of the arriving session (`mover`'s
//! scratch), and only what is in the copy is offered. Whatever fails here costs bytes on the line, and nothing else.

use std::io;
use std::time::{Duration, Instant};

use sterna_mover::hash::Key;
use sterna_mover::session::target::{OFFERED_MAX, Offering, Offers};
use sterna_wire::assignment::Carry;
use uuid::Uuid;

use super::Carriers;
use crate::process::memory::GuestMemory;
use crate::qemu_hypervisor;

/// A source that waits for offers sends nothing. Within this a GiB is read, named and packed on one CPU, with room; more
/// than what was gathered by then would cost more time than it saves.
const GATHER_WITHIN: Duration = Duration::from_secs(15);

impl Carriers {
    /// `None`: there is nobody whose memory could help.
    pub(super) fn offering(&self, vm: Uuid, carry: &Carry) -> Option<Offering> {
        let (carriers, siblings) = (self.clone(), carry.siblings.clone());
        let make = move |key: &Key| carriers.gather(vm, &siblings, key);
        (!carry.siblings.is_empty()).then(|| Box::new(make) as Offering)
    }

    /// Blocks for seconds.
    fn gather(&self, vm: Uuid, siblings: &[Uuid], key: &Key) -> Option<Offers> {
        match self.try_gather(vm, siblings, key) {
            Ok(offers) => Some(offers),
            Err(error) => {
                tracing::warn!(%vm, %error, "no pages of siblings are offered; the move takes longer");
                None
            }
        }
    }

    fn try_gather(
        &self,
        vm: Uuid,
        siblings: &[Uuid],
        key: &Key,
    ) -> Result<Offers, sterna_mover::checkpoint::Error> {
        let begun = Instant::now();
        let mut scratch = self.0.vault.scratch(key, OFFERED_MAX)?;
        for sibling in siblings {
            let mut refused = None;
            let copied = self.memory_of(*sibling).and_then(|memory| {
                memory.pages(|page| match scratch.take(page) {
                    Ok(has_room) => has_room && begun.elapsed() < GATHER_WITHIN,
                    Err(error) => {
                        refused = Some(error);
                        false
                    }
                })
            });
            if let Some(error) = refused {
                return Err(error);
            }
            if let Err(error) = copied {
                // It may have gone meanwhile. What was copied of it until then is as good as ever.
                tracing::info!(%vm, %sibling, %error, "a sibling's memory cannot be read");
            }
        }
        let (contents, hashes) = scratch.finish()?;
        tracing::info!(%vm, pages = hashes.len(), took = ?begun.elapsed(), "pages of siblings are offered");
        Ok(Offers { pages: Box::new(contents), hashes })
    }

    fn memory_of(&self, vm: Uuid) -> io::Result<GuestMemory> {
        let process = qemu_hypervisor::process_of(&self.0.settings.run_dir, vm);
        GuestMemory::open(process.ok_or_else(|| io::Error::other("it has no process here"))?)
    }
}
