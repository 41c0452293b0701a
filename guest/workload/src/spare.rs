//! The space of a disk behind its last partition: what a volume has that is larger than the image. Read and written
//! through the page cache.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

pub struct Spare {
    disk: File,
    start: u64,
    bytes: u64,
}

impl Spare {
    /// On the disk that this partition is of, with `needed` MiB at least.
    pub fn open(partition: Option<&str>, needed_mib: u64) -> Result<Self, String> {
        let partition = partition.ok_or("this guest has no disk to write to")?;
        let name = Path::new(partition).file_name().unwrap_or_default();
        let folder = fs::canonicalize(Path::new("/sys/class/block").join(name));
        let folder = folder.map_err(|error| format!("find the disk of {partition}: {error}"))?;
        let folder = folder.parent().unwrap_or(&folder);
        let (start, end) =
            behind(folder).map_err(|error| format!("measure the disk of {partition}: {error}"))?;
        let bytes = end.saturating_sub(start);
        if bytes < needed_mib * MIB {
            let found = bytes / MIB;
            return Err(format!(
                "{needed_mib} MiB are needed behind the partitions, and there are {found}: make the volume larger"
            ));
        }
        let disk = PathBuf::from("/dev").join(folder.file_name().unwrap_or_default());
        let opened = OpenOptions::new().read(true).write(true).open(&disk);
        let disk = opened.map_err(|error| format!("open {}: {error}", disk.display()))?;
        Ok(Self { disk, start, bytes })
    }

    pub fn mib(&self) -> u64 {
        self.bytes / MIB
    }

    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.disk.write_all_at(bytes, self.place(at, bytes.len())?)
    }

    pub fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.disk.read_exact_at(bytes, self.place(at, bytes.len())?)
    }

    /// What was written is on the disk after it.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync_data()
    }

    /// Never a byte of a partition, nor past the end.
    fn place(&self, at: u64, length: usize) -> io::Result<u64> {
        if at + length as u64 > self.bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.start + at)
    }
}

/// Where it begins and ends, in bytes, by what the kernel says of a disk in `folder`.
fn behind(folder: &Path) -> io::Result<(u64, u64)> {
    let sectors = |path: PathBuf| {
        fs::read_to_string(path)?
            .trim()
            .parse::<u64>()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    };
    let mut start = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?.path();
        if entry.join("partition").exists() {
            let end = sectors(entry.join("start"))? + sectors(entry.join("size"))?;
            start = start.max((end * SECTOR).next_multiple_of(MIB));
        }
    }
    Ok((start, sectors(folder.join("size"))? * SECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_behind_the_last_partition() {
        let disk = std::env::temp_dir().join(format!("workload-spare-{}", std::process::id()));
        for (part, start, size) in [("vda1", 2048, 57344), ("vda2", 59392, 8191)] {
            let part = disk.join(part);
            fs::create_dir_all(&part).unwrap();
            fs::write(part.join("partition"), "1\n").unwrap();
            fs::write(part.join("start"), format!("{start}\n")).unwrap();
            fs::write(part.join("size"), format!("{size}\n")).unwrap();
        }
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::write(disk.join("size"), "2097152\n").unwrap();
        let found = behind(&disk);
        fs::remove_dir_all(&disk).unwrap();
        assert_eq!(found.unwrap(), (33 << 20, 1 << 30));
    }

    #[test]
    fn a_guest_without_a_disk_says_so() {
        assert!(Spare::open(None, 1).err().unwrap().contains("no disk"));
        assert!(Spare::open(Some("/dev/no-such-disk"), 1).is_err());
    }
}
