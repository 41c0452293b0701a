//! Volumes that move away and come back: the shelf of a pool, with real files and the real `qemu-img`.

#![allow(clippy::unwrap_used, reason = "a world that cannot be made fails the test")]

mod storage_world;

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sterna_agent::storage::{Error, Storage};
use sterna_base::units::Bytes;
use sterna_model::image::Format;
use sterna_model::pool::PoolKind;
use sterna_model::volume::VolumeReport;
use sterna_wire::assignment::{PoolAssignment, Purpose, VolumeAssignment};
use storage_world::{
    FORMER_KEPT, Holder, World, disk, eventually, made, name, names, pool, qcow2, ready, run, text, until,
    volume,
};
use uuid::Uuid;

fn word(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    }
}

/// Where a volume's file is while it is in use, or on the shelf.
fn file(world: &World, folder: &str, volume: &VolumeAssignment) -> PathBuf {
    world.path(&format!("{}/{folder}/{}.{}", volume.pool, volume.uid, word(volume.format)))
}

fn for_(purpose: Purpose, volume: &VolumeAssignment) -> VolumeAssignment {
    VolumeAssignment { purpose, ..volume.clone() }
}

fn io(world: &World, folder: &str, volume: &VolumeAssignment, command: &str) {
    let file = file(world, folder, volume);
    let done = run("qemu-io", &["-f", word(volume.format), "-c", command, file.to_str().unwrap()]);
    assert!(done.status.success() && !text(&done).contains("failed"), "{command}: {}", text(&done));
}

async fn host(world: &World, pools: &[PoolAssignment]) -> Storage {
    let storage = world.host("a1");
    storage.ensure_pools(pools).await;
    storage
}

async fn shelve(world: &World, storage: &Storage, volume: &VolumeAssignment) {
    storage.ensure_volumes(&[for_(Purpose::Shelve, volume)]);
    assert!(storage.volumes().borrow().is_empty(), "nothing is said of a volume that goes");
    let [old, shelved] = ["volumes", "former"].map(|folder| file(world, folder, volume));
    eventually("shelved", || shelved.exists() && !old.exists()).await;
}

#[tokio::test]
async fn a_volume_that_comes_back_starts_from_its_former_copy() {
    let world = World::new();
    let image = world.shelf.put("tiny", qcow2(world.folder.path(), "2M", &[]), Format::Qcow2);
    let pools = [world.dir_pool()];
    let first = host(&world, &pools).await;
    for (format, image) in [(Format::Raw, None), (Format::Qcow2, Some(&image))] {
        let mut moving = volume(&pools[0], format, 4, image);
        assert_eq!(made(&first, &moving).await, ready(4));
        io(&world, "volumes", &moving, "write -P 7 1M 64k");
        assert!(!first.has_former(moving.uid).await);
        shelve(&world, &first, &moving).await;
        assert!(first.has_former(moving.uid).await && !first.has_former(Uuid::nil()).await);
        let opened = first.disk(&disk(&moving), Uuid::nil(), 1, &pools).await;
        assert!(
            matches!(opened, Err(Error::NotYet { .. })),
            "a copy on the shelf is opened by nobody: {opened:?}"
        );

        // The next agent, and a volume that has grown where it was.
        let second = host(&world, &pools).await;
        moving.size = Bytes::mib(8);
        assert_eq!(made(&second, &for_(Purpose::Arrive, &moving)).await, ready(8));
        io(&world, "volumes", &moving, "read -P 7 1M 64k");
        assert!(!second.has_former(moving.uid).await);
        // Asked again, and then that it lives here: it is left as it is.
        io(&world, "volumes", &moving, "write -P 8 1M 64k");
        for purpose in [Purpose::Arrive, Purpose::Keep] {
            assert_eq!(made(&host(&world, &pools).await, &for_(purpose, &moving)).await, ready(8));
            io(&world, "volumes", &moving, "read -P 8 1M 64k");
        }
    }
    assert_eq!(world.path("local/former").metadata().unwrap().mode() & 0o777, 0o700, "closed to QEMU's user");
}

#[tokio::test]
async fn without_a_former_copy_an_arriving_volume_is_made_as_any_other() {
    let world = World::new();
    let image = world.shelf.put("tiny", qcow2(world.folder.path(), "2M", &[]), Format::Qcow2);
    let pools = [world.dir_pool()];
    let storage = host(&world, &pools).await;
    for (format, image, byte) in
        [(Format::Raw, None, 0), (Format::Qcow2, None, 0), (Format::Qcow2, Some(&image), 0xab)]
    {
        let arriving = for_(Purpose::Arrive, &volume(&pools[0], format, 4, image));
        assert_eq!(made(&storage, &arriving).await, ready(4));
        io(&world, "volumes", &arriving, &format!("read -P {byte} 0 64k"));
    }
}

