//! Images from strangers: what passes, what is refused and why, and that nothing makes the inspection panic.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sterna_qemu::config::Format;
use sterna_qemu::image::{self, Header, Kind, Refused, inspect, open};

const LIMIT: u64 = 1 << 40;

/// An upright qcow2 of version 3: header, refcount table, refcount block, L1, each a cluster of 64 KiB.
fn qcow2() -> Vec<u8> {
    let mut bytes = vec![0; 4 << 16];
    put(&mut bytes, 0, b"QFI\xfb");
    put32(&mut bytes, 4, 3);
    put32(&mut bytes, 20, 16);
    put64(&mut bytes, 24, 1 << 30);
    put32(&mut bytes, 36, 2);
    put64(&mut bytes, 40, 3 << 16);
    put64(&mut bytes, 48, 1 << 16);
    put32(&mut bytes, 56, 1);
    put32(&mut bytes, 96, 4);
    put32(&mut bytes, 100, 104);
    put64(&mut bytes, 1 << 16, 2 << 16);
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_be_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_be_bytes());
}

fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Refused {
    let mut bytes = qcow2();
    change(&mut bytes);
    inspect(bytes.as_slice(), LIMIT).unwrap_err()
}

#[test]
fn an_upright_image_passes() {
    let found = inspect(qcow2().as_slice(), LIMIT).unwrap();
    assert_eq!((found.format, found.kind, found.virtual_size), (Format::Qcow2, Kind::Qcow2, 1 << 30));
    let found = inspect(vec![0; 1000].as_slice(), LIMIT).unwrap();
    assert_eq!((found.format, found.kind, found.virtual_size), (Format::Raw, Kind::Raw, 1024));
}

#[test]
fn an_overlay_into_which_nothing_was_written_is_blank() {
    let is_blank = |bytes: &[u8]| Header::read(bytes).unwrap().is_blank(bytes);
    let mut bytes = qcow2();
    assert!(is_blank(&bytes).unwrap());
    put64(&mut bytes, (3 << 16) + 8, (1 << 63) | (4 << 16));
    assert!(!is_blank(&bytes).unwrap());
    bytes.truncate((3 << 16) + 8);
    assert!(matches!(is_blank(&bytes), Err(Refused::Malformed { .. })));
}

#[test]
fn what_points_to_other_files_is_refused_with_its_name() {
    for name in ["/etc/shadow", "json:{\"driver\":\"nbd\"}", "http://169.254.169.254/", "nbd://127.0.0.1"] {
        let refused = changed(|bytes| {
            put64(bytes, 8, 4096);
            put32(bytes, 16, name.len() as u32);
            put(bytes, 4096, name.as_bytes());
        });
        assert!(matches!(&refused, Refused::BackingFile { name: found } if found == name), "{refused}");
    }
    let refused = changed(|bytes| {
        put64(bytes, 72, 1 << 2);
        put32(bytes, 104, 0x4441_5441);
        put32(bytes, 108, 11);
        put(bytes, 112, b"/etc/shadow");
    });
    assert!(matches!(&refused, Refused::DataFile { name } if name == "/etc/shadow"), "{refused}");
    // The bit without a name, and the name without the bit.
    assert!(matches!(changed(|bytes| put64(bytes, 72, 1 << 2)), Refused::DataFile { .. }));
    assert!(matches!(changed(|bytes| put32(bytes, 104, 0x4441_5441)), Refused::DataFile { .. }));
    // What is shown to people cannot steer their terminal.
    let refused = changed(|bytes| {
        put64(bytes, 8, 4096);
        put32(bytes, 16, 4);
        put(bytes, 4096, b"\x1b[2J");
    });
    assert!(!refused.to_string().contains('\x1b'));
}

