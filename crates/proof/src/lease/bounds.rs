//! How far the world is searched: how much time passes, and how many faults of each kind come.

use sterna_guard::core::mutation::Mutation;

use super::world::{A, B, W};

/// What is left of each kind of fault; a world counts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounds {
    pub name: &'static str,
    pub ticks: u8,
    /// Messages that never arrive.
    pub losses: u8,
    /// Messages that arrive some ticks later.
    pub delays: u8,
    /// Messages that arrive once more, some ticks later.
    pub doubles: u8,
    /// Guards that end and start anew.
    pub restarts: u8,
    /// Whose.
    pub restarting: &'static [usize],
    /// Times that A loses its power and comes back.
    pub resets: u8,
    /// Times that A's guard stands still while A's VM runs on.
    pub stalls: u8,
    /// Rounds of questions of the fencer.
    pub asks: u8,
    /// Times that A asks the store for another epoch.
    pub joins: u8,
    /// Changes of the voters.
    pub changes: u8,
    /// Orders and starts come at any time; otherwise in the instant that the guard allows them.
    pub late_start: bool,
}

impl Bounds {
    /// Some message may still be hindered.
    pub fn may_disturb(&self) -> bool {
        self.losses + self.delays + self.doubles > 0
    }
}

const NONE: Bounds = Bounds {
    name: "",
    ticks: 0,
    losses: 0,
    delays: 0,
    doubles: 0,
    restarts: 0,
    restarting: &[A, B, W],
    resets: 0,
    stalls: 0,
    asks: 0,
    joins: 0,
    changes: 0,
    late_start: false,
};

/// The same with fewer losses, quick enough for every day.
const FEW_LOSSES: Bounds = Bounds { name: "few losses", ticks: 6, losses: 2, ..LOSSES };
/// Messages are lost, and starts take their time.
const LOSSES: Bounds = Bounds { name: "losses", ticks: 7, losses: 4, asks: 2, late_start: true, ..NONE };
/// A voter forgets, and hears again what it has promised.
const FORGETFUL: Bounds = Bounds { name: "forgetful", ticks: 7, losses: 3, restarts: 1, asks: 2, ..NONE };
/// The longest way to two copies that is known: the witness says yes to a fence, forgets it, and is heard again.
const STALE: Bounds =
    Bounds { name: "stale", ticks: 8, losses: 4, restarts: 1, restarting: &[W], asks: 3, ..NONE };
/// Answers come late.
const LATE: Bounds = Bounds { name: "late", ticks: 6, losses: 1, delays: 1, asks: 2, ..NONE };
/// The host stands still with its VM running, or comes back from nothing.
const STALLS: Bounds =
    Bounds { name: "stalls", ticks: 6, losses: 1, delays: 1, resets: 1, stalls: 1, asks: 1, ..NONE };
/// The host comes back under another epoch, while orders for the former are on their way.
const JOINS: Bounds = Bounds { name: "joins", ticks: 6, losses: 2, joins: 1, asks: 1, ..NONE };
/// Other voters.
const CHANGE: Bounds = Bounds { name: "change", ticks: 6, losses: 3, changes: 1, asks: 2, ..NONE };

pub const ALL: [Bounds; 6] = [FEW_LOSSES, FORGETFUL, LATE, STALLS, JOINS, CHANGE];

pub const NIGHTLY: [Bounds; 4] = [
    LOSSES,
    STALE,
    Bounds {
        name: "night, everything once",
        ticks: 8,
        losses: 2,
        delays: 1,
        doubles: 1,
        restarts: 1,
        restarting: &[A, B, W],
        resets: 1,
        stalls: 1,
        asks: 2,
        joins: 1,
        changes: 1,
        late_start: true,
    },
    Bounds { name: "night, forgetful", ticks: 10, losses: 5, restarts: 2, asks: 3, ..NONE },
];

/// The bounds within which each defect shows.
pub const CAUGHT_BY: [(Mutation, Bounds); 13] = [
    (Mutation::DeadlineFromReceiveTime, LATE),
    (Mutation::NoVoterQuarantine, FORGETFUL),
    (Mutation::PromiseForgetsTheWatchdog, LOSSES),
    (Mutation::StartsUnderAnyEpoch, JOINS),
    (Mutation::FeedsTheWatchdogAlways, LOSSES),
    (Mutation::OneVoterIsEnough, LOSSES),
    (Mutation::LateAckRevives, STALLS),
    (Mutation::FencedIsForgotten, LOSSES),
    (Mutation::CandidateLivesForEver, FORGETFUL),
    (Mutation::StaleFenceAcksCount, STALE),
    (Mutation::UnreapedCountsAsGone, LOSSES),
    (Mutation::StartUnderWayIsIgnored, LOSSES),
    (Mutation::NoJointChange, CHANGE),
];
