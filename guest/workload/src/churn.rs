//! Files that come into the page cache and go again: behind the partitions there are files of 256 KiB, of which random
//! ones are read and compared with what was written last, or written anew.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::database::LOG_MIB;
use crate::filler::Random;
use crate::knob::{Knob, Pace};
use crate::rows;
use crate::spare::Spare;

const FILE_BYTES: usize = 256 << 10;
const FILES_PER_MIB: u64 = 4;
/// Behind the log of the database: both may run.
const FIRST_AT: u64 = LOG_MIB << 20;
/// Fewer files are soon all in memory, and nothing goes.
pub const MIB_MIN: u64 = 64;
const TICK: Duration = Duration::from_millis(20);

#[derive(Default)]
pub struct Churn {
    mib_per_s: Knob<u64>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Default)]
pub struct Seen {
    /// There are so many, and so many were written once: only then the rate holds.
    pub files: u64,
    pub written: u64,
    pub read: u64,
    /// Files that were not as they were written.
    pub wrong: u64,
    pub error: Option<String>,
}

impl Churn {
    pub fn mib_per_s(&self) -> u64 {
        self.mib_per_s.get()
    }

    pub fn set(&self, mib_per_s: u64) {
        *self.lock() = Seen::default();
        self.mib_per_s.set(mib_per_s);
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// The loop of the churn; never returns.
    pub fn run(&self, partition: Option<&str>) {
        loop {
            let rate = self.mib_per_s.wait_for(|rate| *rate > 0);
            let churned = Spare::open(partition, LOG_MIB + MIB_MIN)
                .and_then(|disk| self.churn(rate, &disk).map_err(|error| format!("churn: {error}")));
            if let Err(error) = churned {
                self.mib_per_s.set(0);
                self.lock().error = Some(error);
            }
        }
    }

    /// Until it is set otherwise.
    fn churn(&self, rate: u64, disk: &Spare) -> io::Result<()> {
        let mut files = Files::new((disk.mib() - LOG_MIB) * FILES_PER_MIB);
        self.lock().files = files.versions.len() as u64;
        for file in 0..files.versions.len() {
            files.write(disk, file)?;
            self.lock().written += 1;
            if self.mib_per_s.get() != rate {
                return Ok(());
            }
        }
        let (mut pace, mut random) = (Pace::new(rate * FILES_PER_MIB), Random::new(0xc4));
        while self.mib_per_s.stays(rate, TICK) {
            for _ in 0..pace.take_due() {
                let choice = random.next() >> 16;
                let file = (choice >> 1) as usize % files.versions.len();
                if choice % 2 == 0 {
                    files.write(disk, file)?;
                } else {
                    let is_right = files.read(disk, file)?;
                    let mut seen = self.lock();
                    seen.read += 1;
                    seen.wrong += u64::from(!is_right);
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Files {
    /// How often each was written.
    versions: Vec<u32>,
    content: Vec<u8>,
    found: Vec<u8>,
}

impl Files {
    fn new(count: u64) -> Self {
        let [content, found] = [vec![0; FILE_BYTES], vec![0; FILE_BYTES]];
        Self { versions: vec![0; count as usize], content, found }
    }

    fn write(&mut self, disk: &Spare, file: usize) -> io::Result<()> {
        self.versions[file] += 1;
        self.make_content(file);
        disk.write(&self.content, at(file))
    }

    /// Whether it is as it was written.
    fn read(&mut self, disk: &Spare, file: usize) -> io::Result<bool> {
        disk.read(&mut self.found, at(file))?;
        self.make_content(file);
        Ok(self.content == self.found)
    }

    fn make_content(&mut self, file: usize) {
        let seed = (file as u64 + 1) << 33 | u64::from(self.versions[file]) << 1;
        rows::fill(&mut self.content, &mut Random::new(seed));
    }
}

fn at(file: usize) -> u64 {
    FIRST_AT + file as u64 * FILE_BYTES as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(files: &mut Files, file: usize) -> Vec<u8> {
        files.make_content(file);
        files.content.clone()
    }

    #[test]
    fn every_version_of_every_file_has_other_bytes_and_the_same_ones_again() {
        let mut files = Files::new(2);
        let first = content(&mut files, 0);
        assert_eq!(content(&mut files, 0), first);
        assert_ne!(content(&mut files, 1), first);
        files.versions[0] += 1;
        assert_ne!(content(&mut files, 0), first);
    }

    #[test]
    fn files_stand_behind_the_log_one_after_the_other() {
        assert_eq!((at(0), at(4)), (64 << 20, 65 << 20));
    }
}
