//! How long a migration may take: until its target listens, and until the time that was asked for.
//!
//! Only what has not been handed over can be late: past the switchover the shortest way is on.

use std::time::Duration;

use sterna_model::migration::{MigrationDecision, Phase};
use sterna_model::vm::CopyState;

use super::Move;
use crate::action::Action;

/// A target that has not started to listen by then will not: QEMU needs a fraction of a second.
const PREPARING_MAX: Duration = Duration::from_secs(30);
/// The same when it makes volumes first, whose images may have to be fetched.
const PREPARING_VOLUMES_MAX: Duration = Duration::from_secs(3600);

impl Move<'_> {
    /// Why there is no time left for it.
    pub(super) fn is_overdue(&self) -> Option<String> {
        let by = self.spec.finish_by.filter(|by| *by <= self.now)?;
        Some(format!("not finished by {by}, as was asked for"))
    }

    /// Why the target is given up that does not listen.
    pub(super) fn waited_in_vain(&self, decision: &MigrationDecision) -> Option<String> {
        let row = self.target_row(decision).filter(|row| row.epoch == decision.next_epoch);
        // Once its process is there, the volumes are.
        let process = row.filter(|row| !matches!(row.state, CopyState::Starting { .. }));
        let (most, since) = match process {
            Some(row) => (PREPARING_MAX, row.since.clamp(decision.since, self.now.max(decision.since))),
            None if decision.volumes.is_empty() => (PREPARING_MAX, decision.since),
            None => (PREPARING_VOLUMES_MAX, decision.since),
        };
        let late = self.now.since(since) > most;
        self.is_overdue().or_else(|| late.then(|| format!("the target did not listen within {most:?}")))
    }

    /// Tells the source to stop sending, once. The phase stays: it may have let go of the guest already, and says so.
    pub(super) fn call_off(&self, decision: &MigrationDecision) -> Option<Action> {
        let is_copying = matches!(decision.phase, Phase::Copying { .. });
        if !is_copying || decision.called_off.is_some() {
            return None;
        }
        let why = self.is_overdue()?;
        let after = MigrationDecision { called_off: Some(why.clone()), ..decision.clone() };
        Some(self.write(&after, "called off", why))
    }
}
