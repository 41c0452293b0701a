//! The memory that a QEMU gives to its guest, as `/proc` shows it, while the guest runs.
//!
//! Found by a mark that nothing else in a QEMU has: RAM of guests is anonymous memory that is left out of core dumps
//! (`dump-guest-core=off`). Asking QEMU itself would need its monitor, which is its own VM's.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use sterna_mover::hash::{PAGE_BYTES, Page};

use super::Process;

/// Pages that are looked at together: 2 MiB, whose entries in `pagemap` are one page.
const TOGETHER: usize = 512;
const ENTRY_BYTES: usize = 8;
/// In the entry of a page.
const IS_PRESENT: u64 = 1 << 63;

/// Of one process, also when another one gets its number later.
#[derive(Debug)]
pub struct GuestMemory {
    contents: File,
    pagemap: File,
    ranges: Vec<Range<u64>>,
}

impl GuestMemory {
    /// An error if the process is gone, or has no such memory.
    pub fn open(process: Process) -> io::Result<Self> {
        let path = |name: &str| format!("/proc/{}/{name}", process.pid);
        let (contents, pagemap) = (File::open(path("mem"))?, File::open(path("pagemap"))?);
        let ranges = ranges(&std::fs::read_to_string(path("smaps"))?);
        // Opened first, compared then: the number cannot have changed hands in between.
        if !process.is_alive() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process is gone"));
        }
        if ranges.is_empty() {
            return Err(io::Error::other("the process has no guest's memory"));
        }
        Ok(Self { contents, pagemap, ranges })
    }

    /// Shows a copy of each page that is in memory, until `each` answers `false`. The guest may write meanwhile: what a
    /// copy holds is only what was there when it was made.
    pub fn pages(&self, mut each: impl FnMut(&Page) -> bool) -> io::Result<()> {
        let mut copy = vec![0; TOGETHER * PAGE_BYTES];
        for range in &self.ranges {
            for from in range.clone().step_by(TOGETHER * PAGE_BYTES) {
                let pages = ((range.end - from) as usize / PAGE_BYTES).min(TOGETHER);
                for (first, length) in self.present(from, pages)? {
                    let copy = &mut copy[..length * PAGE_BYTES];
                    self.contents.read_exact_at(copy, from + (first * PAGE_BYTES) as u64)?;
                    if !copy.as_chunks().0.iter().all(&mut each) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs of pages that are there: a guest's untouched memory is not touched for this.
    fn present(&self, from: u64, pages: usize) -> io::Result<Vec<(usize, usize)>> {
        let mut entries = vec![0; pages * ENTRY_BYTES];
        self.pagemap.read_exact_at(&mut entries, from / PAGE_BYTES as u64 * ENTRY_BYTES as u64)?;
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (page, entry) in entries.as_chunks().0.iter().enumerate() {
            if u64::from_ne_bytes(*entry) & IS_PRESENT == 0 {
                continue;
            }
            match runs.last_mut().filter(|(first, length)| first + length == page) {
                Some((_, length)) => *length += 1,
                None => runs.push((page, 1)),
            }
        }
        Ok(runs)
    }
}

/// Writable mappings without a name whose flags say that no dump has them, the largest first.
fn ranges(smaps: &str) -> Vec<Range<u64>> {
    let (mut found, mut anonymous) = (Vec::new(), None);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("VmFlags:") if words.any(|flag| flag == "dd") => found.extend(anonymous.take()),
            Some(first) if !first.ends_with(':') => {
                let is_writable = words.next().is_some_and(|rights| rights.starts_with("rw"));
                // Offset, device, inode.
                anonymous = range(first).filter(|_| is_writable && words.count() == 3);
            }
            _ => {}
        }
    }
    found.sort_by_key(|range: &Range<u64>| std::cmp::Reverse(range.end - range.start));
    found
}

fn range(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_found_among_everything_else_that_a_qemu_has() {
        let smaps = "5648d84b6000-5648da365000 rw-p 00000000 00:00 0   [heap]\nVmFlags: rd wr mr mw me ac dd\n\
            7f5e5fe00000-7f5e6fe00000 rw-p 00000000 00:00 0 \nSize: 262144 kB\nVmFlags: rd wr mr mw me dc ac dd hg\n\
            7f5e7fe00000-7f5e87e00000 rwxp 00000000 00:00 0 \nSize: 131072 kB\nVmFlags: rd wr ex mr mw me ac hg\n\
            7f5e87e00000-7f5e87e40000 rw-p 00000000 00:00 0 \nSize: 256 kB\nVmFlags: rd wr mr mw me dc ac dd\n\
            7f5e8fe00000-7f5e8ff00000 rw-p 00000000 fe:00 77 /usr/lib/x.so\nVmFlags: rd wr dd\n\
            7ffc00000000-7ffc00004000 r--p 00000000 00:00 0    [vvar]\nVmFlags: rd mr pf io de dd\n";
        assert_eq!(ranges(smaps), [0x7f5e_5fe0_0000..0x7f5e_6fe0_0000, 0x7f5e_87e0_0000..0x7f5e_87e4_0000]);
    }

    #[test]
    fn a_process_without_a_guest_is_refused_and_so_is_one_that_is_gone() {
        let us = Process::of(std::process::id()).unwrap();
        let open = |process| GuestMemory::open(process).unwrap_err().to_string();
        assert_eq!(open(us), "the process has no guest's memory");
        assert_eq!(open(Process { started: us.started + 1, ..us }), "the process is gone");
    }
}
