//! What the runs of a row came to.

use anyhow::Result;

use crate::bench::table::{Bar, Table, percentile};

/// Runs of one row, of which each ended with something or failed.
pub struct Tally<T> {
    done: Vec<T>,
    failures: Vec<String>,
}

impl<T> Default for Tally<T> {
    fn default() -> Self {
        Self { done: Vec::new(), failures: Vec::new() }
    }
}

impl<T> Tally<T> {
    /// Says it, too.
    pub fn add(&mut self, outcome: Result<T>, tell: impl Fn(&T) -> String) {
        let number = self.count() + 1;
        match outcome {
            Ok(done) => {
                println!("  {number}: {}", tell(&done));
                self.done.push(done);
            }
            Err(error) => {
                println!("  {number}: FAILED: {error:#}");
                self.failures.push(format!("run {number}: {error:#}"));
            }
        }
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.done.len() + self.failures.len()
    }

    /// One number of each run that did not fail.
    #[must_use]
    pub fn each(&self, field: impl Fn(&T) -> f64) -> Vec<f64> {
        self.done.iter().map(field).collect()
    }

    #[must_use]
    pub fn sum(&self, field: impl Fn(&T) -> u64) -> u64 {
        self.done.iter().map(field).sum()
    }

    /// How many runs there were, and that none failed: what failed has no figures that could miss their bars.
    pub fn note(&self, table: &mut Table, row: &str) {
        table.note(format!("{row}: {} runs", self.count()));
        table.bar(
            &format!("{row}: runs that failed"),
            self.failures.len() as f64,
            "",
            Bar::AtMost(0.0),
            None,
        );
        for failure in &self.failures {
            table.note(format!("{row}: failed: {failure}"));
        }
    }
}

/// Beside a bar, for who wants to know how it was reached: median, 99th percentile and the longest.
pub fn spread(table: &mut Table, what: &str, samples: &[f64]) {
    for (word, share) in [("p50", 0.5), ("p99", 0.99), ("longest", 1.0)] {
        table.info(&format!("{what}, {word}"), percentile(samples, share), "s", None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_failed_misses_a_bar_and_has_no_figure() {
        let mut tally = Tally::default();
        tally.add(Ok(8.0), |seconds| format!("{seconds} s"));
        tally.add(Err(anyhow::anyhow!("it never ran")), |_: &f64| String::new());
        assert_eq!((tally.count(), tally.each(|seconds| *seconds)), (2, vec![8.0]));
        let mut table = Table::default();
        tally.note(&mut table, "killed");
        assert!(!table.all_hold());
        assert!(table.notes.iter().any(|note| note.contains("run 2: it never ran")));
    }

    #[test]
    fn a_spread_has_no_bars() {
        let mut table = Table::default();
        spread(&mut table, "again", &[1.0, 2.0, 3.0]);
        let values: Vec<_> = table.figures.iter().map(|figure| figure.value).collect();
        assert_eq!(values, [2.0, 3.0, 3.0]);
        assert!(table.figures.iter().all(|figure| figure.bar.is_none()));
    }
}
