//! Which backups stay: the newest few, and the newest of each of the last days.

use std::collections::BTreeSet;
use std::path::Path;

use sterna_base::clock::Timestamp;

const STEM: &str = "sterna-";
const ENDING: &str = ".backup";
const DAY_MS: i64 = 86_400_000;

/// A time as file names have it: `20261129T104202.123Z`, so that their order is that of time.
pub(super) fn stamp(at: Timestamp) -> String {
    at.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

/// The name of the backup taken then.
pub(super) fn name(at: Timestamp) -> String {
    format!("{STEM}{}{ENDING}", stamp(at))
}

/// When the backup of this name was taken; `None`: it is somebody else's file.
pub(super) fn taken(name: &str) -> Option<Timestamp> {
    let stamp = name.strip_prefix(STEM)?.strip_suffix(ENDING)?;
    if stamp.len() != "20261129T104202.123Z".len() || !stamp.is_ascii() {
        return None;
    }
    let (date, time) = (&stamp[..8], &stamp[9..]);
    let text = format!(
        "{}-{}-{}T{}:{}:{}",
        &date[..4],
        &date[4..6],
        &date[6..],
        &time[..2],
        &time[2..4],
        &time[4..]
    );
    text.parse().ok().filter(|at| stamp == self::stamp(*at))
}

/// The backups in a folder, the oldest first.
pub(super) fn list(folder: &Path) -> std::io::Result<Vec<Timestamp>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        all.extend(entry?.file_name().to_str().and_then(taken));
    }
    all.sort();
    Ok(all)
}

/// Those of `all` that may go.
pub(super) fn surplus(all: &[Timestamp], hourly: usize, daily: usize) -> Vec<Timestamp> {
    // One always stays.
    let newest = all.iter().rev().take(hourly.max(1));
    let mut days = BTreeSet::new();
    let mut of_days = Vec::new();
    for at in all.iter().rev() {
        if days.len() < daily && days.insert(at.as_millis().div_euclid(DAY_MS)) {
            of_days.push(at);
        }
    }
    let stays: BTreeSet<_> = newest.chain(of_days).collect();
    all.iter().filter(|at| !stays.contains(at)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_says_when_it_was_taken_and_nothing_else_does() {
        let time = at("2026-11-29T10:42:02.123Z");
        assert_eq!(name(time), "sterna-20261129T104202.123Z.backup");
        assert_eq!(taken(&name(time)), Some(time));
        for other in [
            "sterna-20261129T104202.123Z.backup.part",
            "sterna-20261329T104202.123Z.backup",
            "sterna-\u{e9}0261129T10420.123Z.backup",
            "notes.txt",
            "sterna-.backup",
        ] {
            assert_eq!(taken(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_hours_and_the_last_of_each_day_stay() {
        // One an hour, for ten days.
        let first = at("2026-11-01T00:30:00Z");
        let all: Vec<_> =
            (0..240u64).map(|hour| first + std::time::Duration::from_secs(3600 * hour)).collect();
        let gone = surplus(&all, 24, 7);
        let stays: Vec<_> = all.iter().filter(|at| !gone.contains(at)).map(ToString::to_string).collect();
        // The 24 of the last day, and the last of the six days before it.
        assert_eq!(stays.len(), 24 + 6, "{stays:?}");
        assert_eq!(stays[0], "2026-11-04T23:30:00.000Z");
        assert_eq!(stays[5], "2026-11-09T23:30:00.000Z");
        assert_eq!(stays[6], "2026-11-10T00:30:00.000Z");
        // Whatever is asked for, the newest stays.
        assert_eq!(surplus(&all, 0, 0).len(), 239);
        assert!(surplus(&[], 24, 7).is_empty());
    }
}
