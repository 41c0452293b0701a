//! How long a moved guest was silent on its network: known a moment after the move has ended.
//!
//! Reads: rows of owners whose guest was continued by a move. Decides: that move's measured gap. Never anything else.

use sterna_base::clock::Timestamp;
use sterna_base::units::Span;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::{MigrationDecision, Outcome, Phase, SideState};

use crate::action::Action;
use crate::view::{View, Vm};

pub(super) fn plan(view: &View, now: Timestamp) -> Vec<Action> {
    view.vms().filter_map(|vm| measured(view, &vm, now)).collect()
}

fn measured(view: &View, vm: &Vm<'_>, now: Timestamp) -> Option<Action> {
    let report = vm.owner_report()?.migration.as_ref()?;
    let SideState::Continued { answered: Some(answered), .. } = &report.side else { return None };
    let decision = view.migrations.get(&report.migration)?.decision.as_ref()?;
    let outcome = decision.outcome.as_ref().filter(|outcome| outcome.gap.is_none())?;
    if decision.phase != Phase::Succeeded || view.is_broken(Kind::Migration, &report.migration) {
        return None;
    }
    // The guest stood still, and then took until its first answer.
    let gap = Span(outcome.downtime?.0 + answered.0);
    let outcome = Outcome { gap: Some(gap), ..outcome.clone() };
    let after = MigrationDecision { outcome: Some(outcome), ..(*decision.value).clone() };
    let key = Key::decision(Kind::Migration, &report.migration);
    let about = Key::spec(Kind::Vm, vm.name);
    let why = format!("its guest was silent on the network for {gap}");
    Some(Action::new(now, &about, "migration measured", why).put(view, key, &after))
}
