//! What is on the guests' disks: the number that each wrote last, at every place that has something of the disk.

use std::collections::BTreeMap;

use uuid::Uuid;

#[derive(Debug, Default)]
pub struct Disks {
    /// Each host has its own; else all reach the same.
    is_local: bool,
    numbers: BTreeMap<(Uuid, usize), u64>,
    /// Whatever the place: what no guest may ever go back behind.
    newest: BTreeMap<Uuid, u64>,
}

impl Disks {
    #[must_use]
    pub fn new(is_local: bool) -> Self {
        Self { is_local, ..Self::default() }
    }

    fn place(&self, host: usize) -> usize {
        if self.is_local { host } else { 0 }
    }

    /// Both hosts open the same files, under the same locks.
    #[must_use]
    pub fn is_same(&self, one: usize, other: usize) -> bool {
        self.place(one) == self.place(other)
    }

    #[must_use]
    pub fn read(&self, uid: Uuid, host: usize) -> u64 {
        self.numbers.get(&(uid, self.place(host))).copied().unwrap_or(0)
    }

    pub fn write(&mut self, uid: Uuid, host: usize, number: u64) {
        self.numbers.insert((uid, self.place(host)), number);
        let newest = self.newest.entry(uid).or_default();
        *newest = number.max(*newest);
    }

    /// What a guest boots from, and the newest that was ever written when that is another.
    #[must_use]
    pub fn boot(&self, uid: Uuid, host: usize) -> (u64, Option<u64>) {
        let (here, newest) = (self.read(uid, host), self.newest.get(&uid).copied().unwrap_or(0));
        (here, (here != newest).then_some(newest))
    }

    /// A move has filled the copy there. Of a shared disk there is nothing to copy.
    pub fn mirror(&mut self, uid: Uuid, from: usize, to: usize) {
        let number = self.read(uid, from);
        self.numbers.insert((uid, self.place(to)), number);
    }
}