#[test]
fn each_reason_has_its_own_refusal() {
    use Refused::*;
    type Case = (fn(&mut Vec<u8>), fn(&Refused) -> bool);
    let cases: [Case; 22] = [
        (|b| put32(b, 32, 1), |r| matches!(r, Encrypted)),
        (|b| put32(b, 32, 2), |r| matches!(r, Encrypted)),
        (|b| put32(b, 104, 0x0537_be77), |r| matches!(r, Encrypted)),
        (|b| put64(b, 72, 1), |r| matches!(r, Unclean)),
        (|b| put64(b, 72, 2), |r| matches!(r, Unclean)),
        (|b| put64(b, 72, 1 << 5), |r| matches!(r, UnknownFeatures { bits: 32 })),
        (|b| put64(b, 72, 1 << 63), |r| matches!(r, UnknownFeatures { .. })),
        (|b| put32(b, 60, 3), |r| matches!(r, Snapshots { count: 3 })),
        (|b| put32(b, 4, 4), |r| matches!(r, Version { version: 4 })),
        (|b| put64(b, 24, 2 << 60), |r| matches!(r, TooLarge { .. })),
        (|b| put64(b, 24, 0), |r| matches!(r, Malformed { .. })),
        (|b| put32(b, 20, 0), |r| matches!(r, Malformed { .. })),
        (|b| put32(b, 20, 200), |r| matches!(r, Malformed { .. })),
        (|b| put32(b, 36, 1 << 31), |r| matches!(r, Malformed { .. })),
        (|b| put32(b, 36, 1), |r| matches!(r, Malformed { .. })),
        (|b| put64(b, 40, u64::MAX), |r| matches!(r, Malformed { .. })),
        (|b| put64(b, 40, 0), |r| matches!(r, Malformed { .. })),
        (|b| put64(b, 48, 3 << 16), |r| matches!(r, Malformed { .. })),
        (|b| put32(b, 56, u32::MAX), |r| matches!(r, Malformed { .. })),
        (|b| put32(b, 96, 7), |r| matches!(r, Malformed { .. })),
        (|b| put32(b, 100, 100), |r| matches!(r, Malformed { .. })),
        (|b| b.truncate(80), |r| matches!(r, Malformed { .. })),
    ];
    for (number, (change, is_expected)) in cases.into_iter().enumerate() {
        let refused = changed(change);
        assert!(is_expected(&refused), "case {number}: {refused:?}");
        assert!(!refused.hint().is_empty());
    }
}

#[test]
fn tables_that_loop_are_refused() {
    let loops: [fn(&mut Vec<u8>); 6] = [
        // The refcount table points to itself, to the header's cluster, or twice to one block.
        |b| put64(b, 1 << 16, 1 << 16),
        |b| put64(b, 1 << 16, 3 << 16),
        |b| put64(b, (1 << 16) + 8, 2 << 16),
        // The L1 table points to itself, out of the file, or twice to one table.
        |b| put64(b, 3 << 16, 3 << 16),
        |b| put64(b, 3 << 16, 1 << 40),
        |b| {
            put64(b, 3 << 16, 2 << 16);
            put64(b, (3 << 16) + 8, 2 << 16);
        },
    ];
    for (number, change) in loops.into_iter().enumerate() {
        assert!(matches!(changed(change), Refused::Malformed { .. }), "loop {number}");
    }
}

#[test]
fn other_formats_are_named() {
    let cases: [(&[u8], Kind); 14] = [
        (b"QFI\xfb\0\0\0\x01", Kind::Qcow1),
        (b"KDMV", Kind::Vmdk),
        (b"# Disk DescriptorFile\nversion=1\nRW 63 FLAT \"/dev/sda\" 0", Kind::Vmdk),
        (b"\n# comment\n\nversion=1\nRW 63 FLAT \"/dev/sda\" 0", Kind::Vmdk),
        (b"vhdxfile", Kind::Vhdx),
        (b"conectix", Kind::Vhd),
        (b"QED\0", Kind::Qed),
        (b"LUKS\xba\xbe", Kind::Luks),
        (b"\x1f\x8b\x08", Kind::Gzip),
        (b"\xfd7zXZ\0", Kind::Xz),
        (b"\x28\xb5\x2f\xfd", Kind::Zstd),
        (b"BZh9", Kind::Bzip2),
        (b"PK\x03\x04", Kind::Zip),
        (b"WithoutFreeSpace", Kind::Parallels),
    ];
    for (mark, kind) in cases {
        let mut bytes = vec![0; 4096];
        put(&mut bytes, 0, mark);
        match inspect(bytes.as_slice(), LIMIT).unwrap_err() {
            Refused::Packed { kind: found } => assert!(found == kind && kind.is_packed()),
            Refused::OtherFormat { kind: found } => assert!(found == kind && !kind.is_packed()),
            other => panic!("{kind}: {other}"),
        }
    }
    let mut bytes = vec![0; 4096];
    put(&mut bytes, 4096 - 512, b"conectix");
    assert!(matches!(inspect(bytes.as_slice(), LIMIT), Err(Refused::OtherFormat { kind: Kind::Vhd })));
    put(&mut bytes, 0x40, b"\x7f\x10\xda\xbe");
    assert!(matches!(inspect(bytes.as_slice(), LIMIT), Err(Refused::OtherFormat { kind: Kind::Vdi })));
    let mut bytes = vec![0; 40_000];
    put(&mut bytes, 32_769, b"CD001");
    assert_eq!(inspect(bytes.as_slice(), LIMIT).unwrap().kind, Kind::Iso);
    assert!(matches!(inspect([].as_slice(), LIMIT), Err(Refused::Empty)));
}

