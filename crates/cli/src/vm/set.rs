//! `vm set`: changes, and when each of them holds.

use clap::Args;
use sterna_base::units::{Bytes, Span};
use sterna_client::object::Patch;
use sterna_client::vm::{Ask, Vms};
use sterna_model::health::HealthCheck;
use sterna_model::vm::CPUS_MAX;

use crate::crud;
use crate::exit::{Failure, Result};
use crate::select::{LabelChange, Many};
use crate::session::Session;
use crate::vm::check::{Fault, check};
use crate::vm::create::{OnLoss, Restart, Urgency, WhenIsolated};

#[derive(Debug, Args)]
pub struct Set {
    #[command(flatten)]
    many: Many,
    /// Virtual CPUs; holds at the next start
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=i64::from(CPUS_MAX)))]
    cpus: Option<u32>,
    /// Memory, such as 2GiB; holds at the next start
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Label to give, or KEY- to take one away
    #[arg(long = "set-label", value_name = "KEY=VALUE|KEY-")]
    label_changes: Vec<LabelChange>,
    /// Free text for people
    #[arg(long, value_name = "TEXT")]
    notes: Option<String>,
    /// How long the guest may take to shut down before it is switched off
    #[arg(long, value_name = "DURATION")]
    shutdown_timeout: Option<Span>,
    /// When the guest ends without being asked to
    #[arg(long, value_enum, value_name = "WHEN")]
    restart: Option<Restart>,
    /// When the guest says that it crashed
    #[arg(long, value_enum, value_name = "WHAT")]
    on_panic: Option<Fault>,
    /// When the guest hangs
    #[arg(long, value_enum, value_name = "WHAT")]
    on_hang: Option<Fault>,
    /// Whether the guest has a watchdog; holds at the next start
    #[arg(long, value_name = "true|false")]
    watchdog: Option<bool>,
    /// Ask whether it works, as with `vm create`; in the place of the checks that it has
    #[arg(long = "check", value_name = "CHECK", value_parser = check, conflicts_with = "no_checks")]
    checks: Vec<HealthCheck>,
    /// Ask no more
    #[arg(long)]
    no_checks: bool,
    /// Who starts first where room is short
    #[arg(long, value_enum, value_name = "PRIORITY")]
    priority: Option<Urgency>,
    /// Start it elsewhere when its host is lost
    #[arg(long, value_enum, value_name = "ON|OFF")]
    ha: Option<OnLoss>,
    /// What becomes of it when its host has lost its lease; holds at the next start
    #[arg(long, value_enum, value_name = "WHAT")]
    isolation: Option<WhenIsolated>,
}

pub async fn run(session: &Session, args: Set) -> Result<()> {
    let spec = Ask {
        cpus: args.cpus,
        memory: args.memory,
        shutdown_timeout: args.shutdown_timeout,
        restart: args.restart.map(Into::into),
        on_panic: args.on_panic.map(Into::into),
        on_hang: args.on_hang.map(Into::into),
        watchdog: args.watchdog,
        checks: (args.no_checks || !args.checks.is_empty()).then_some(args.checks),
        priority: args.priority.map(Into::into),
        ha: args.ha.map(Into::into),
        isolation: args.isolation.map(Into::into),
        ..Ask::default()
    };
    let spec = (spec != Ask::default()).then_some(spec);
    let patch = Patch { notes: args.notes, spec, ..Patch::default() };
    if patch == Patch::default() && args.label_changes.is_empty() {
        return Err(Failure::usage("nothing to change", "for example --memory 2GiB or --set-label tier=web"));
    }
    let names = args.many.resolve::<Vms>(&session.client).await?;
    let vms = session.client.vms();
    crud::each(session, &names, async |name| {
        let patch = crud::with_labels::<Vms, _>(session, name, patch.clone(), &args.label_changes).await?;
        let answer = vms.patch(name, &patch).await?;
        let mut told = Vec::new();
        if !answer.applied.is_empty() {
            told.push(format!("applied: {}", answer.applied.join(", ")));
        }
        if !answer.at_next_start.is_empty() {
            told.push(format!("at next start: {}", answer.at_next_start.join(", ")));
        }
        let sentence = if told.is_empty() { "nothing to change".to_owned() } else { told.join("; ") };
        session.done(&format!("vm {name}: {sentence}"), &answer)
    })
    .await
}
