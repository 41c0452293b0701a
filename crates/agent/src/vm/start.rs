//! Makes copies ready and starts them.

use std::time::Duration;

use sterna_model::vm::Exit;
use sterna_wire::assignment::Machine;

use super::decide::Body;
use super::record::{Notes, Seen, Title};
use super::steps::{Done, Found, Stop, Work};
use crate::guard::{Refused, Ward};
use crate::hypervisor::{Blueprint, Guest, Hypervisor, Look, Parts};
use crate::resources::{NotReady, Resources, Whose};

/// How often parts that are being made are asked for: they come with the same assignment, so usually at once.
const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_LATER: Duration = Duration::from_millis(500);

/// A copy that is to be made.
pub(super) struct Fresh {
    pub epoch: u64,
    pub title: Title,
    pub reset_request: u64,
    /// The host's lease that it is to live under.
    pub lease: Option<u64>,
}

impl<H: Hypervisor, R: Resources> Work<H, R> {
    /// Parts first, then the guard's leave, then the durable word that this epoch was used, then the process: a crash before
    /// the word starts again, a crash after it never starts twice.
    pub(super) async fn start(&mut self, fresh: Fresh, machine: &Machine) -> Done<H::Guest> {
        let Fresh { epoch, title, reset_request, lease } = fresh;
        let parts = match self.prepare(epoch, machine).await? {
            Ok(parts) => parts,
            Err(why) => return self.failed_to_start(epoch, title, why),
        };
        if let Some(host_epoch) = lease {
            let ward = Ward { vm: self.uid, epoch, host_epoch, starting: true };
            match self.ports.wards.begin(ward).await {
                Ok(()) => {}
                Err(Refused::Over(why)) => return self.failed_to_start(epoch, title, why),
                Err(Refused::NotNow(why)) => return Err(Stop::Trouble(why)),
            }
        }
        self.starting.send_replace(Some((epoch, "starting qemu".to_owned())));
        let name = self.name.clone();
        self.remember(Seen { name, epoch, title: title.clone(), exit: None, lease })?;
        self.ports.hypervisor.clear(self.uid)?;
        let notes = Notes {
            name: self.name.clone(),
            epoch,
            title: title.clone(),
            migration: None,
            reset_request,
            ending: None,
            taps: parts.taps.iter().map(|tap| tap.device.clone()).collect(),
            lease,
        };
        self.ports.records.save_notes(self.uid, &notes)?;
        self.notes = Some(notes);
        let blueprint = Blueprint {
            name: self.name.clone(),
            uid: self.uid,
            epoch,
            machine: machine.clone(),
            parts,
            incoming: title != Title::Owner,
        };
        match self.ports.hypervisor.spawn(blueprint).await {
            Err(failed) => match self.ports.hypervisor.look(self.uid).await {
                Look::Absent | Look::Ended(_) => self.failed_to_start(epoch, title, failed.why),
                // Something of it is left: whoever looks next will know.
                Look::Alive { .. } | Look::Unknown { .. } => Ok(Found::Gone(Body::Unknown)),
            },
            Ok((guest, happenings)) => {
                tracing::info!(vm = %self.name, epoch, ?title, "vm has a process");
                match guest.view().await {
                    Ok(view) => Ok(Found::Alive { guest, happenings, view }),
                    // It is there, whatever it does not say.
                    Err(_) => Ok(Found::Gone(Body::Unknown)),
                }
            }
        }
    }

    /// The guard has a copy that runs, from here on and until nothing of it is left.
    pub(super) async fn enlist(&mut self, epoch: u64, host_epoch: u64) -> Done<H::Guest> {
        let ward = Ward { vm: self.uid, epoch, host_epoch, starting: false };
        let enlisted = self.ports.wards.enlist(ward).await;
        enlisted.map_err(|refused| Stop::Trouble(refused.to_string()))?;
        if let Some(seen) = self.seen.clone().filter(|seen| seen.epoch == epoch) {
            self.remember(Seen { lease: Some(host_epoch), ..seen })?;
        }
        self.note(|notes| notes.lease = Some(host_epoch))?;
        self.view().await
    }

    /// The parts, or why there will be none.
    async fn prepare(&mut self, epoch: u64, machine: &Machine) -> Result<Result<Parts, String>, Stop> {
        let whose = Whose { name: self.name.clone(), uid: self.uid, epoch };
        let mut pause = ASK_FIRST;
        loop {
            let prepared = tokio::select! {
                biased;
                _ = self.order.changed() => return Err(Stop::Interrupted),
                prepared = self.ports.resources.prepare(&whose, machine) => prepared,
            };
            match prepared {
                Ok(parts) => return Ok(Ok(parts)),
                Err(NotReady::Never { why }) => return Ok(Err(why)),
                Err(NotReady::Wait { step }) => {
                    self.starting.send_replace(Some((epoch, step)));
                }
            }
            tokio::select! {
                biased;
                _ = self.order.changed() => return Err(Stop::Interrupted),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(ASK_LATER);
        }
    }

    fn failed_to_start(&mut self, epoch: u64, title: Title, why: String) -> Done<H::Guest> {
        tracing::warn!(vm = %self.name, epoch, %why, "vm could not be started");
        let exit = Exit::StartFailed { why };
        let (name, exit_seen) = (self.name.clone(), Some(exit.clone()));
        self.remember(Seen { name, epoch, title, exit: exit_seen, lease: None })?;
        Ok(Found::Gone(Body::Ended(exit)))
    }
}
