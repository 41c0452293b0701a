//! Former copies: what is left of volumes that moved away, on a shelf of their pool.
//!
//! ```text
//!                   shelve
//!   volumes/UID.F ─────────► former/UID.F ─────► removed: with its volume, after a time, or for room
//!                 ◄─────────
//!                    take
//! ```
//!
//! A volume that comes back finds most of its content here. No VM opens a file on the shelf, and nobody depends on one:
//! if anything is wrong with it, the volume is made anew. Every step may be repeated after a crash.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Dir, FileType};
use sterna_model::image::Format;
use sterna_model::meta::Name;
use sterna_qemu::image::Header;
use sterna_wire::assignment::VolumeAssignment;
use tokio::time::Instant;
use uuid::Uuid;

use super::error::{Error, blocking};
use super::folder::{self, Folder, Space};
use super::{image, volume};

/// How often shelves are looked at; nobody waits for the room.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Puts the volume's file on the shelf, in place of an older copy. Waits for whoever has it open; one that is not there
/// counts as shelved.
pub async fn shelve(pool: &Arc<Folder>, uid: Uuid, format: Format) -> Result<(), Error> {
    let (pool, name) = (Arc::clone(pool), volume::file_name(uid, format));
    blocking(move || {
        let what = || format!("shelve {name}");
        let Some(file) = volume::open(pool.volumes(), &name)? else { return Ok(()) };
        volume::check_free(&file, &name)?;
        // An older copy, or the second name of this file from an attempt that was cut off.
        folder::remove(pool.former(), &name).map_err(Error::io(what()))?;
        // Its age on the shelf counts from here, whenever its guest wrote last.
        file.set_modified(SystemTime::now()).map_err(Error::io(what()))?;
        folder::move_over(pool.volumes(), pool.former(), &name).map_err(Error::io(what()))
    })
    .await
}

/// Makes the former copy the volume again, unless the volume is there. A copy that is of no use for that goes.
pub async fn take(pool: &Arc<Folder>, volume: &VolumeAssignment) -> Result<(), Error> {
    let name = volume::file_name(volume.uid, volume.format);
    let (pool, format, size) = (Arc::clone(pool), volume.format, volume.size.as_u64());
    blocking(move || {
        let what = || format!("take {name} from the shelf");
        let is_there = folder::stat(pool.volumes(), &name).map_err(Error::io(what()))?.is_some();
        if !is_there && is_usable(&pool, &name, format, size)? {
            return folder::move_over(pool.former(), pool.volumes(), &name).map_err(Error::io(what()));
        }
        // Also the second name of a file whose way back was cut off.
        folder::remove(pool.former(), &name).map_err(Error::io(what()))
    })
    .await
}

fn is_usable(pool: &Folder, name: &str, format: Format, size_max: u64) -> Result<bool, Error> {
    let why = match image::disk_size(pool.former(), name, format) {
        Ok(None) => return Ok(false),
        Ok(Some(size)) if size > size_max => format!("its disk of {size} bytes is larger than the volume"),
        Ok(Some(_)) if is_unclean(pool, name, format) => "it was not closed properly".to_owned(),
        Ok(Some(_)) => {
            if let Some(file) = volume::open(pool.former(), name)? {
                volume::check_free(&file, name)?;
            }
            return Ok(true);
        }
        Err(error) => error.explain(),
    };
    tracing::warn!(name, why, "former copy is not used");
    Ok(false)
}

/// QEMU would refuse to write to it.
fn is_unclean(pool: &Folder, name: &str, format: Format) -> bool {
    let opened = match format {
        Format::Raw => return false,
        Format::Qcow2 => sterna_qemu::image::open(pool.former(), Path::new(name)),
    };
    opened.and_then(|opened| Header::read(&opened)).is_ok_and(|header| header.is_unclean())
}

