//! What a VM would move over: how fast, how far, and what a page costs on the way.
//!
//! Reads: the route of the move, what past moves between the same two datacentres took, what hosts probed of the line, the
//! limits of both. The younger of a move and a probe counts. What nobody has measured is assumed, and is said to be.

use std::time::Duration;

use sterna_base::clock::Timestamp;
use sterna_base::units::Bytes;
use sterna_model::bandwidth::{LIMIT_MIN, Share, rates_from};
use sterna_model::meta::Name;
use sterna_model::migration::{MigrationDecision, Outcome, Phase, Via, VolumeMove};
use sterna_model::probe::LineProbe;

use crate::pace;
use crate::probe;
use crate::route::{Route, route};
use crate::view::{Host, MigrationEntry, View, Vm};
use crate::volume;

/// From the order to the first byte and from the last to the end: a process that starts and one that is reaped.
const OVERHEAD: Duration = Duration::from_millis(500);
/// 1 Gbit/s, as TCP carries it, inside a datacentre.
const ASSUMED_NEAR: f64 = 110e6;
/// 100 Mbit/s between two.
const ASSUMED_FAR: f64 = 11e6;
const ASSUMED_ROUND_TRIP: Duration = Duration::from_millis(30);
/// Setting up connections and agreeing on what both sides have.
const ROUND_TRIPS_BEFORE: u32 = 6;
/// What zstd and pages known by their hash make of memory in use: measured on a Linux guest with caches and programs.
const ASSUMED_FIRST: f64 = 0.43;
/// What a page costs that is sent again, as its difference: some 96 bytes of 4096 where little of it changed. A page that
/// is written in full costs as much as in the first pass.
const ASSUMED_AGAIN: f64 = 0.023;
/// The mover keeps no less, and no more than 1.2 round trips' worth, waiting for the line.
const QUEUE: f64 = (1 << 20) as f64;
const QUEUE_ROUND_TRIPS: f64 = 1.2;
/// Two commits that stand between the guest's stop and its running on: 0.3 to 6 ms each, measured.
const COMMIT: Duration = Duration::from_millis(10);
/// Of a volume with an older copy at the target so much goes again. Nobody knows before the copies have been compared.
const AGAIN_OF_VOLUME: f64 = 0.05;
/// Moves that tell of a line: older ones may tell of another one.
const RECENT: usize = 10;
/// A shorter transfer tells more of the overhead than of the line.
const TELLING: Bytes = Bytes::mib(4);
const TELLING_TIME: Duration = Duration::from_millis(100);

/// What carries the memory, and what goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Bytes a second that a migration gets through.
    pub bytes_per_s: f64,
    /// What it may take of that: bytes a second, each from so long after the first byte on; `None`: all.
    pub limits: Vec<(Duration, Option<u64>)>,
    pub round_trip: Duration,
    /// From the order to the first byte, plus from the last to the end.
    pub overhead: Duration,
    /// What a change of owner adds to the pause.
    pub commit: Duration,
    /// Waits for the line when the guest stops.
    pub queue: Bytes,
    /// Bytes on the line per byte of memory in use, in the first pass.
    pub cost_first: f64,
    /// The same for pages that were written meanwhile.
    pub cost_again: f64,
    /// Volumes that go along: what they take at the most.
    pub volumes: Bytes,
    /// The speed is that of moves of the past, or of a probe.
    pub is_measured: bool,
    /// What memory costs is known, not assumed.
    pub is_cost_known: bool,
    /// Where these come from, in words.
    pub basis: String,
}

