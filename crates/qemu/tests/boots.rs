//! What a configuration becomes under real QEMU of both versions.
#![allow(clippy::unwrap_used)]

mod world;

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, PermissionsExt};

use sterna_qemu::boot::ticker::{self, Mark};
use sterna_qemu::boot::{self, Pace};
use sterna_qemu::config::{Backing, Config, Disk, Format, Nic, Place, Source};
use sterna_qemu::img::{ImageFile, Tool};
use sterna_qemu::qmp::client::Heard;
use sterna_qemu::qmp::event::Event;
use sterna_qemu::qmp::machine::RunStatus;
use sterna_qemu::qmp::migration::{Address, Announcement, Capability, Status};
use world::{Binary, Qemu, eventually, folder, machine, qemu};

fn both() -> impl Iterator<Item = Binary> {
    [7, 10].into_iter().filter_map(qemu)
}

#[tokio::test]
async fn a_guest_writes_to_its_disk() {
    for binary in both() {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::writer(Pace::Flat), 1 << 20).unwrap();
        let vm = Qemu::start(&binary, &machine(&binary, folder.path(), "writer", &disk)).await.unwrap();
        eventually("counter grows", || async { boot::read_counter(&disk).unwrap() > 20 }).await;
        vm.lives().await;
        let printed = std::fs::read(&vm.log).unwrap();
        assert!(!printed.contains(&b'!'), "{}: a write failed", binary.version);
        assert_eq!(vm.qmp.greeted_version(), Some(binary.version));
        vm.qmp.stop().await.unwrap();
        let stats = vm.qmp.query_block_stats().await.unwrap();
        assert!(stats[0].stats.wr_operations > 20, "{stats:?}");
        let block = vm.qmp.query_block().await.unwrap();
        assert_eq!(block[0].id(), Some("root"));
        assert_eq!(block[0].inserted.as_ref().unwrap().image.virtual_size, 1 << 20);
    }
}

#[tokio::test]
async fn a_restarted_writer_goes_on_where_it_was() {
    for binary in both() {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::writer(Pace::Ticks), 1 << 20).unwrap();
        let config = machine(&binary, folder.path(), "writer", &disk);
        let mut vm = Qemu::start(&binary, &config).await.unwrap();
        eventually("counter grows", || async { boot::read_counter(&disk).unwrap() > 3 }).await;
        vm.kill();
        let before = boot::read_counter(&disk).unwrap();
        let _vm = Qemu::start(&binary, &config).await.unwrap();
        eventually("counter goes on", || async { boot::read_counter(&disk).unwrap() > before }).await;
    }
}

#[tokio::test]
async fn a_ticker_tells_its_boots_apart_and_notices_a_stranger() {
    for binary in both() {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &ticker::ticker(1), 1 << 20).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&disk).unwrap();
        let mark = || Mark::of(&file, ticker::SECTOR * 512).unwrap();
        let config = machine(&binary, folder.path(), "ticker", &disk);
        let mut vm = Qemu::start(&binary, &config).await.unwrap();
        eventually("it marks", || async { mark().is_some_and(|mark| mark.marks > 3) }).await;
        vm.kill();
        let first = mark().unwrap();
        let _vm = Qemu::start(&binary, &config).await.unwrap();
        eventually("it marks again", || async { mark().is_some_and(|mark| mark.boots == 2) }).await;
        let second = mark().unwrap();
        assert_ne!(first.token, second.token);
        assert_eq!((first.boots, first.strangers, second.strangers), (1, 0, 0));
        // As another copy would, which marks beside it.
        file.write_all_at(&first.token.to_le_bytes(), ticker::SECTOR * 512 + 8).unwrap();
        eventually("it notices", || async {
            mark().is_some_and(|mark| mark.token == second.token && mark.strangers == 1)
        })
        .await;
    }
}

#[tokio::test]
async fn every_device_works_for_an_unprivileged_user() {
    for binary in both() {
        let folder = folder();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::panicker(), 1 << 20).unwrap();
        let seed = folder.path().join("seed.iso");
        boot::write_disk(&seed, &boot::hlt(), 1 << 20).unwrap();
        for file in [&disk, &seed] {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666)).unwrap();
        }
        let config = Config {
            seed: Some(seed),
            hot_ports: 2,
            vnc: Some(folder.path().join("vnc")),
            guest_agent: Some(folder.path().join("agent")),
            paused: true,
            ..machine(&binary, folder.path(), "all", &disk)
        };
        let vm = Qemu::start_as(&binary, &config, Some(65_534), &[]).await.unwrap();
        for socket in ["vnc", "agent", "all.serial"] {
            std::os::unix::net::UnixStream::connect(folder.path().join(socket)).unwrap();
        }
        assert_eq!(vm.qmp.query_status().await.unwrap().status, RunStatus::Prelaunch);
        let mut events = vm.qmp.events();
        vm.qmp.cont().await.unwrap();
        // A guest that crashes is kept as it is.
        let mut panicked = false;
        while !panicked {
            let Some(Heard::Event(event)) = events.next().await else {
                panic!("{}: no event", binary.version)
            };
            panicked = matches!(&event.event, Event::GuestPanicked { action } if action == "pause");
        }
        eventually("guest is kept", || async {
            vm.qmp.query_status().await.unwrap().status == RunStatus::GuestPanicked
        })
        .await;
    }
}

