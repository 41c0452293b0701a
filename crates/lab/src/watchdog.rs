//! Plays the watchdog of a lab host, and is named so: no machine of a lab may be reset.
//!
//! It stands outside the host. When it has not been fed for as long as it was told, it kills every process of that host at once,
//! supervisors and guests among them, as a reset would. The host stays off until `sterna lab up`.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::member;
use crate::place::{Host, Lab};

/// The longest that a guard says.
const WORDS_MAX: usize = 64;

/// Where a host's guard finds its watchdog.
#[must_use]
pub fn socket(lab: &Lab, host: Host) -> PathBuf {
    lab.run_dir(host).join("watchdog.sock")
}

/// The role of the process.
#[must_use]
pub fn role(host: Host) -> String {
    format!("{}-watchdog", host.name())
}

#[derive(Debug, Default, PartialEq)]
struct Watchdog {
    timeout: Option<Duration>,
    fed: Option<Instant>,
}

impl Watchdog {
    /// `program MILLISECONDS`, `pet` or `disarm`; anything else changes nothing.
    fn on_words(&mut self, words: &str, now: Instant) {
        match words.split_once(' ').unwrap_or((words, "")) {
            ("program", millis) => match millis.parse() {
                Ok(millis) => (self.timeout, self.fed) = (Some(Duration::from_millis(millis)), Some(now)),
                Err(_) => tracing::warn!(words, "not a watchdog's words"),
            },
            ("pet", _) => self.fed = Some(now),
            ("disarm", _) => *self = Self::default(),
            _ => tracing::warn!(words, "not a watchdog's words"),
        }
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        let expires = self.fed? + self.timeout?;
        Some(expires.saturating_duration_since(now))
    }
}

/// Never ends by itself.
pub fn run(lab: &Lab, host: Host) -> Result<()> {
    let path = socket(lab, host);
    std::fs::create_dir_all(lab.run_dir(host)).context("make the host's run folder")?;
    sterna_base::file::remove_if_there(&path).context("remove an old socket")?;
    let socket = UnixDatagram::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
    let mut watchdog = Watchdog::default();
    let mut words = [0; WORDS_MAX];
    loop {
        let left = watchdog.left(Instant::now());
        if left.is_some_and(|left| left.is_zero()) {
            watchdog = Watchdog::default();
            let killed = member::kill_host(lab, host)?;
            tracing::warn!(host = host.name(), killed, "not fed in time: everything on this host was killed");
            continue;
        }
        socket.set_read_timeout(left).context("set the time to wait")?;
        match socket.recv(&mut words) {
            Ok(length) => watchdog.on_words(&String::from_utf8_lossy(&words[..length]), Instant::now()),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock
                        | std::io::ErrorKind::TimedOut
                        | std::io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error).context("listen to the guard"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_expires_only_while_it_is_armed_and_not_fed() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let mut watchdog = Watchdog::default();
        watchdog.on_words("pet", at(0));
        assert_eq!(watchdog.left(at(9999)), None, "not armed");
        watchdog.on_words("program 1000", at(0));
        assert_eq!(watchdog.left(at(400)), Some(Duration::from_millis(600)));
        watchdog.on_words("pet", at(900));
        assert_eq!(watchdog.left(at(1000)), Some(Duration::from_millis(900)));
        for nonsense in ["", "program", "program x", "feed"] {
            watchdog.on_words(nonsense, at(1000));
        }
        assert_eq!(watchdog.left(at(1900)), Some(Duration::ZERO));
        watchdog.on_words("disarm", at(1000));
        assert_eq!(watchdog.left(at(1900)), None);
    }
}
