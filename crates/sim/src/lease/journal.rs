//! What happened, as one number always and as lines when somebody wants to read them.

use std::collections::VecDeque;

/// Lines that are kept: of a run that goes wrong the end is of interest.
const LINES_MAX: usize = 200_000;

#[derive(Debug, Default)]
pub struct Journal {
    hash: u64,
    is_read: bool,
    lines: VecDeque<(u64, String)>,
}

impl Journal {
    #[must_use]
    pub fn new(is_read: bool) -> Self {
        Self { hash: 0x5163, is_read, lines: VecDeque::new() }
    }

    /// `words` stand for what happened; `text` is called only when somebody reads.
    pub fn note(&mut self, now: u64, words: [u64; 3], text: impl FnOnce() -> String) {
        for word in std::iter::once(now).chain(words) {
            self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        if self.is_read {
            if self.lines.len() == LINES_MAX {
                self.lines.pop_front();
            }
            self.lines.push_back((now, text()));
        }
    }

    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let from = self.lines.len().saturating_sub(count);
        let lines = self.lines.iter().skip(from);
        lines.map(|(now, text)| format!("{:>8.3} {text}\n", *now as f64 / 1e9)).collect()
    }
}