#[tokio::test]
async fn a_watchdog_that_is_not_fed_is_told_and_does_nothing_by_itself() {
    for binary in both() {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::unfed(), 1 << 20).unwrap();
        let config =
            Config { watchdog: true, paused: true, ..machine(&binary, folder.path(), "unfed", &disk) };
        let vm = Qemu::start(&binary, &config).await.unwrap();
        let mut events = vm.qmp.events();
        vm.qmp.cont().await.unwrap();
        let mut bit = false;
        while !bit {
            let Some(Heard::Event(event)) = events.next().await else {
                panic!("{}: no event", binary.version)
            };
            bit = matches!(&event.event, Event::Watchdog { action } if action == "none");
        }
        assert_eq!(vm.qmp.query_status().await.unwrap().status, RunStatus::Running);
        // A reset starts the guest again, and with it what it asked of its watchdog.
        vm.qmp.system_reset().await.unwrap();
        eventually("it runs again", || async {
            std::fs::read(&vm.log).unwrap().iter().filter(|byte| **byte == b'.').count() >= 2
        })
        .await;
    }
}

#[tokio::test]
async fn a_reset_lets_a_crashed_guest_run_again() {
    for binary in both() {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::panicker(), 1 << 20).unwrap();
        let vm = Qemu::start(&binary, &machine(&binary, folder.path(), "panics", &disk)).await.unwrap();
        let panicked = || async { vm.qmp.query_status().await.unwrap().status == RunStatus::GuestPanicked };
        eventually("it crashed", panicked).await;
        vm.qmp.system_reset().await.unwrap();
        eventually("it was reset, and stands still", || async {
            vm.qmp.query_status().await.unwrap().status == RunStatus::Prelaunch
        })
        .await;
        vm.qmp.cont().await.unwrap();
        eventually("it crashed again", panicked).await;
    }
}

#[tokio::test]
async fn a_disk_is_plugged_in_and_out() {
    for binary in both() {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::writer(Pace::Ticks), 1 << 20).unwrap();
        let more = folder.path().join("more, much more.img");
        boot::write_disk(&more, &boot::hlt(), 1 << 20).unwrap();
        let config = Config { hot_ports: 1, ..machine(&binary, folder.path(), "plug", &disk) };
        let vm = Qemu::start(&binary, &config).await.unwrap();
        let plugged = Disk {
            id: "more".into(),
            node: "more-node".into(),
            format: Format::Raw,
            source: Source::File { path: more },
            place: Place::HotPort(0),
            boot_index: None,
            ..config.disks[0].clone()
        };
        vm.qmp.add_disk(&plugged, 1).await.unwrap();
        let nodes = vm.qmp.query_named_block_nodes().await.unwrap();
        assert!(nodes.iter().any(|node| node.node_name.as_deref() == Some("more-node")), "{nodes:?}");
        vm.qmp.block_resize("more-node", 2 << 20).await.unwrap();
        // The same once more: refused, and nothing left behind that would hinder the next try.
        let twice = Disk { node: "other-node".into(), ..plugged };
        assert!(vm.qmp.add_disk(&twice, 1).await.is_err());
        let nodes = vm.qmp.query_named_block_nodes().await.unwrap();
        assert!(nodes.iter().all(|node| node.node_name.as_deref() != Some("other-node")), "{nodes:?}");
        vm.lives().await;
    }
}

#[tokio::test]
async fn a_thin_clone_boots_over_its_whole_chain() {
    for binary in both() {
        let folder = folder();
        let file = |name: &str, format| ImageFile::new(folder.path().join(name), format);
        let (base, middle, top) =
            (file("base", Format::Raw), file("middle", Format::Qcow2), file("top", Format::Qcow2));
        boot::write_disk(&base.path, &boot::writer(Pace::Ticks), 1 << 20).unwrap();
        let tool = Tool::new("qemu-img");
        tool.create_overlay(&middle.path, &base, 1 << 20).await.unwrap();
        tool.create_overlay(&top.path, &middle, 1 << 20).await.unwrap();
        let before = std::fs::read(&base.path).unwrap();
        let below = |image: &ImageFile| Backing {
            format: image.format,
            source: Source::File { path: image.path.clone() },
        };
        let mut config = machine(&binary, folder.path(), "clone", &top.path);
        config.disks[0].format = Format::Qcow2;
        config.disks[0].backing = vec![below(&middle), below(&base)];
        let vm = Qemu::start(&binary, &config).await.unwrap();
        vm.lives().await;
        assert!(!std::fs::read(&vm.log).unwrap().contains(&b'!'));
        // Two clones of one image run at once: what lies below is shared, what lies on top is not.
        let sister = file("sister", Format::Qcow2);
        tool.create_overlay(&sister.path, &middle, 1 << 20).await.unwrap();
        let mut second = machine(&binary, folder.path(), "sister", &sister.path);
        second.disks[0] = Disk { source: Source::File { path: sister.path }, ..config.disks[0].clone() };
        Qemu::start(&binary, &second).await.unwrap().lives().await;
        assert!(std::fs::read(&base.path).unwrap() == before, "{}: the shared image changed", binary.version);
    }
}

