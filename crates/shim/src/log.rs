//! QEMU's standard error: a capped file and its last words.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// The file is on tmpfs, and a QEMU that complains for ever must not fill it.
const FILE_MAX: usize = 256 * 1024;

/// What an exit record carries.
const LAST_WORDS_MAX: usize = 4096;

pub struct Log {
    file: File,
    written: usize,
    tail: Vec<u8>,
}

impl Log {
    pub fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: File::create(path)?, written: 0, tail: Vec::new() })
    }

    pub fn add(&mut self, bytes: &[u8]) {
        let fits = bytes.len().min(FILE_MAX - self.written);
        // A full tmpfs costs us the log, never the guest.
        if self.file.write_all(&bytes[..fits]).is_ok() {
            self.written += fits;
        }
        self.tail.extend_from_slice(bytes);
        let excess = self.tail.len().saturating_sub(LAST_WORDS_MAX);
        self.tail.drain(..excess);
    }

    pub fn last_words(&self) -> String {
        String::from_utf8_lossy(&self.tail).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_capped_and_the_last_words_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Log::create(&path).unwrap();
        for _ in 0..100 {
            log.add(&[b'x'; 8192]);
        }
        log.add(b"the end\n");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), FILE_MAX as u64);
        assert!(log.last_words().ends_with("xthe end"));
        assert!(log.last_words().len() <= LAST_WORDS_MAX);
    }
}
