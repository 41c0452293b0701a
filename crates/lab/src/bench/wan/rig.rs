//! What the rows share: the line, guests that the other side has never seen, moves by Sterna and by hand.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sterna_base::units::{Bytes, Span};
use sterna_client::migration::Migration;
use sterna_client::object::{Filter, New};
use sterna_client::vm::{Ask, Boot, Move, Vm};
use sterna_model::error::Code;
use sterna_model::meta::Name;
use sterna_model::migration::Phase;
use sterna_model::pool::{PoolKind, PoolSpec};
use tokio::time::{sleep, timeout};

use super::load::{self, Load};
use crate::bench::plain::{self, Hand, Machine, Style, Terms};
use crate::bench::world::World;
use crate::place::{Host, Pair};
use crate::user::{self, User};
use crate::wan::{self, Order, Settings};

/// A line between two datacentres.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Path {
    pub rtt_ms: u64,
    pub mbit_s: u64,
    pub loss: f64,
}

impl Path {
    /// Reference case R.
    pub const R: Path = Path { rtt_ms: 80, mbit_s: 80, loss: 0.0 };
    /// For what is not measured.
    const FAST: Path = Path { rtt_ms: 2, mbit_s: 1000, loss: 0.0 };

    fn settings(self) -> Settings {
        let bits = self.mbit_s * 1_000_000;
        Settings {
            up: true,
            delay_us: self.rtt_ms * 500,
            jitter_us: 0,
            rate_bits: Some(bits),
            loss: self.loss,
            // What one round trip holds, as routers are commonly set; a short line still takes a burst.
            queue_bytes: (bits / 8 * self.rtt_ms / 1000).max(256 << 10),
        }
    }
}

/// One move, whoever made it. What a move that was given up would have had is not a number.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub seconds: f64,
    /// The longest silence that the client saw.
    pub gap_ms: f64,
    /// As the one who moved it measured it.
    pub pause_ms: f64,
    /// On the line, both directions, headers included.
    pub bytes: f64,
    pub is_done: bool,
}

/// What is seen of a move from outside.
pub struct Watched {
    pub seconds: f64,
    /// On the line, both directions, headers included.
    pub bytes: f64,
    /// The longest silence that the client saw.
    pub gap_ms: f64,
}

/// A VM, and where its echo is.
pub struct Guest {
    pub vm: Vm,
    pub address: Ipv4Addr,
}

impl Guest {
    pub fn name(&self) -> &Name {
        self.vm.name()
    }
}

/// Its twin is stopped at Sterna and moved by hand.
pub struct ByHand {
    pub guest: Guest,
    pub hand: Hand,
}

pub const MEMORY: Bytes = Bytes::mib(512);
/// The longest pause asked for, of both.
pub const PAUSE: Span = Span::from_millis(300);
/// By hand a move is given up after this.
pub const PATIENCE: Duration = Duration::from_secs(150);
/// Sterna's may take longer, but not for ever.
const STERNA_PATIENCE: Duration = Duration::from_secs(900);
/// After the guest is back, before the client stops.
const SETTLE: Duration = Duration::from_secs(2);
/// A guest first fills its working set, with a whole CPU: what is measured is the load after it.
const WORK_IN: Duration = Duration::from_secs(3);
/// To begin with its load takes an emulated guest longer than a request may.
const BEGIN: Duration = Duration::from_secs(180);
/// In a shared folder that hosts of both datacentres see: its volumes stay where they are.
pub const POOL: &str = "everywhere";

#[derive(Clone, Copy)]
pub struct Rig<'a> {
    pub world: &'a World,
    /// Where guests begin, in the first datacentre.
    pub home: Host,
    /// Where they go to, in the other.
    pub away: Host,
    /// Where the client is: another host of the datacentre that is left.
    pub client: Host,
    /// How large guests' disks are; absent: as their image.
    disk: Option<Bytes>,
    line: Pair,
}

impl<'a> Rig<'a> {
    pub async fn set_up(world: &'a World) -> Result<Self> {
        let line = world.lab.pair(None)?;
        let [near, far] = line.ends();
        let mut near = Host::of(near);
        let home = near.next().context("no host")?;
        let client = near.next().context("no second host")?;
        let away = Host::of(far).next().context("no host on the other side")?;
        let rig = Self { world, home, away, client, disk: None, line };
        rig.path(Path::FAST)?;
        world.user.ensure_image(&Name::new("tiny")?, &world.image).await?;
        std::fs::create_dir_all(rig.pool()).context("make the pool that both datacentres see")?;
        rig.ensure_pool(POOL, PoolKind::SharedDir { path: rig.pool().display().to_string() }).await?;
        Ok(rig)
    }