#[tokio::test]
async fn a_former_copy_that_cannot_be_used_is_replaced_by_a_new_volume() {
    let world = World::new();
    let pools = [world.dir_pool()];
    let storage = host(&world, &pools).await;
    let whole = qcow2(world.folder.path(), "4M", &[]);
    let larger = qcow2(world.folder.path(), "8M", &[]);
    let mut corrupt = whole.clone();
    // The incompatible feature bits of its header; bit 1: corrupt.
    corrupt[79] |= 2;
    let damaged = whole[..50].to_vec();
    for content in [larger, corrupt, damaged, Vec::new()] {
        let arriving = for_(Purpose::Arrive, &volume(&pools[0], Format::Qcow2, 4, None));
        std::fs::write(file(&world, "former", &arriving), &content).unwrap();
        assert_eq!(made(&storage, &arriving).await, ready(4));
        io(&world, "volumes", &arriving, "read -P 0 0 64k");
        assert!(!file(&world, "former", &arriving).exists(), "it would only take room");
    }
    // The same bytes unspoilt are used, so what is above was refused for its fault.
    let arriving = for_(Purpose::Arrive, &volume(&pools[0], Format::Qcow2, 4, None));
    std::fs::write(file(&world, "former", &arriving), &whole).unwrap();
    assert_eq!(made(&storage, &arriving).await, ready(4));
    io(&world, "volumes", &arriving, "read -P 0xab 0 64k");

    std::fs::write(world.path("secret"), b"secret").unwrap();
    let linked = for_(Purpose::Arrive, &volume(&pools[0], Format::Raw, 1, None));
    symlink(world.path("secret"), file(&world, "former", &linked)).unwrap();
    let folder = for_(Purpose::Arrive, &volume(&pools[0], Format::Raw, 1, None));
    std::fs::create_dir(file(&world, "former", &folder)).unwrap();
    for trapped in [&linked, &folder] {
        assert_eq!(made(&storage, trapped).await, ready(1));
        io(&world, "volumes", trapped, "read -P 0 0 64k");
    }
    assert_eq!(std::fs::read(world.path("secret")).unwrap(), b"secret");
}

#[tokio::test]
async fn a_volume_that_somebody_has_open_is_shelved_only_afterwards() {
    let world = World::new();
    let pools = [world.dir_pool()];
    let storage = host(&world, &pools).await;
    let mut moving = volume(&pools[0], Format::Qcow2, 4, None);
    made(&storage, &moving).await;
    let [there, shelved] = ["volumes", "former"].map(|folder| file(&world, folder, &moving));
    let holder = Holder::open("qcow2", &there);
    // Time goes on only while all that was begun has ended: each second here is one in which it was tried.
    tokio::time::pause();
    let tried_often = || tokio::time::sleep(Duration::from_secs(5));
    storage.ensure_volumes(&[for_(Purpose::Shelve, &moving)]);
    tried_often().await;
    assert!(there.exists() && !shelved.exists());
    holder.close();
    // Without a lock, but the VM's process is still there.
    moving.in_use_by = Some(Uuid::nil());
    storage.ensure_volumes(&[for_(Purpose::Shelve, &moving)]);
    tried_often().await;
    assert!(there.exists() && !shelved.exists());
    assert!(storage.volumes().borrow().is_empty(), "a failure to shelve is for the log");
    moving.in_use_by = None;
    shelve(&world, &storage, &moving).await;
}

#[tokio::test]
async fn shelving_what_is_not_there_does_nothing_and_an_older_copy_is_replaced() {
    let world = World::new();
    let pools = [world.dir_pool()];
    let storage = host(&world, &pools).await;
    let moving = volume(&pools[0], Format::Raw, 1, None);
    made(&storage, &moving).await;
    io(&world, "volumes", &moving, "write -P 1 0 64k");
    std::fs::write(file(&world, "former", &moving), vec![9; 1 << 20]).unwrap();
    shelve(&world, &storage, &moving).await;
    io(&world, "former", &moving, "read -P 1 0 64k");
    // Told again, by the next agent too: the copy stays. Another volume shows that the orders were carried out.
    let second = host(&world, &pools).await;
    let other = volume(&pools[0], Format::Raw, 1, None);
    second.ensure_volumes(&[for_(Purpose::Shelve, &moving), other.clone()]);
    until(&second, other.uid, |report| *report == ready(1)).await;
    io(&world, "former", &moving, "read -P 1 0 64k");
    assert!(!second.volumes().borrow().contains_key(&moving.uid));
}

