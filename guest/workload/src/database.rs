//! Writes as a database does that logs whole pages: each write replaces a page of 8 KiB of its buffers, and appends the
//! page, behind a head, to a log on the disk, which is synchronised before the next writes.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::filler::Random;
use crate::knob::{Knob, Pace};
use crate::rows;
use crate::spare::Spare;

const PAGE_BYTES: usize = 8 << 10;
/// Written again from its beginning when it is full.
pub const LOG_MIB: u64 = 64;
/// Like a log's head of a record: pages stand at other offsets in the log than in memory.
const HEAD_BYTES: usize = 32;
/// Transactions that end within it share one synchronisation.
const TICK: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Default, PartialEq)]
pub struct Setting {
    pub pages_per_s: u64,
    pub mib: u64,
}

#[derive(Default)]
pub struct Database {
    setting: Knob<Setting>,
    seen: Mutex<Seen>,
}

#[derive(Clone, Default)]
pub struct Seen {
    /// Pages replaced since the buffers were made.
    pub replaced: u64,
    pub error: Option<String>,
}

impl Database {
    pub fn setting(&self) -> Setting {
        self.setting.get()
    }

    pub fn set(&self, setting: Setting) {
        *self.lock() = Seen::default();
        self.setting.set(setting);
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// The loop of the database; never returns.
    pub fn run(&self, partition: Option<&str>) {
        let mut random = Random::new(0xda7a);
        loop {
            let setting = self.setting.wait_for(|setting| setting.pages_per_s > 0 && setting.mib > 0);
            let served = Spare::open(partition, LOG_MIB).and_then(|disk| {
                self.serve(setting, disk, &mut random).map_err(|error| format!("log: {error}"))
            });
            if let Err(error) = served {
                self.setting.set(Setting::default());
                self.lock().error = Some(error);
            }
        }
    }

    /// Until it is set otherwise.
    fn serve(&self, setting: Setting, disk: Spare, random: &mut Random) -> io::Result<()> {
        let mut buffers = vec![0; (setting.mib as usize) << 20];
        rows::fill(&mut buffers, random);
        let mut log = Log { disk, at: 0, records: 0 };
        let mut pace = Pace::new(setting.pages_per_s);
        while self.setting.stays(setting, TICK) {
            let due = pace.take_due();
            for _ in 0..due {
                let page = (random.next() >> 16) as usize % (buffers.len() / PAGE_BYTES);
                let content = &mut buffers[page * PAGE_BYTES..(page + 1) * PAGE_BYTES];
                rows::fill(content, random);
                log.append(page, content)?;
            }
            if due > 0 {
                log.disk.sync()?;
                self.lock().replaced += due;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Log {
    disk: Spare,
    at: u64,
    records: u64,
}

impl Log {
    fn append(&mut self, page: usize, content: &[u8]) -> io::Result<()> {
        let record = record(self.records, page, content);
        if self.at + record.len() as u64 > LOG_MIB << 20 {
            self.at = 0;
        }
        self.disk.write(&record, self.at)?;
        self.at += record.len() as u64;
        self.records += 1;
        Ok(())
    }
}

fn record(number: u64, page: usize, content: &[u8]) -> Vec<u8> {
    let mut record = vec![0; HEAD_BYTES];
    record[..8].copy_from_slice(b"STERNALG");
    record[8..16].copy_from_slice(&number.to_le_bytes());
    record[16..24].copy_from_slice(&(page as u64).to_le_bytes());
    record.extend_from_slice(content);
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_a_whole_page_behind_a_head() {
        let mut page = vec![0; PAGE_BYTES];
        rows::fill(&mut page, &mut Random::new(5));
        let record = record(7, 3, &page);
        assert_eq!(record.len(), HEAD_BYTES + PAGE_BYTES);
        assert_eq!(record[8], 7);
        assert_eq!(record[16], 3);
        assert_eq!(record[HEAD_BYTES..], page);
    }
}
