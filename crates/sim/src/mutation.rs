//! Defects that can be put into the world on purpose: a checker that lets one pass proves nothing.
//!
//! Each sits in one of the fakes around the production code, at the place where the real part would have it. Not among
//! them, because the design heals it and a run shows nothing: a report that is answered and then lost (each connection
//! begins with an inventory), and rows of a silent host that are dropped (no row is no proof of anything).

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// The gateway takes VMs that are absent from an incomplete inventory for gone.
    TrustsIncompleteInventory,
    /// The gateway says for a silent host that its VMs have stopped.
    SilenceMeansStopped,
    /// The gateway writes what a host says of a VM that was deleted.
    ReportsResurrect,
    /// The gateway takes a source that sends for one that has let go.
    SendingMeansReleased,
    /// Control starts a VM again under the epoch that it had.
    EpochStays,
    /// An order to release a VM never reaches its host.
    ReleaseIsLost,
    /// A host forgets at its boot which epochs it has seen.
    SeenIsForgotten,
    /// An agent forgets at its restart what it noted of the copies that are here.
    NotesAreForgotten,
    /// A process that does not answer is taken for one that is not there.
    HungCountsAsGone,
    /// A target runs as soon as it has everything, whoever owns the VM.
    TargetRunsByItself,
    /// A source is killed when it has completed, before anybody owns its target.
    SourceKilledAtCompletion,
    /// Killing a process is said to have worked and did not.
    KillDoesNothing,
    /// The mover lets the end of a stream go before the source's agent has noted that its copy will not run.
    GrantedBeforeItIsNoted,
    /// A source is not frozen before the end of its stream goes.
    NothingIsFrozen,
    /// A target says that it has everything while the end is still held back.
    LoadedBeforeTheEnd,
    /// An agent that finds a frozen copy runs it, without an order under a higher epoch.
    FrozenIsTakenBackAtOnce,
    /// Control gives a VM back to its source under the epoch that the source had.
    ReturnsUnderItsOldEpoch,
    /// A source whose disks go straight is let go while its guest still writes to them.
    GoesOnBeforeMirrorsEnd,
    /// The gateway tells hosts what a restored store says before it is known what they have.
    OrdersWhileRecovering,
    /// Control goes on from what a restored store says.
    RecoversAtOnce,
    /// Control takes a host that is being fenced for one that is fenced.
    FencingCountsAsFenced,
    /// A host joins anew under the epoch that it had.
    HostEpochStays,
    /// Control forgets when hosts fell silent: nothing tells a dead switch from dead hosts.
    SilenceHasNoTime,
    /// Control takes a VM over under the epoch that it had.
    TakenUnderItsOldEpoch,
    /// The watchdog never fires.
    WatchdogIsDead,
    /// A guard's killing is said to have worked and did not.
    GuardKillsNothing,
    /// The agent tells its guard of starts alone, not of what runs.
    OnlyStartsAreListed,
    /// A guard finds nothing of the one before it.
    PageIsLost,
    /// What a guard has frozen stays so.
    NothingThaws,
}

impl Mutation {
    /// Each with the scenario that catches it.
    pub const ALL: [(Mutation, &str); 29] = [
        (Mutation::TrustsIncompleteInventory, "ha/agent-cannot-look"),
        (Mutation::SilenceMeansStopped, "ha/host-is-silent"),
        (Mutation::ReportsResurrect, "vm/agent-dies-when-its-vm-is-removed"),
        (Mutation::SendingMeansReleased, "migration/plain"),
        (Mutation::EpochStays, "ha/host-reboots"),
        (Mutation::ReleaseIsLost, "migration/plain"),
        (Mutation::SeenIsForgotten, "ha/host-reboots"),
        (Mutation::NotesAreForgotten, "migration/source-agent-dies-having-released"),
        (Mutation::HungCountsAsGone, "ha/process-hangs"),
        (Mutation::TargetRunsByItself, "migration/plain"),
        (Mutation::SourceKilledAtCompletion, "migration/target-dies-as-owner-before-it-ran"),
        (Mutation::KillDoesNothing, "migration/plain"),
        (Mutation::GrantedBeforeItIsNoted, "mover/plain"),
        (Mutation::NothingIsFrozen, "mover/source-agent-dies-having-granted"),
        (Mutation::LoadedBeforeTheEnd, "mover/plain"),
        (Mutation::FrozenIsTakenBackAtOnce, "mover/source-agent-dies-having-granted"),
        (Mutation::ReturnsUnderItsOldEpoch, "mover/target-dies-having-been-granted"),
        (Mutation::GoesOnBeforeMirrorsEnd, "direct/plain"),
        (Mutation::OrdersWhileRecovering, "store/restored-after-a-move"),
        (Mutation::RecoversAtOnce, "store/restored-after-a-start"),
        (Mutation::FencingCountsAsFenced, "loss/qemu-does-not-die"),
        (Mutation::HostEpochStays, "loss/host-loses-power"),
        (Mutation::SilenceHasNoTime, "loss/too-many-at-once"),
        (Mutation::TakenUnderItsOldEpoch, "loss/host-loses-power"),
        (Mutation::WatchdogIsDead, "loss/host-stands-still-one-minute"),
        (Mutation::GuardKillsNothing, "loss/host-is-not-heard"),
        (Mutation::OnlyStartsAreListed, "loss/host-is-not-heard"),
        (Mutation::PageIsLost, "loss/guard-dies"),
        (Mutation::NothingThaws, "loss/heard-again-in-time"),
    ];
}