/// Where the pool's file system cannot rename without replacing, a file has two names for a moment.
#[tokio::test]
async fn a_move_that_was_cut_off_between_two_names_is_finished_in_either_direction() {
    let world = World::new();
    let pools = [world.dir_pool()];
    let storage = host(&world, &pools).await;
    let moving = volume(&pools[0], Format::Raw, 1, None);
    made(&storage, &moving).await;
    io(&world, "volumes", &moving, "write -P 5 0 64k");
    let [there, shelved] = ["volumes", "former"].map(|folder| file(&world, folder, &moving));
    std::fs::hard_link(&there, &shelved).unwrap();
    shelve(&world, &storage, &moving).await;
    std::fs::hard_link(&shelved, &there).unwrap();
    assert_eq!(made(&host(&world, &pools).await, &for_(Purpose::Arrive, &moving)).await, ready(1));
    io(&world, "volumes", &moving, "read -P 5 0 64k");
    assert!(!shelved.exists());
}

#[tokio::test]
async fn a_removed_volume_leaves_no_former_copy() {
    let world = World::new();
    let pools = [world.dir_pool()];
    let storage = host(&world, &pools).await;
    for format in [Format::Raw, Format::Qcow2] {
        let moving = volume(&pools[0], format, 1, None);
        made(&storage, &moving).await;
        shelve(&world, &storage, &moving).await;
        let gone = for_(Purpose::Remove, &moving);
        storage.ensure_volumes(std::slice::from_ref(&gone));
        until(&storage, gone.uid, |report| *report == VolumeReport::Gone).await;
        assert!(names(&world.path("local/former")).is_empty());
    }
}

#[tokio::test]
async fn one_volume_can_be_kept_in_one_pool_and_shelved_in_another() {
    let world = World::new();
    let path = world.path("other").to_str().unwrap().to_owned();
    let pools = [world.dir_pool(), pool("other", PoolKind::Dir { path })];
    let storage = host(&world, &pools).await;
    let old = volume(&pools[0], Format::Raw, 1, None);
    made(&storage, &old).await;
    let new = VolumeAssignment { pool: name("other"), ..for_(Purpose::Arrive, &old) };
    let both = [for_(Purpose::Shelve, &old), new.clone()];
    storage.ensure_volumes(&both);
    let [there, shelved] = [file(&world, "volumes", &new), file(&world, "former", &old)];
    eventually("moved", || there.exists() && shelved.exists()).await;
    until(&storage, new.uid, |report| *report == ready(1)).await;
    storage.ensure_volumes(&both);
    assert_eq!(storage.volumes().borrow()[&new.uid].report, ready(1), "the same orders change nothing");
}

#[tokio::test]
async fn former_copies_that_were_kept_long_enough_are_swept() {
    let world = World::new();
    let pools = [world.dir_pool()];
    let first = host(&world, &pools).await;
    let [old, young] = [0, 1].map(|_| volume(&pools[0], Format::Raw, 1, None));
    for moving in [&old, &young] {
        made(&first, moving).await;
        // Idle for long before it moved: that is not its time on the shelf.
        set_age(&file(&world, "volumes", moving), 10 * FORMER_KEPT);
        shelve(&world, &first, moving).await;
    }
    set_age(&file(&world, "former", &old), FORMER_KEPT + Duration::from_secs(60));
    let foreign = world.path("local/former/notes.txt");
    std::fs::write(&foreign, b"not ours").unwrap();
    set_age(&foreign, 10 * FORMER_KEPT);
    // One that somebody looks at is left for another time.
    let held = volume(&pools[0], Format::Raw, 1, None);
    let held_file = file(&world, "former", &held);
    std::fs::write(&held_file, vec![0; 1 << 20]).unwrap();
    set_age(&held_file, 20 * FORMER_KEPT);
    let holder = Holder::open("raw", &held_file);

    let second = host(&world, &pools).await;
    let swept = file(&world, "former", &old);
    eventually("swept", || !swept.exists()).await;
    assert!(file(&world, "former", &young).exists() && foreign.exists() && held_file.exists());
    holder.close();
    drop(second);
    host(&world, &pools).await;
    eventually("swept later", || !held_file.exists()).await;
}

fn set_age(path: &std::path::Path, age: Duration) {
    std::fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}
