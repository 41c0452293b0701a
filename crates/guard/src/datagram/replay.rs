//! Which numbers a sender has used: each counts once, and those far behind not at all.
//!
//! A sender that restarts begins a new session with a number of its own choice; the sessions before it are over. What is
//! repeated from one that this receiver never saw can do little: every answer is compared with the question it answers, and
//! a fenced epoch stays fenced.

use std::collections::VecDeque;

/// How far out of order two paths may bring datagrams.
const WINDOW: u64 = 64;

/// Former sessions that are remembered, so that none of them comes back.
const FORMER_MAX: usize = 16;

#[derive(Debug, Default)]
pub struct Replay {
    session: Option<Session>,
    former: VecDeque<u64>,
}

#[derive(Debug)]
struct Session {
    number: u64,
    highest: u64,
    /// Bit `n`: `highest - n` was seen.
    seen: u64,
}

impl Replay {
    /// Takes a number whose datagram is known to be genuine. False when it was seen, or may have been.
    pub fn accept(&mut self, session: u64, seq: u64) -> bool {
        match &mut self.session {
            Some(current) if current.number == session => current.accept(seq),
            _ if self.former.contains(&session) => false,
            _ => {
                self.begin(session, seq);
                true
            }
        }
    }

    fn begin(&mut self, number: u64, highest: u64) {
        if let Some(over) = self.session.replace(Session { number, highest, seen: 1 }) {
            if self.former.len() == FORMER_MAX {
                self.former.pop_front();
            }
            self.former.push_back(over.number);
        }
    }
}

impl Session {
    fn accept(&mut self, seq: u64) -> bool {
        if seq > self.highest {
            let ahead = seq - self.highest;
            self.seen = if ahead < WINDOW { self.seen << ahead | 1 } else { 1 };
            self.highest = seq;
            return true;
        }
        let behind = self.highest - seq;
        if behind >= WINDOW || self.seen >> behind & 1 == 1 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_counts_once_in_any_order() {
        let mut replay = Replay::default();
        for (seq, is_new) in [
            (5, true),
            (5, false),
            (4, true),
            (9, true),
            (4, false),
            (6, true),
            (9, false),
            (72, true),
            (9, false),
        ] {
            assert_eq!(replay.accept(1, seq), is_new, "{seq}");
        }
        assert!(!replay.accept(1, 8), "64 behind");
        assert!(replay.accept(1, 10), "62 behind, and new");
        assert!(replay.accept(1, u64::MAX));
        assert!(!replay.accept(1, 72));
    }

    #[test]
    fn a_former_session_does_not_come_back() {
        let mut replay = Replay::default();
        assert!(replay.accept(1, 1));
        assert!(replay.accept(2, 1), "the sender has restarted");
        assert!(!replay.accept(1, 2));
        assert!(replay.accept(2, 2));
        for session in 3..100 {
            assert!(replay.accept(session, 0));
        }
        assert_eq!(replay.former.len(), FORMER_MAX);
    }
}