#[tokio::test]
async fn a_disk_behind_a_block_server_is_lost_for_good_when_its_export_is_revoked() {
    for binary in both() {
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::writer(Pace::Flat), 1 << 20).unwrap();
        let socket = folder.path().join("nbd");
        let mut server = std::process::Command::new("qemu-nbd")
            .args(["-f", "raw", "-x", "vm/1", "-t", "-k"])
            .args([&socket, &disk])
            .spawn()
            .expect("qemu-nbd of Debian's qemu-utils");
        eventually("server listens", || async { socket.exists() }).await;
        let mut config = machine(&binary, folder.path(), "nbd", &disk);
        config.disks[0].source = Source::NbdUnix { socket, export: "vm/1".into() };
        let vm = Qemu::start(&binary, &config).await.unwrap();
        vm.lives().await;
        server.kill().unwrap();
        server.wait().unwrap();
        eventually("guest is paused", || async {
            vm.qmp.query_status().await.unwrap().status == RunStatus::IoError
        })
        .await;
        assert!(!std::fs::read(&vm.log).unwrap().contains(&b'!'), "the guest saw an error");
    }
}

/// A tap that lives as long as the answer. Nothing is left behind.
fn tap(name: &str) -> std::fs::File {
    const TUNSETIFF: u64 = 0x4004_54ca;
    const TAP_WITHOUT_INFO_WITH_HEADER: u16 = 0x0002 | 0x1000 | 0x4000;
    let tap = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&TAP_WITHOUT_INFO_WITH_HEADER.to_ne_bytes());
    // SAFETY: the request is as large as `struct ifreq`, and the kernel keeps no pointer to it.
    unsafe {
        let setter = rustix::ioctl::Updater::<{ TUNSETIFF as u32 }, [u8; 40]>::new(&mut request);
        rustix::ioctl::ioctl(&tap, setter).unwrap();
    }
    tap
}

/// A host's QEMU is upgraded by moving its guests: the same machine, old QEMU to new, with a NIC.
#[tokio::test]
async fn a_guest_moves_to_a_newer_qemu() {
    let (Some(old), Some(new)) = (qemu(7), qemu(10)) else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: needs root for taps");
        return;
    }
    for late_machine in [&old, &new] {
        let (source_binary, target_binary) = (late_machine, &new);
        let folder = folder();
        let disk = folder.path().join("root.img");
        boot::write_disk(&disk, &boot::dirtier(2_000, 2_000), 1 << 20).unwrap();
        let number = std::process::id() % 100_000;
        let taps = [tap(&format!("sqs{number}")), tap(&format!("sqt{number}"))];
        let with_nic = |name: &str, tap: &std::fs::File| {
            let mut config = machine(source_binary, folder.path(), name, &disk);
            config.vnc = Some(folder.path().join(format!("{name}.vnc")));
            config.guest_agent = Some(folder.path().join(format!("{name}.agent")));
            config.hot_ports = 2;
            config.nics = vec![Nic {
                id: "nic0".into(),
                tap_fd: tap.as_raw_fd(),
                vhost_fd: None,
                mac: "52:54:00:00:00:01".into(),
                mtu: 1420,
                place: Place::Slot(0),
            }];
            config
        };
        let (one, other) = (taps[0].as_fd(), taps[1].as_fd());
        let config = with_nic("source", &taps[0]);
        let source = Qemu::start_as(source_binary, &config, None, &[one]).await.unwrap();
        source.lives().await;
        let config = Config { paused: true, incoming: true, ..with_nic("target", &taps[1]) };
        let target = Qemu::start_as(target_binary, &config, None, &[other]).await.unwrap();
        for vm in [&source, &target] {
            vm.qmp.set_migration_capabilities(&[Capability::ReturnPath], &[]).await.unwrap();
        }
        let address = Address::Unix(folder.path().join("in"));
        target.qmp.migrate_incoming(&address).await.unwrap();
        source.qmp.migrate(&address).await.unwrap();
        eventually("completed", || async {
            let progress = source.qmp.query_migrate().await.unwrap();
            assert_ne!(progress.status, Status::Failed, "{progress:?}");
            progress.status == Status::Completed
        })
        .await;
        target.qmp.cont().await.unwrap();
        let announcement = Announcement { initial_ms: 20, max_ms: 100, rounds: 3, step_ms: 20 };
        target.qmp.announce_self(announcement).await.unwrap();
        target.lives().await;
    }
}
