//! A command that ends is started again; one that is asked to end is not.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command};
use std::time::{Duration, Instant};

struct Supervised {
    dir: tempfile::TempDir,
    child: Child,
}

impl Supervised {
    /// `script` finds a file name in `$0` that it may write to.
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sterna-lab"))
            .arg("supervise")
            .arg("--log")
            .arg(dir.path().join("log"))
            .args(["--", "sh", "-c", script])
            .arg(dir.path().join("out"))
            .spawn()
            .unwrap();
        Self { dir, child }
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("out")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self
            .child
            .try_wait()
            .map(|ended| ended.is_none().then(|| self.signal(rustix::process::Signal::TERM)));
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    began.elapsed()
}

#[test]
fn a_killed_command_is_back_within_a_fifth_of_a_second() {
    let supervised = Supervised::new("echo $$ >>$0; exec sleep 1000");
    eventually("it runs", || supervised.lines().len() == 1);
    let pid = supervised.lines()[0].parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let took = eventually("it runs again", || supervised.lines().len() == 2);
    assert!(took < Duration::from_millis(200), "{took:?}");
}

#[test]
fn a_request_to_end_reaches_the_command_and_ends_both() {
    let mut supervised =
        Supervised::new("trap 'echo asked >>$0; exit 7' TERM; echo up >>$0; while :; do sleep 0.01; done");
    eventually("it runs", || supervised.lines() == ["up"]);
    supervised.signal(rustix::process::Signal::TERM);
    assert_eq!(supervised.child.wait().unwrap().code(), Some(7));
    assert_eq!(supervised.lines(), ["up", "asked"]);
}

#[test]
fn a_command_that_ends_again_and_again_is_started_ever_more_slowly() {
    let supervised = Supervised::new("date +%s%N >>$0");
    eventually("eight runs", || supervised.lines().len() >= 8);
    let times: Vec<u64> = supervised.lines().iter().map(|line| line.parse().unwrap()).collect();
    let pauses: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]) / 1_000_000).collect();
    assert!(pauses[..4].iter().all(|pause| *pause < 250), "{pauses:?}");
    assert!(pauses[6] > 500, "{pauses:?}");
}
