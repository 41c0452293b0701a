//! How the limits of lines between datacentres are shared out among the moves that use them.
//!
//! Reads: limits of datacentres, moves that send. Decides nothing: the source's host looks up the time of day, so that a
//! limit begins and ends while no server can be reached.

use sterna_model::bandwidth::Share;
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationDecision, Phase, Via};
use sterna_wire::assignment::Pace;

use crate::view::{Host, View};

/// Of the moves that leave this host over a line with limits.
pub(crate) fn of(view: &View, host: &Host<'_>) -> Vec<Pace> {
    let here = &host.spec.datacentre;
    let leaving =
        view.migrations_on(host.name).filter(|(.., moving)| moving.source.as_ref() == Some(host.name));
    leaving
        .filter(|(.., moving)| sends(moving))
        .filter_map(|(name, _, moving)| {
            let (_, there) = crosses(view, moving)?;
            let shares = shares(view, (here, there), 0);
            let session = view.migrations.get(name)?.meta()?.uid;
            (!shares.is_empty()).then_some(Pace { session, shares })
        })
        .collect()
}

/// What one move from here to there may take, when `more` begin beside those under way.
pub(crate) fn shares(view: &View, (here, there): (&Name, &Name), more: u32) -> Vec<Share> {
    let crossing: Vec<_> = view
        .active_migrations()
        .filter(|(.., moving)| sends(moving))
        .filter_map(|(.., moving)| crosses(view, moving))
        .collect();
    let count = |is: &dyn Fn(&(&Name, &Name)) -> bool| {
        u32::try_from(crossing.iter().filter(|it| is(it)).count()).unwrap_or(u32::MAX).saturating_add(more)
    };
    let share = |datacentre: &Name, moves: u32| {
        let spec = view.datacentres.get(datacentre)?.spec.as_ref()?;
        let limits = spec.value.spec.bandwidth.clone();
        (!limits.is_empty()).then_some(Share { limits, moves })
    };
    let leaving = share(here, count(&|(from, _)| *from == here));
    let arriving = share(there, count(&|(_, to)| *to == there));
    leaving.into_iter().chain(arriving).collect()
}

/// Whether a move is under way over this line, or over another one that begins or ends in the same place.
pub(crate) fn is_used(view: &View, (here, there): (&Name, &Name)) -> bool {
    let mut crossing = view.active_migrations().filter_map(|(.., moving)| crosses(view, moving));
    crossing.any(|(from, to)| [from, to].iter().any(|end| *end == here || *end == there))
}

/// From the first byte until the target runs.
fn sends(moving: &MigrationDecision) -> bool {
    moving.via == Via::Mover && matches!(moving.phase, Phase::Copying { .. } | Phase::Resuming { .. })
}

/// The datacentres from and to which it goes, if these are two.
fn crosses<'a>(view: &'a View, moving: &MigrationDecision) -> Option<(&'a Name, &'a Name)> {
    let of = |host: &Option<Name>| Some(&view.host(host.as_ref()?)?.spec.datacentre);
    let (from, to) = (of(&moving.source)?, of(&moving.target)?);
    (from != to).then_some((from, to))
}
