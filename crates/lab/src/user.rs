//! What demo and benchmarks do in a lab, through the API and as any user would.

/// Leases of hosts, and VMs that live under them.
mod lease;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use sterna_base::units::{Bytes, Span};
use sterna_client::context::Context;
use sterna_client::migration::{self, Migration};
use sterna_client::object::{Answer, Filter, New, Patch};
use sterna_client::vm::{Ask, Boot, Move, Vm};
use sterna_client::{Client, operation};
use sterna_model::error::Code;
use sterna_model::image::{ImageReport, ImageSpec};
use sterna_model::meta::Name;
use sterna_model::migration::{Phase, Progress};
use sterna_model::operation::OperationState;
use sterna_model::status::VmState;
use sterna_model::vm::Place;
use tokio::time::{interval, sleep};

use crate::place::{Host, Lab};

/// Between two looks at something that cannot be waited for.
const LOOK: Duration = Duration::from_millis(50);
/// How often a watcher is shown a move's progress.
const SHOW: Duration = Duration::from_millis(200);
/// A volume goes after its VM, also where the line between them is slow.
const GONE: Duration = Duration::from_secs(60);

/// Somebody with a token.
#[derive(Clone)]
pub struct User {
    pub client: Client,
}

impl User {
    /// The administrator of a lab.
    pub fn of(lab: &Lab) -> Result<Self> {
        let context = Context::load(&lab.cli_config()).context("read the lab's client settings")?;
        Ok(Self { client: Client::new(&context)? })
    }

    /// Imports an image unless it is there already.
    pub async fn ensure_image(&self, name: &Name, file: &Path) -> Result<()> {
        let images = self.client.images();
        match images.get(name).await {
            Ok(image) if matches!(image.report, Some(ImageReport::Ready { .. })) => return Ok(()),
            Ok(_) => {}
            Err(error) if is(&error, Code::NotFound) => {
                let spec = ImageSpec { source: "upload".to_owned(), sha256: None };
                images.create(&New::named(name.clone(), spec)).await?;
            }
            Err(error) => return Err(error.into()),
        }
        let answer = images.upload(name, file, Arc::new(AtomicU64::new(0))).await?;
        self.done(&answer).await
    }

    /// Makes a VM unless it is there already, and waits until it runs.
    pub async fn ensure_vm(&self, name: &Name, image: &Name, memory: Bytes) -> Result<Vm> {
        let vms = self.client.vms();
        match vms.get(name).await {
            Ok(_) => {}
            Err(error) if is(&error, Code::NotFound) => {
                let ask = Ask { image: Some(image.clone()), memory: Some(memory), ..Ask::default() };
                let answer = vms.create(&New::named(name.clone(), ask)).await?;
                self.done(&answer).await?;
            }
            Err(error) => return Err(error.into()),
        }
        self.running(name).await
    }

    /// Makes a VM that starts on a certain host and may go to any.
    pub async fn make_on(&self, host: Host, new: New<Ask>, boot: &Boot) -> Result<Vm> {
        let (vms, name) = (self.client.vms(), new.name.clone());
        let place = Place { host: Some(Name::new(&host.name())?), ..Place::default() };
        let new = New { spec: Ask { place: Some(place), ..new.spec }, ..new };
        self.done(&vms.create_with(&new, boot).await?).await?;
        self.running(&name).await?;
        // Only the start was meant.
        vms.patch(&name, &Patch::of(json!({ "place": { "host": null } }))).await?;
        self.running(&name).await
    }

    /// Ends a VM and waits until its volumes are gone: the next one of that name makes its own.
    pub async fn remove(&self, name: &Name) -> Result<()> {
        let gone = self.client.vms().delete(name).await?;
        self.done(&gone).await?;
        let until = Instant::now() + GONE;
        loop {
            let volumes = self.client.volumes().list(&Filter::default()).await?;
            if !volumes.iter().any(|volume| volume.spec.vm.as_ref() == Some(name)) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the volumes of VM {name} are not removed");
            sleep(LOOK).await;
        }
    }

    /// Waits until the VM runs.
    pub async fn running(&self, name: &Name) -> Result<Vm> {
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let vm = self.client.vms().get(name).await?;
            match vm.status.as_ref() {
                Some(status) if status.state == VmState::Running => return Ok(vm),
                status if Instant::now() > until => {
                    let why = status.map_or("no status", |status| status.message.as_str());
                    bail!("VM {name} does not run: {why}");
                }
                _ => sleep(LOOK).await,
            }
        }
    }

    /// Waits for the work that an answer speaks of; its failure is an error.
    pub async fn done<O>(&self, answer: &Answer<O>) -> Result<()> {
        let Some(work) = &answer.operation else { return Ok(()) };
        let ended = self.client.operations().wait(work.name()).await?;
        match operation::state(&ended) {
            Some(OperationState::Failed { message }) => bail!("{message}"),
            _ => Ok(()),
        }
    }

    /// Moves a VM and waits for the end; `show` sees the migration and its progress on the way.
    pub async fn migrate(
        &self,
        vm: &Name,
        order: &Move,
        mut show: impl FnMut(&Migration, Option<Progress>),
    ) -> Result<Migration> {
        let answer = self.client.vms().migrate(vm, order).await?;
        let name = answer.migration.context("the server named no migration")?;
        let work = answer.operation.context("the server named no operation")?;
        let operations = self.client.operations();
        let mut end = std::pin::pin!(operations.wait(work.name()));
        let mut ticks = interval(SHOW);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = &mut end => {
                    ended?;
                    return Ok(self.client.migrations().get(&name).await?);
                }
                _ = ticks.tick() => {
                    let now = self.client.migrations().get(&name).await?;
                    let progress = migration::progress(&now);
                    show(&now, progress);
                }
            }
        }
    }

    /// Moves a VM to a host, and fails unless it arrived.
    pub async fn move_to(&self, vm: &Name, host: &Name, max_downtime: Span) -> Result<Migration> {
        let order = Move { to: Some(host.clone()), max_downtime: Some(max_downtime), ..Move::default() };
        let ended = self.migrate(vm, &order, |_, _| ()).await?;
        match phase(&ended) {
            Some(Phase::Succeeded) => Ok(ended),
            other => bail!("VM {vm} did not arrive on host {host}: {other:?}"),
        }
    }
}

#[must_use]
pub fn phase(migration: &Migration) -> Option<&Phase> {
    migration.decision.as_ref().map(|decision| &decision.phase)
}

/// The host that owns the VM.
pub fn owner(vm: &Vm) -> Result<&Name> {
    Ok(&vm.decision.as_ref().context("the VM has no host")?.owner.host)
}

/// The VM's address on its first network that has one.
pub fn address(vm: &Vm) -> Result<Ipv4Addr> {
    let decision = vm.decision.as_ref().context("the VM has no host")?;
    decision.hardware.nics.iter().find_map(|nic| nic.address).context("the VM has no address")
}

fn is(error: &sterna_client::error::Error, code: Code) -> bool {
    matches!(error, sterna_client::error::Error::Refused(refusal) if refusal.code == code)
}
