//! Keys and settings of the guards on this machine: the host's own, the one beside a server, and the server as one that
//! speaks to guards.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sterna_base::file;
use sterna_cli::machine::InitArgs;
use sterna_control::fencer::{Fencer, Settings, Witness};
use sterna_guard::datagram::HostKey;
use sterna_guard::shell::request::Request;
use sterna_model::ha::{GuardKey, Peer};
use sterna_server::Config;
use sterna_server::config::Fencing;
use uuid::Uuid;

use crate::config;

/// Where guards hear each other; UDP.
pub const PORT: u16 = 7450;
/// Where a server hears voters; UDP.
const FENCER_PORT: u16 = 7451;
/// The private key of this machine's guard, in the data directory of the agent or the server.
pub const KEY: &str = "guard.key";
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);
/// What this server is to guards, in its data directory.
const FENCER: &str = "fencer.json";

/// A guard that is to be.
#[derive(Debug)]
pub struct Place<'a> {
    pub settings: &'a Path,
    pub host: Uuid,
    pub listen: SocketAddr,
    /// Keeps the key.
    pub data_dir: &'a Path,
    pub run_dir: &'a Path,
    pub watchdog: Option<&'a Path>,
}

/// The keys of `guard.toml` that this binary writes.
#[derive(Serialize)]
struct GuardSettings<'a> {
    host: Uuid,
    key: PathBuf,
    listen: [SocketAddr; 1],
    run_dir: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    watchdog: Option<Device<'a>>,
}

#[derive(Serialize)]
struct Device<'a> {
    device: &'a Path,
}

/// `guard.toml` in the directory of another settings file.
pub fn settings_beside(settings: &Path) -> Result<PathBuf> {
    Ok(config::absolute(settings)?.with_file_name("guard.toml"))
}

/// Makes the key, unless there is one, and writes the settings.
pub fn prepare(place: &Place<'_>) -> Result<()> {
    let key = place.data_dir.join(KEY);
    if !key.exists() {
        let text = HostKey::generate().and_then(|key| key.to_text()).context("make the guard's key")?;
        file::write_durably(&key, text.as_bytes(), 0o600)
            .with_context(|| format!("write {}", key.display()))?;
    }
    let watchdog = place.watchdog.map(|device| Device { device });
    let (host, listen, run_dir) = (place.host, [place.listen], place.run_dir);
    config::write(place.settings, &GuardSettings { host, key, listen, run_dir, watchdog })
}

/// What `server.toml` says of guards: by the address that hosts reach. Without such an address there are no leases.
pub fn fencing(args: &InitArgs, advertise: &str) -> Result<Option<Fencing>> {
    let Some(ip) = advertised(advertise) else { return Ok(None) };
    // Beside a host there is that host's guard.
    let witness = args.server_only.then(|| settings_beside(&args.config_out)).transpose()?;
    let agents = PathBuf::from(sterna_power::AGENTS);
    Ok(Some(Fencing { listen: SocketAddr::new(ip, FENCER_PORT), witness, agents }))
}

fn advertised(advertise: &str) -> Option<IpAddr> {
    let (host, _) = advertise.rsplit_once(':')?;
    host.trim_matches(['[', ']']).parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified())
}

/// The guard beside a server that is no host.
pub fn prepare_witness(args: &InitArgs, config: &Config) -> Result<()> {
    let Some(Fencing { listen, witness: Some(settings), .. }) = &config.fencing else { return Ok(()) };
    if settings.exists() {
        return Ok(());
    }
    prepare(&Place {
        settings,
        host: Uuid::new_v4(),
        listen: SocketAddr::new(listen.ip(), PORT),
        data_dir: &config.data_dir,
        run_dir: &config::absolute(&args.host.run_dir)?,
        watchdog: None,
    })
}

