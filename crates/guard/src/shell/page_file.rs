//! The page as a file that can be written when the file system is full: two slots whose room was taken when it was made.
//!
//! A slot is a header and JSON. The older slot is overwritten; a reader takes the newest one that is whole. So a guard that
//! is killed while it writes leaves the page before, whose deadline is earlier.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use aws_lc_rs::digest;

use crate::core::page::Page;

/// Of 512 VMs and nine voters, and as much again.
const SLOT_LEN: usize = 256 << 10;
/// Turn, length, SHA-256 of the text.
const HEADER_LEN: usize = 8 + 8 + 32;

pub struct PageFile {
    file: File,
    /// Of the page written last; even ones are in the first slot.
    turn: u64,
}

/// A file that is neither empty nor a page: nobody knows which VMs this host has to end.
#[derive(Debug, thiserror::Error)]
#[error("it holds no whole page")]
pub struct Torn;

impl PageFile {
    /// Opens or makes it, and reads what the guard before left; none on the first start of this boot.
    pub fn open(path: &Path) -> anyhow::Result<(Self, Option<Page>)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).with_context(|| format!("open {}", path.display()))?;
        let is_new = file.metadata().context("look at the page")?.len() < 2 * SLOT_LEN as u64;
        if is_new {
            // Written and not only sized: a hole has no room.
            file.write_all_at(&vec![0; 2 * SLOT_LEN], 0).context("take room for the page")?;
            return Ok((Self { file, turn: 0 }, None));
        }
        let mut slots = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        slots.sort_by_key(|slot| slot.as_ref().map(|(turn, _)| *turn));
        let [_, newest] = slots;
        match newest {
            Some((turn, page)) => Ok((Self { file, turn }, Some(page))),
            None if is_blank(&file)? => Ok((Self { file, turn: 0 }, None)),
            None => Err(Torn).with_context(|| format!("read {}", path.display())),
        }
    }

    pub fn write(&mut self, page: &Page) -> anyhow::Result<()> {
        let text = serde_json::to_vec(page).context("write the page")?;
        anyhow::ensure!(HEADER_LEN + text.len() <= SLOT_LEN, "the page has {} bytes: too many", text.len());
        let turn = self.turn + 1;
        let mut slot = Vec::with_capacity(HEADER_LEN + text.len());
        slot.extend_from_slice(&turn.to_be_bytes());
        slot.extend_from_slice(&(text.len() as u64).to_be_bytes());
        slot.extend_from_slice(sum(turn, &text).as_ref());
        slot.extend_from_slice(&text);
        self.file.write_all_at(&slot, slot_at(turn)).context("write the page")?;
        self.turn = turn;
        Ok(())
    }
}

fn slot_at(turn: u64) -> u64 {
    turn % 2 * SLOT_LEN as u64
}

fn sum(turn: u64, text: &[u8]) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&turn.to_be_bytes());
    context.update(text);
    context.finish()
}

fn read_slot(file: &File, which: u64) -> io::Result<Option<(u64, Page)>> {
    let mut slot = vec![0; SLOT_LEN];
    file.read_exact_at(&mut slot, slot_at(which))?;
    Ok(page_of(&slot))
}

fn page_of(slot: &[u8]) -> Option<(u64, Page)> {
    let (turn, rest) = slot.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (expected, rest) = rest.split_first_chunk::<32>()?;
    let turn = u64::from_be_bytes(*turn);
    let text = rest.get(..usize::try_from(u64::from_be_bytes(*length)).ok()?)?;
    if sum(turn, text).as_ref() != expected {
        return None;
    }
    Some((turn, serde_json::from_slice(text).ok()?))
}

fn is_blank(file: &File) -> io::Result<bool> {
    let mut all = vec![0; 2 * SLOT_LEN];
    file.read_exact_at(&mut all, 0)?;
    Ok(all.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::core::id::Epoch;

    fn page(epoch: u64) -> Page {
        Page {
            boot: Uuid::nil(),
            last_epoch: Epoch(epoch),
            lease: None,
            membership: None,
            quarantine: Duration::from_secs(7),
            vms: Vec::new(),
        }
    }

    #[test]
    fn the_newest_whole_page_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page");
        let (mut file, left) = PageFile::open(&path).unwrap();
        assert_eq!(left, None);
        drop(PageFile::open(&path).unwrap());
        for epoch in 1..=5 {
            file.write(&page(epoch)).unwrap();
            let (_, left) = PageFile::open(&path).unwrap();
            assert_eq!(left, Some(page(epoch)));
        }
        // Killed in the middle of the fifth, which is in the second slot.
        file.file.write_all_at(b"torn", slot_at(5) + 60).unwrap();
        let (mut file, left) = PageFile::open(&path).unwrap();
        assert_eq!(left, Some(page(4)));
        file.write(&page(6)).unwrap();
        assert_eq!(PageFile::open(&path).unwrap().1, Some(page(6)));
    }

    #[test]
    fn a_file_without_a_whole_page_is_refused_rather_than_taken_for_a_first_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page");
        let (file, _) = PageFile::open(&path).unwrap();
        file.file.write_all_at(b"torn", slot_at(0)).unwrap();
        assert!(PageFile::open(&path).err().unwrap().is::<Torn>());
    }
}