impl Line {
    /// Nothing is known but the way.
    #[must_use]
    pub fn assumed(via: Via, is_far: bool) -> Self {
        let (bytes_per_s, round_trip) =
            if is_far { (ASSUMED_FAR, ASSUMED_ROUND_TRIP) } else { (ASSUMED_NEAR, Duration::ZERO) };
        let is_carried = via == Via::Mover;
        Self {
            bytes_per_s,
            limits: Vec::new(),
            round_trip,
            overhead: OVERHEAD + round_trip * ROUND_TRIPS_BEFORE,
            commit: if is_carried { COMMIT } else { Duration::ZERO },
            queue: if is_carried { waiting(bytes_per_s, round_trip) } else { Bytes::default() },
            cost_first: if is_carried { ASSUMED_FIRST } else { 1.0 },
            cost_again: if is_carried { ASSUMED_AGAIN } else { 1.0 },
            volumes: Bytes::default(),
            is_measured: false,
            is_cost_known: !is_carried,
            basis: String::new(),
        }
    }

    /// The way of a running VM to a host. `used`: its memory, as it is now.
    #[must_use]
    pub fn to(view: &View, vm: &Vm<'_>, host: &Host<'_>, used: Bytes, now: Timestamp) -> Self {
        let home = vm.decision().and_then(|decision| view.host(&decision.owner.host));
        let there = &host.spec.datacentre;
        let here = home.map_or_else(|| there.clone(), |home| home.spec.datacentre.clone());
        let is_far = here != *there;
        // Whoever may not go there is told why by the order; what it would take does not depend on it.
        let via = if is_far { Via::Mover } else { Via::Direct };
        let fallback = |why| Route { via, channels: 0, in_clear: false, volumes: vec![], why };
        let way = route(view, vm, host).unwrap_or_else(fallback);
        let mut line = Self::assumed(way.via, is_far);
        let round_trip = is_far.then(|| line.take_round_trip(view, (&here, there)));
        let mut basis = vec![line.take_speed(view, way.via, (&here, there))];
        basis.extend(round_trip);
        if way.via == Via::Mover {
            line.queue = waiting(line.bytes_per_s, line.round_trip);
        }
        if is_far {
            basis.extend(line.take_limits(&pace::shares(view, (&here, there), 1), now));
        }
        if way.via == Via::Mover {
            basis.push(line.take_cost(view, vm, (&here, there), used));
        }
        if !way.volumes.is_empty() {
            line.volumes = Bytes(way.volumes.iter().map(|it| at_most(view, it)).sum());
            basis.push(format!("volumes take {} MiB at the most", line.volumes.as_u64() >> 20));
        }
        line.basis = basis.join("; ");
        line
    }

    /// The same without what may turn out to be less: how much of its volumes is in use is known only on the way.
    #[must_use]
    pub fn at_best(&self) -> Self {
        Self { volumes: Bytes::default(), ..self.clone() }
    }

    /// Bytes a second, so many seconds after the first byte.
    #[must_use]
    pub fn speed(&self, at: f64) -> f64 {
        let begun = self.limits.iter().take_while(|(from, _)| from.as_secs_f64() <= at).last();
        begun
            .and_then(|(_, limit)| *limit)
            .map_or(self.bytes_per_s, |limit| self.bytes_per_s.min(limit as f64))
    }

    /// Seconds that so many bytes take when they begin to go then.
    #[must_use]
    pub fn takes(&self, bytes: f64, at: f64) -> f64 {
        let (mut left, mut time) = (bytes, at);
        for (change, _) in self.limits.iter().filter(|(from, _)| from.as_secs_f64() > at) {
            let (change, speed) = (change.as_secs_f64(), self.speed(time));
            if left <= (change - time) * speed {
                break;
            }
            left -= (change - time) * speed;
            time = change;
        }
        time + left / self.speed(time) - at
    }

    /// `None`: there are no limits. This move is one more that shares them.
    fn take_limits(&mut self, shares: &[Share], now: Timestamp) -> Option<String> {
        if shares.is_empty() {
            return None;
        }
        self.limits = rates_from(shares, now);
        let words = self.limits.iter().take(2).map(|(from, limit)| {
            let limit = limit
                .map_or("no limit".to_owned(), |limit| format!("{:.1} MB/s at the most", limit as f64 / 1e6));
            if from.is_zero() { format!("{limit} now") } else { format!("{limit} from {} on", now + *from) }
        });
        Some(words.collect::<Vec<_>>().join(", "))
    }

