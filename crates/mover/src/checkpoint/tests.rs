//! Kept, read again, broken, too old, too large.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, SystemTime};

use super::*;
use crate::codec::memory::{Memory, Place};
use crate::codec::{Dictionary, Keeper, Settings};
use crate::hash::{Key, PAGE_BYTES, Page, PageHash};

const VM: [u8; 16] = [0xab; 16];
const LIMITS: Limits = Limits { bytes_each: 1 << 24, bytes: 1 << 24, age: Duration::from_secs(1000) };

fn page(seed: u16) -> Page {
    std::array::from_fn(|at| (at as u16).wrapping_mul(seed).to_le_bytes()[at % 2])
}

fn name(page: &Page) -> PageHash {
    PageHash::of(&Key([1; 32]), page)
}

/// A guest of `pages` pages that was sent through this memory.
fn sent(writer: &Writer, pages: u16) -> Memory {
    let mut memory = Memory::new(&Settings { key: Key([1; 32]), store_bytes: 0, pages_max: 1 << 16 });
    memory.keep_in(Box::new(writer.clone()));
    let block = memory.block(b"pc.ram").unwrap();
    for at in 0..pages {
        let content = page(at / 2);
        memory.on_page(Place { block, page: u64::from(at) }, None, name(&content), &content);
    }
    memory.on_zero(Place { block, page: 9999 });
    memory
}

fn kept(shelf: &Shelf, pages: u16) -> Checkpoint {
    let mut writer = shelf.begin(VM).unwrap();
    let mut memory = sent(&writer, pages);
    writer.seal(&mut memory);
    shelf.newest(VM).unwrap().unwrap()
}

fn shelf(folder: &tempfile::TempDir) -> Shelf {
    Shelf::open(folder.path(), HostKey([7; 32]), LIMITS).unwrap()
}

fn names(folder: &tempfile::TempDir) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_was_kept_is_found_by_place_and_by_name_and_its_id_does_not_depend_on_the_host() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut checkpoint = kept(&shelf(&here), 500);
    assert_eq!(checkpoint.pages(), 501);
    assert!((0..250).all(|seed| checkpoint.contains(&name(&page(seed)))));
    assert!(!checkpoint.contains(&name(&page(250))));
    for at in [0_u16, 1, 77, 499, 3] {
        let hash = checkpoint.at(b"pc.ram", u64::from(at)).unwrap();
        let mut content = [0; PAGE_BYTES];
        assert!(checkpoint.read(&hash, &mut content) && content == page(at / 2), "page {at}");
    }
    assert_eq!(checkpoint.at(b"pc.ram", 9999), Some(PageHash::ZERO));
    assert_eq!(checkpoint.at(b"pc.ram", 9998), None);
    let other = Shelf::open(there.path(), HostKey([8; 32]), LIMITS).unwrap();
    assert_eq!(kept(&other, 500).id(), checkpoint.id());
    assert_ne!(kept(&other, 499).id(), checkpoint.id());
    assert_eq!(names(&there).len(), 1, "the newer takes the place of the older");
}

#[test]
fn nothing_of_a_guest_is_readable_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    drop(kept(&shelf(&folder), 64));
    let bytes = fs::read(&names(&folder)[0]).unwrap();
    for needle in [&b"pc.ram"[..], &page(5)[100..116], &name(&page(5)).0] {
        assert!(!bytes.windows(needle.len()).any(|window| window == needle));
    }
    assert!(matches!(Checkpoint::open(&names(&folder)[0], &HostKey([6; 32])), Err(Error::Damaged)));
}

#[test]
fn half_a_checkpoint_is_none_and_a_changed_one_gives_no_wrong_page() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = shelf(&folder);
    let growing = shelf.begin(VM).unwrap();
    let memory = sent(&growing, 300);
    assert!(shelf.newest(VM).unwrap().is_none());
    // As after a crash: the file stays, nobody removes it.
    std::mem::forget((growing, memory));
    let shelf = self::shelf(&folder);
    assert!(names(&folder).is_empty());
    drop(kept(&shelf, 300));
    let path = names(&folder).remove(0);
    let good = fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(good.len() / 150) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let Ok(mut checkpoint) = Checkpoint::open(&path, &HostKey([7; 32])) else { continue };
        for (at, expected) in (0..150).map(|at| (at, page(at))) {
            let mut content = [0; PAGE_BYTES];
            assert!(!checkpoint.read(&name(&expected), &mut content) || content == expected, "page {at}");
        }
    }
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(shelf.newest(VM).unwrap().is_none());
    assert!(names(&folder).is_empty());
}

#[test]
fn space_and_time_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let small = Limits { bytes_each: 1000, ..LIMITS };
    let shelf = Shelf::open(folder.path(), HostKey([7; 32]), small).unwrap();
    let mut writer = shelf.begin(VM).unwrap();
    let mut memory = sent(&writer, 300);
    writer.seal(&mut memory);
    drop((writer, memory));
    assert!(names(&folder).is_empty());
    let shelf = self::shelf(&folder);
    drop(kept(&shelf, 30));
    shelf.sweep(SystemTime::now() + Duration::from_secs(900)).unwrap();
    assert_eq!(names(&folder).len(), 1);
    shelf.sweep(SystemTime::now() + Duration::from_secs(1100)).unwrap();
    assert!(names(&folder).is_empty());
}

#[test]
fn what_is_gathered_for_one_session_is_there_once_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut scratch = shelf(&folder).scratch(&Key([1; 32]), 100).unwrap();
    for content in (0..60).map(page).chain((0..60).map(page)) {
        assert!(scratch.take(&content).unwrap());
    }
    assert!(names(&folder).is_empty());
    let (mut contents, hashes) = scratch.finish().unwrap();
    // The first is nothing but zeros.
    assert_eq!(hashes, (1..60).map(|seed| name(&page(seed))).collect::<Vec<_>>());
    let mut content = [0; PAGE_BYTES];
    for seed in (1..60).rev() {
        assert!(contents.read(&name(&page(seed)), &mut content) && content == page(seed), "page {seed}");
    }
    assert!(!contents.contains(&name(&page(60))) && !contents.read(&name(&page(60)), &mut content));
}

#[test]
fn no_more_is_gathered_than_there_is_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut scratch = shelf(&folder).scratch(&Key([1; 32]), 10).unwrap();
    let taken = (0..60).take_while(|seed| scratch.take(&page(*seed)).unwrap()).count();
    assert_eq!((taken, scratch.finish().unwrap().1.len()), (11, 10));
}
