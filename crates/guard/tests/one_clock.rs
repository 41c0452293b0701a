//! `std::time::Instant` is `CLOCK_MONOTONIC` on Linux, which stands still while the machine sleeps. It and every other clock
//! but `CLOCK_BOOTTIME` are banned from this crate, and the core reads none at all.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(under: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(under).expect("list sources").map(|entry| entry.expect("list sources").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// Lines of code that have one of these words.
fn lines_with(words: &[&str], under: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(under);
    let mut found = Vec::new();
    for path in sources(&root) {
        let text = fs::read_to_string(&path).expect("read a source");
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let bad = code.filter(|line| words.iter().any(|word| line.contains(word)));
        found.extend(bad.map(|line| format!("{}: {line}", path.display())));
    }
    found
}

#[test]
fn no_other_clock_is_read() {
    let banned =
        ["time::Instant", "Instant::now", "SystemTime", "Monotonic", "Realtime", "Timestamp", "sleep("];
    assert_eq!(lines_with(&banned, ""), Vec::<String>::new());
}

#[test]
fn the_core_reads_no_clock_and_does_nothing() {
    let banned =
        ["rustix", "libc", "std::fs", "std::net", "std::thread", "std::env", "HashMap", "async ", "clock::"];
    assert_eq!(lines_with(&banned, "core"), Vec::<String>::new());
}
