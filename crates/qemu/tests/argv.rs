//! The command line of typical machines, compared with the text files in `tests/golden`.
//!
//! `UPDATE_GOLDEN=1` writes them anew; the diff is then the review.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use sterna_qemu::config::{
    Accel, Backing, Config, Cpu, Disk, Format, Monitor, Nic, Place, Refused, Serial, Source,
};
use sterna_qemu::version::MachineType;

fn smallest() -> Config {
    Config {
        name: "web-1".into(),
        uuid: "0191d5b2-6f3a-7c11-9d55-8f0c2b7f9a01".into(),
        machine: MachineType::parse("pc-q35-7.2").unwrap(),
        accel: Accel::Tcg,
        cpu: Cpu { model: "qemu64".into(), features: vec![], enforce: false },
        vcpus: 1,
        memory_kib: 65_528,
        tcg_buffer_mib: None,
        disks: vec![],
        seed: None,
        nics: vec![],
        hot_ports: 0,
        monitor: Monitor::Fd(3),
        serial: None,
        vnc: None,
        guest_agent: None,
        watchdog: false,
        paused: false,
        incoming: false,
    }
}

fn file(path: &str) -> Source {
    Source::File { path: PathBuf::from(path) }
}

fn disk(id: &str, slot: u8, format: Format, source: Source) -> Disk {
    Disk {
        id: id.into(),
        node: format!("node-{id}"),
        format,
        source,
        backing: vec![],
        serial: None,
        read_only: false,
        place: Place::Slot(slot),
        boot_index: None,
    }
}

fn nic(id: &str, slot: u8, tap_fd: i32) -> Nic {
    Nic {
        id: id.into(),
        tap_fd,
        vhost_fd: None,
        mac: format!("52:54:00:00:00:{slot:02x}"),
        mtu: 1420,
        place: Place::Slot(slot),
    }
}

/// Every field used, on the newest machine type.
fn full() -> Config {
    let mut root = disk("root", 0, Format::Qcow2, file("/pools/fast/web-1/root.qcow2"));
    root.boot_index = Some(1);
    root.serial = Some("root-7c11".into());
    root.backing = vec![
        Backing { format: Format::Qcow2, source: file("/pools/fast/images/debian-2.qcow2") },
        Backing { format: Format::Raw, source: file("/pools/fast/images/debian-1.img") },
    ];
    let san = Source::NbdUnix { socket: "/run/san/a.sock".into(), export: "data/7".into() };
    let mut archive = disk(
        "archive",
        2,
        Format::Raw,
        Source::NbdTcp { host: "10.0.0.9".into(), port: 10809, export: "archive".into() },
    );
    archive.read_only = true;
    let mut plugged = disk("plugged", 0, Format::Raw, file("/pools/fast/web-1/more, much more.img"));
    plugged.place = Place::HotPort(1);
    let mut fast = nic("nic1", 1, 8);
    fast.vhost_fd = Some(9);
    Config {
        machine: MachineType::parse("pc-q35-10.2").unwrap(),
        accel: Accel::Kvm,
        cpu: Cpu {
            model: "Skylake-Server-v4".into(),
            features: vec![("pcid".into(), true), ("hle".into(), false)],
            enforce: true,
        },
        vcpus: 4,
        memory_kib: 4_194_304,
        disks: vec![root, disk("data", 1, Format::Raw, san), archive, plugged],
        seed: Some("/run/vm/seed.iso".into()),
        nics: vec![nic("nic0", 0, 7), fast],
        hot_ports: 2,
        monitor: Monitor::Socket("/run/vm/qmp.sock".into()),
        serial: Some(Serial {
            socket: "/run/vm/serial,1.sock".into(),
            log: Some("/var/log/vm/serial.log".into()),
        }),
        vnc: Some("/run/vm/vnc.sock".into()),
        guest_agent: Some("/run/vm/agent.sock".into()),
        paused: true,
        incoming: true,
        ..smallest()
    }
}

/// One option and its value a line, so that a diff shows the option that changed.
fn written(config: &Config) -> String {
    let mut text = String::new();
    for arg in config.argv().unwrap() {
        let arg = arg.into_string().unwrap();
        match arg.strip_prefix('-') {
            Some(_) => text.push_str(&format!("\n{arg}")),
            None => text.push_str(&format!(" {arg}")),
        }
    }
    format!("{}\n", text.trim_start())
}