/// Returns the host's lease, so that its guard can end without the watchdog resetting the host. No VM is left under it.
pub fn release(settings: &Path) -> Result<()> {
    let Ok(config) = sterna_guard::Config::read(settings) else { return Ok(()) };
    let Ok(stream) = UnixStream::connect(config.socket()) else { return Ok(()) };
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut ask = |request: &Request| -> Result<serde_json::Value> {
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        (&stream).write_all(&text)?;
        loop {
            let line = lines.next().context("hear the guard")??;
            let said: serde_json::Value = serde_json::from_str(&line)?;
            if said.get("answer").is_some() {
                return Ok(said);
            }
        }
    };
    let until = Instant::now() + ANSWER_WITHIN;
    while Instant::now() < until {
        ask(&Request::Release {}).context("ask the guard to return the lease")?;
        let said = ask(&Request::Status {}).context("ask the guard for its lease")?;
        if said["guard"]["lease"]["state"] == "no-epoch" {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    bail!("the guard does not return the lease: something lives under it still")
}

/// What a server is to guards, as it keeps it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    id: Uuid,
    key: String,
}

/// The part of control that speaks to guards; `None` where the settings name no address for it.
pub fn fencer(config: &Config) -> Result<Option<Fencer>> {
    let Some(fencing) = &config.fencing else { return Ok(None) };
    ensure!(!fencing.listen.ip().is_unspecified(), "`fencing.listen` is the address by which hosts reach it");
    let kept = kept(&config.data_dir.join(FENCER))?;
    let key = HostKey::from_text(&kept.key).context("understand the server's key for guards")?;
    let peer = peer("server", &key, vec![fencing.listen])?;
    let witness = fencing.witness.as_deref().map(witness).transpose()?;
    let (listen, agents) = (fencing.listen, fencing.agents.clone());
    let settings = Settings { id: kept.id, key, listen, peer, witness, agents };
    Ok(Some(Fencer::open(settings)?))
}

fn kept(path: &Path) -> Result<Kept> {
    if let Some(text) = file::read_if_there(path).context("read the server's key for guards")? {
        return serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()));
    }
    let key =
        HostKey::generate().and_then(|key| key.to_text()).context("make the server's key for guards")?;
    let kept = Kept { id: Uuid::new_v4(), key };
    file::write_durably(path, &serde_json::to_vec(&kept)?, 0o600)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(kept)
}

fn witness(path: &Path) -> Result<Witness> {
    let config =
        sterna_guard::Config::read(path).context("read the settings of the guard beside the server")?;
    let text = std::fs::read_to_string(&config.key).context("read the key of the guard beside the server")?;
    let key = HostKey::from_text(&text).context("understand the key of the guard beside the server")?;
    let peer = peer("witness", &key, config.listen.clone())?;
    Ok(Witness { id: config.host, peer, socket: config.socket() })
}

fn peer(name: &str, key: &HostKey, addresses: Vec<SocketAddr>) -> Result<Peer> {
    let key = key.public().context("show a key")?;
    Ok(Peer { name: name.to_owned(), key: GuardKey::try_from(key.to_string())?, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_a_guard_reads() {
        let dir = tempfile::tempdir().unwrap();
        let settings = dir.path().join("guard.toml");
        let place = |watchdog| Place {
            settings: &settings,
            host: Uuid::from_u128(7),
            listen: "10.0.0.1:7450".parse().unwrap(),
            data_dir: dir.path(),
            run_dir: dir.path(),
            watchdog,
        };
        prepare(&place(None)).unwrap();
        let first = std::fs::read(dir.path().join(KEY)).unwrap();
        let read = sterna_guard::Config::read(&settings).unwrap();
        assert_eq!((read.host, read.listen.len()), (Uuid::from_u128(7), 1));
        prepare(&place(Some(Path::new("/dev/watchdog")))).unwrap();
        assert_eq!(std::fs::read(dir.path().join(KEY)).unwrap(), first, "a key is made once");
        let device = sterna_guard::shell::config::WatchdogKind::Device("/dev/watchdog".into());
        assert_eq!(sterna_guard::Config::read(&settings).unwrap().watchdog, device);
    }

    #[test]
    fn only_an_address_that_hosts_reach_is_one() {
        assert_eq!(advertised("10.0.0.1:7443"), "10.0.0.1".parse().ok());
        assert_eq!(advertised("[fd00::1]:7443"), "fd00::1".parse().ok());
        assert_eq!(advertised("0.0.0.0:7443"), None);
        assert_eq!(advertised("server.example:7443"), None);
    }

    #[test]
    fn a_server_is_the_same_to_guards_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FENCER);
        let first = kept(&path).unwrap();
        let again = kept(&path).unwrap();
        assert_eq!((first.id, first.key), (again.id, again.key));
    }
}
