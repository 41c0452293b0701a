//! Defects that can be put into the core on purpose: a simulation that lets one pass proves nothing.
//!
//! Compiled only under the feature `mutations`, which no binary has. Not among them, because they sit in the world around a
//! guard: a clock that runs 30 % off, and a watchdog that does not fire.

/// Which defect is in; none without the feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mutations {
    #[cfg(feature = "mutations")]
    on: Option<Mutation>,
}

/// Each breaks one line of the proof.
#[cfg(feature = "mutations")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// A lease is counted from when the answers came, not from when they were asked for.
    DeadlineFromReceiveTime,
    /// A voter speaks as soon as it has started, though it has forgotten what it promised.
    NoVoterQuarantine,
    /// A promise is asked for the lease alone: the watchdog's time is forgotten.
    PromiseForgetsTheWatchdog,
    /// A start is obeyed whatever epoch it was ordered under.
    StartsUnderAnyEpoch,
    /// The watchdog is fed whatever happens.
    FeedsTheWatchdogAlways,
    /// One voter counts as a majority, for a lease as for a fence.
    OneVoterIsEnough,
    /// An answer that comes after the deadline gives the lease back.
    LateAckRevives,
    /// A voter acknowledges a fence and renews all the same.
    FencedIsForgotten,
    /// Rule (*) removed: an epoch that never had a lease waits for one for ever.
    CandidateLivesForEver,
    /// Rule (**) removed: answers to a fence count together however old they are.
    StaleFenceAcksCount,
    /// A VM that was killed counts as gone before it was reaped.
    UnreapedCountsAsGone,
    /// A start that the agent is still about to make does not count as a VM.
    StartUnderWayIsIgnored,
    /// New voters are asked alone at once, while others still ask the old ones.
    NoJointChange,
}

#[cfg(feature = "mutations")]
impl Mutation {
    pub const ALL: [Mutation; 13] = [
        Mutation::DeadlineFromReceiveTime,
        Mutation::NoVoterQuarantine,
        Mutation::PromiseForgetsTheWatchdog,
        Mutation::StartsUnderAnyEpoch,
        Mutation::FeedsTheWatchdogAlways,
        Mutation::OneVoterIsEnough,
        Mutation::LateAckRevives,
        Mutation::FencedIsForgotten,
        Mutation::CandidateLivesForEver,
        Mutation::StaleFenceAcksCount,
        Mutation::UnreapedCountsAsGone,
        Mutation::StartUnderWayIsIgnored,
        Mutation::NoJointChange,
    ];
}

#[cfg(feature = "mutations")]
impl Mutations {
    #[must_use]
    pub fn only(mutation: Mutation) -> Self {
        Self { on: Some(mutation) }
    }

    pub(crate) fn has(self, mutation: Mutation) -> bool {
        self.on == Some(mutation)
    }
}

/// Whether a named defect is in. Constant `false` without the feature.
#[doc(hidden)]
#[macro_export]
macro_rules! mutated {
    ($on:expr, $name:ident) => {{
        #[cfg(feature = "mutations")]
        let is_on = $on.has($crate::core::mutation::Mutation::$name);
        #[cfg(not(feature = "mutations"))]
        let is_on = {
            let _ = $on;
            false
        };
        is_on
    }};
}
