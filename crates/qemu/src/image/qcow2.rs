//! The header and tables of a qcow2 image (docs/interop/qcow2.rst in QEMU's source).

use super::{Bytes, Refused, read_exact};

/// QEMU's own limits: an L1 table of 32 MiB, a refcount table of 8 MiB.
const L1_BYTES_MAX: u64 = 32 << 20;
const REFCOUNT_BYTES_MAX: u64 = 8 << 20;

/// Larger than any pool; keeps the arithmetic below far from overflow.
const VIRTUAL_SIZE_MAX: u64 = 1 << 56;

const HEADER_V2: u32 = 72;
const HEADER_V3: u32 = 104;
const BACKING_NAME_MAX: u32 = 1023;

// Incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;

// Header extensions.
const EXTENSION_END: u32 = 0;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// Bits of a table entry that hold an offset.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const REFCOUNT_OFFSET: u64 = 0xffff_ffff_ffff_fe00;

/// The fields of a header, as they are in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub backing_name_offset: u64,
    pub backing_name_len: u32,
    pub cluster_bits: u32,
    /// Bytes.
    pub virtual_size: u64,
    pub crypt_method: u32,
    /// Entries.
    pub l1_size: u32,
    pub l1_offset: u64,
    pub refcount_offset: u64,
    pub refcount_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub refcount_order: u32,
    /// Bytes; extensions follow.
    pub header_len: u32,
}

fn malformed<T>(what: &'static str) -> Result<T, Refused> {
    Err(Refused::Malformed { what })
}

impl Header {
    /// Reads the fields without judging them.
    pub fn read(image: &(impl Bytes + ?Sized)) -> Result<Self, Refused> {
        let Some(old) = read_exact::<{ HEADER_V2 as usize }>(image, 0)? else {
            return malformed("its header is cut off");
        };
        let u32_at = |at: usize| u32::from_be_bytes([old[at], old[at + 1], old[at + 2], old[at + 3]]);
        let u64_at = |at: usize| (u64::from(u32_at(at)) << 32) | u64::from(u32_at(at + 4));
        let mut header = Self {
            version: u32_at(4),
            backing_name_offset: u64_at(8),
            backing_name_len: u32_at(16),
            cluster_bits: u32_at(20),
            virtual_size: u64_at(24),
            crypt_method: u32_at(32),
            l1_size: u32_at(36),
            l1_offset: u64_at(40),
            refcount_offset: u64_at(48),
            refcount_clusters: u32_at(56),
            snapshots: u32_at(60),
            snapshots_offset: u64_at(64),
            incompatible: 0,
            refcount_order: 4,
            header_len: HEADER_V2,
        };
        if header.version >= 3 {
            let Some(new) = read_exact::<32>(image, HEADER_V2.into())? else {
                return malformed("its header is cut off");
            };
            let u32_at = |at: usize| u32::from_be_bytes([new[at], new[at + 1], new[at + 2], new[at + 3]]);
            header.incompatible = (u64::from(u32_at(0)) << 32) | u64::from(u32_at(4));
            header.refcount_order = u32_at(24);
            header.header_len = u32_at(28);
        }
        Ok(header)
    }

    /// Itself, if the image stands alone and its tables make sense.
    pub fn checked(self, image: &(impl Bytes + ?Sized)) -> Result<Self, Refused> {
        if !(2..=3).contains(&self.version) {
            return Err(Refused::Version { version: self.version });
        }
        self.check_others(image)?;
        self.check_features()?;
        self.check_extensions(image)?;
        self.check_numbers()?;
        self.check_tables(image)?;
        Ok(self)
    }

    /// It was not closed properly, or is marked as corrupt.
    pub fn is_unclean(&self) -> bool {
        self.incompatible & (DIRTY | CORRUPT) != 0
    }

