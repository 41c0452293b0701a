//! Whether a guest still does anything, from its agent's signs of life and from its disks and ports.
//!
//! It hangs only when both are gone: an agent alone may be stopped or busy, and a guest without work is quiet. One that
//! never answered has no agent, and nothing is concluded from its silence.

use std::time::Duration;

/// From one question to the next.
pub const ASK_EVERY: Duration = Duration::from_secs(10);
/// An answer that takes longer is none.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const MISSED_MAX: u32 = 3;
const QUIET_MAX: Duration = Duration::from_secs(60);

/// One look at a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Since an instant that does not change.
    pub at: Duration,
    pub has_answered: bool,
    /// Operations of its disks and packets that it sent, so far; `None`: they could not be counted.
    pub activity: Option<u64>,
}

/// What is remembered of a guest since it was last started or reset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulse {
    has_answered: bool,
    missed: u32,
    /// The last count, and when it was first seen.
    activity: Option<(u64, Duration)>,
}

impl Pulse {
    /// Answers why the guest is taken for hung, if it is.
    pub fn on(&mut self, sample: Sample) -> Option<String> {
        if sample.has_answered {
            self.has_answered = true;
            self.missed = 0;
        } else {
            self.missed = self.missed.saturating_add(1);
        }
        match (sample.activity, self.activity) {
            (Some(count), Some((before, _))) if count == before => {}
            (Some(count), _) => self.activity = Some((count, sample.at)),
            // Nobody knows what it did meanwhile.
            (None, _) => self.activity = None,
        }
        let (_, since) = self.activity?;
        let quiet = sample.at.saturating_sub(since);
        let is_hung = self.has_answered && self.missed >= MISSED_MAX && quiet >= QUIET_MAX;
        is_hung.then(|| {
            format!(
                "{} signs of life missed, and no disk or network traffic for {} s",
                self.missed,
                quiet.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that is looked at every ten seconds: `+` answers, `-` does not; a digit is its activity count. Answers
    /// after how many seconds it is first taken for hung.
    fn hung_after(looks: &[(char, Option<u64>)]) -> Option<u64> {
        let mut pulse = Pulse::default();
        looks.iter().zip((0..).step_by(10)).find_map(|((sign, activity), second)| {
            let at = Duration::from_secs(second);
            let sample = Sample { at, has_answered: *sign == '+', activity: *activity };
            pulse.on(sample).map(|_| second)
        })
    }

    fn looks(signs: &str, activity: impl Fn(u64) -> Option<u64>) -> Vec<(char, Option<u64>)> {
        signs.chars().zip(0..).map(|(sign, nth)| (sign, activity(nth))).collect()
    }

    #[test]
    fn a_guest_hangs_when_it_neither_answers_nor_does_anything_for_a_minute() {
        let still = |_| Some(5);
        assert_eq!(hung_after(&looks("+--------", still)), Some(60));
        assert_eq!(hung_after(&looks("+++++++---", still)), Some(90), "three signs have to be missed");
        let stops_at_20 = |nth: u64| Some(nth.min(2));
        assert_eq!(
            hung_after(&looks("+----------", stops_at_20)),
            Some(80),
            "a minute after its last traffic"
        );
    }

    #[test]
    fn one_of_the_two_alone_is_no_hang() {
        let still = |_| Some(5);
        let busy = Some;
        assert_eq!(hung_after(&looks(&"-".repeat(500), still)), None, "it never answered");
        assert_eq!(hung_after(&looks(&format!("+{}", "-".repeat(500)), busy)), None, "its disk is busy");
        assert_eq!(hung_after(&looks(&"+".repeat(500), still)), None, "it has nothing to do");
        assert_eq!(hung_after(&looks(&"+--".repeat(200), still)), None, "it answers now and then");
        assert_eq!(hung_after(&looks(&format!("+{}", "-".repeat(500)), |_| None)), None, "nothing is known");
        let sometimes = |nth: u64| (!nth.is_multiple_of(5)).then_some(5);
        assert_eq!(
            hung_after(&looks(&format!("+{}", "-".repeat(500)), sometimes)),
            None,
            "not for a whole minute"
        );
    }
}
