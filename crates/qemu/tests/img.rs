//! What `qemu-img` does for us, with the real tool.
#![allow(clippy::unwrap_used)]

mod world;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use sterna_qemu::boot::{self, Pace};
use sterna_qemu::config::Format;
use sterna_qemu::img::{Error, ImageFile, Tool};

const MIB: u64 = 1 << 20;

fn tool() -> Option<Tool> {
    if std::process::Command::new("qemu-img").arg("--version").output().is_ok() {
        return Some(Tool::new("qemu-img"));
    }
    let is_required = std::env::var_os("STERNA_REQUIRE_QEMU").is_some_and(|value| value == "1");
    assert!(!is_required, "needs qemu-img");
    eprintln!("not run: needs qemu-img");
    None
}

fn image(folder: &Path, name: &str, format: Format) -> ImageFile {
    ImageFile::new(folder.join(name), format)
}

#[tokio::test]
async fn images_are_made_grown_and_measured() {
    let Some(tool) = tool() else { return };
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        let blank = image(folder.path(), "a, b: c", format);
        tool.create_blank(&blank, 4 * MIB).await.unwrap();
        tool.grow(&blank, 8 * MIB).await.unwrap();
        let info = tool.info(&blank, false).await.unwrap();
        assert_eq!(info.virtual_size, 8 * MIB);
        assert!(info.actual_size < MIB);
        assert!(matches!(tool.grow(&blank, MIB).await, Err(Error::Failed { .. })), "shrunk");
    }
}

#[tokio::test]
async fn an_overlay_is_read_through_the_chain_it_was_given() {
    let Some(tool) = tool() else { return };
    let folder = tempfile::tempdir().unwrap();
    let base = image(folder.path(), "base", Format::Raw);
    std::fs::write(&base.path, vec![7; MIB as usize]).unwrap();
    let overlay = image(folder.path(), "overlay", Format::Qcow2);
    tool.create_overlay(&overlay.path, &base, 2 * MIB).await.unwrap();
    let info = tool.info(&overlay, false).await.unwrap();
    assert_eq!(info.backing_filename.as_deref(), base.path.to_str());
    let flat = image(folder.path(), "flat", Format::Raw);
    let enough = Duration::from_secs(60);
    tool.convert(&[overlay.clone(), base], &flat, enough).await.unwrap();
    let mut expected = vec![7; MIB as usize];
    expected.resize(2 * MIB as usize, 0);
    assert!(std::fs::read(&flat.path).unwrap() == expected);
    // Without the chain the name in the header is not followed.
    tool.convert(&[overlay], &flat, enough).await.unwrap();
    assert!(std::fs::read(&flat.path).unwrap() == vec![0; 2 * MIB as usize]);
}

#[tokio::test]
async fn an_image_that_a_guest_uses_is_not_touched() {
    let Some(tool) = tool() else { return };
    for binary in [7, 10].into_iter().filter_map(world::qemu) {
        let folder = world::folder();
        let disk = image(folder.path(), "root.img", Format::Raw);
        boot::write_disk(&disk.path, &boot::writer(Pace::Ticks), MIB).unwrap();
        let config = world::machine(&binary, folder.path(), "user", &disk.path);
        let vm = world::Qemu::start(&binary, &config).await.unwrap();
        vm.lives().await;
        assert!(matches!(tool.grow(&disk, 2 * MIB).await, Err(Error::InUse { .. })));
        assert_eq!(tool.info(&disk, true).await.unwrap().virtual_size, MIB);
        vm.lives().await;
    }
}

/// A guest may write any header onto its raw disk.
#[tokio::test]
async fn a_raw_disk_stays_raw_whatever_is_on_it() {
    let Some(tool) = tool() else { return };
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, b"not for guests").unwrap();
    let lure = image(folder.path(), "lure", Format::Qcow2);
    let below = ImageFile::new(&secret, Format::Raw);
    tool.create_overlay(&lure.path, &below, MIB).await.unwrap();
    let raw = ImageFile::new(&lure.path, Format::Raw);
    let before = std::fs::read(&raw.path).unwrap();
    tool.grow(&raw, 4 * MIB).await.unwrap();
    let copy = image(folder.path(), "copy", Format::Raw);
    tool.convert(std::slice::from_ref(&raw), &copy, Duration::from_secs(60)).await.unwrap();
    for path in [&raw.path, &copy.path] {
        let after = std::fs::read(path).unwrap();
        assert_eq!(after.len() as u64, 4 * MIB);
        assert!(after.starts_with(&before));
    }
}

#[tokio::test]
async fn what_could_be_an_option_or_address_is_refused() {
    let Some(tool) = tool() else { return };
    for path in ["-o", "nbd:127.0.0.1:1", "json:{}", "relative", "/tmp/new\nline"] {
        let made = tool.create_blank(&ImageFile::new(path, Format::Raw), MIB).await;
        assert!(matches!(made, Err(Error::Path { .. })), "{path}");
    }
}

#[tokio::test]
async fn a_tool_that_hangs_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("hangs");
    std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::process::Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    let raw = image(folder.path(), "a", Format::Raw);
    let ended = Tool::new(&script).convert(std::slice::from_ref(&raw), &raw, Duration::from_millis(50)).await;
    assert!(matches!(ended, Err(Error::TimedOut { .. })));
    let missing = Tool::new("/nowhere/qemu-img").create_blank(&raw, MIB).await;
    assert!(matches!(missing, Err(Error::NotStarted { .. })));
}

#[tokio::test]
async fn a_broken_image_is_told_in_the_tools_words() {
    let Some(tool) = tool() else { return };
    let folder = tempfile::tempdir().unwrap();
    let broken = image(folder.path(), "broken", Format::Qcow2);
    let file = std::fs::File::create(&broken.path).unwrap();
    file.set_len(MIB).unwrap();
    file.write_all_at(b"QFI\xfb", 0).unwrap();
    let Err(Error::Failed { verb: "info", printed }) = tool.info(&broken, false).await else { panic!() };
    assert!(printed.contains("broken"), "{printed}");
}
