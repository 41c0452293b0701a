//! The memory of a guest that stands still, before a move and after it, page by page.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use sterna_qemu::qmp::Client;

/// What is compared with what.
pub const SIDES: [&str; 2] = ["source", "target"];
const PAGE: usize = 4096;

/// The memory of both sides, in files that go with it.
pub struct Saved {
    folder: PathBuf,
    size: u64,
}

impl Saved {
    /// On tmpfs, where QEMU's own user may write.
    pub fn new(size: u64) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sterna-bench-{}-{number}", std::process::id());
        let saved = Self { folder: PathBuf::from("/dev/shm").join(name), size };
        std::fs::create_dir_all(&saved.folder).context("make a folder for memory")?;
        std::fs::set_permissions(&saved.folder, std::fs::Permissions::from_mode(0o1777))?;
        Ok(saved)
    }

    pub async fn save(&self, side: &str, qmp: &Client) -> Result<()> {
        let saved = qmp.pmemsave(0, self.size, &self.folder.join(side)).await;
        saved.with_context(|| format!("save the memory of the {side}"))
    }

    /// How many pages of the two sides differ.
    pub fn differing(self) -> Result<u64> {
        let [source, target] = SIDES.map(|side| std::fs::read(self.folder.join(side)));
        let (source, target) = (source?, target?);
        let are_whole = [&source, &target].iter().all(|image| image.len() as u64 == self.size);
        ensure!(are_whole, "the memory was not saved whole");
        ensure!(source.iter().any(|byte| *byte != 0), "the saved memory is empty");
        let pages = source.chunks(PAGE).zip(target.chunks(PAGE));
        Ok(pages.filter(|(source, target)| source != target).count() as u64)
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        // What is left there is seen by the next who looks at the machine's memory.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differing(source: &[u8], target: &[u8]) -> Result<u64> {
        let saved = Saved::new(3 * PAGE as u64).unwrap();
        for (side, image) in SIDES.into_iter().zip([source, target]) {
            std::fs::write(saved.folder.join(side), image).unwrap();
        }
        saved.differing()
    }

    #[test]
    fn each_page_with_a_wrong_byte_counts_once() {
        let source = vec![7; 3 * PAGE];
        let mut target = source.clone();
        assert_eq!(differing(&source, &target).unwrap(), 0);
        for at in [0, 1, 3 * PAGE - 1] {
            target[at] ^= 1;
        }
        assert_eq!(differing(&source, &target).unwrap(), 2);
    }

    #[test]
    fn memory_that_was_not_saved_proves_nothing() {
        let empty = vec![0; 3 * PAGE];
        assert!(differing(&empty, &empty).is_err());
        let whole = vec![7; 3 * PAGE];
        assert!(differing(&whole, &whole[PAGE..]).is_err());
    }
}