fn compare(name: &str, config: &Config) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let actual = written(config);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(actual, expected, "{name} differs; UPDATE_GOLDEN=1 accepts the new text");
}

#[test]
fn smallest_machine() {
    compare("smallest.txt", &smallest());
}

#[test]
fn machine_with_everything() {
    compare("full.txt", &full());
}

#[test]
fn target_of_a_migration_differs_from_its_source_in_two_options() {
    let source = written(&smallest());
    let target = written(&Config { paused: true, incoming: true, ..smallest() });
    assert_eq!(target, format!("{source}-S\n-incoming defer\n"));
}

#[test]
fn a_configuration_survives_being_stored() {
    let stored = serde_json::to_string(&full()).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&stored).unwrap(), full());
    let unversioned = stored.replace("pc-q35-10.2", "q35");
    assert!(serde_json::from_str::<Config>(&unversioned).is_err());
}

#[test]
fn no_text_can_add_an_option() {
    for name in ["", "-drive", "a,file=/etc/passwd", "a/b", "a\0b", "a\nb", "é", "../../x", &"x".repeat(65)]
    {
        let refused = Config { name: name.into(), ..smallest() }.argv().unwrap_err();
        assert!(matches!(refused, Refused::Text { field: "name", .. }), "{name:?}: {refused}");
    }
    let cpu = |model: &str, feature: &str| Cpu {
        model: model.into(),
        features: vec![(feature.into(), true)],
        enforce: false,
    };
    for cpu in [cpu("qemu64,+vmx", "pcid"), cpu("qemu64", "pcid,enforce"), cpu("qemu64", "x=y")] {
        assert!(Config { cpu, ..smallest() }.argv().is_err());
    }
}

#[test]
fn what_cannot_work_is_refused_with_its_field() {
    let raw_over_something = Disk {
        backing: vec![Backing { format: Format::Raw, source: file("/b") }],
        ..disk("root", 0, Format::Raw, file("/a"))
    };
    let long = PathBuf::from(format!("/{}", "x".repeat(107)));
    let cases: Vec<(&str, Config)> = vec![
        ("vcpus is 0", Config { vcpus: 0, ..smallest() }),
        ("memory_kib is 64", Config { memory_kib: 64, ..smallest() }),
        ("UUID", Config { uuid: "../etc".into(), ..smallest() }),
        ("is raw", Config { disks: vec![raw_over_something], ..smallest() }),
        (
            "disk id \"a\" is used twice",
            Config {
                disks: vec![disk("a", 0, Format::Raw, file("/a")), disk("a", 1, Format::Raw, file("/b"))],
                ..smallest()
            },
        ),
        (
            "disk slot \"0\" is used twice",
            Config {
                disks: vec![disk("a", 0, Format::Raw, file("/a")), disk("b", 0, Format::Raw, file("/b"))],
                ..smallest()
            },
        ),
        ("disk slot is 15", Config { disks: vec![disk("a", 15, Format::Raw, file("/a"))], ..smallest() }),
        ("absolute", Config { disks: vec![disk("a", 0, Format::Raw, file("a"))], ..smallest() }),
        ("absolute", Config { disks: vec![disk("a", 0, Format::Raw, file("/a\n"))], ..smallest() }),
        ("NIC slot is 8", Config { nics: vec![nic("a", 8, 7)], ..smallest() }),
        (
            "hot port is 0",
            Config { nics: vec![Nic { place: Place::HotPort(0), ..nic("a", 0, 7) }], ..smallest() },
        ),
        ("mtu is 20", Config { nics: vec![Nic { mtu: 20, ..nic("a", 0, 7) }], ..smallest() }),
        (
            "MAC",
            Config { nics: vec![Nic { mac: "53:54:00:00:00:01".into(), ..nic("a", 0, 7) }], ..smallest() },
        ),
        ("MAC", Config { nics: vec![Nic { mac: "52:54:00:00:00".into(), ..nic("a", 0, 7) }], ..smallest() }),
        ("fd is 2", Config { nics: vec![nic("a", 0, 2)], ..smallest() }),
        ("107 bytes", Config { monitor: Monitor::Socket(long), ..smallest() }),
    ];
    for (expected, config) in cases {
        let refused = config.argv().unwrap_err().to_string();
        assert!(refused.contains(expected), "{expected:?} not in {refused:?}");
    }
}
