//! Who measures the lines between datacentres: in each one host, the first that is connected, by name.
//!
//! Reads: which hosts are connected, where they answer, what moves are under way, what was measured. Decides nothing: when
//! to measure again is the host's matter, by its own clock, so that a restart of the server measures nothing anew.

use std::collections::BTreeMap;

use sterna_model::meta::Name;
use sterna_model::probe::LineProbe;
use sterna_wire::assignment::{Probe, Probed};
use uuid::Uuid;

use crate::pace;
use crate::view::{Host, View};

/// The lines that this host measures. One that a move uses is left alone, and so are those that share an end with it.
pub(crate) fn of(view: &View, host: &Host<'_>) -> Vec<Probe> {
    let here = &host.spec.datacentre;
    let order = |other: Host<'_>| {
        let there = &other.spec.datacentre;
        let at = other.report?.mover?;
        (!pace::is_used(view, (here, there))).then(|| Probe {
            datacentre: there.clone(),
            peer: other.name.clone(),
            at,
            session: session(host, &other),
            shares: pace::shares(view, (here, there), 1),
        })
    };
    far(view, host).into_values().filter_map(order).collect()
}

/// Those that it answers: it waits for them also while a move uses the line.
pub(crate) fn answers(view: &View, host: &Host<'_>) -> Option<Probed> {
    let sessions: Vec<_> = far(view, host).values().map(|other| session(other, host)).collect();
    (!sessions.is_empty()).then(|| Probed { listen: host.spec.addresses.for_migration(), sessions })
}

/// A measurement, and the host that made it.
pub type Seen<'a> = (&'a Name, &'a LineProbe);

/// The newest measurements of the lines that begin here, by where they end.
#[must_use]
pub fn lines<'a>(view: &'a View, here: &Name) -> BTreeMap<&'a Name, Seen<'a>> {
    let mut lines = BTreeMap::<&Name, Seen<'_>>::new();
    for host in view.hosts().filter(|host| host.spec.datacentre == *here) {
        for (there, probe) in host.report.into_iter().flat_map(|report| &report.lines) {
            let newest = lines.entry(there).or_insert((host.name, probe));
            if newest.1.at < probe.at {
                *newest = (host.name, probe);
            }
        }
    }
    lines
}

/// The newest measurement of a line in this direction, or else in the other.
pub(crate) fn newest<'a>(view: &'a View, here: &Name, there: &Name) -> Option<Seen<'a>> {
    let towards = |from: &Name, to: &Name| lines(view, from).remove(to);
    towards(here, there).or_else(|| towards(there, here))
}

/// The first connected host of each other datacentre; none unless this one is the first of its own.
fn far<'a>(view: &'a View, host: &Host<'_>) -> BTreeMap<&'a Name, Host<'a>> {
    let connected = || view.hosts().filter(Host::is_connected);
    let here = &host.spec.datacentre;
    let mut far = BTreeMap::new();
    if connected().find(|other| other.spec.datacentre == *here).is_some_and(|first| first.name == host.name) {
        for other in connected().filter(|other| other.spec.datacentre != *here) {
            far.entry(&other.spec.datacentre).or_insert(other);
        }
    }
    far
}

/// The same for both ends, and another one in the other direction. It is no secret: whoever joins has a certificate of a
/// host, and finds somebody who answers echoes.
fn session(source: &Host<'_>, target: &Host<'_>) -> Uuid {
    Uuid::from_u128(source.meta.uid.as_u128().rotate_left(64) ^ target.meta.uid.as_u128())
}
