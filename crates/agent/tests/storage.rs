//! Pools, images, volumes and seeds with real files and the real `qemu-img`.

mod storage_world;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::Ordering;

use sterna_agent::storage::{Error, grows_online};
use sterna_base::units::Bytes;
use sterna_model::host::PoolSeen;
use sterna_model::image::Format;
use sterna_model::pool::PoolKind;
use sterna_model::vm::CloudInit;
use sterna_model::volume::{ImageRef, VolumeReport};
use sterna_qemu::config::Source;
use sterna_wire::assignment::Purpose;
use storage_world::{
    Holder, USER, World, disk, made, name, names, pool, qcow2, ready, run, text, until, volume, why,
};
use uuid::Uuid;

fn failed(seen: &PoolSeen) -> &str {
    match seen {
        PoolSeen::Failed { why } => why,
        PoolSeen::Ready { .. } => panic!("the pool was not refused"),
    }
}

#[tokio::test]
async fn a_clone_has_its_images_bytes_and_belongs_to_qemus_user() {
    let world = World::new();
    let image = world.shelf.put("tiny", qcow2(world.folder.path(), "8M", &[]), Format::Qcow2);
    let (storage, pools) = (world.host("a1"), [world.dir_pool()]);
    assert!(matches!(storage.ensure_pools(&pools).await[&name("local")], PoolSeen::Ready { .. }));
    for format in [Format::Qcow2, Format::Raw] {
        let clone = volume(&pools[0], format, 16, Some(&image));
        assert_eq!(made(&storage, &clone).await, ready(16));
        let opened = storage.disk(&disk(&clone), Uuid::nil(), 1, &pools).await.unwrap();
        assert_eq!(opened.backing.len(), usize::from(format == Format::Qcow2));
        let Source::File { path } = &opened.source else { panic!("{opened:?}") };
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (USER.uid, 0o600));
        let word = opened.format.as_str();
        let read = run("qemu-io", &["-f", word, "-c", "read -P 0xab 0 64k", path.to_str().unwrap()]);
        assert!(read.status.success(), "{}", text(&read));
    }
    assert_eq!(world.shelf.fetches.load(Ordering::SeqCst), 1, "the image is kept once");
    let image_file = world.path("local/images").join(&names(&world.path("local/images"))[0]);
    assert_eq!(image_file.metadata().unwrap().mode() & 0o222, 0, "nobody may write to an image");
}

#[tokio::test]
async fn a_volume_that_is_there_is_never_made_again() {
    let world = World::new();
    let pools = [world.dir_pool()];
    let blank = volume(&pools[0], Format::Raw, 1, None);
    let first = world.host("a1");
    first.ensure_pools(&pools).await;
    made(&first, &blank).await;
    let file = world.path(&format!("local/volumes/{}.raw", blank.uid));
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    // What an agent leaves that was killed in the middle.
    let unfinished = world.path(&format!("local/volumes/.{}.{}.new", blank.uid, Uuid::nil()));
    std::fs::write(unfinished, b"half").unwrap();
    let second = world.host("a1");
    second.ensure_pools(&pools).await;
    assert_eq!(made(&second, &blank).await, ready(1));
    assert_eq!(std::fs::read(&file).unwrap(), vec![7; 1 << 20]);
    let mut unwanted = blank.clone();
    unwanted.purpose = Purpose::Remove;
    assert_eq!(made_or_failed(&second, &unwanted).await, VolumeReport::Gone);
    assert!(names(&world.path("local/volumes")).is_empty(), "nothing unfinished is left either");
}

