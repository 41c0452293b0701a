//! Real processes: agents that work, that are slow, that fail, hang, talk nonsense or lie. Each is `fence_fake` beside this file.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sterna_model::fence::{FenceDevice, PowerState, Secret};
use sterna_power::{Agents, Failed};
use tempfile::TempDir;
use uuid::Uuid;

const WITHIN: Duration = Duration::from_secs(20);

struct Machine {
    folder: TempDir,
    agents: Agents,
    device: FenceDevice,
}

impl Machine {
    fn new(state: &str, plug: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("state"), state).unwrap();
        let ip = folder.path().to_str().unwrap().to_owned();
        let options = BTreeMap::from([("ip".to_owned(), ip), ("plug".to_owned(), plug.to_owned())]);
        let secrets = BTreeMap::from([("password".to_owned(), Secret("geheim".to_owned()))]);
        let device = FenceDevice {
            id: Uuid::nil(),
            agent: "fence_fake".to_owned(),
            options,
            secrets,
            since: Default::default(),
        };
        let agents = Agents::in_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/agents"));
        Self { folder, agents, device }
    }

    async fn status(&self) -> Result<PowerState, Failed> {
        self.agents.status(&self.device, WITHIN).await
    }

    async fn switch_off(&self, within: Duration) -> Result<PowerState, Failed> {
        self.agents.switch_off(&self.device, within).await
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_machine_is_off_when_a_status_says_so_after_it_was_switched_off() {
    let machine = Machine::new("on", "1");
    assert_eq!(machine.status().await, Ok(PowerState::On));
    assert_eq!(machine.switch_off(WITHIN).await, Ok(PowerState::Off));
    assert_eq!(machine.log(), ["status", "off", "status"]);
}

#[tokio::test]
async fn off_already_counts_by_its_status_alone() {
    let machine = Machine::new("off", "cannot-off");
    assert_eq!(machine.switch_off(WITHIN).await, Ok(PowerState::Off));
    let on = Machine::new("on", "cannot-off");
    let Failed(why) = on.switch_off(WITHIN).await.unwrap_err();
    assert_eq!(why, "off: Failed: the plug is off already (it ended with 1)");
}

#[tokio::test]
async fn done_is_not_off() {
    let machine = Machine::new("on", "lies");
    assert_eq!(machine.switch_off(WITHIN).await, Ok(PowerState::On));
}

#[tokio::test]
async fn an_exit_status_without_its_words_says_nothing() {
    for plug in ["garbage", "both"] {
        let machine = Machine::new("off", plug);
        let Failed(why) = machine.status().await.unwrap_err();
        assert!(why.contains("ended with 2"), "{why}");
        assert!(machine.switch_off(WITHIN).await.is_err(), "{plug}");
    }
}

#[tokio::test]
async fn what_it_says_is_kept_short_and_without_secrets() {
    let Failed(why) = Machine::new("on", "refuses").status().await.unwrap_err();
    assert_eq!(why, "status: ERROR: cannot log in with -P (hidden) (it ended with 1)");
    assert_eq!(Machine::new("on", "flood").status().await, Ok(PowerState::On), "however much it says");
    let mut missing = Machine::new("on", "1");
    missing.device.agent = "fence_nowhere".to_owned();
    let Failed(why) = missing.status().await.unwrap_err();
    assert!(why.contains("fence_nowhere") && why.contains("install"), "{why}");
}

#[tokio::test]
async fn one_that_hangs_is_killed_in_time_with_what_it_started() {
    let machine = Machine::new("on", "hang");
    let began = Instant::now();
    let Failed(why) = machine.agents.status(&machine.device, Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(why, "status: no answer within 3 s");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(is_gone(&machine.folder.path().join("left")).await);
}

#[tokio::test]
async fn one_whose_off_hangs_is_asked_for_its_status_all_the_same() {
    let machine = Machine::new("off", "hang-off");
    assert_eq!(machine.switch_off(Duration::from_secs(3)).await, Ok(PowerState::Off));
    assert_eq!(machine.log(), ["off", "status"]);
}

#[tokio::test]
async fn one_that_nobody_waits_for_any_more_is_killed() {
    let machine = Machine::new("on", "hang");
    let left = machine.folder.path().join("left");
    {
        let asked = machine.status();
        tokio::pin!(asked);
        while !left.exists() {
            let look = tokio::time::timeout(Duration::from_millis(20), &mut asked);
            assert!(look.await.is_err(), "it hangs");
        }
    }
    assert!(is_gone(&left).await);
}

/// Whether the process whose number is in this file ends.
async fn is_gone(file: &Path) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    let pid = std::fs::read_to_string(file).unwrap();
    let status = format!("/proc/{}/status", pid.trim());
    while Instant::now() < until {
        // A zombie runs no more.
        let is_alive = std::fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ"));
        if !is_alive {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}
