//! What users see of a VM: one row for each way to get there.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sterna_model::health::CheckState;
use sterna_model::meta::{Meta, Name};
use sterna_model::status::{Columns, VmState, VmStatus, pending, status};
use sterna_model::vm::{VmDecision, VmReport, VmSpec};

struct Case {
    deleting: bool,
    spec: Value,
    decision: Option<Value>,
    report: Option<Value>,
    connected: bool,
    migrating: bool,
    unplaced: Option<&'static str>,
}

/// Asked to run on host a1 under epoch 2, and nothing heard yet.
fn ordered() -> Case {
    Case {
        deleting: false,
        spec: json!({ "power": "running", "power_request": 1 }),
        decision: Some(decision()),
        report: None,
        connected: true,
        migrating: false,
        unplaced: None,
    }
}

fn decision() -> Value {
    json!({
        "owner": { "host": "a1", "epoch": 2 }, "power_request": 1, "since": "2026-11-22T12:00:00Z", "why": "x",
        "hardware": {
            "machine": "pc-q35-10.0", "cpu_model": "qemu64", "accel": "tcg", "cpus": 1, "memory": "256MiB",
            "volumes": [], "nics": [],
        },
    })
}

fn said(state: Value) -> Option<Value> {
    Some(json!({ "epoch": 2, "state": state, "since": "2026-11-22T12:00:00Z" }))
}

fn ended(exit: Value) -> Option<Value> {
    let mut state = json!({ "state": "stopped" });
    state["exit"] = exit;
    said(state)
}

fn shown(case: Case) -> (VmState, String) {
    let status = of(case);
    (status.state, status.message)
}

fn of(case: Case) -> VmStatus {
    let deleting = case.deleting.then_some("2026-11-22T12:00:00Z");
    let meta = json!({
        "name": "web", "uid": "00000000-0000-0000-0000-000000000001", "created": "2026-11-22T12:00:00Z", "deleting": deleting,
    });
    let meta: Meta = serde_json::from_value(meta).unwrap();
    let spec: VmSpec = serde_json::from_value(case.spec).unwrap();
    let decision: Option<VmDecision> = case.decision.map(|value| serde_json::from_value(value).unwrap());
    let report = case.report.map(|value| serde_json::from_value::<VmReport>(value).unwrap());
    let reports: BTreeMap<_, _> = report.into_iter().map(|row| (Name::new("a1").unwrap(), row)).collect();
    status(Columns {
        meta: &meta,
        spec: &spec,
        decision: decision.as_ref(),
        reports: &reports,
        owner_connected: case.connected,
        migrating: case.migrating,
        unplaced_why: case.unplaced,
    })
}

fn is(case: Case, state: VmState, message: &str) {
    assert_eq!(shown(case), (state, message.to_owned()));
}

fn stopped_asked() -> Value {
    json!({ "power": "stopped", "power_request": 1 })
}

#[test]
fn before_it_was_placed() {
    is(Case { decision: None, ..ordered() }, VmState::Placing, "waits for a host");
    let unplaced = Some("no host fits");
    is(Case { decision: None, unplaced, ..ordered() }, VmState::Placing, "no host fits");
    is(Case { decision: None, spec: stopped_asked(), ..ordered() }, VmState::Stopped, "never started");
}

#[test]
fn while_its_host_has_not_answered() {
    is(ordered(), VmState::Starting, "ordered from host a1");
    is(Case { spec: stopped_asked(), ..ordered() }, VmState::Stopped, "ordered from host a1");
    let mut older = said(json!({ "state": "running" }));
    older.as_mut().unwrap()["epoch"] = json!(1);
    is(Case { report: older, ..ordered() }, VmState::Starting, "ordered from host a1");
}

#[test]
fn silence_hides_what_may_have_changed_and_only_that() {
    let running = || said(json!({ "state": "running" }));
    is(Case { connected: false, ..ordered() }, VmState::Unknown, "host a1 is silent");
    is(Case { connected: false, report: running(), ..ordered() }, VmState::Unknown, "host a1 is silent");
    is(
        Case { connected: false, report: running(), migrating: true, ..ordered() },
        VmState::Unknown,
        "host a1 is silent",
    );
    let ended = ended(json!({ "exit": "guest-shutdown" }));
    is(Case { connected: false, report: ended, ..ordered() }, VmState::Stopped, "the guest shut itself down");
}

#[test]
fn deletion_hides_everything_else() {
    is(Case { deleting: true, connected: false, ..ordered() }, VmState::Deleting, "being deleted");
    is(Case { deleting: true, decision: None, ..ordered() }, VmState::Deleting, "being deleted");
}

