//! What the rows share: two hosts of a datacentre under leases, guests whose marks are watched, hosts that come back.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sterna_base::units::Bytes;
use sterna_client::object::{Filter, New};
use sterna_client::vm::{Ask, Boot, Vm};
use sterna_model::ha::Profile;
use sterna_model::meta::Name;
use sterna_model::volume::VolumeDecision;
use sterna_qemu::boot::{self, ticker};
use tokio::time::sleep;

use super::referee::Referee;
use crate::bench::world::{World, until};
use crate::member::{self, Member};
use crate::place::Host;
use crate::say::Say;
use crate::up::{self, Wishes};
use crate::{topology, user};

/// The least that a VM may have.
const MEMORY: Bytes = Bytes::mib(16);
/// The guest that runs a service.
pub const SERVICE_MEMORY: Bytes = Bytes::mib(128);
/// Voters that start without a page of this boot are silent for half a minute, and hosts ask for a lease after that.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What is disturbed is disturbed at any moment of a renewal, not always at the same.
const ANY_MOMENT: Range<f64> = 0.0..2.0;

/// How often a guest marks its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// 18 times a second: a second copy would be seen at once.
    Close,
    /// Once a second, where there are many.
    Calm,
}

impl Pace {
    fn ticks(self) -> u16 {
        match self {
            Pace::Close => 1,
            Pace::Calm => 18,
        }
    }

    fn image(self) -> Result<Name> {
        Ok(Name::new(match self {
            Pace::Close => "ticker-close",
            Pace::Calm => "ticker-calm",
        })?)
    }
}

/// A VM whose guest marks its disk.
pub struct Guest {
    pub vm: Vm,
    /// The file of its disk.
    pub volume: PathBuf,
}

impl Guest {
    #[must_use]
    pub fn name(&self) -> &Name {
        self.vm.name()
    }
}

pub struct Rig<'a> {
    pub world: &'a World,
    /// Of the first datacentre, which has the server and a voter beside it.
    pub hosts: [Host; 2],
    /// In another datacentre: a client that nothing happens to.
    pub client: Host,
}

impl<'a> Rig<'a> {
    pub async fn set_up(world: &'a World) -> Result<Self> {
        let first = Host { site: world.lab.home(), number: 1 };
        let client = world.lab.hosts().find(|host| host.site != first.site).context("no other datacentre")?;
        let rig = Self { world, hosts: [first, world.neighbour(first)?], client };
        for pace in [Pace::Close, Pace::Calm] {
            let image = pace.image()?;
            let file = world.lab.dir.join(format!("{image}.raw"));
            boot::write_disk(&file, &ticker::ticker(pace.ticks()), 1 << 20).context("write the guest")?;
            world.user.ensure_image(&image, &file).await?;
        }
        world.user.ensure_image(&Name::new("tiny")?, &world.image).await?;
        Ok(rig)
    }

    /// Whatever an earlier row left, also one that failed: everything runs again, and there are no VMs.
    pub async fn clear(&self) -> Result<()> {
        let lab = self.world.lab.clone();
        let again = move || -> Result<()> {
            up::start_server(&lab)?;
            for host in lab.hosts() {
                topology::cable(&lab, host, true)?;
                up::start_host(&lab, host, Wishes::default(), Say::Nothing)?;
            }
            Ok(())
        };
        tokio::task::spawn_blocking(again).await??;
        let user = &self.world.user;
        until(PATIENCE, "the server to answer", async || Ok(user.client.health().await.is_ok())).await?;
        for vm in user.client.vms().list(&Filter::default()).await? {
            user.remove(vm.name()).await?;
        }
        Ok(())
    }

    /// Leases last so long, and both hosts hold one.
    pub async fn protect(&self, profile: Profile) -> Result<()> {
        let datacentre = Name::new(&self.hosts[0].site.letter().to_string())?;
        self.world.user.set_profile(&datacentre, profile).await?;
        self.protected(profile).await
    }

    /// Waits until both hosts hold a lease. The voter of one that has just started is silent until then.
    pub async fn protected(&self, profile: Profile) -> Result<()> {
        for host in self.hosts {
            let (user, name) = (&self.world.user, Name::new(&host.name())?);
            let what = format!("host {name} to hold a lease");
            until(PATIENCE, &what, async || user.holds_lease(&name, profile).await).await?;
        }
        Ok(())
    }

