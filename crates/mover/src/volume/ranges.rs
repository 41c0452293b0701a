//! Sets of byte ranges that neither touch nor overlap.

use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        // The one before may reach into it, and so may all that begin inside it or at its end.
        while let Some((&other, &other_end)) = self.0.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.0.remove(&other);
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.0.insert(start, end);
    }

    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&other, &other_end)) = self.0.range(..range.end).next_back() {
            if other_end <= range.start {
                break;
            }
            self.0.remove(&other);
            if other < range.start {
                self.0.insert(other, range.start);
            }
            if other_end > range.end {
                self.0.insert(range.end, other_end);
            }
        }
    }

    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        self.0.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn pop_first(&mut self) -> Option<Range<u64>> {
        self.0.pop_first().map(|(start, end)| start..end)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covered(ranges: &Ranges) -> Vec<bool> {
        let mut bits = vec![false; 64];
        for (start, end) in &ranges.0 {
            (*start..*end).for_each(|at| bits[at as usize] = true);
        }
        bits
    }

    proptest! {
        #[test]
        fn a_set_of_ranges_holds_what_a_set_of_numbers_would(
            steps in proptest::collection::vec((any::<bool>(), 0..60_u64, 0..20_u64), 0..40),
        ) {
            let (mut ranges, mut model) = (Ranges::default(), vec![false; 64]);
            for (inserts, start, length) in steps {
                let range = start..(start + length).min(64);
                range.clone().for_each(|at| model[at as usize] = inserts);
                match inserts {
                    true => ranges.insert(range),
                    false => ranges.remove(range),
                }
                prop_assert_eq!(covered(&ranges), model.clone());
                for start in 0..64 {
                    let end = (start + 3).min(64);
                    let is_hit = model[start..end].contains(&true);
                    prop_assert_eq!(ranges.overlaps(&(start as u64..end as u64)), is_hit);
                }
                // Neighbours are one: every range ends before the next begins.
                let list: Vec<_> = ranges.0.iter().collect();
                prop_assert!(list.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }
}