    /// One of everybody's, unless it is there.
    pub async fn ensure_pool(&self, name: &str, kind: PoolKind) -> Result<()> {
        let spec = PoolSpec { kind, datacentre: None, default: false };
        match self.user().client.pools().create(&New::named(Name::new(name)?, spec)).await {
            Err(error) if !error.is(Code::AlreadyExists) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The same with the client on the other side, on a host that no guest goes to.
    pub fn seen_from_ahead(self) -> Result<Self> {
        let mut ahead = Host::of(self.away.site);
        let client = ahead.find(|host| *host != self.away).context("no second host on the other side")?;
        Ok(Self { client, ..self })
    }

    /// The same with guests whose disks are so large.
    #[must_use]
    pub fn with_disks_of(self, size: Bytes) -> Self {
        Self { disk: Some(size), ..self }
    }

    pub fn user(&self) -> &User {
        &self.world.user
    }

    pub fn pool(&self) -> PathBuf {
        self.world.lab.dir.join(POOL)
    }

    /// Makes the line so.
    pub fn path(&self, path: Path) -> Result<()> {
        wan::change(&self.world.lab.wan_socket(self.line), |settings| *settings = path.settings()).map(drop)
    }

    /// Makes the line one on which nothing takes long.
    pub fn fast(&self) -> Result<()> {
        self.path(Path::FAST)
    }

    /// Cuts the line, or mends it.
    pub fn connect(&self, is_up: bool) -> Result<()> {
        wan::change(&self.world.lab.wan_socket(self.line), |settings| settings.up = is_up).map(drop)
    }

    /// What went over the line so far.
    pub fn bytes(&self) -> Result<f64> {
        let state = wan::ask(&self.world.lab.wan_socket(self.line), &Order::Show)?;
        Ok(state.directions.values().map(|counters| counters.bytes as f64).sum())
    }

    /// Whatever an earlier row left behind, also one that failed.
    pub async fn clear(&self) -> Result<()> {
        self.path(Path::FAST)?;
        plain::clear(self.world).await;
        for vm in self.user().client.vms().list(&Filter::default()).await? {
            self.user().remove(vm.name()).await?;
        }
        Ok(())
    }

    /// A new VM whose memory alone moves: it runs at home, and nobody else has seen anything of it.
    pub async fn guest(&self, name: &str, memory: Bytes) -> Result<Guest> {
        self.guest_of(name, memory, ("tiny", Some(POOL))).await
    }

    /// The same of another image, in another pool; `None`: in its datacentre's own.
    pub async fn guest_of(
        &self,
        name: &str,
        memory: Bytes,
        (image, pool): (&str, Option<&str>),
    ) -> Result<Guest> {
        let ask = Ask { image: Some(Name::new(image)?), memory: Some(memory), ..Ask::default() };
        let guest = self.make(name, ask, pool).await?;
        self.world.guest_answers(self.client, guest.address).await?;
        Ok(guest)
    }

    /// A VM at home, as it is asked for; whether its guest answers yet is for who asks.
    pub async fn make(&self, name: &str, ask: Ask, pool: Option<&str>) -> Result<Guest> {
        let boot = Boot { pool: pool.map(Name::new).transpose()?, size: self.disk };
        let vm = self.user().make_on(self.home, New::named(Name::new(name)?, ask), &boot).await?;
        let address = user::address(&vm)?;
        Ok(Guest { vm, address })
    }

    /// A guest like [`Rig::guest`] that is not Sterna's: QEMU runs it at home, started by hand.
    pub async fn by_hand(&self, name: &str, memory: Bytes) -> Result<ByHand> {
        self.by_hand_of(name, memory, "tiny").await
    }

    /// The same of another image.
    pub async fn by_hand_of(&self, name: &str, memory: Bytes, image: &str) -> Result<ByHand> {
        let (guest, machine, places) = self.twin(name, memory, image).await?;
        let hand = Hand::boot(machine, places).await?;
        self.world.guest_answers(self.client, guest.address).await?;
        Ok(ByHand { guest, hand })
    }

    /// A VM that is stopped again, and what somebody else needs to run its guest at home and away.
    pub async fn twin(
        &self,
        name: &str,
        memory: Bytes,
        image: &str,
    ) -> Result<(Guest, Machine, [plain::Place; 2])> {
        let guest = self.guest_of(name, memory, (image, Some(POOL))).await?;
        let stopped = self.user().client.vms().stop(guest.name(), true).await?;
        self.user().done(&stopped).await?;
        let hosts = [self.home, self.away];
        let (machine, places) = plain::twin(self.world, &guest.vm, &self.pool(), hosts).await?;
        Ok((guest, machine, places))
    }

    /// Lets the guest do this, and waits until it does.
    pub async fn load(&self, guest: &Guest, load: Load<'_>) -> Result<()> {
        for path in load {
            self.tell(guest, path).await?;
        }
        sleep(WORK_IN).await;
        Ok(())
    }

    async fn tell(&self, guest: &Guest, path: &str) -> Result<()> {
        let asked = self.world.ask_guest(self.client, guest.address, path).await;
        if !load::is_slow(path) {
            return asked.map(drop);
        }
        // The guest goes on when its answer is too late. It may answer no question about it meanwhile.
        let until = Instant::now() + BEGIN;
        loop {
            let state = self.state(guest).await;
            if state.is_ok_and(|state| load::is_under_way(path, &state)) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the guest does not do {path}: {asked:?}");
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// What the guest says of itself.
    pub async fn state(&self, guest: &Guest) -> Result<load::State> {
        let text = self.world.ask_guest(self.client, guest.address, "/state").await?;
        serde_json::from_str(&text).context("understand the guest")
    }

    /// Sterna moves it; whoever asks for it fails when it does not arrive.
    pub async fn by_sterna(&self, guest: &Guest, to: Host) -> Result<Sample> {
        self.by_sterna_while(guest, to, async { Ok(()) }).await
    }

    /// Something happens meanwhile.
    pub async fn by_sterna_while(
        &self,
        guest: &Guest,
        to: Host,
        meanwhile: impl Future<Output = Result<()>>,
    ) -> Result<Sample> {
        let moving = async {
            let (arrived, disturbed) = tokio::join!(self.arrive(guest, to), meanwhile);
            disturbed?;
            arrived
        };
        let (moved, Watched { seconds, bytes, gap_ms }) = self.watched(guest.address, moving).await?;
        let outcome = moved.decision.and_then(|decision| decision.outcome).unwrap_or_default();
        let pause_ms = outcome.downtime.map_or(f64::NAN, |span| span.as_millis() as f64);
        Ok(Sample { seconds, gap_ms, pause_ms, bytes, is_done: true })
    }

    /// Sterna's move itself.
    pub async fn arrive(&self, guest: &Guest, to: Host) -> Result<Migration> {
        let order = Move { to: Some(Name::new(&to.name())?), max_downtime: Some(PAUSE), ..Move::default() };
        let moving = self.user().migrate(guest.name(), &order, |_, _| ());
        let moved = timeout(STERNA_PATIENCE, moving).await.context("the move does not end")??;
        let arrived = user::phase(&moved) == Some(&Phase::Succeeded);
        ensure!(arrived, "the VM did not arrive: {:?}", user::phase(&moved));
        Ok(moved)
    }

    /// Looks at the guest and at the line while it moves, whoever moves it.
    pub async fn watched<T>(
        &self,
        guest: Ipv4Addr,
        moving: impl Future<Output = Result<T>>,
    ) -> Result<(T, Watched)> {
        let probes = self.world.probes(self.client, guest, false).await?;
        let (before, began) = (self.bytes()?, Instant::now());
        let moved = moving.await?;
        let (seconds, bytes) = (began.elapsed().as_secs_f64(), self.bytes()? - before);
        sleep(SETTLE).await;
        let seen = tokio::task::spawn_blocking(move || probes.finish()).await??;
        Ok((moved, Watched { seconds, bytes, gap_ms: seen.udp.context("no echo")?.gap_ms }))
    }

    /// The same by hand.
    pub async fn move_by_hand(&self, by_hand: &mut ByHand, style: Style) -> Result<Sample> {
        self.move_by_hand_within(by_hand, style, PATIENCE).await
    }

    /// Given up sooner or later than usual.
    pub async fn move_by_hand_within(
        &self,
        by_hand: &mut ByHand,
        style: Style,
        patience: Duration,
    ) -> Result<Sample> {
        let terms = Terms { style, downtime_max: PAUSE.0, patience };
        let (guest, moving) = (by_hand.guest.address, by_hand.hand.migrate_on(terms));
        let (moved, Watched { seconds, bytes, gap_ms }) = self.watched(guest, moving).await?;
        Ok(match moved {
            Some(moved) => {
                let pause_ms = moved.downtime.as_secs_f64() * 1000.0;
                Sample { seconds, gap_ms, pause_ms, bytes, is_done: true }
            }
            None => Sample { seconds, gap_ms: f64::NAN, pause_ms: f64::NAN, bytes, is_done: false },
        })
    }

    /// Ends both the QEMU and the VM that it is the twin of.
    pub async fn end(&self, by_hand: ByHand) -> Result<()> {
        by_hand.hand.end().await?;
        self.user().remove(by_hand.guest.name()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_holds_a_round_trip_and_never_less_than_a_burst() {
        assert_eq!(Path::R.settings().queue_bytes, 800_000);
        assert_eq!(Path::R.settings().delay_us, 40_000);
        assert_eq!(Path { rtt_ms: 0, ..Path::R }.settings().queue_bytes, 256 << 10);
    }
}
