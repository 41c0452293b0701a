//! What the probe finds in real QEMU of both versions.
#![allow(clippy::unwrap_used)]

mod world;

use std::path::Path;
use std::time::Duration;

use sterna_qemu::config::Accel;
use sterna_qemu::probe::{self, Error};
use world::qemu;

#[tokio::test]
async fn a_binary_tells_what_it_can() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let found = probe::inspect(&binary.path, Accel::Tcg).await.unwrap();
        assert_eq!(found.version, binary.version);
        assert_eq!(found.newest_machine(), Some(&binary.machine()));
        assert!(found.machines.iter().any(|machine| machine.as_str() == "pc-q35-7.2"));
        let model = |name: &str| found.cpus.iter().find(|cpu| cpu.name == name).unwrap().clone();
        assert_eq!(model("qemu64").unavailable_features, Some(vec![]));
        // No emulator has all of it.
        assert!(!model("Skylake-Server").unavailable_features.unwrap().is_empty());
        assert!(model("Skylake-Server-v1").alias_of.is_none());
    }
}

#[tokio::test]
async fn emulation_runs_the_probe_guest() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        probe::run_guest(&binary.path, Accel::Tcg, Duration::from_secs(20)).await.unwrap();
    }
}

#[tokio::test]
async fn the_choice_is_what_was_tried() {
    for binary in [7, 10].into_iter().filter_map(qemu) {
        let choice = probe::choose_accel(&binary.path).await.unwrap();
        eprintln!("{}: {:?}: {}", binary.version, choice.accel, choice.reason);
        let generous = Duration::from_secs(1);
        let kvm_runs = probe::run_guest(&binary.path, Accel::Kvm, generous).await.is_ok();
        // The converse may fail on a host that is busy.
        assert!(!kvm_runs || choice.accel == Accel::Kvm, "{}", choice.reason);
        assert!(!choice.reason.is_empty());
    }
}

#[tokio::test]
async fn what_is_no_qemu_is_named() {
    let missing = probe::inspect(Path::new("/nowhere/qemu"), Accel::Tcg).await.unwrap_err();
    assert!(matches!(missing, Error::NotStarted { .. }), "{missing}");
    for other in ["/bin/true", "/bin/false", "/bin/ls"] {
        let refused = probe::inspect(Path::new(other), Accel::Tcg).await.unwrap_err();
        assert!(!matches!(refused, Error::TimedOut { .. }), "{other}: {refused}");
        let refused =
            probe::run_guest(Path::new(other), Accel::Tcg, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(refused, Error::Failed { .. }), "{other}: {refused}");
    }
    let slow = probe::run_guest(Path::new("/usr/bin/yes"), Accel::Tcg, Duration::from_millis(50)).await;
    assert!(slow.is_err());
}