#[test]
fn only_a_regular_file_of_its_own_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("plain"), [0; 512]).unwrap();
    std::fs::write(path("linked"), [0; 512]).unwrap();
    std::fs::hard_link(path("linked"), path("again")).unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    symlink("plain", path("symbolic")).unwrap();
    symlink("folder", path("aside")).unwrap();
    std::fs::write(path("folder/inside"), [0; 512]).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let directory = std::fs::File::open(folder.path()).unwrap();
    let tried = |name: &str| open(&directory, Path::new(name));
    assert!(inspect(&tried("plain").unwrap(), LIMIT).is_ok());
    assert!(tried("folder/inside").is_ok());
    for name in ["folder", "symbolic", "pipe", "aside/inside", "../plain", "/etc/passwd"] {
        assert!(matches!(tried(name), Err(Refused::NotAFile { .. })), "{name}");
    }
    assert!(matches!(tried("linked"), Err(Refused::HardLinked { links: 2 })));
    assert!(matches!(tried("missing"), Err(Refused::Unreadable { .. })));
    let device = image::opened(std::fs::File::open("/dev/null").unwrap());
    assert!(matches!(device, Err(Refused::NotAFile { what: "a device" })));
}

#[test]
fn a_sparse_giant_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("giant")).unwrap();
    file.set_len(1 << 43).unwrap();
    let directory = std::fs::File::open(folder.path()).unwrap();
    let started = Instant::now();
    let refused = inspect(&open(&directory, Path::new("giant")).unwrap(), LIMIT).unwrap_err();
    assert!(matches!(refused, Refused::TooLarge { bytes, .. } if bytes == 1 << 43));
    assert!(started.elapsed() < Duration::from_secs(1));
}

/// What the real tool writes passes, or is refused for what it has.
#[test]
fn images_of_the_real_tool_are_judged_rightly() {
    let folder = tempfile::tempdir().unwrap();
    let directory = std::fs::File::open(folder.path()).unwrap();
    let make = |name: &str, arguments: &[&str]| {
        let tool =
            Command::new("qemu-img").arg("create").arg("-q").args(arguments).current_dir(&folder).output();
        match tool {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                assert!(std::env::var_os("STERNA_REQUIRE_QEMU").is_none_or(|value| value != "1"), "{error}");
                eprintln!("not run: qemu-img: {error}");
                return None;
            }
        }
        Some(inspect(&open(&directory, Path::new(name)).unwrap(), LIMIT))
    };
    let options = [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=128k",
        "compression_type=zstd",
        "refcount_bits=1",
    ];
    for (number, option) in options.into_iter().enumerate() {
        let name = format!("q{number}");
        let mut arguments = vec!["-f", "qcow2", &name, "1G"];
        if !option.is_empty() {
            arguments.extend(["-o", option]);
        }
        let Some(found) = make(&name, &arguments) else { return };
        assert_eq!(found.unwrap().virtual_size, 1 << 30, "{option}");
    }
    let overlay = make("overlay", &["-f", "qcow2", "-b", "q0", "-F", "qcow2", "overlay"]).unwrap();
    assert!(matches!(overlay, Err(Refused::BackingFile { name }) if name == "q0"));
    let split = make("split", &["-f", "qcow2", "-o", "data_file=elsewhere", "split", "1M"]).unwrap();
    assert!(matches!(split, Err(Refused::DataFile { name }) if name == "elsewhere"));
    for (format, kind) in [
        ("vmdk", Kind::Vmdk),
        ("vhdx", Kind::Vhdx),
        ("vdi", Kind::Vdi),
        ("qed", Kind::Qed),
        ("vpc", Kind::Vhd),
        ("parallels", Kind::Parallels),
    ] {
        let found = make(format, &["-f", format, format, "8M"]).unwrap();
        assert!(matches!(found, Err(Refused::OtherFormat { kind: found }) if found == kind), "{format}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = inspect(bytes.as_slice(), LIMIT);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in proptest::collection::vec(any::<u8>(), 4..400), version in 2u32..4) {
        let mut bytes = qcow2();
        put(&mut bytes, 4, &header);
        put32(&mut bytes, 4, version);
        let _ = inspect(bytes.as_slice(), LIMIT);
    }

    /// Near an upright image, where the checks behind the first ones are reached.
    #[test]
    fn a_few_changed_bytes_never_panic(changes in proptest::collection::vec((0usize..(4 << 16), any::<u8>()), 1..8)) {
        let mut bytes = qcow2();
        for (at, value) in changes {
            bytes[at % 512] = value;
            bytes[at] = value;
        }
        let _ = inspect(bytes.as_slice(), LIMIT);
    }
}
