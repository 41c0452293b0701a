//! A counter on a raw partition, written through all caches: what a referee outside reads to see who wrote, and when.
//!
//! The first MiB of the partition is a ring of 256 records of 4096 bytes; value `v` stands in record `v % 256`. So the
//! last 256 writes can be read back: a value that is missing was lost, and a second boot id among them is a second
//! writer. All numbers are little-endian:
//!
//! | Bytes | Content |
//! |---|---|
//! | 0..8 | `STERNACT` |
//! | 8..16 | value |
//! | 16..24 | uptime of the guest in microseconds |
//! | 24..32 | boot id, 8 characters |
//! | 32..40 | FNV-1a of bytes 0..32 |

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::system;

const MAGIC: &[u8; 8] = b"STERNACT";
const RECORD_BYTES: usize = 4096;
const RECORDS: u64 = 256;
/// Through the guest's page cache and the disk's write cache (x86-64 values).
const O_DIRECT: i32 = 0o40_000;
const O_DSYNC: i32 = 0o10_000;

/// O_DIRECT wants memory aligned to the disk's sectors.
#[repr(C, align(4096))]
struct Record([u8; RECORD_BYTES]);

pub struct Counter {
    disk: Option<File>,
    boot: [u8; 8],
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    value: u64,
    hz: u32,
    error: Option<String>,
    /// How long the latest writes took.
    took: Vec<Duration>,
}

/// More writes than these are not timed until somebody asked.
const TIMED_MAX: usize = 100_000;

