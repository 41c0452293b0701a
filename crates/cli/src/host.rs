//! Machines that run VMs.

/// What switches them off when they are lost.
pub mod fence;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sterna_client::host::{Host, Hosts};
use sterna_client::object::Patch;
use sterna_model::cpu::Accel;
use sterna_model::meta::Name;

use crate::Format;
use crate::ask;
use crate::crud::{self, Delete};
use crate::exit::Result;
use crate::machine::{CheckArgs, LeaveArgs};
use crate::output::Listed;
use crate::readable::size;
use crate::select::{LabelChange, Many, Selector};
use crate::session::Session;
use crate::wait::Wait;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List hosts
    List(Selector),
    /// Show one host
    Show { name: Name },
    /// Change labels and notes of hosts
    Set(Set),
    /// Move every VM away, one by one; no new ones arrive
    #[command(visible_alias = "maintenance")]
    Drain {
        #[command(flatten)]
        many: Many,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let drained hosts take VMs again
    Undrain(Many),
    /// Give hosts no new VMs; those there stay
    Cordon {
        #[command(flatten)]
        many: Many,
        /// Take the cordon away
        #[arg(long)]
        remove: bool,
    },
    /// Print the line that makes a machine a host; it works once
    Token {
        /// Only for a host of this name
        #[arg(value_name = "HOST")]
        host: Option<Name>,
    },
    /// Say that a host is dead because you have looked: its VMs are started elsewhere
    ConfirmDead {
        name: Name,
        /// The name once more, where nobody is there to be asked
        #[arg(long, value_name = "NAME")]
        typed: Option<Name>,
    },
    /// Set, ask and remove what switches a host off when it is lost
    #[command(subcommand)]
    Fence(fence::Verb),
    /// Forget hosts that are gone for good and have no VMs
    Delete(Delete),
    /// Say whether this machine can be a host, and what to mend
    Check(CheckArgs),
    /// Stop being a host: remove what Sterna put on this machine, keep the disks
    Leave(LeaveArgs),
}

#[derive(Debug, Args)]
pub struct Set {
    #[command(flatten)]
    many: Many,
    /// Label to give, or KEY- to take one away
    #[arg(long = "set-label", value_name = "KEY=VALUE|KEY-")]
    label_changes: Vec<LabelChange>,
    /// Free text for people
    #[arg(long, value_name = "TEXT")]
    notes: Option<String>,
}

impl Listed for Host {
    const WORDS: &'static str = "hosts";
    const HEAD: &'static [&'static str] = &[
        "name",
        "datacentre",
        "state",
        "ha",
        "protected by",
        "vms",
        "cpus",
        "memory",
        "free",
        "accel",
        "qemu",
    ];

    fn row(&self) -> Vec<String> {
        let (state, vms, free) = self.status.as_ref().map_or_else(Default::default, |status| {
            (status.state.clone(), status.vms.to_string(), size(status.memory_free))
        });
        let (ha, protected) = self.status.as_ref().map_or_else(Default::default, |status| {
            let ways = status.protected_by.join("+");
            (status.ha.clone(), if ways.is_empty() { "nothing".to_owned() } else { ways })
        });
        let mut row =
            vec![self.meta.name.to_string(), self.spec.datacentre.to_string(), state, ha, protected, vms];
        if let Some(report) = &self.report {
            let accel = match report.accel {
                Accel::Kvm => "kvm",
                Accel::Tcg => "tcg",
            };
            row.extend([report.cpus.to_string(), size(report.memory), free]);
            row.extend([accel.to_owned(), report.qemu_version.clone()]);
        }
        row
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let hosts = session.client.hosts();
    match verb {
        Verb::List(selector) => crud::list::<Hosts>(session, &selector).await,
        Verb::Show { name } => crud::show::<Hosts>(session, &name).await,
        Verb::Set(Set { many, label_changes, notes }) => {
            let patch = Patch::<Value> { notes, ..Patch::default() };
            patch_each(session, &many, patch, &label_changes, "changed").await
        }
        Verb::Cordon { many, remove } => {
            let patch = Patch::of(json!({ "cordoned": !remove }));
            let done = if remove { "takes new VMs again" } else { "takes no new VMs" };
            patch_each(session, &many, patch, &[], done).await
        }
        Verb::Drain { many, wait } => {
            let names = many.resolve::<Hosts>(&session.client).await?;
            crud::each(session, &names, async |name| {
                let answer = hosts.drain(name).await?;
                crud::finish(session, wait, &format!("host {name}"), "is empty", answer).await
            })
            .await
        }
        Verb::Undrain(many) => {
            let names = many.resolve::<Hosts>(&session.client).await?;
            crud::each(session, &names, async |name| {
                let answer = hosts.undrain(name).await?;
                crud::finish(session, Wait::ALWAYS, &format!("host {name}"), "takes VMs again", answer).await
            })
            .await
        }
        Verb::ConfirmDead { name, typed } => confirm_dead(session, &name, typed).await,
        Verb::Fence(verb) => fence::run(session, verb).await,
        Verb::Token { host } => token(session, host.as_ref()).await,
        Verb::Delete(args) => crud::delete::<Hosts>(session, &args, "").await,
        // These act on this machine and never come here.
        Verb::Check(_) | Verb::Leave(_) => Ok(()),
    }
}

async fn patch_each(
    session: &Session,
    many: &Many,
    patch: Patch<Value>,
    labels: &[LabelChange],
    done: &str,
) -> Result<()> {
    let names = many.resolve::<Hosts>(&session.client).await?;
    crud::each(session, &names, async |name| {
        let patch = crud::with_labels::<Hosts, _>(session, name, patch.clone(), labels).await?;
        let answer = session.client.hosts().patch(name, &patch).await?;
        crud::finish(session, Wait::ALWAYS, &format!("host {name}"), done, answer).await
    })
    .await
}

async fn confirm_dead(session: &Session, name: &Name, typed: Option<Name>) -> Result<()> {
    let question = format!(
        "Whatever still runs on host {name} will run twice and spoil its disks. Type its name if it is dead:"
    );
    let typed = match typed {
        Some(typed) => typed,
        None => ask::name(&session.terminal, &question, "add --typed NAME; nobody is here to be asked")?,
    };
    let answer = session.client.hosts().confirm_dead(name, &typed).await?;
    crud::finish(session, Wait::ALWAYS, &format!("host {name}"), "is taken for dead", answer).await
}

async fn token(session: &Session, host: Option<&Name>) -> Result<()> {
    let made = session.client.host_token(host).await?;
    if session.format != Format::Table {
        return session.value(&made);
    }
    session.talk(&format!("works once, until {}; on the new host, as root:", made.expires));
    session.terminal.data(&format!("sterna agent join {}\n", made.token))
}
