//! Two voters that hear nothing, and what keeps them from being believed.

use super::*;

const H: HostId = HostId::from_u128(9);

fn ms(n: u64) -> BootInstant {
    BootInstant(n * 1_000_000)
}

/// Each answer: from whom, asked when, for which epoch, how old, come when.
fn view(answers: &[(u128, u64, u64, u64, u64)], at: u64) -> View {
    let mut suspicion = Suspicion::of(H, Profile::QUICK);
    for (from, asked, epoch, age, came) in answers.iter().copied() {
        let age = Duration::from_millis(age);
        let message = Message::LastSeen { host: H, tau: ms(asked), epoch: Epoch(epoch), age };
        suspicion.on_message(HostId::from_u128(from), &message, ms(came));
    }
    suspicion.view(ms(at))
}

#[test]
fn a_host_is_silent_when_two_say_so_and_nobody_has_heard_it() {
    let silent = View::Silent { vantage_points: 2 };
    let alive = View::Alive { epoch: Epoch(3) };
    for (why, answers, at, expected) in [
        ("nobody was asked", &[][..], 10_000, View::Unknown),
        ("one alone may be cut off", &[(1, 9_900, 3, 2_000, 10_000)][..], 10_000, View::Unknown),
        ("two", &[(1, 9_900, 3, 2_000, 10_000), (2, 9_900, 3, 1_500, 10_000)], 10_000, silent),
        (
            "a third has heard it",
            &[(1, 9_900, 3, 2_000, 10_000), (2, 9_900, 3, 1_600, 10_000), (3, 9_900, 3, 100, 10_000)],
            10_000,
            alive,
        ),
        (
            "asked too long ago",
            &[(1, 8_000, 3, 2_000, 8_100), (2, 9_900, 3, 2_000, 10_000)],
            10_000,
            View::Unknown,
        ),
        (
            "silent only since the answer",
            &[(1, 9_900, 3, 1_400, 10_000), (2, 9_900, 3, 1_400, 10_000)],
            10_200,
            View::Unknown,
        ),
        (
            "a third had heard it when it was asked",
            &[(1, 9_900, 3, 2_000, 10_000), (2, 9_900, 3, 1_600, 10_000), (3, 9_900, 3, 1_400, 10_000)],
            10_200,
            View::Unknown,
        ),
        (
            "has just begun to listen",
            &[(1, 9_900, 0, 200, 10_000), (2, 9_900, 3, 2_000, 10_000)],
            10_000,
            View::Unknown,
        ),
        (
            "never heard, for long",
            &[(1, 9_900, 0, 60_000, 10_000), (2, 9_900, 3, 2_000, 10_000)],
            10_000,
            silent,
        ),
    ] {
        assert_eq!(view(answers, at), expected, "{why}");
    }
}

#[test]
fn an_old_answer_that_comes_late_does_not_undo_a_newer_one() {
    let answers = [(1, 9_900, 3, 2_000, 10_000), (2, 9_900, 3, 2_000, 10_000), (1, 5_000, 3, 100, 10_100)];
    assert_eq!(view(&answers, 10_200), View::Silent { vantage_points: 2 });
}

#[test]
fn an_answer_of_another_boot_is_none() {
    assert_eq!(view(&[(1, 50_000, 3, 2_000, 10_000), (2, 9_900, 3, 2_000, 10_000)], 10_000), View::Unknown);
}
