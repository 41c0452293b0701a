//! What becomes of the leases that the store speaks of: it came back from before they were given.

use sterna_base::clock::Timestamp;
use sterna_model::ha::{HaState, HostDecision, LeaseSeen, VoterDecision};
use sterna_model::key::{Key, Kind};
use sterna_model::store::SKIPPED_BY_RESTORE;

use super::Recovery;
use crate::action::Action;
use crate::ha::lease::voters_of;
use crate::view::Host;

impl Recovery<'_> {
    /// A lease goes on that rests on the very voters that the store knows. Any other host has to join anew: until then
    /// nothing proves that it is lost. The voters stay who they are under a version that every guard has to confirm.
    pub(super) fn settle_leases(&self, action: Action, now: Timestamp) -> Action {
        let hosts = self.view.hosts().filter_map(|host| {
            let before = host.decision?.clone();
            let (epoch, state, confirmed) = match self.lease_held(&host) {
                Some((epoch, version)) => (epoch, HaState::Up, version),
                None => (before.epoch + SKIPPED_BY_RESTORE, HaState::Left, before.confirmed),
            };
            // What runs on a host that has not told may have been started since the proof.
            let fenced = before.fenced.clone().filter(|_| self.has_told(host.name));
            let after =
                HostDecision { epoch, state, confirmed, fenced, since: now, silent_since: None, ..before };
            Some((host.name.clone(), after))
        });
        let action = hosts.fold(action, |action, (name, after)| {
            action.put(self.view, Key::decision(Kind::Host, &name), &after)
        });
        self.view.datacentres.iter().fold(action, |action, (name, entry)| {
            let Some(before) = &entry.decision else { return action };
            let after = VoterDecision {
                version: before.version + SKIPPED_BY_RESTORE,
                since: now,
                ..(**before).clone()
            };
            action.put(self.view, Key::decision(Kind::Datacentre, name), &after)
        })
    }

    /// With the version of the voters that it rests on.
    fn lease_held(&self, host: &Host<'_>) -> Option<(u64, u64)> {
        let voters = voters_of(self.view, host).filter(|voters| voters.former.is_none())?;
        let guard = host.report.filter(|_| self.has_told(host.name))?.guard.as_ref()?;
        let LeaseSeen::Held { epoch } = guard.lease else { return None };
        // A version is made once: guards that have the store's have its voters.
        let rests_on_them =
            guard.configuration == Some(voters.version) && guard.confirmed == guard.configuration;
        rests_on_them.then_some((epoch, voters.version))
    }
}
