//! What happened, line by line, and one number that stands for all of it.

use std::fmt::Write as _;

#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Milliseconds since the world began, and what happened then.
    lines: Vec<(u64, String)>,
    hash: u64,
}

impl Trace {
    pub fn push(&mut self, now: u64, line: &str) {
        // FNV-1a (Fowler, Noll, Vo): no library decides what it yields.
        for byte in now.to_le_bytes().iter().chain(line.as_bytes()) {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3).wrapping_add(1);
        }
        self.lines.push((now, line.to_owned()));
    }

    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    #[must_use]
    pub fn text(&self) -> String {
        self.tail(self.lines.len())
    }

    /// The last lines, for a report of a failure.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let mut text = String::new();
        for (time, line) in &self.lines[self.lines.len().saturating_sub(count)..] {
            let _ = writeln!(text, "{:>4}.{:03} {line}", time / 1000, time % 1000);
        }
        text
    }
}
