//! One turn of control: catch up with the store, plan a round, commit it. No timers and no tasks in here.

use std::sync::Arc;

use sterna_base::clock::Timestamp;
use sterna_model::event::Event;
use sterna_plan::ha::fence::{self, Sights};
use sterna_plan::ha::power::{self, Heard};
use sterna_plan::ha::voters::{self, Server};
use sterna_plan::{Action, View};
use sterna_store::{Batch, Error, Lease, Revision, Store, Txn};

/// What became of a round.
#[derive(Debug, Default)]
pub struct Turn {
    /// Why each committed action was taken.
    pub events: Vec<Event>,
    /// Actions whose ground had changed meanwhile: the next round decides again.
    pub conflicts: usize,
    /// The revision of the last commit; 0 when nothing was committed.
    pub committed: Revision,
    /// The round itself is still to come, and rests on this.
    pub is_partial: bool,
}

/// The leader's copy of the store.
pub struct Mind {
    store: Arc<dyn Store>,
    view: View,
}

impl Mind {
    /// Reads everything once.
    pub async fn read(store: Arc<dyn Store>) -> Result<Self, Error> {
        let view = read_view(&*store).await?;
        Ok(Self { store, view })
    }

    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// From here on changes have to be told.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.view.revision
    }

    /// Takes over one commit of the store.
    pub fn on_batch(&mut self, batch: &Batch) {
        for change in &batch.changes {
            self.view.apply(&change.key, change.value.as_deref(), batch.revision);
        }
        self.view.revision = self.view.revision.max(batch.revision);
    }

    /// Reads everything anew: correctness does not rest on having been told every change.
    pub async fn reread(&mut self) -> Result<(), Error> {
        self.view = read_view(&*self.store).await?;
        Ok(())
    }

    /// Plans a round and commits it, each action by itself, under the lease.
    pub async fn turn(&mut self, lease: &Lease, now: Timestamp) -> Result<Turn, Error> {
        if sterna_plan::recovery::is_on(&self.view) {
            // That a recovery is over rests on what is not there, which no transaction can compare: a change that was never
            // told must not be missed.
            self.reread().await?;
        }
        let actions = sterna_plan::round(&self.view, now);
        self.commit(lease, actions).await
    }

    /// The same with what the fencer hears of voters.
    pub async fn turn_with(
        &mut self,
        lease: &Lease,
        (sights, server): (&Sights, &Server),
        now: Timestamp,
    ) -> Result<Turn, Error> {
        self.turn_hearing(lease, (sights, server, &Heard::new()), now).await
    }

    /// The same with what it hears of fence devices as well. What follows from that comes first, and what rests on it in the next
    /// turn.
    pub async fn turn_hearing(
        &mut self,
        lease: &Lease,
        (sights, server, devices): (&Sights, &Server, &Heard),
        now: Timestamp,
    ) -> Result<Turn, Error> {
        if sterna_plan::recovery::is_on(&self.view) {
            // Who has what is not known yet: nobody is fenced, and nothing is taken over.
            return self.turn(lease, now).await;
        }
        let mut actions = fence::plan(&self.view, sights, now);
        actions.extend(power::plan(&self.view, devices, now));
        actions.extend(voters::plan(&self.view, server, now));
        let is_first = !actions.is_empty();
        if !is_first {
            actions = sterna_plan::round(&self.view, now);
        }
        let turn = self.commit(lease, actions).await?;
        Ok(Turn { is_partial: is_first && turn.committed > 0, ..turn })
    }

    async fn commit(&mut self, lease: &Lease, actions: Vec<Action>) -> Result<Turn, Error> {
        let mut turn = Turn::default();
        for action in actions {
            match self.store.commit(txn(&action, lease)).await {
                Ok(revision) => {
                    turn.committed = revision;
                    turn.events.push(action.event);
                }
                Err(Error::Conflict { .. }) => turn.conflicts += 1,
                // A defect of one planner must not keep the others from working.
                Err(error @ Error::Invalid { .. }) => {
                    tracing::error!(%error, kind = action.event.kind, name = action.event.name, "unusable action");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(turn)
    }
}

async fn read_view(store: &dyn Store) -> Result<View, Error> {
    let snapshot = store.range("", None).await?;
    let mut view = View::default();
    for entry in &snapshot.entries {
        view.apply(&entry.key, Some(&entry.value), entry.modified);
    }
    view.revision = snapshot.revision;
    Ok(view)
}

fn txn(action: &Action, lease: &Lease) -> Txn {
    let mut txn = Txn::new().led_by(lease);
    for (key, revision) in &action.compares {
        txn = txn.require(key.to_string(), *revision);
    }
    for (key, value) in &action.puts {
        txn = txn.put(key.to_string(), value.to_string().into_bytes());
    }
    for key in &action.deletes {
        txn = txn.delete(key.to_string());
    }
    txn
}
