use std::collections::BTreeMap;
use std::path::Path;

use sterna_model::fence::FenceDevice;
use sterna_model::host::{Addresses, HostSpec};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::{Labels, Meta, Object};
use uuid::Uuid;

use super::*;

/// The agents of `power`'s own tests; they switch nothing.
const AGENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../power/tests/agents");

fn name() -> Name {
    Name::new("a1").unwrap()
}

fn view(folder: &Path, plug: &str, id: u128) -> View {
    let ip = folder.to_str().unwrap().to_owned();
    let device = FenceDevice {
        id: Uuid::from_u128(id),
        agent: "fence_fake".to_owned(),
        options: BTreeMap::from([("ip".to_owned(), ip), ("plug".to_owned(), plug.to_owned())]),
        secrets: BTreeMap::new(),
        since: Default::default(),
    };
    let addresses = Addresses { management: [10, 0, 0, 1].into(), migration: None, storage: None };
    let spec = HostSpec {
        datacentre: Name::new("dc").unwrap(),
        cluster: Name::new("dc").unwrap(),
        addresses,
        cordoned: false,
        draining: false,
        confirmed_dead: None,
        fence: Some(device),
    };
    let meta = Meta {
        name: name(),
        uid: Uuid::from_u128(7),
        created: Default::default(),
        labels: Labels::new(),
        notes: String::new(),
        deleting: None,
    };
    let row = serde_json::to_vec(&Object { meta, spec }).unwrap();
    let mut view = View::default();
    view.apply(&Key::spec(Kind::Host, &name()).to_string(), Some(&row), 1);
    view
}

async fn heard(devices: &mut Devices) -> Said {
    while devices.heard().is_empty() {
        devices.changed().await;
    }
    devices.heard()[&name()].clone()
}

#[tokio::test]
async fn what_a_device_says_is_heard_under_the_order_that_it_was_asked_under() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("state"), "on").unwrap();
    let mut devices = Devices::new(AGENTS.into());
    let first = view(folder.path(), "1", 1);
    devices.learn(&first);
    let said = heard(&mut devices).await;
    assert_eq!(
        (said.order.clone(), said.outcome),
        (power::orders(&first)[&name()].clone(), Ok(PowerState::On))
    );

    // The same order stands: it is not asked again at once. Another device: what was said is forgotten.
    devices.learn(&first);
    assert_eq!(devices.heard().len(), 1);
    devices.learn(&view(folder.path(), "refuses", 2));
    assert!(devices.heard().is_empty());
    let said = heard(&mut devices).await;
    assert_eq!(said.order.device.id, Uuid::from_u128(2));
    assert!(said.outcome.unwrap_err().contains("cannot log in"));
    devices.rest();
    assert!(devices.heard().is_empty());
}

#[tokio::test]
async fn an_agent_that_hangs_ends_with_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut devices = Devices::new(AGENTS.into());
    devices.learn(&view(folder.path(), "hang", 1));
    let left = folder.path().join("left");
    let began = std::time::Instant::now();
    while !left.exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "the agent has not begun");
        tokio::task::yield_now().await;
    }
    devices.learn(&View::default());
    let pid = std::fs::read_to_string(&left).unwrap();
    let status = format!("/proc/{}/status", pid.trim());
    let runs = || std::fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ"));
    while runs() {
        assert!(began.elapsed() < Duration::from_secs(60), "it runs on");
        tokio::task::yield_now().await;
    }
}
