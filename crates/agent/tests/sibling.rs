//! A guest that arrives where another one of its kind runs: what that has in memory need not be sent.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashSet;
use std::path::PathBuf;

use sterna_agent::process::memory::GuestMemory;
use sterna_base::units::Span;
use sterna_model::migration::SideState;
use sterna_model::vm::CopyState;
use sterna_mover::hash::{PAGE_BYTES, Page};
use sterna_qemu::boot;
use sterna_qemu::version::Version;
use sterna_wire::assignment::{Carry, Outgoing, Owner, Role, VmAssignment};
use uuid::Uuid;
use world::{Host, disk, eventually, folder, name, order, own_disk, owns, qemu};

const UID: Uuid = Uuid::from_u128(7);
const TWIN: Uuid = Uuid::from_u128(17);
/// Of memory that is in use: 6 MB.
const PAGES: u32 = 1500;

#[test]
fn shim_entry() {
    world::shim_entry();
}

/// The guest runs on `a`.
struct Pair {
    a: Host,
    b: Host,
    _folder: tempfile::TempDir,
}

fn has_filled_its_memory(host: &Host, vm: Uuid) -> bool {
    std::fs::read(host.run_directory(vm).join("q/serial.log")).is_ok_and(|log| log.contains(&b'.'))
}

fn incoming(host: &Host) -> VmAssignment {
    let carry = Carry {
        session: Uuid::from_u128(4),
        peer: name("b"),
        disks: vec![],
        straight: false,
        siblings: vec![TWIN],
    };
    let (listen, machine) = ("127.0.0.1".parse().unwrap(), Box::new(host.machine()));
    let migration = name("m");
    order(
        UID,
        4,
        Role::Incoming {
            migration,
            machine,
            listen,
            carry: Some(carry),
            channels: None,
            in_clear: false,
            host_epoch: None,
        },
    )
}

fn sends(host: &Host, to: &str) -> VmAssignment {
    let carry = Carry {
        session: Uuid::from_u128(4),
        peer: name("b"),
        disks: vec![],
        straight: false,
        siblings: vec![],
    };
    let outgoing = Outgoing {
        migration: name("m"),
        to: to.parse().unwrap(),
        carry: Some(carry),
        line: None,
        max_downtime: Span::from_millis(300),
        cancel: false,
        seed: false,
    };
    owns(UID, 3, Owner { outgoing: Some(outgoing), ..host.owner() })
}

impl Pair {
    async fn new(qemu: &(PathBuf, Version)) -> Self {
        let folder = folder();
        let disk = disk(folder.path(), &boot::filler(PAGES));
        let own = own_disk(&disk, TWIN);
        std::fs::copy(&disk, &own).unwrap();
        std::fs::set_permissions(&own, std::fs::metadata(&disk).unwrap().permissions()).unwrap();
        let a = Host::start(&folder.path().join("a"), qemu, &disk);
        let b = Host::start(&folder.path().join("b"), qemu, &disk);
        a.order(vec![owns(UID, 3, a.owner())]);
        a.runs(UID, 3).await;
        eventually("the guest fills its memory", || has_filled_its_memory(&a, UID)).await;
        Self { a, b, _folder: folder }
    }

    /// Another guest of the same kind runs at the target.
    fn twin(&self) -> VmAssignment {
        owns(TWIN, 1, self.b.owner())
    }

    /// Until the guest is at the target, beside what is there; what its source has sent of it.
    async fn moved(&self, beside: Vec<VmAssignment>) -> u64 {
        let (a, b) = (&self.a, &self.b);
        let with = |own: VmAssignment| beside.iter().cloned().chain([own]).collect::<Vec<_>>();
        b.order(with(incoming(b)));
        let listens = || match b.side(UID) {
            Some(SideState::Listening { at, .. }) => Some(at),
            _ => None,
        };
        eventually("the target listens", || listens().is_some()).await;
        a.order(vec![sends(a, &listens().unwrap())]);
        eventually("the source let go", || matches!(a.side(UID), Some(SideState::Released { .. }))).await;
        let Some(SideState::Released { outcome }) = a.side(UID) else { unreachable!() };
        a.order(vec![]);
        b.order(with(owns(UID, 4, Owner { continues: Some(name("m")), ..b.owner() })));
        b.runs(UID, 4).await;
        a.order(vec![order(UID, 3, Role::Release)]);
        eventually("the source is gone", || is_gone(a, UID)).await;
        outcome.bytes.as_u64()
    }

    /// Whether all that the guest wrote is in its memory at the target.
    fn has_arrived(&self) -> bool {
        let memory = GuestMemory::open(self.b.qemu_process(UID)).unwrap();
        let mut there = HashSet::new();
        let keep = |page: &Page| {
            there.insert(*page);
            true
        };
        memory.pages(keep).unwrap();
        boot::filling().take(PAGES as usize).all(|page| there.contains(&page))
    }

    async fn end(self) {
        let b = &self.b;
        let ours: Vec<_> = [UID, TWIN].into_iter().filter_map(|vm| Some((vm, b.report(vm)?.epoch))).collect();
        b.order(ours.iter().map(|(vm, epoch)| order(*vm, *epoch, Role::Release)).collect());
        for (vm, _) in ours {
            eventually("the last copy is gone", || is_gone(b, vm)).await;
        }
    }
}

fn is_gone(host: &Host, vm: Uuid) -> bool {
    host.state(vm).is_none_or(|state| matches!(state, CopyState::Stopped { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sibling_has_in_memory_is_not_sent_and_arrives_all_the_same() {
    for qemu in [7, 10].into_iter().filter_map(qemu) {
        let alone = Pair::new(&qemu).await;
        // A sibling that has gone since the server knew of it.
        let whole = alone.moved(vec![]).await;
        assert!(alone.has_arrived());
        alone.end().await;
        assert!(
            whole > u64::from(PAGES) * PAGE_BYTES as u64 / 2,
            "{whole} bytes: the guest's memory is not what it should be"
        );
        let pair = Pair::new(&qemu).await;
        pair.b.order(vec![pair.twin()]);
        pair.b.runs(TWIN, 1).await;
        eventually("the sibling fills its memory", || has_filled_its_memory(&pair.b, TWIN)).await;
        let rest = pair.moved(vec![pair.twin()]).await;
        assert!(pair.has_arrived());
        assert!(rest < whole / 8, "{rest} of {whole} bytes");
        let left = std::fs::read_dir(pair.b.folder().join("data/checkpoints")).unwrap();
        let scratch =
            left.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("scratch"));
        assert_eq!(scratch.count(), 0, "a file of the sibling's memory is left");
        pair.end().await;
    }
}
