//! Writes to memory at a set rate: one 8-byte word of a pseudo-random page of a working set.
//!
//! This is what makes a live migration hard, so its rate is what was asked for, in pages a second.

use std::time::Duration;

use crate::filler::Random;
use crate::knob::{Knob, Pace};

const WORDS_PER_PAGE: usize = 4096 / 8;
const PAGES_PER_MIB: usize = 256;
/// Writes are handed out every so often; a rate below 1 / TICK pages is met by skipping ticks.
const TICK: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Default, PartialEq)]
pub struct Setting {
    pub pages_per_s: u64,
    pub mib: u64,
    /// Of the working set's pages, those that begin full of random bytes, which do not compress.
    pub random_percent: u64,
}

#[derive(Default)]
pub struct Dirtier {
    setting: Knob<Setting>,
}

impl Dirtier {
    pub fn setting(&self) -> Setting {
        self.setting.get()
    }

    pub fn set(&self, setting: Setting) {
        self.setting.set(setting);
    }

    /// The loop of the dirtier; never returns.
    pub fn run(&self) {
        let mut random = Random::new(0x5eed);
        loop {
            let setting = self.setting.wait_for(|setting| setting.pages_per_s > 0 && setting.mib > 0);
            let mut working_set = WorkingSet::allocate(setting.mib, setting.random_percent);
            let mut pace = Pace::new(setting.pages_per_s);
            while self.setting.stays(setting, TICK) {
                for _ in 0..pace.take_due() {
                    working_set.touch(random.next());
                }
            }
        }
    }
}

struct WorkingSet {
    words: Vec<u64>,
}

impl WorkingSet {
    /// Every page is written once, so that the working set exists in the guest's memory from the start.
    fn allocate(mib: u64, random_percent: u64) -> Self {
        let pages = mib as usize * PAGES_PER_MIB;
        let mut words = vec![0; pages * WORDS_PER_PAGE];
        let mut random = Random::new(0xd127);
        for (page, words) in words.chunks_mut(WORDS_PER_PAGE).enumerate() {
            if (page as u64 * random_percent) % 100 < random_percent {
                words.fill_with(|| random.next());
            }
            words[0] = page as u64 | 1 << 63;
        }
        Self { words }
    }

    fn touch(&mut self, random: u64) {
        let pages = self.words.len() / WORDS_PER_PAGE;
        let page = (random >> 16) as usize % pages;
        let word = &mut self.words[page * WORDS_PER_PAGE + random as usize % WORDS_PER_PAGE];
        *word = std::hint::black_box(word.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touch_changes_one_word_of_one_page() {
        let mut set = WorkingSet::allocate(1, 0);
        let before = set.words.clone();
        set.touch(0x1234_5678_9abc_def0);
        let changed = set.words.iter().zip(&before).filter(|(now, then)| now != then).count();
        assert_eq!(changed, 1);
    }

    #[test]
    fn the_asked_share_of_pages_is_random() {
        for (percent, expected) in [(0, 0), (50, 128), (100, 256)] {
            let set = WorkingSet::allocate(1, percent);
            let is_random = |page: &&[u64]| page[1..].iter().all(|word| *word != 0);
            assert_eq!(set.words.chunks(WORDS_PER_PAGE).filter(is_random).count(), expected, "{percent}");
        }
    }

    #[test]
    fn touches_reach_nearly_every_page() {
        let mut set = WorkingSet::allocate(1, 0);
        let before = set.words.clone();
        let mut random = Random::new(1);
        for _ in 0..10 * PAGES_PER_MIB {
            set.touch(random.next());
        }
        let page_changed = |page: usize| {
            let words = page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE;
            set.words[words.clone()] != before[words]
        };
        let reached = (0..PAGES_PER_MIB).filter(|page| page_changed(*page)).count();
        assert!(reached > 250, "{reached} of {PAGES_PER_MIB} pages reached");
    }
}
