//! What resets the host when its guard cannot.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::shell::config::WatchdogKind;

/// The last second of W is for the reset itself and for what is on the wire to the storage.
const RESET_TAKES: Duration = Duration::from_secs(1);

/// The host is reset unless it is fed.
pub trait Watchdog {
    /// From now on at most `timeout` after it was last fed. Feeds it as well.
    fn program(&mut self, timeout: Duration) -> anyhow::Result<()>;
    fn feed(&mut self) -> anyhow::Result<()>;
    /// Turns it off, for good. Only when no VM of this host could be started elsewhere.
    fn disarm(&mut self) -> anyhow::Result<()>;
    /// For people, and for the choice of what this host may offer.
    fn kind(&self) -> &'static str;
}

#[must_use]
pub fn open(kind: &WatchdogKind) -> Box<dyn Watchdog> {
    match kind {
        WatchdogKind::None => Box::new(NoWatchdog),
        WatchdogKind::Device(path) => Box::new(DeviceWatchdog { path: path.clone(), device: None }),
        WatchdogKind::Fake(path) => Box::new(FakeWatchdog { supervisor: path.clone(), socket: None }),
    }
}

/// Best effort: the guard alone.
struct NoWatchdog;

impl Watchdog for NoWatchdog {
    fn program(&mut self, _timeout: Duration) -> anyhow::Result<()> {
        Ok(())
    }

    fn feed(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn disarm(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn kind(&self) -> &'static str {
        "none"
    }
}

/// A watchdog of the kernel. Opened when it is first programmed, because opening feeds it. Never closed with the magic
/// letter but by `disarm`: when this process ends, the countdown goes on, and its successor has until then.
struct DeviceWatchdog {
    path: PathBuf,
    device: Option<File>,
}

/// `_IOWR('W', 6, int)` and `_IOR('W', 5, int)` of `linux/watchdog.h`.
const WDIOC_SETTIMEOUT: u32 = 0xc004_5706;
const WDIOC_KEEPALIVE: u32 = 0x8004_5705;
/// What a driver takes for "closed on purpose".
const MAGIC: &[u8] = b"V";

impl DeviceWatchdog {
    fn device(&mut self) -> anyhow::Result<&mut File> {
        if self.device.is_none() {
            let opened = OpenOptions::new().write(true).open(&self.path);
            self.device = Some(opened.with_context(|| format!("open {}", self.path.display()))?);
        }
        self.device.as_mut().context("it was opened above")
    }
}

impl Watchdog for DeviceWatchdog {
    fn program(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let seconds = device_seconds(timeout)?;
        let mut given: libc::c_int = seconds;
        control(self.device()?, WDIOC_SETTIMEOUT, &mut given).context("set the watchdog's time-out")?;
        // Drivers round, some of them up.
        anyhow::ensure!(
            given <= seconds,
            "the watchdog makes {given} s of {seconds} s: too long for this profile"
        );
        Ok(())
    }

    fn feed(&mut self) -> anyhow::Result<()> {
        let mut nothing = 0;
        control(self.device()?, WDIOC_KEEPALIVE, &mut nothing).context("feed the watchdog")
    }

    fn disarm(&mut self) -> anyhow::Result<()> {
        let Some(mut device) = self.device.take() else { return Ok(()) };
        device.write_all(MAGIC).context("turn the watchdog off")
    }

    fn kind(&self) -> &'static str {
        "device"
    }
}

fn device_seconds(timeout: Duration) -> anyhow::Result<libc::c_int> {
    let seconds = timeout.saturating_sub(RESET_TAKES).as_secs();
    anyhow::ensure!(
        seconds >= 1,
        "watchdog {timeout:?} leaves the device {seconds} s; it needs one, and one more for the reset"
    );
    libc::c_int::try_from(seconds).context("the watchdog's time-out is too long")
}

fn control(device: &File, request: u32, value: &mut libc::c_int) -> anyhow::Result<()> {
    // SAFETY: both requests read and write one int, and `value` is one.
    let outcome = unsafe { libc::ioctl(device.as_raw_fd(), request as _, std::ptr::from_mut(value)) };
    if outcome < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}

/// A supervisor outside the host's cgroup that kills all of it W after the last pet. It is told in text:
/// `program MILLISECONDS`, `pet`, `disarm`. For labs, where no machine may be reset.
struct FakeWatchdog {
    supervisor: PathBuf,
    socket: Option<UnixDatagram>,
}

impl FakeWatchdog {
    fn tell(&mut self, text: &str) -> anyhow::Result<()> {
        let told = self.try_to_tell(text);
        if told.is_err() {
            // A supervisor that was started again has another socket.
            self.socket = None;
        }
        told.with_context(|| format!("tell {}", self.supervisor.display()))
    }

    fn try_to_tell(&mut self, text: &str) -> std::io::Result<()> {
        if self.socket.is_none() {
            self.socket = Some(connect(&self.supervisor)?);
        }
        match &self.socket {
            Some(socket) => socket.send(text.as_bytes()).map(|_| ()),
            None => Ok(()),
        }
    }
}

/// A supervisor that does not read must not stop its guard.
fn connect(path: &Path) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    Ok(socket)
}

impl Watchdog for FakeWatchdog {
    fn program(&mut self, timeout: Duration) -> anyhow::Result<()> {
        self.tell(&format!("program {}", timeout.as_millis()))
    }

    fn feed(&mut self) -> anyhow::Result<()> {
        self.tell("pet")
    }

    fn disarm(&mut self) -> anyhow::Result<()> {
        self.tell("disarm")
    }

    fn kind(&self) -> &'static str {
        "fake"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::profile::Profile;

    #[test]
    fn a_device_gets_a_second_less_and_refuses_what_leaves_it_none() {
        assert_eq!(device_seconds(Profile::QUICK.watchdog).unwrap(), 2);
        assert_eq!(device_seconds(Profile::STANDARD.watchdog).unwrap(), 4);
        assert!(device_seconds(Profile::FAST.watchdog).is_err());
    }

    #[test]
    fn the_fake_one_tells_its_supervisor_also_after_that_was_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wd");
        let mut watchdog = open(&WatchdogKind::Fake(path.clone()));
        assert!(watchdog.feed().is_err(), "nobody is there");
        for _ in 0..2 {
            let supervisor = UnixDatagram::bind(&path).unwrap();
            while watchdog.program(Duration::from_secs(3)).is_err() {}
            let mut text = [0; 64];
            let length = supervisor.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"program 3000");
            drop(supervisor);
            std::fs::remove_file(&path).unwrap();
        }
    }
}
