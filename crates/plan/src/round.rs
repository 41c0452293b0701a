//! All planners in order. Each sees the view with the actions of those before it applied.

use sterna_base::clock::Timestamp;

use crate::action::Action;
use crate::view::View;
use crate::{alert, cleanup, cluster, drain, ha, migration, network, operation, placement, recovery, volume};

type Planner = fn(&View, Timestamp) -> Vec<Action>;

/// Safety first: what is being handed over, then what crashed, then what is new.
const PLANNERS: [Planner; 11] = [
    migration::plan,
    ha::fence::plan_confirmed,
    ha::lease::plan,
    ha::recover::plan,
    ha::plan,
    cluster::plan,
    network::plan,
    drain::plan,
    volume::plan,
    placement::plan,
    cleanup::plan,
];

/// What a VM that was found needs to be written down, and nothing that a host would act upon.
const WHILE_RECOVERING: [Planner; 3] = [recovery::plan, cluster::plan, network::plan];

/// Everything to be done now. It is told nothing of what changed, so the round after a crash is the same round.
///
/// Actions that rest on rows written in this same round are left out: the next round, which the commit wakes, makes them.
#[must_use]
pub fn round(view: &View, now: Timestamp) -> Vec<Action> {
    let is_recovering = recovery::is_on(view);
    let planners: &[Planner] = if is_recovering { &WHILE_RECOVERING } else { &PLANNERS };
    let mut seen = view.clone();
    let mut actions = Vec::new();
    for planner in planners {
        let kept: Vec<_> =
            planner(&seen, now).into_iter().filter(|action| !action.is_provisional()).collect();
        for action in &kept {
            action.apply(&mut seen);
        }
        actions.extend(kept);
    }
    // Records tell what has happened, not what is about to.
    if !is_recovering {
        actions.extend(operation::plan(view, now));
    }
    actions.extend(alert::plan(view, now));
    actions
}