    /// The fastest that recent moves got through; a slower one may have been held up by something else.
    fn take_speed(&mut self, view: &View, via: Via, (here, there): (&Name, &Name)) -> String {
        let moves = recent(view, |decision| decision.via == via && joins(view, decision, here, there));
        let speeds: Vec<_> =
            moves.iter().filter_map(|past| Some((past.ended, speed(past.outcome, self.overhead)?))).collect();
        let between = if here == there {
            format!("in datacentre {here}")
        } else {
            format!("between datacentres {here} and {there}")
        };
        let newest = speeds.iter().map(|(ended, _)| *ended).max();
        let best = speeds.iter().map(|(_, speed)| *speed).max_by(f64::total_cmp);
        // What went faster before tells more than what a limit held back since.
        let tells =
            |probe: &LineProbe| !probe.is_held_back() || best.is_none_or(|best| best < probed_speed(probe));
        if let Some((host, probe)) = probed(view, (here, there), newest).filter(|(_, probe)| tells(probe)) {
            return self.take_probed_speed(host, probe);
        }
        let Some(best) = best else {
            let mbit = if here == there { "1 Gbit/s" } else { "100 Mbit/s" };
            return format!("no move {between} was measured yet: {mbit} assumed");
        };
        self.bytes_per_s = best;
        self.is_measured = true;
        format!("{:.1} MB/s, the fastest of {} recent moves {between}", best / 1e6, speeds.len())
    }

    /// What a host got through. One that was held back by a limit tells the least that the line carries, and no more.
    fn take_probed_speed(&mut self, host: &Name, probe: &LineProbe) -> String {
        let speed = probed_speed(probe);
        let mb_per_s = speed / 1e6;
        let by = format!("as host {host} probed the line to host {} at {}", probe.peer, probe.at);
        if probe.is_held_back() && speed < self.bytes_per_s {
            return format!("{mb_per_s:.1} MB/s, {by} under a limit; 100 Mbit/s assumed without it");
        }
        self.bytes_per_s = speed;
        self.is_measured = true;
        format!("{mb_per_s:.1} MB/s, {by}")
    }

    /// What the latest move between the two measured, whatever became of it: routes change, and with them the way's length.
    fn take_round_trip(&mut self, view: &View, (here, there): (&Name, &Name)) -> String {
        let decided =
            view.migrations.iter().filter_map(|(name, entry)| Some((name, entry.decision.as_ref()?)));
        let latest = decided
            .filter_map(|(name, decision)| Some((name, decision, decision.outcome.as_ref()?.round_trip?)))
            .filter(|(_, decision, _)| joins(view, decision, here, there))
            .max_by_key(|(name, decision, _)| (decision.started, *name));
        let newest = latest.map(|(_, decision, _)| decision.since);
        let (took, words) = match (probed(view, (here, there), newest), latest) {
            (Some((host, probe)), _) => (probe.round_trip, format!("as host {host} probed it")),
            (None, Some((name, _, took))) => (took, format!("as move {name} measured")),
            (None, None) => return format!("{} ms round trip assumed", ASSUMED_ROUND_TRIP.as_millis()),
        };
        self.round_trip = took.0;
        self.overhead = OVERHEAD + took.0 * ROUND_TRIPS_BEFORE;
        format!("{took} round trip, {words}")
    }

    /// What its last move there made of its memory: both sides then knew as much of each other as they do now, or less.
    fn take_cost(&mut self, view: &View, vm: &Vm<'_>, (here, there): (&Name, &Name), used: Bytes) -> String {
        let alike = |decision: &MigrationDecision| {
            let went = goes(view, decision);
            decision.via == Via::Mover && decision.volumes.is_empty() && went == Some((here, there))
        };
        let own = |name: &Name| view.index.migrations_by_vm.of(vm.name).any(|other| other == name);
        let moves = recent(view, alike);
        let last = moves.iter().find(|past| own(past.name));
        match last.filter(|_| used.as_u64() > 0) {
            Some(Past { name, outcome, .. }) => {
                let share = outcome.bytes.as_u64() as f64 / used.as_u64() as f64;
                self.cost_first = share.min(1.0);
                self.is_cost_known = true;
                let percent = self.cost_first * 100.0;
                format!("memory packed to {percent:.1} %, as in its move {name}")
            }
            None => format!("memory packed to {:.0} % assumed", self.cost_first * 100.0),
        }
    }
}

