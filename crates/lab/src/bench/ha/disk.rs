//! The mark that a ticker (`sterna_qemu::boot::ticker`) leaves on its disk, read from the volume's file while a QEMU has it
//! open. The referee asks no agent and no server for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use sterna_qemu::boot::ticker::{Mark, SECTOR};

/// Of a table entry of a qcow2: where in the file it points.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

/// A ticker's disk.
pub struct Disk {
    file: File,
    /// Where the mark lies in the file; a cluster that was written once stays where it is.
    at: Option<u64>,
}

impl Disk {
    /// `volume` is a qcow2.
    pub fn open(volume: &Path) -> Result<Self> {
        let file = File::open(volume).with_context(|| format!("open {}", volume.display()))?;
        Ok(Self { file, at: None })
    }

    /// `None`: nobody has written one yet, or somebody is writing it.
    pub fn mark(&mut self) -> io::Result<Option<Mark>> {
        if self.at.is_none() {
            self.at = place(&self.file, SECTOR * 512)?;
        }
        self.at.map_or(Ok(None), |at| Mark::of(&self.file, at))
    }
}

/// Where in a qcow2 a byte of its disk lies (QEMU's docs/interop/qcow2.txt); `None`: still in the image below.
fn place(file: &File, byte: u64) -> io::Result<Option<u64>> {
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0)?;
    let bits = u32::from_be_bytes([header[20], header[21], header[22], header[23]]);
    if header[..4] != *b"QFI\xfb" || !(9..=21).contains(&bits) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the volume is no qcow2"));
    }
    let tables = entry(&header[40..]);
    let in_table = bits - 3;
    let Some(table) = follow(file, tables, byte >> (bits + in_table))? else { return Ok(None) };
    let cluster = follow(file, table, (byte >> bits) & ((1 << in_table) - 1))?;
    Ok(cluster.map(|cluster| cluster + (byte & ((1 << bits) - 1))))
}

fn follow(file: &File, table: u64, index: u64) -> io::Result<Option<u64>> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, table + index * 8)?;
    Ok(Some(entry(&bytes) & PLACE).filter(|place| *place != 0))
}

fn entry(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: usize = 1 << 16;

    /// A qcow2 as far as it is looked at: header, one table of tables, one table.
    fn qcow2(of_table: u64, of_cluster: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4 * CLUSTER];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[20..24].copy_from_slice(&16_u32.to_be_bytes());
        bytes[40..48].copy_from_slice(&(CLUSTER as u64).to_be_bytes());
        bytes[CLUSTER..][..8].copy_from_slice(&of_table.to_be_bytes());
        bytes[2 * CLUSTER..][..8].copy_from_slice(&of_cluster.to_be_bytes());
        bytes
    }

    fn opened(bytes: &[u8]) -> (tempfile::TempDir, Disk) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("volume.qcow2");
        std::fs::write(&file, bytes).unwrap();
        let disk = Disk::open(&file).unwrap();
        (folder, disk)
    }

    #[test]
    fn a_mark_is_found_where_the_tables_say() {
        // The topmost bit says that nobody shares the cluster.
        let copied = 1 << 63;
        let [second, third] = [2, 3].map(|number| (number * CLUSTER) as u64);
        let mut bytes = qcow2(second | copied, third | copied);
        let mark = 3 * CLUSTER + 100 * 512;
        bytes[mark..mark + 4].copy_from_slice(b"TICK");
        for (at, value) in [(4, 2_u32), (8, 77), (12, 5), (508, 5)] {
            bytes[mark + at..][..4].copy_from_slice(&value.to_le_bytes());
        }
        let (_folder, mut disk) = opened(&bytes);
        assert_eq!(disk.mark().unwrap(), Some(Mark { boots: 2, token: 77, marks: 5, strangers: 0 }));
    }

    #[test]
    fn a_disk_that_was_not_written_has_no_mark_yet() {
        for (table, cluster) in [(0, 0), (2 * CLUSTER as u64, 0)] {
            assert_eq!(opened(&qcow2(table, cluster)).1.mark().unwrap(), None);
        }
        assert!(opened(&[0; CLUSTER]).1.mark().is_err(), "no qcow2");
    }
}