/// Removes what is on the shelf of this volume.
pub async fn remove(pool: &Arc<Folder>, uid: Uuid) -> Result<(), Error> {
    let pool = Arc::clone(pool);
    blocking(move || {
        for name in names(uid) {
            if let Some(file) = volume::open(pool.former(), &name)? {
                volume::check_free(&file, &name)?;
                folder::remove(pool.former(), &name).map_err(Error::io(format!("remove {name}")))?;
            }
        }
        Ok(())
    })
    .await
}

/// Blocks; on a lost NFS server for ever.
pub fn is_there(pool: &Folder, uid: Uuid) -> bool {
    names(uid).iter().any(|name| matches!(folder::stat(pool.former(), name), Ok(Some(_))))
}

fn names(uid: Uuid) -> [String; 2] {
    [Format::Qcow2, Format::Raw].map(|format| volume::file_name(uid, format))
}

/// How long copies may stay on the shelves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub age_max: Duration,
    /// Copies go, oldest first, while less than this share of a pool is free; in percent.
    pub free_min: u8,
}

/// Keeps the shelves from filling their pools.
pub struct Sweeper {
    limits: Limits,
    pools: Mutex<BTreeMap<Name, Turn>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// A thread is at it, or waits for a lost server.
    Sweeping,
    Swept(Instant),
}

impl Sweeper {
    pub fn new(limits: Limits) -> Self {
        Self { limits, pools: Mutex::default() }
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<Name, Turn>> {
        // No code panics while it holds this lock; if one did, the map would still be whole.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sweeps in the background; answers at once. To be called as often as one likes.
    pub fn start(self: &Arc<Self>, folders: BTreeMap<Name, Arc<Folder>>) {
        for (pool, folder) in folders {
            if !self.begin(&pool, Instant::now()) {
                continue;
            }
            let sweeper = Arc::clone(self);
            tokio::spawn(async move {
                let limits = sweeper.limits;
                if let Err(error) = blocking(move || sweep(&folder, limits, SystemTime::now())).await {
                    tracing::warn!(%pool, why = error.explain(), "former copies not swept");
                }
                sweeper.pools().insert(pool, Turn::Swept(Instant::now()));
            });
        }
    }

    /// Whether it is this pool's turn; if so it is taken.
    fn begin(&self, pool: &Name, now: Instant) -> bool {
        let mut pools = self.pools();
        let is_due = match pools.get(pool) {
            None => true,
            Some(Turn::Sweeping) => false,
            Some(Turn::Swept(at)) => now.duration_since(*at) >= SWEEP_EVERY,
        };
        if is_due {
            pools.insert(pool.clone(), Turn::Sweeping);
        }
        is_due
    }
}

/// A file on the shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shelved {
    name: String,
    age: Duration,
    /// Taken in the pool.
    bytes: u64,
}

fn sweep(pool: &Folder, limits: Limits, now: SystemTime) -> Result<(), Error> {
    let copies = list(pool, now)?;
    for copy in surplus(copies, pool.space()?, limits) {
        let name = &copy.name;
        // Not there: taken or removed meanwhile.
        let Some(file) = volume::open(pool.former(), name)? else { continue };
        if let Err(error) = volume::check_free(&file, name) {
            tracing::warn!(name, why = error.explain(), "former copy not removed");
            continue;
        }
        folder::remove(pool.former(), name).map_err(Error::io(format!("remove {name}")))?;
        tracing::info!(name, age_s = copy.age.as_secs(), bytes = copy.bytes, "former copy removed");
    }
    Ok(())
}

fn list(pool: &Folder, now: SystemTime) -> Result<Vec<Shelved>, Error> {
    let what = "look at the former copies";
    let mut copies = Vec::new();
    for entry in Dir::read_from(pool.former()).map_err(|error| Error::io(what)(error.into()))? {
        let entry = entry.map_err(|error| Error::io(what)(error.into()))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if !is_copy(name) {
            continue;
        }
        let Some(found) = folder::stat(pool.former(), name).map_err(Error::io(what))? else { continue };
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            continue;
        }
        let written = Duration::from_secs(u64::try_from(found.st_mtime).unwrap_or(0));
        let age = now.duration_since(SystemTime::UNIX_EPOCH + written).unwrap_or_default();
        let bytes = u64::try_from(found.st_blocks).unwrap_or(0) * BLOCK;
        copies.push(Shelved { name: name.to_owned(), age, bytes });
    }
    Ok(copies)
}