    /// Everything that it shows is its backing file's, or zero: none of its clusters is in use.
    pub fn is_blank(&self, image: &(impl Bytes + ?Sized)) -> Result<bool, Refused> {
        let length = u64::from(self.l1_size) * 8;
        if length > L1_BYTES_MAX {
            return malformed("its L1 table does not fit its size");
        }
        let mut table = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = image.read(&mut table, self.l1_offset).map_err(|source| Refused::Unreadable { source })?;
        if read != table.len() {
            return malformed("a table is cut off");
        }
        Ok(self.snapshots == 0 && table.iter().all(|byte| *byte == 0))
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Nothing in it points to another file.
    fn check_others(&self, image: &(impl Bytes + ?Sized)) -> Result<(), Refused> {
        if self.backing_name_offset == 0 && self.backing_name_len == 0 {
            return Ok(());
        }
        let mut name = vec![0; self.backing_name_len.min(BACKING_NAME_MAX) as usize];
        let read = image.read(&mut name, self.backing_name_offset);
        name.truncate(read.map_err(|source| Refused::Unreadable { source })?);
        Err(Refused::BackingFile { name: printable(&name) })
    }

    fn check_features(&self) -> Result<(), Refused> {
        if self.incompatible & !KNOWN != 0 {
            return Err(Refused::UnknownFeatures { bits: self.incompatible & !KNOWN });
        }
        if self.is_unclean() {
            return Err(Refused::Unclean);
        }
        if self.crypt_method != 0 {
            return Err(Refused::Encrypted);
        }
        Ok(())
    }

    /// Extensions lie between the header and the end of the first cluster.
    fn check_extensions(&self, image: &(impl Bytes + ?Sized)) -> Result<(), Refused> {
        if !(9..=21).contains(&self.cluster_bits) {
            return malformed("its cluster size is none that qcow2 has");
        }
        let shortest = if self.version == 2 { HEADER_V2 } else { HEADER_V3 };
        if self.header_len < shortest || !self.header_len.is_multiple_of(8) {
            return malformed("its header has an impossible length");
        }
        let mut data_file = (self.incompatible & DATA_FILE != 0).then(String::new);
        let mut at = u64::from(self.header_len);
        while at + 8 <= self.cluster() {
            let Some(head) = read_exact::<8>(image, at)? else { break };
            let kind = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            match kind {
                EXTENSION_END => break,
                EXTENSION_ENCRYPTION => return Err(Refused::Encrypted),
                EXTENSION_DATA_FILE => data_file = Some(self.text(image, at + 8, len)?),
                _ => {}
            }
            at += 8 + u64::from(len).next_multiple_of(8);
            if at > self.cluster() {
                return malformed("a header extension is longer than its cluster");
            }
        }
        data_file.map_or(Ok(()), |name| Err(Refused::DataFile { name }))
    }

    fn text(&self, image: &(impl Bytes + ?Sized), from: u64, len: u32) -> Result<String, Refused> {
        let mut name = vec![0; len.min(BACKING_NAME_MAX) as usize];
        let read = image.read(&mut name, from).map_err(|source| Refused::Unreadable { source })?;
        name.truncate(read);
        Ok(printable(&name))
    }

    fn check_numbers(&self) -> Result<(), Refused> {
        if self.virtual_size == 0 {
            return malformed("its disk has no size");
        }
        if self.virtual_size > VIRTUAL_SIZE_MAX {
            return Err(Refused::TooLarge { bytes: self.virtual_size, bytes_max: VIRTUAL_SIZE_MAX });
        }
        if self.refcount_order > 6 {
            return malformed("its reference counts are wider than 64 bits");
        }
        if self.snapshots > 0 {
            return Err(Refused::Snapshots { count: self.snapshots });
        }
        let extended = self.incompatible & EXTENDED_L2 != 0;
        if extended && self.cluster_bits < 14 {
            return malformed("its clusters are too small for extended entries");
        }
        let entry = if extended { 16 } else { 8 };
        // One L1 entry maps a cluster full of L2 entries, each of which maps a cluster.
        let mapped = u128::from(self.cluster() / entry) * u128::from(self.cluster());
        let needed = u128::from(self.virtual_size).div_ceil(mapped);
        if u128::from(self.l1_size) < needed || u64::from(self.l1_size) * 8 > L1_BYTES_MAX {
            return malformed("its L1 table does not fit its size");
        }
        Ok(())
    }

    fn check_tables(&self, image: &(impl Bytes + ?Sized)) -> Result<(), Refused> {
        let l1 = (self.l1_offset, u64::from(self.l1_size) * 8);
        let refcounts = (self.refcount_offset, u64::from(self.refcount_clusters) * self.cluster());
        if refcounts.1 == 0 || refcounts.1 > REFCOUNT_BYTES_MAX.max(self.cluster()) {
            return malformed("its refcount table has an impossible size");
        }
        let header = (0, self.cluster());
        for table in [l1, refcounts] {
            if !table.0.is_multiple_of(self.cluster()) || !is_inside(table, image.size()) {
                return malformed("a table lies outside of the file");
            }
            if overlap(table, header) {
                return malformed("a table overlaps the header");
            }
        }
        if overlap(l1, refcounts) {
            return malformed("its tables overlap");
        }
        self.check_entries(image, l1, L1_OFFSET, &[header, refcounts])?;
        self.check_entries(image, refcounts, REFCOUNT_OFFSET, &[header, l1])
    }

    /// Each entry of a table points to a cluster of its own, inside the file and outside of other tables:
    /// no loops.
    fn check_entries(
        &self,
        image: &(impl Bytes + ?Sized),
        table: (u64, u64),
        mask: u64,
        others: &[(u64, u64)],
    ) -> Result<(), Refused> {
        let mut targets = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        let mut done = 0;
        while done < table.1 {
            let want = usize::try_from(table.1 - done).unwrap_or(usize::MAX).min(chunk.len());
            let read = image.read(&mut chunk[..want], table.0 + done);
            if read.map_err(|source| Refused::Unreadable { source })? != want {
                return malformed("a table is cut off");
            }
            for entry in chunk[..want].as_chunks::<8>().0 {
                let target = u64::from_be_bytes(*entry) & mask;
                if target != 0 {
                    self.check_target(target, table, others, image.size())?;
                    targets.push(target);
                }
            }
            done += want as u64;
        }
        targets.sort_unstable();
        if targets.windows(2).any(|pair| pair[0] == pair[1]) {
            return malformed("two table entries share a cluster");
        }
        Ok(())
    }

    fn check_target(
        &self,
        target: u64,
        table: (u64, u64),
        others: &[(u64, u64)],
        size: u64,
    ) -> Result<(), Refused> {
        let cluster = (target, self.cluster());
        if !target.is_multiple_of(self.cluster()) || target >= size {
            return malformed("a table entry points outside of the file");
        }
        if overlap(cluster, table) || others.iter().any(|other| overlap(cluster, *other)) {
            return malformed("a table entry points into a table");
        }
        Ok(())
    }
}

/// Whether `(start, length)` ends within `size` bytes.
fn is_inside((start, length): (u64, u64), size: u64) -> bool {
    start.checked_add(length).is_some_and(|end| end <= size)
}

/// Both are known to end far below `u64::MAX`, or fail [`is_inside`] first.
fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.0.saturating_add(b.1) && b.0 < a.0.saturating_add(a.1)
}

/// Names from strangers end in messages and logs.
fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