#[test]
fn what_the_copy_does_when_it_should_run() {
    let copy = |state| Case { report: said(state), ..ordered() };
    is(
        copy(json!({ "state": "starting", "step": "waits for disks" })),
        VmState::Starting,
        "waits for disks on host a1",
    );
    is(copy(json!({ "state": "running" })), VmState::Running, "on host a1");
    is(copy(json!({ "state": "paused", "why": "disk full" })), VmState::Paused, "disk full");
    is(copy(json!({ "state": "shutting-down" })), VmState::Stopping, "the guest was asked to shut down");
    is(copy(json!({ "state": "incoming" })), VmState::Migrating, "arriving on host a1");
    let moving = Case { migrating: true, ..copy(json!({ "state": "running" })) };
    is(moving, VmState::Migrating, "on host a1");
}

#[test]
fn what_the_copy_does_when_it_should_stop() {
    let copy = |state| Case { report: said(state), spec: stopped_asked(), ..ordered() };
    is(copy(json!({ "state": "running" })), VmState::Stopping, "about to be stopped");
    is(copy(json!({ "state": "paused", "why": "as asked" })), VmState::Stopping, "about to be stopped");
}

#[test]
fn how_it_ended() {
    let end = |exit| Case { report: ended(exit), ..ordered() };
    is(end(json!({ "exit": "guest-shutdown" })), VmState::Stopped, "the guest shut itself down");
    is(end(json!({ "exit": "requested", "forced": false })), VmState::Stopped, "stopped as asked");
    is(end(json!({ "exit": "requested", "forced": true })), VmState::Stopped, "switched off as asked");
    is(end(json!({ "exit": "crashed", "why": "signal 9" })), VmState::Failed, "qemu ended: signal 9");
    is(
        end(json!({ "exit": "start-failed", "why": "no tap" })),
        VmState::Failed,
        "could not be started: no tap",
    );
    is(end(json!({ "exit": "lost" })), VmState::Failed, "its host restarted");
    is(end(json!({ "exit": "released" })), VmState::Failed, "another host owns it");
    let moving = Case { migrating: true, ..end(json!({ "exit": "lost" })) };
    is(moving, VmState::Failed, "its host restarted");
}

#[test]
fn an_end_is_no_failure_when_it_should_not_run() {
    let end = |exit| Case { report: ended(exit), spec: stopped_asked(), ..ordered() };
    is(end(json!({ "exit": "crashed", "why": "signal 9" })), VmState::Stopped, "qemu ended: signal 9");
    is(end(json!({ "exit": "lost" })), VmState::Stopped, "its host restarted");
}

#[test]
fn asked_again_after_an_end_it_waits_for_a_host() {
    let spec = json!({ "power": "running", "power_request": 2 });
    let case = Case { report: ended(json!({ "exit": "guest-shutdown" })), spec, ..ordered() };
    is(case, VmState::Placing, "waits for a host");
}

#[test]
fn what_waits_for_the_next_start() {
    let decision: VmDecision = serde_json::from_value(decision()).unwrap();
    let waits = |spec| pending(&serde_json::from_value(spec).unwrap(), &decision);
    assert!(waits(json!({ "cpus": 1, "memory": "256MiB" })).is_empty());
    assert!(waits(json!({ "cpus": 1, "memory": 268_439_552 })).is_empty(), "a page is no wish of the user");
    let all = json!({ "cpus": 2, "memory": "1GiB", "volumes": ["d"], "nics": [{ "network": "n" }] });
    let words = ["cpus 1 -> 2", "memory 256MiB -> 1GiB", "volumes changed", "nics changed"];
    assert_eq!(waits(all.clone()), words);
    let mut off = all;
    off["power"] = json!("stopped");
    assert!(waits(off).is_empty(), "the next start takes everything");
}

#[test]
fn trouble_of_a_guest_whose_process_is_well_is_told() {
    let running = |health: Value| {
        json!({
            "epoch": 2, "state": { "state": "running" }, "since": "2026-11-22T12:00:00Z", "health": health,
        })
    };
    let seen = |health: Value| of(Case { report: Some(running(health)), ..ordered() });
    let check = |state: &str| json!({ "check": "tcp :22", "state": state, "why": "refused" });
    let status = seen(json!({}));
    assert_eq!((status.message.as_str(), status.health), ("on host a1", None));
    let status = seen(json!({ "checks": [check("healthy"), check("starting")] }));
    assert_eq!((status.message.as_str(), status.health), ("on host a1", Some(CheckState::Starting)));
    let status = seen(json!({ "checks": [check("unhealthy"), check("healthy")] }));
    assert_eq!(status.message, "on host a1; check tcp :22 fails: refused");
    assert_eq!((status.state, status.health), (VmState::Running, Some(CheckState::Unhealthy)));
    let status = seen(json!({ "resets": 3, "quarantine": "the guest crashed, after 3 resets in an hour" }));
    assert!(status.message.contains("quarantined: the guest crashed, after 3 resets"), "{}", status.message);
}