/// What `stat` counts in.
const BLOCK: u64 = 512;

fn is_copy(name: &str) -> bool {
    let uid = name.split_once('.').and_then(|(uid, _)| Uuid::parse_str(uid).ok());
    uid.is_some_and(|uid| names(uid).iter().any(|known| known == name))
}

/// The copies that have to go: those kept long enough, then the oldest until the pool has room again. What a removal
/// frees is counted, not asked: file systems say so only later.
fn surplus(mut copies: Vec<Shelved>, space: Space, limits: Limits) -> Vec<Shelved> {
    copies.sort_by(|one, other| other.age.cmp(&one.age).then_with(|| one.name.cmp(&other.name)));
    let free_min = space.capacity / 100 * u64::from(limits.free_min);
    let mut free = space.free;
    copies.retain(|copy| {
        let goes = copy.age > limits.age_max || free < free_min;
        if goes {
            free = free.saturating_add(copy.bytes);
        }
        goes
    });
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const LIMITS: Limits = Limits { age_max: Duration::from_secs(24 * 3600), free_min: 10 };

    fn copy(name: &str, hours: u32, bytes: u64) -> Shelved {
        Shelved { name: name.to_owned(), age: hours * HOUR, bytes }
    }

    fn gone(free: u64) -> Vec<String> {
        let copies = vec![copy("young", 1, 5), copy("old", 20, 5), copy("twin", 20, 5), copy("older", 30, 5)];
        let space = Space { capacity: 100, free };
        surplus(copies, space, LIMITS).into_iter().map(|copy| copy.name).collect()
    }

    #[test]
    fn old_copies_go_and_then_the_oldest_until_a_tenth_of_the_pool_is_free() {
        assert_eq!(gone(50), ["older"]);
        assert_eq!(gone(10), ["older"]);
        // What goes for its age makes room, too.
        assert_eq!(gone(5), ["older"]);
        assert_eq!(gone(4), ["older", "old"]);
        assert_eq!(gone(0), ["older", "old"]);
        let space = Space { capacity: 1000, free: 0 };
        let all = vec![copy("young", 1, 5), copy("old", 20, 5)];
        assert_eq!(surplus(all.clone(), space, LIMITS).len(), 2, "all may go, and it is still not enough");
        let full = Limits { free_min: 0, ..LIMITS };
        assert_eq!(surplus(all, space, full), [], "none goes for its room where none is wanted");
    }

    #[test]
    fn a_shelf_is_swept_once_a_minute_and_never_twice_at_a_time() {
        let (sweeper, start) = (Sweeper::new(LIMITS), Instant::now());
        let [one, other] = ["one", "other"].map(|name| Name::new(name).unwrap());
        assert!(sweeper.begin(&one, start));
        assert!(!sweeper.begin(&one, start + HOUR), "a sweep that hangs is not joined by another");
        assert!(sweeper.begin(&other, start));
        sweeper.pools().insert(one.clone(), Turn::Swept(start));
        assert!(!sweeper.begin(&one, start + Duration::from_secs(59)));
        assert!(sweeper.begin(&one, start + Duration::from_secs(60)));
    }

    #[test]
    fn only_names_of_volumes_are_copies() {
        let uid = Uuid::nil();
        assert!(is_copy(&format!("{uid}.raw")) && is_copy(&format!("{uid}.qcow2")));
        for name in
            ["", "raw", "x.raw", ".raw", &format!("{uid}"), &format!("{uid}.img"), &format!(".{uid}.raw")]
        {
            assert!(!is_copy(name), "{name}");
        }
        let braced = format!("{{{uid}}}.raw");
        assert!(!is_copy(&braced), "another spelling of an uid is not ours");
    }
}