impl Counter {
    /// Goes on from the highest value on the disk.
    pub fn open(path: Option<String>, boot: &str) -> Self {
        let mut inner = Inner::default();
        let disk = path.and_then(|path| {
            let opened =
                open_disk(&path).map_err(|error| inner.error = Some(format!("open {path}: {error}")));
            let (disk, value) = opened.ok()?;
            inner.value = value;
            Some(disk)
        });
        let mut id = [b' '; 8];
        for (to, from) in id.iter_mut().zip(boot.bytes()) {
            *to = from;
        }
        Self { disk, boot: id, inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// The value as it stands on the disk now, read past all caches.
    pub fn on_disk(&self) -> io::Result<u64> {
        let Some(disk) = &self.disk else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "this guest has no disk for the counter"));
        };
        highest_value_near(disk, self.lock().value)
    }

    /// Writes a second; 0 stops.
    pub fn set_hz(&self, hz: u32) {
        self.lock().hz = hz;
        self.changed.notify_all();
    }

    /// Last value written, writes a second, last error.
    pub fn state(&self) -> (u64, u32, Option<String>) {
        let inner = self.lock();
        (inner.value, inner.hz, inner.error.clone())
    }

    /// How long writes took since this was asked last, as JSON; microseconds.
    pub fn take_times(&self) -> String {
        let mut took = std::mem::take(&mut self.lock().took);
        took.sort_unstable();
        let rank = |percent: usize| (took.len() * percent).div_ceil(100).saturating_sub(1);
        let at = |percent| took.get(rank(percent)).map_or(0, Duration::as_micros);
        let (count, p50, p99, max) = (took.len(), at(50), at(99), at(100));
        format!("{{\"count\":{count},\"p50_us\":{p50},\"p99_us\":{p99},\"max_us\":{max}}}")
    }

    /// The loop of the counter; never returns.
    pub fn run(&self) {
        loop {
            let period = self.wait_until_started();
            let began = Instant::now();
            self.write_next();
            let inner = self.lock();
            let rest = period.saturating_sub(began.elapsed());
            drop(self.changed.wait_timeout(inner, rest).unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_started(&self) -> Duration {
        let mut inner = self.lock();
        while inner.hz == 0 {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        Duration::from_secs(1) / inner.hz
    }

    /// The lock is not held while the disk works: a disk that hangs must not hang the answers.
    fn write_next(&self) {
        let Some(disk) = &self.disk else { return };
        let value = self.lock().value + 1;
        let record = encode(value, self.boot, (system::uptime_s() * 1e6) as u64);
        let began = Instant::now();
        let written = disk.write_all_at(&record.0, offset_of(value));
        let took = began.elapsed();
        let mut inner = self.lock();
        match written {
            Ok(()) => {
                inner.value = value;
                if inner.took.len() < TIMED_MAX {
                    inner.took.push(took);
                }
            }
            Err(error) => inner.error = Some(format!("write {value}: {error}")),
        }
    }
}

fn offset_of(value: u64) -> u64 {
    value % RECORDS * RECORD_BYTES as u64
}

fn encode(value: u64, boot: [u8; 8], uptime_us: u64) -> Record {
    let mut record = Record([0; RECORD_BYTES]);
    record.0[0..8].copy_from_slice(MAGIC);
    record.0[8..16].copy_from_slice(&value.to_le_bytes());
    record.0[16..24].copy_from_slice(&uptime_us.to_le_bytes());
    record.0[24..32].copy_from_slice(&boot);
    let sum = fnv1a(&record.0[..32]);
    record.0[32..40].copy_from_slice(&sum.to_le_bytes());
    record
}

/// `None` for a record never written or torn.
fn decode(record: &[u8]) -> Option<u64> {
    let number = |at: usize| record[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    if &record[0..8] != MAGIC || number(32)? != fnv1a(&record[..32]) {
        return None;
    }
    number(8)
}

/// The disk for reading and writing past all caches, and the highest value on it.
fn open_disk(path: &str) -> io::Result<(File, u64)> {
    // Read in one piece, through the cache, which is empty at boot: 256 single reads would delay the start.
    let value = highest_value(&File::open(path)?)?;
    let disk = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT | O_DSYNC).open(path)?;
    Ok((disk, value))
}

fn highest_value(disk: &File) -> io::Result<u64> {
    let mut ring = vec![0; RECORDS as usize * RECORD_BYTES];
    disk.read_exact_at(&mut ring, 0)?;
    Ok(ring.chunks(RECORD_BYTES).filter_map(decode).max().unwrap_or(0))
}

/// Another writer may have gone on from where we are: follow the ring while it grows.
fn highest_value_near(disk: &File, from: u64) -> io::Result<u64> {
    let mut highest = read_value(disk, from)?;
    while let next @ 1.. = read_value(disk, highest + 1)? {
        if next <= highest {
            break;
        }
        highest = next;
    }
    Ok(highest)
}

fn read_value(disk: &File, value: u64) -> io::Result<u64> {
    let mut record = Record([0; RECORD_BYTES]);
    disk.read_exact_at(&mut record.0, offset_of(value))?;
    Ok(decode(&record.0).unwrap_or(0))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs, process};

    /// A file in the temporary directory in place of the partition; O_DIRECT is refused there by some file systems,
    /// so the tests open it plainly.
    struct Disk(std::path::PathBuf);

    impl Disk {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("workload-{}-{name}", process::id()));
            fs::write(&path, vec![0; RECORDS as usize * RECORD_BYTES]).unwrap();
            Self(path)
        }

        fn counter(&self, boot: &str) -> Counter {
            let disk = OpenOptions::new().read(true).write(true).open(&self.0).unwrap();
            let value = highest_value(&disk).unwrap();
            let mut counter = Counter::open(None, boot);
            counter.disk = Some(disk);
            counter.inner = Mutex::new(Inner { value, ..Inner::default() });
            counter
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_value_survives_a_restart_and_the_end_of_the_ring() {
        let disk = Disk::new("ring");
        let counter = disk.counter("aaaaaaaa");
        for _ in 0..RECORDS + 10 {
            counter.write_next();
        }
        assert_eq!(counter.on_disk().unwrap(), RECORDS + 10);
        assert_eq!(disk.counter("bbbbbbbb").state().0, RECORDS + 10);
    }

    #[test]
    fn a_torn_record_does_not_count() {
        let disk = Disk::new("torn");
        let counter = disk.counter("aaaaaaaa");
        counter.write_next();
        counter.write_next();
        counter.disk.as_ref().unwrap().write_all_at(&[0xff; 4], offset_of(2) + 9).unwrap();
        assert_eq!(disk.counter("aaaaaaaa").state().0, 1);
    }

    #[test]
    fn what_another_writer_added_is_seen() {
        let disk = Disk::new("second");
        let (one, two) = (disk.counter("aaaaaaaa"), disk.counter("bbbbbbbb"));
        two.write_next();
        two.write_next();
        assert_eq!(one.on_disk().unwrap(), 2);
    }

    #[test]
    fn writes_are_timed_until_somebody_asks() {
        let disk = Disk::new("times");
        let counter = disk.counter("aaaaaaaa");
        (0..7).for_each(|_| counter.write_next());
        assert!(counter.take_times().starts_with("{\"count\":7,"));
        assert_eq!(counter.take_times(), "{\"count\":0,\"p50_us\":0,\"p99_us\":0,\"max_us\":0}");
        let millis = |ms| Duration::from_millis(ms);
        counter.lock().took = (1..=200).rev().map(millis).collect();
        assert_eq!(
            counter.take_times(),
            "{\"count\":200,\"p50_us\":100000,\"p99_us\":198000,\"max_us\":200000}"
        );
    }

    #[test]
    fn without_a_disk_the_counter_says_so() {
        assert!(Counter::open(None, "aaaaaaaa").on_disk().is_err());
    }
}
