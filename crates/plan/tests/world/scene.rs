//! States that many tests begin with: a VM that runs, and each step of its move.

use sterna_base::units::Bytes;
use sterna_model::host::LinkState;
use sterna_model::key::{Key, Kind};
use sterna_model::migration::{Outcome, Phase, SideState};
use sterna_model::vm::{CopyState, Exit};
use sterna_plan::status;

use super::{World, name};

pub fn stopped(exit: Exit) -> CopyState {
    CopyState::Stopped { exit }
}

pub fn crash() -> CopyState {
    stopped(Exit::Crashed { why: "signal 9".into() })
}

pub fn message(world: &World, vm: &str) -> String {
    status::vm(&world.view, &name(vm), world.now).expect("the VM is there").message
}

/// `web` runs on a1; a2 is smaller.
pub fn running() -> World {
    let mut world =
        World::new().host("a1", Bytes::gib(8)).host("a2", Bytes::gib(4)).vm("web", Bytes::mib(64));
    world.all_run();
    assert_eq!(world.owner("web"), ("a1".into(), 1));
    world
}

pub fn preparing() -> World {
    let mut world = running();
    world.migrate("m", "web", Some("a2"));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Preparing);
    world
}

pub fn copying() -> World {
    let mut world = preparing();
    let listening = SideState::Listening { at: "10.0.0.12:4000".into(), line: None };
    world.report_side("web", "a2", 2, CopyState::Incoming, Some(("m", listening)));
    world.settle();
    world.report_side("web", "a1", 1, CopyState::Running, Some(("m", SideState::Sending)));
    world.settle();
    world
}

pub fn resuming() -> World {
    let mut world = copying();
    let released = SideState::Released { outcome: Outcome::default() };
    world.report_side("web", "a1", 1, CopyState::Paused { why: "sent".into() }, Some(("m", released)));
    world.settle();
    assert_eq!(world.phase("m"), Phase::Resuming { epoch: 2 });
    world
}

pub fn remove_host(world: &mut World, host: &str) {
    world.remove(Key::spec(Kind::Host, &name(host)));
    world.remove(Key::report(Kind::Host, &name(host)));
    world.settle();
}

pub fn silence(world: &mut World, host: &str) {
    world.report_host(host, |report| report.link = LinkState::Silent);
    world.settle();
}
