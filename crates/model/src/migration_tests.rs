//! The transition table, phase by phase.

use super::*;

fn every_phase() -> Vec<Phase> {
    vec![
        Phase::Pending,
        Phase::Preparing,
        Phase::Copying { listen: "h:1".into(), line: None },
        Phase::Resuming { epoch: 2 },
        Phase::Returning { epoch: 3, why: "x".into() },
        Phase::Finishing { epoch: 2 },
        Phase::Undoing { why: "x".into(), cancelled: false, seeded: false },
        Phase::Succeeded,
        Phase::Failed { why: "x".into() },
        Phase::Cancelled,
    ]
}

#[test]
fn a_move_that_meets_no_trouble_goes_straight_through() {
    let events = [
        Event::Admitted,
        Event::TargetListens { at: "h:1".into(), line: None },
        Event::SourceReleased { next_epoch: 2 },
        Event::TargetRuns,
        Event::SourceGone,
    ];
    let end = events.into_iter().try_fold(Phase::Pending, Phase::on);
    assert_eq!(end, Ok(Phase::Succeeded));
}

#[test]
fn cancel_is_refused_once_the_source_let_go() {
    for phase in every_phase() {
        let may = matches!(
            phase,
            Phase::Pending | Phase::Preparing | Phase::Copying { .. } | Phase::Undoing { .. }
        );
        assert_eq!(phase.may_cancel(), may, "{phase:?}");
    }
}

#[test]
fn ownership_moves_only_on_the_sources_word() {
    for phase in every_phase() {
        let moved = phase.clone().on(Event::SourceReleased { next_epoch: 9 });
        let legal = matches!(phase, Phase::Copying { .. });
        assert_eq!(matches!(moved, Ok(Phase::Resuming { epoch: 9 })), legal, "{phase:?}");
    }
}

#[test]
fn what_has_ended_stays_ended() {
    let events = [Event::Admitted, Event::TargetRuns, Event::SourceGone, Event::CancelRequested];
    for phase in every_phase().into_iter().filter(Phase::has_ended) {
        for event in &events {
            assert_eq!(phase.clone().on(event.clone()), Err(Refused::Ended));
        }
    }
}

#[test]
fn every_phase_has_a_way_to_an_end() {
    // From any phase, some sequence of at most five events ends the migration.
    let events = [
        Event::Admitted,
        Event::TargetListens { at: "h:1".into(), line: None },
        Event::SourceReleased { next_epoch: 2 },
        Event::SourceKept { why: "x".into(), cancelled: false },
        Event::TargetLost { why: "x".into(), next_epoch: 3 },
        Event::TargetRuns,
        Event::SourceRuns,
        Event::SourceGone,
        Event::TargetGone,
    ];
    for start in every_phase() {
        let mut reached = vec![start.clone()];
        for _ in 0..5 {
            let next: Vec<_> = reached
                .iter()
                .flat_map(|phase| events.iter().filter_map(|event| phase.clone().on(event.clone()).ok()))
                .collect();
            reached.extend(next);
            reached.dedup();
        }
        assert!(reached.iter().any(Phase::has_ended), "{start:?}");
    }
}