/// What the mover keeps waiting on such a line.
fn waiting(bytes_per_s: f64, round_trip: Duration) -> Bytes {
    Bytes(QUEUE.max(bytes_per_s * round_trip.as_secs_f64() * QUEUE_ROUND_TRIPS) as u64)
}

/// The newest probe of the line, unless a move of it is younger.
fn probed<'a>(
    view: &'a View,
    (here, there): (&Name, &Name),
    moved: Option<Timestamp>,
) -> Option<(&'a Name, &'a LineProbe)> {
    let probe = if here == there { None } else { probe::newest(view, here, there) };
    probe.filter(|(_, probe)| moved.is_none_or(|moved| moved < probe.at))
}

/// Bytes a second, and never none: a line that slow is as good as cut.
fn probed_speed(probe: &LineProbe) -> f64 {
    probe.rate.max(LIMIT_MIN).bytes_per_second() as f64
}

struct Past<'a> {
    name: &'a Name,
    ended: Timestamp,
    outcome: &'a Outcome,
}

/// Moves that succeeded and were measured, the latest first.
fn recent(view: &View, wanted: impl Fn(&MigrationDecision) -> bool) -> Vec<Past<'_>> {
    // What a pre-seed took says little of a guest's memory.
    let is_move = |entry: &MigrationEntry| entry.spec.as_ref().is_some_and(|spec| !spec.value.spec.seed);
    let moves = view.migrations.iter().filter(|(_, entry)| is_move(entry));
    let decided = moves.filter_map(|(name, entry)| Some((name, entry.decision.as_ref()?)));
    let mut moves: Vec<_> = decided
        .filter(|(_, decision)| decision.phase == Phase::Succeeded && wanted(decision))
        .filter_map(|(name, decision)| {
            let past = Past { name, ended: decision.since, outcome: decision.value.outcome.as_ref()? };
            Some((decision.started, past))
        })
        .collect();
    moves.sort_unstable_by_key(|(started, past)| std::cmp::Reverse((*started, past.name)));
    moves.truncate(RECENT);
    moves.into_iter().map(|(_, past)| past).collect()
}

/// The datacentres from and to which it went, as far as both hosts are still there.
fn goes<'a>(view: &'a View, decision: &MigrationDecision) -> Option<(&'a Name, &'a Name)> {
    let of = |host: &Option<Name>| Some(&view.host(host.as_ref()?)?.spec.datacentre);
    Some((of(&decision.source)?, of(&decision.target)?))
}

/// In either direction: it is the same line.
fn joins(view: &View, decision: &MigrationDecision, here: &Name, there: &Name) -> bool {
    goes(view, decision).is_some_and(|went| went == (here, there) || went == (there, here))
}

fn speed(outcome: &Outcome, overhead: Duration) -> Option<f64> {
    let sending = outcome.total?.0.saturating_sub(overhead);
    let is_telling = outcome.bytes >= TELLING && sending > TELLING_TIME;
    is_telling.then(|| outcome.bytes.as_u64() as f64 / sending.as_secs_f64())
}

/// Its whole size, unless an older copy of it lies where it goes.
fn at_most(view: &View, moving: &VolumeMove) -> u64 {
    let decision = view.volumes.get(&moving.volume).and_then(|entry| entry.decision.as_ref());
    let size = decision.map_or(0, |decision| decision.size.as_u64());
    if volume::has_copy(view, moving) { (size as f64 * AGAIN_OF_VOLUME) as u64 } else { size }
}