    /// A guest that marks its disk; on this host, or where there is room.
    pub async fn guest(&self, name: &str, pace: Pace, host: Option<Host>) -> Result<Guest> {
        let ask = Ask { image: Some(pace.image()?), memory: Some(MEMORY), ..Ask::default() };
        let vm = self.make(name, ask, host).await?;
        let volume = self.volume(&vm).await?;
        Ok(Guest { vm, volume })
    }

    /// A VM that serves.
    pub async fn service(&self, name: &str, host: Host) -> Result<Vm> {
        let ask = Ask { image: Some(Name::new("tiny")?), memory: Some(SERVICE_MEMORY), ..Ask::default() };
        let vm = self.make(name, ask, Some(host)).await?;
        self.world.guest_answers(self.client, user::address(&vm)?).await?;
        Ok(vm)
    }

    async fn make(&self, name: &str, ask: Ask, host: Option<Host>) -> Result<Vm> {
        let (user, new) = (&self.world.user, New::named(Name::new(name)?, ask));
        if let Some(host) = host {
            return user.make_on(host, new, &Boot::default()).await;
        }
        user.done(&user.client.vms().create(&new).await?).await?;
        user.running(&new.name).await
    }

    async fn volume(&self, vm: &Vm) -> Result<PathBuf> {
        let hardware = &vm.decision.as_ref().context("the VM has no host")?.hardware;
        let name = hardware.volumes.first().context("the VM has no disk")?;
        let volume = self.world.user.client.volumes().get(name).await?;
        let decision: VolumeDecision = volume.decision.context("the volume is nowhere")?;
        let pool = self.world.user.client.pools().get(&decision.pool).await?;
        let folder = PathBuf::from(pool.spec.kind.path()).join("volumes");
        Ok(folder.join(format!("{}.qcow2", volume.meta.uid)))
    }

    /// Everything is as it was before the last disturbance: both hosts hold a lease, the VM runs under one, and its guest
    /// marks on. Answers where the VM is, and the other host.
    pub async fn ready(&self, profile: Profile, guest: &Guest, referee: &Referee) -> Result<(Host, Host)> {
        let hosts = self.steady(profile, guest.name()).await?;
        referee.marks_on(0, PATIENCE).await?;
        sleep(Duration::from_secs_f64(rand::random_range(ANY_MOMENT))).await;
        Ok(hosts)
    }

    /// The same of a VM that nobody watches.
    pub async fn steady(&self, profile: Profile, vm: &Name) -> Result<(Host, Host)> {
        self.protected(profile).await?;
        let user = &self.world.user;
        let now = user.running(vm).await?;
        let what = format!("VM {vm} to live under a lease");
        until(PATIENCE, &what, async || user.is_under_lease(vm).await).await?;
        let host = self.world.host_of(user::owner(&now)?)?;
        ensure!(self.hosts.contains(&host), "VM {vm} is on host {}, in another datacentre", host.name());
        Ok((host, self.world.neighbour(host)?))
    }

    /// QEMU of the guest there.
    pub fn copy(&self, host: Host, vm: &Vm) -> Result<Member> {
        self.world.copy(host, vm).with_context(|| format!("VM {} has no QEMU on {}", vm.name(), host.name()))
    }

    /// The VM has a process on one of these hosts, and none on the other.
    pub fn is_only_on(&self, vm: &Vm, host: Host, other: Host) -> Result<()> {
        self.copy(host, vm)?;
        let is_left = self.world.copy(other, vm).is_some();
        ensure!(!is_left, "VM {} has a QEMU on {} as well", vm.name(), other.name());
        Ok(())
    }

    /// Power off.
    pub async fn kill(&self, host: Host) -> Result<()> {
        let lab = self.world.lab.clone();
        let killed = tokio::task::spawn_blocking(move || member::kill_host(&lab, host)).await??;
        ensure!(killed > 0, "nothing ran on host {}", host.name());
        Ok(())
    }

    /// Power on.
    pub async fn start(&self, host: Host) -> Result<()> {
        let lab = self.world.lab.clone();
        let start = move || up::start_host(&lab, host, Wishes::default(), Say::Nothing);
        tokio::task::spawn_blocking(start).await?
    }

    pub fn cable(&self, host: Host, is_in: bool) -> Result<()> {
        topology::cable(&self.world.lab, host, is_in)
    }
}
