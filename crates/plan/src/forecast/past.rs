//! How far off earlier forecasts of a VM were: the one honest measure of the next.

use std::cmp::Reverse;

use sterna_model::forecast::Past;
use sterna_model::migration::Phase;

use crate::view::{View, Vm};

/// More would tell of another guest.
const SHOWN: usize = 3;

/// Forecasts beside what came of them, the latest first: of moves that succeeded, and had been forecast.
#[must_use]
pub fn past(view: &View, vm: &Vm<'_>) -> Vec<Past> {
    let moves = view.index.migrations_by_vm.of(vm.name).filter_map(|name| {
        let entry = view.migrations.get(name)?;
        let decision = entry.decision.as_ref().filter(|decision| decision.phase == Phase::Succeeded)?;
        let spec = &entry.spec.as_ref()?.value.spec;
        let expected = spec.forecast.as_ref().filter(|_| !spec.seed)?;
        let outcome = decision.outcome.as_ref()?;
        let past = Past {
            migration: name.clone(),
            total_expected: expected.total,
            total: outcome.total?,
            downtime_expected: expected.downtime,
            downtime: outcome.downtime,
        };
        Some((decision.started, past))
    });
    let mut moves: Vec<_> = moves.collect();
    moves.sort_by_key(|(started, _)| Reverse(*started));
    moves.truncate(SHOWN);
    moves.into_iter().map(|(_, past)| past).collect()
}