#[tokio::test]
async fn a_volume_grows_and_one_in_use_waits() {
    let world = World::new();
    let (storage, pools) = (world.host("a1"), [world.dir_pool()]);
    storage.ensure_pools(&pools).await;
    let mut grown = volume(&pools[0], Format::Qcow2, 4, None);
    made(&storage, &grown).await;
    let file = world.path(&format!("local/volumes/{}.qcow2", grown.uid));
    let holder = Holder::open("qcow2", &file);
    grown.size = Bytes::mib(8);
    assert_eq!(made(&storage, &grown).await, ready(4));
    let mut unwanted = grown.clone();
    unwanted.purpose = Purpose::Remove;
    assert!(why(made_or_failed(&storage, &unwanted).await).contains("has"), "a volume in use stays");
    assert!(file.exists());
    holder.close();
    assert_eq!(made_after(&storage, &grown, 8).await, ready(8));
    // With a VM here its QEMU has to do it.
    grown.size = Bytes::mib(16);
    grown.in_use_by = Some(Uuid::nil());
    storage.ensure_volumes(&[grown.clone()]);
    let seen = until(&storage, grown.uid, |report| *report == ready(8)).await;
    assert_eq!(grows_online(&grown, &seen, &pools[0].kind), Some(Bytes::mib(16)));
    let resized = run("qemu-img", &["resize", "-q", "-f", "qcow2", file.to_str().unwrap(), "16M"]);
    assert!(resized.status.success());
    storage.recheck(grown.uid);
    until(&storage, grown.uid, |report| *report == ready(16)).await;
}

async fn made_or_failed(
    storage: &sterna_agent::storage::Storage,
    volume: &sterna_wire::assignment::VolumeAssignment,
) -> VolumeReport {
    storage.ensure_volumes(std::slice::from_ref(volume));
    until(storage, volume.uid, |report| matches!(report, VolumeReport::Failed { .. } | VolumeReport::Gone))
        .await
}

async fn made_after(
    storage: &sterna_agent::storage::Storage,
    volume: &sterna_wire::assignment::VolumeAssignment,
    mib: u64,
) -> VolumeReport {
    storage.ensure_volumes(std::slice::from_ref(volume));
    until(storage, volume.uid, |report| *report == ready(mib)).await
}

#[tokio::test]
async fn two_hosts_of_a_shared_pool_fetch_an_image_once() {
    let world = World::new();
    let image = world.shelf.put("tiny", qcow2(world.folder.path(), "64M", &[]), Format::Qcow2);
    let pools = [world.shared_pool()];
    let (a1, a2) = (world.host("a1"), world.host("a2"));
    let (seen1, seen2) = tokio::join!(a1.ensure_pools(&pools), a2.ensure_pools(&pools));
    assert_eq!(seen1, seen2);
    let one = volume(&pools[0], Format::Qcow2, 64, Some(&image));
    let two = volume(&pools[0], Format::Qcow2, 64, Some(&image));
    let both = tokio::join!(made(&a1, &one), made(&a2, &two));
    assert_eq!(both, (ready(64), ready(64)));
    assert_eq!(world.shelf.fetches.load(Ordering::SeqCst), 1);
    assert!(a2.disk(&disk(&one), Uuid::nil(), 1, &pools).await.is_ok(), "the other host can open it");
}

#[tokio::test]
async fn a_folder_of_another_cluster_or_a_lost_mount_is_refused() {
    let world = World::new();
    let pools = [world.shared_pool()];
    let ours = world.host("a1");
    assert!(matches!(ours.ensure_pools(&pools).await[&name("shared")], PoolSeen::Ready { .. }));
    let mut settings = world.settings("x1");
    settings.cluster = "another".into();
    let theirs = sterna_agent::storage::Storage::new(settings, world.shelf.clone());
    let seen = theirs.ensure_pools(&pools).await;
    assert!(failed(&seen[&name("shared")]).contains("belongs to another"), "{seen:?}");
    // The mount is gone and its empty mount point has taken its place.
    std::fs::rename(world.path("shared"), world.path("away")).unwrap();
    world.shared_pool();
    let seen = world.host("a1").ensure_pools(&pools).await;
    assert!(failed(&seen[&name("shared")]).contains("is it mounted"), "{seen:?}");
    assert!(names(&world.path("shared")).is_empty(), "nothing was written below the mount point");
    // Another pool mounted in its place.
    world.host("a2").ensure_pools(&pools).await;
    let seen = world.host("a1").ensure_pools(&pools).await;
    assert!(failed(&seen[&name("shared")]).contains("another folder"), "{seen:?}");
}

