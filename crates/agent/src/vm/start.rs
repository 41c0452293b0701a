//! Makes copies ready and starts them.

use std::time::Duration;

use sterna_model::vm::Exit;
use sterna_wire::assignment::{Machine, Owner};
use sterna_wire::up::Up;

use super::decide::Body;
use super::health::Resets;
use super::record::{Notes, Seen, Title};
use super::restart::{Crash, Restarts};
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
            taps: devices(&parts),
            restarts: Restarts::default(),
            resets: Resets::default(),
            began: self.ports.clock.now(),
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
            restart: 0,
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

    /// The same under an epoch that the copy ran under until it ended unasked: the notes count it first, and what they
    /// say besides stays true.
    pub(super) async fn start_again(&mut self, epoch: u64, owner: &Owner, why: String) -> Done<H::Guest> {
        let machine = &owner.machine;
        let parts = match self.prepare(epoch, machine).await? {
            Ok(parts) => parts,
            Err(refused) => {
                self.count_restart(&why)?;
                return Ok(self.failed_again(refused));
            }
        };
        if let Some(host_epoch) = self.notes.as_ref().and_then(|notes| notes.lease) {
            let ward = Ward { vm: self.uid, epoch, host_epoch, starting: true };
            match self.ports.wards.begin(ward).await {
                Ok(()) => {}
                // Nothing runs here under that lease any more: control may start it under another.
                Err(Refused::Over(why)) => return self.failed_to_start(epoch, Title::Owner, why),
                Err(Refused::NotNow(why)) => return Err(Stop::Trouble(why)),
            }
        }
        self.starting.send_replace(Some((epoch, "starting qemu again".to_owned())));
        self.count_restart(&why)?;
        self.note(|notes| {
            notes.reset_request = owner.reset_request;
            notes.taps = devices(&parts);
        })?;
        let restart = self.notes.as_ref().map_or(0, |notes| notes.restarts.count);
        let blueprint = Blueprint {
            name: self.name.clone(),
            uid: self.uid,
            epoch,
            machine: machine.clone(),
            parts,
            incoming: false,
            restart,
        };
        match self.ports.hypervisor.spawn(blueprint).await {
            Err(failed) => Ok(self.failed_again(failed.why)),
            Ok((guest, happenings)) => {
                tracing::warn!(vm = %self.name, epoch, restart, %why, "vm is restarted in place");
                let why =
                    format!("{why}; the host started it again by itself, restart {restart} of epoch {epoch}");
                self.tell_people("restarted in place", why);
                let view = guest.view().await?;
                Ok(Found::Alive { guest, happenings, view })
            }
        }
    }

    fn count_restart(&mut self, why: &str) -> Result<(), Stop> {
        let now = self.ports.clock.now();
        self.note(|notes| notes.restarts.add(why.to_owned(), now))
    }

    /// Nobody was told that it had ended: it may be tried once more.
    fn failed_again(&self, why: String) -> Found<H::Guest> {
        tracing::warn!(vm = %self.name, %why, "vm could not be restarted in place");
        Found::Gone(Body::Crashed(Crash { exit: Exit::StartFailed { why }, at: self.ports.clock.now() }))
    }

    pub(super) fn tell_people(&self, what: &str, why: String) {
        let (name, what) = (self.name.clone(), what.to_owned());
        self.ports.reports.report(Up::Event { kind: "vm".to_owned(), name, what, why });
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
                () = self.superseded.cancelled() => return Err(Stop::Interrupted),
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
                () = self.superseded.cancelled() => return Err(Stop::Interrupted),
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

fn devices(parts: &Parts) -> Vec<String> {
    parts.taps.iter().map(|tap| tap.device.clone()).collect()
}