#[tokio::test]
async fn a_pool_path_that_is_no_folder_of_its_own_is_refused() {
    let world = World::new();
    std::fs::create_dir(world.path("real")).unwrap();
    symlink(world.path("real"), world.path("link")).unwrap();
    std::fs::write(world.path("file"), b"").unwrap();
    let closed = world.path("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let base = world.folder.path().to_str().unwrap();
    for (path, word) in [
        (format!("{base}/link"), "symbolic link"),
        (format!("{base}/file"), "no folder"),
        (format!("{base}/real/../link"), "no path"),
        ("../outside".to_owned(), "no path"),
        (String::new(), "no path"),
        (format!("{base}/a\nb"), "no path"),
        (format!("{base}/closed/pool"), "may not pass"),
    ] {
        let pools = [pool("p", PoolKind::Dir { path: path.clone() })];
        let seen = world.host("a1").ensure_pools(&pools).await;
        assert!(failed(&seen[&name("p")]).contains(word), "{path:?}: {seen:?}");
    }
    let pools = [pool("p", PoolKind::SharedDir { path: format!("{base}/absent") })];
    assert!(failed(&world.host("a1").ensure_pools(&pools).await[&name("p")]).contains("not there"));
    let relative = [pool("p", PoolKind::Dir { path: "pools/local".into() })];
    assert!(matches!(world.host("a1").ensure_pools(&relative).await[&name("p")], PoolSeen::Ready { .. }));
    assert!(world.path("a1-data/pools/local/volumes").is_dir());
}

/// Items 1, 2, 3, 5 to 10 of the hostile images, as a server that lies would send them.
#[tokio::test]
async fn hostile_images_are_refused_and_leave_nothing() {
    let world = World::new();
    let (storage, pools) = (world.host("a1"), [world.dir_pool()]);
    storage.ensure_pools(&pools).await;
    let folder = world.folder.path();
    let good = qcow2(folder, "8M", &[]);
    let backing = ["-u", "-F", "raw", "-b"];
    let named = |file: &str| qcow2(folder, "8M", &[&backing[..], &[file]].concat());
    let data_file = format!("data_file={}", world.path("secret").display());
    let mut torn = good.clone();
    torn[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
    let shelf = &world.shelf;
    let other_sum = |image: ImageRef| ImageRef { sha256: "0".repeat(64), ..image };
    let cases = [
        (shelf.put("shadow", named("/etc/shadow"), Format::Qcow2), "backing file"),
        (shelf.put("url", named("nbd://127.0.0.1:1/x"), Format::Qcow2), "backing file"),
        (shelf.put("json", named("json:{\"driver\":\"null-co\"}"), Format::Qcow2), "backing file"),
        (shelf.put("data", qcow2(folder, "8M", &["-o", &data_file]), Format::Qcow2), "another file"),
        (shelf.put("torn", torn, Format::Qcow2), "damaged"),
        (
            shelf.put("vmdk", b"# Disk DescriptorFile\nRW 1 FLAT \"/dev/sda\" 0\n".to_vec(), Format::Raw),
            "vmdk",
        ),
        (shelf.put("packed", [&[0x1f, 0x8b, 8, 0][..], &[0; 600]].concat(), Format::Raw), "packed"),
        (shelf.put("posing", good.clone(), Format::Raw), "announced as raw"),
        (shelf.put("empty", Vec::new(), Format::Raw), "empty"),
        (other_sum(shelf.put("sum", good.clone(), Format::Qcow2)), "checksum"),
        (
            ImageRef { sha256: "../../etc/x".into(), ..shelf.put("path", good.clone(), Format::Qcow2) },
            "no sha-256",
        ),
        (shelf.put_saying("longer", good.clone(), Some(100), Format::Qcow2), "longer than"),
        (shelf.put_saying("shorter", good, Some(1 << 30), Format::Qcow2), "cut off"),
    ];
    for (image, word) in cases {
        let clone = volume(&pools[0], Format::Qcow2, 16, Some(&image));
        let said = why(made(&storage, &clone).await).to_lowercase();
        assert!(said.contains(word), "{}: {said}", image.name);
        storage.ensure_volumes(&[]);
    }
    assert!(names(&world.path("local/images")).is_empty());
    assert!(names(&world.path("local/volumes")).is_empty());
}

/// Items 4 and 11: what lies in the pool under a volume's or image's name is no plain file.
#[tokio::test]
async fn links_pipes_and_guest_written_headers_change_nothing() {
    let world = World::new();
    let (storage, pools) = (world.host("a1"), [world.dir_pool()]);
    storage.ensure_pools(&pools).await;
    let secret = world.path("secret");
    std::fs::write(&secret, b"secret").unwrap();
    let trap = |uid: Uuid| world.path(&format!("local/volumes/{uid}.raw"));
    let linked = volume(&pools[0], Format::Raw, 1, None);
    symlink(&secret, trap(linked.uid)).unwrap();
    let hard = volume(&pools[0], Format::Raw, 1, None);
    std::fs::hard_link(&secret, trap(hard.uid)).unwrap();
    let pipe = volume(&pools[0], Format::Raw, 1, None);
    rustix::fs::mkfifoat(rustix::fs::CWD, trap(pipe.uid), rustix::fs::Mode::RUSR).unwrap();
    let folder = volume(&pools[0], Format::Raw, 1, None);
    std::fs::create_dir(trap(folder.uid)).unwrap();
    for trapped in [&linked, &hard, &pipe, &folder] {
        let report = made(&storage, trapped).await;
        assert!(why(report).contains("not used"));
    }
    assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
    let image = world.shelf.put("tiny", qcow2(world.folder.path(), "8M", &[]), Format::Qcow2);
    symlink(&secret, world.path(&format!("local/images/{}.qcow2", image.sha256))).unwrap();
    let clone = volume(&pools[0], Format::Qcow2, 8, Some(&image));
    assert!(why(made(&storage, &clone).await).contains("symbolic link"));

    // A guest writes a qcow2 header with a backing file onto its raw disk; growing still takes it as raw.
    let mut raw = volume(&pools[0], Format::Raw, 1, None);
    made(&storage, &raw).await;
    let evil = qcow2(world.folder.path(), "8M", &["-u", "-F", "raw", "-b", "/etc/shadow"]);
    let file = std::fs::OpenOptions::new().write(true).open(trap(raw.uid)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &evil[..512], 0).unwrap();
    raw.size = Bytes::mib(2);
    assert_eq!(made_after(&storage, &raw, 2).await, ready(2));
    let bytes = std::fs::read(trap(raw.uid)).unwrap();
    assert_eq!((bytes.len(), &bytes[..512]), (2 << 20, &evil[..512]));
    let opened = storage.disk(&disk(&raw), Uuid::nil(), 1, &pools).await.unwrap();
    assert_eq!(opened.format, sterna_qemu::config::Format::Raw);
}

/// Item 11, the race: the name points at a plain file and at a link in turn while it is looked at.
#[tokio::test]
async fn a_name_that_is_swapped_while_it_is_looked_at_never_leads_out_of_the_pool() {
    const TRIES: usize = 10_000;
    let world = World::new();
    let (storage, pools) = (world.host("a1"), [world.dir_pool()]);
    storage.ensure_pools(&pools).await;
    let raw = volume(&pools[0], Format::Raw, 1, None);
    made(&storage, &raw).await;
    let folder = world.path("local/volumes");
    let target = folder.join(format!("{}.raw", raw.uid));
    // Another size than the volume's: it would be seen.
    std::fs::write(world.path("secret"), vec![0; 4 << 20]).unwrap();
    symlink(world.path("secret"), folder.join("link")).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let stop = std::sync::Arc::clone(&stop);
        let link = folder.join("link");
        move || {
            while !stop.load(Ordering::Relaxed) {
                use rustix::fs::{CWD, RenameFlags, renameat_with};
                renameat_with(CWD, &link, CWD, &target, RenameFlags::EXCHANGE).unwrap();
            }
        }
    });
    let (mut seen_file, mut seen_link) = (0, 0);
    for _ in 0..TRIES {
        match storage.disk(&disk(&raw), Uuid::nil(), 1, &pools).await {
            Ok(_) => seen_file += 1,
            Err(Error::Refused { what }) if what.contains("symbolic link") => seen_link += 1,
            Err(other) => panic!("{other:?}"),
        }
        storage.recheck(raw.uid);
        let now = storage.volumes().borrow()[&raw.uid].report.clone();
        assert!(!matches!(now, VolumeReport::Ready { size } if size != Bytes::mib(1)), "{now:?}");
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(seen_file > 0 && seen_link > 0, "the race was not tried: {seen_file} files, {seen_link} links");
}

#[tokio::test]
async fn what_cannot_be_made_is_said_and_what_is_not_there_is_waited_for() {
    let world = World::new();
    let (storage, pools) = (world.host("a1"), [world.dir_pool()]);
    storage.ensure_pools(&pools).await;
    let image = world.shelf.put("tiny", qcow2(world.folder.path(), "8M", &[]), Format::Qcow2);
    assert!(
        why(made(&storage, &volume(&pools[0], Format::Qcow2, 4, Some(&image))).await).contains("smaller")
    );
    let mut odd = volume(&pools[0], Format::Raw, 1, None);
    odd.size = Bytes(1000);
    assert!(why(made(&storage, &odd).await).contains("512"));
    odd.size = Bytes(1 << 60);
    assert!(why(made(&storage, &odd).await).contains("64 TiB"));
    let absent = storage.disk(&disk(&odd), Uuid::nil(), 1, &pools).await;
    assert!(matches!(absent, Err(Error::NotYet { .. })), "{absent:?}");
    assert!(storage.free().await[&name("local")] > Bytes(0));
}

#[tokio::test]
async fn a_seed_is_the_same_on_every_host_and_its_values_stay_values() {
    let world = World::new();
    let storage = world.host("a1");
    let vm = Uuid::now_v7();
    let cloud_init = CloudInit {
        user_data: Some("#cloud-config\npassword: \"a:b\"\n".into()),
        network_config: Some("version: 2\n".into()),
    };
    let mut isos = Vec::new();
    for folder in ["one", "two"] {
        std::fs::create_dir(world.path(folder)).unwrap();
        let iso = storage.seed(&world.path(folder), vm, &name("web"), &cloud_init).await.unwrap();
        assert_eq!(names(&world.path(folder)), ["seed.iso"], "no secret is left beside it");
        isos.push(std::fs::read(iso).unwrap());
    }
    assert!(isos[0] == isos[1], "two seeds of one VM differ");
    // The volume label of the primary descriptor: sector 16, 32 bytes from 40.
    assert_eq!(String::from_utf8_lossy(&isos[0][16 * 2048 + 40..][..32]).trim_end(), "cidata");
    let out = world.path("out");
    let taken = run(
        "xorriso",
        &[
            "-osirrox",
            "on",
            "-indev",
            world.path("one/seed.iso").to_str().unwrap(),
            "-extract",
            "/",
            out.to_str().unwrap(),
        ],
    );
    assert!(taken.status.success(), "{}", text(&taken));
    assert_eq!(names(&out), ["meta-data", "network-config", "user-data"]);
    assert_eq!(std::fs::read_to_string(out.join("user-data")).unwrap(), cloud_init.user_data.unwrap());
    let meta: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("meta-data")).unwrap()).unwrap();
    assert_eq!(meta, serde_json::json!({ "instance-id": vm.to_string(), "local-hostname": "web" }));
}
