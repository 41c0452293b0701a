//! Virtual servers.

use clap::{Args, Subcommand};
use futures_util::StreamExt;
use sterna_base::units::Span;
use sterna_client::Filter;
use sterna_client::object::Answer;
use sterna_client::vm::{Move, Vm, Vms};
use sterna_model::meta::Name;

use crate::ask::{Yes, confirm};
use crate::crud::{self, Delete};
use crate::exit::{Failure, Result};
use crate::output::Listed;
use crate::readable::size;
use crate::select::{Many, Selector};
use crate::session::Session;
use crate::wait::Wait;
use crate::{Format, console, migration};

mod check;
mod create;
mod set;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make VMs and start them
    Create(Box<create::Create>),
    /// List VMs
    List(List),
    /// Show one VM
    Show { name: Name },
    /// Change VMs; says what holds at once and what at the next start
    Set(Box<set::Set>),
    /// Start VMs
    Start(Act),
    /// Ask guests to shut down; switch off those that do not in time
    Stop {
        #[command(flatten)]
        act: Act,
        /// Switch off at once, without asking the guest
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        yes: Yes,
    },
    /// Press the reset button
    Reset {
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        yes: Yes,
    },
    /// Stop guest CPUs and keep the memory
    Pause(Act),
    /// Let paused guests run on
    Resume(Act),
    /// Delete VMs and their boot volumes
    Delete(Delete),
    /// Move running VMs to another host while they run
    Migrate(Migrate),
    /// Copy the volumes of running VMs to where they are to move, hours before: the move then takes what differs
    Preseed(Preseed),
    /// Say what a move would take, without moving
    Forecast {
        name: Name,
        #[command(flatten)]
        course: Course,
    },
    /// Say why a VM is where it is and does what it does
    Why { name: Name },
    /// Open the serial console; Ctrl-] leaves it
    Console { name: Name },
    /// List the past moves of a VM with what they took
    Ledger { name: Name },
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    selector: Selector,
    /// Only VMs on this host
    #[arg(long, value_name = "NAME")]
    host: Option<Name>,
    /// Only VMs in this state, such as running
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Show the list anew whenever something changes, until interrupted
    #[arg(long, short = 'w')]
    watch: bool,
}

/// For verbs that do one thing to many VMs.
#[derive(Debug, Args)]
pub struct Act {
    #[command(flatten)]
    many: Many,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub struct Migrate {
    #[command(flatten)]
    many: Many,
    #[command(flatten)]
    course: Course,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub struct Preseed {
    #[command(flatten)]
    many: Many,
    /// To this host [default: the one that a move would choose]
    #[arg(long, value_name = "HOST", conflicts_with = "to_datacentre")]
    to: Option<Name>,
    /// To a host of this datacentre
    #[arg(long, value_name = "NAME")]
    to_datacentre: Option<Name>,
    #[command(flatten)]
    wait: Wait,
}

/// Where to, and within which limits.
#[derive(Debug, Args)]
pub struct Course {
    /// To this host [default: Sterna chooses and says why]
    #[arg(long, value_name = "HOST", conflicts_with = "to_datacentre")]
    to: Option<Name>,
    /// To a host of this datacentre
    #[arg(long, value_name = "NAME")]
    to_datacentre: Option<Name>,
    /// The longest pause of the guest that is accepted [default: 300ms]
    #[arg(long, value_name = "DURATION")]
    max_downtime: Option<Span>,
    /// Refuse a move that would take longer, and call it off if it does: 30m or 2h from now, or a time
    #[arg(long, value_name = "DURATION|TIME")]
    finish_by: Option<String>,
}

impl Course {
    fn order(&self) -> Move {
        Move {
            to: self.to.clone(),
            to_datacentre: self.to_datacentre.clone(),
            max_downtime: self.max_downtime,
            finish_by: self.finish_by.clone(),
        }
    }
}

impl Listed for Vm {
    const WORDS: &'static str = "VMs";
    const HEAD: &'static [&'static str] = &["name", "state", "host", "cpus", "memory", "address", "message"];

    fn row(&self) -> Vec<String> {
        let decision = self.decision.as_ref();
        let host = decision.map(|decision| decision.owner.host.to_string()).unwrap_or_default();
        let address = decision.and_then(|decision| decision.hardware.nics.iter().find_map(|nic| nic.address));
        let (state, mut message) = self
            .status
            .as_ref()
            .map_or_else(Default::default, |status| (status.state.word().to_owned(), status.message.clone()));
        // The host has a column of its own.
        if message == format!("on host {host}") {
            message.clear();
        }
        if let Some(pending) = self.status.as_ref().filter(|status| !status.pending.is_empty()) {
            message =
                format!("{message} at next start: {}", pending.pending.join(", ")).trim_start().to_owned();
        }
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        let (cpus, memory) = (self.spec.cpus.to_string(), size(self.spec.memory));
        vec![self.meta.name.to_string(), state, host, cpus, memory, address, message]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let vms = session.client.vms();
    match verb {
        Verb::Create(args) => create::run(session, *args).await,
        Verb::List(args) => list(session, args).await,
        Verb::Show { name } => crud::show::<Vms>(session, &name).await,
        Verb::Set(args) => set::run(session, *args).await,
        Verb::Start(args) => act(session, &args, "started", async |name| vms.start(name).await).await,
        Verb::Stop { act: args, force, yes } => {
            // Asking the guest loses nothing; switching it off may.
            let question = if force { "switch off, without asking the guest," } else { "" };
            ask_unless_gentle(session, &args.many, yes, question).await?;
            act(session, &args, "stopped", async |name| vms.stop(name, force).await).await
        }
        Verb::Reset { act: args, yes } => {
            ask_unless_gentle(session, &args.many, yes, "reset, without asking the guest,").await?;
            act(session, &args, "reset", async |name| vms.reset(name).await).await
        }
        Verb::Pause(args) => act(session, &args, "paused", async |name| vms.pause(name).await).await,
        Verb::Resume(args) => act(session, &args, "runs on", async |name| vms.resume(name).await).await,
        Verb::Delete(args) => crud::delete::<Vms>(session, &args, " Their boot volumes go with them.").await,
        Verb::Migrate(args) => {
            let order = args.course.order();
            move_each(session, (&args.many, args.wait), "moved", async |name| {
                let answer = vms.migrate(name, &order).await?;
                migration::tell_expected(session, name, answer.migration.as_ref()).await;
                Ok(answer)
            })
            .await
        }
        Verb::Preseed(args) => {
            let order =
                Move { to: args.to.clone(), to_datacentre: args.to_datacentre.clone(), ..Move::default() };
            let done = "has its volumes copied";
            move_each(session, (&args.many, args.wait), done, async |name| vms.preseed(name, &order).await)
                .await
        }
        Verb::Forecast { name, course } => forecast(session, &name, &course.order()).await,
        Verb::Why { name } => why(session, &name).await,
        Verb::Console { name } => console::run(session, &name).await,
        Verb::Ledger { name } => session.list(&vms.ledger(&name).await?),
    }
}

async fn ask_unless_gentle(session: &Session, many: &Many, yes: Yes, question: &str) -> Result<()> {
    if question.is_empty() {
        return Ok(());
    }
    let names = many.resolve::<Vms>(&session.client).await?;
    let shown: Vec<_> = names.iter().map(Name::as_str).collect();
    confirm(&session.terminal, yes, &format!("{question} vm {}?", shown.join(", ")))
}

async fn act(
    session: &Session,
    args: &Act,
    done: &str,
    verb: impl AsyncFn(&Name) -> sterna_client::error::Result<Answer<Vm>>,
) -> Result<()> {
    let names = args.many.resolve::<Vms>(&session.client).await?;
    crud::each(session, &names, async |name| {
        let answer = verb(name).await?;
        crud::finish(session, args.wait, &format!("vm {name}"), done, answer).await
    })
    .await
}

/// For verbs that order a migration of each VM.
async fn move_each(
    session: &Session,
    (many, wait): (&Many, Wait),
    done: &str,
    verb: impl AsyncFn(&Name) -> sterna_client::error::Result<Answer<Vm>>,
) -> Result<()> {
    let names = many.resolve::<Vms>(&session.client).await?;
    crud::each(session, &names, async |name| {
        let answer = verb(name).await?;
        let migration = answer.migration.clone();
        let result = crud::finish(session, wait, &format!("vm {name}"), done, answer).await;
        if let (true, Some(migration), true) = (wait.wanted(), migration, session.format == Format::Table) {
            migration::report(session, &migration).await?;
        }
        result
    })
    .await
}

async fn forecast(session: &Session, name: &Name, order: &Move) -> Result<()> {
    let outlook = session.client.vms().forecast(name, order).await?;
    if session.format != Format::Table {
        return session.value(&outlook);
    }
    if !outlook.reasons.is_empty() {
        let message = format!("vm {name} cannot move: {}", outlook.reasons.join("; "));
        return Err(Failure::failed(message, "`sterna host list` shows where else it could go"));
    }
    if let Some(forecast) = &outlook.forecast {
        session.terminal.data(&migration::forecast_text(forecast, outlook.to.as_ref()))?;
        session.terminal.data(&migration::past_text(&outlook.past))?;
    }
    Ok(())
}

async fn why(session: &Session, name: &Name) -> Result<()> {
    let answer = session.client.vms().why(name).await?;
    if session.format != Format::Table {
        return session.value(&answer);
    }
    let mut text = format!("vm {name} is {}: {}\n", answer.status.state.word(), answer.status.message);
    if let (Some(host), Some(why)) = (&answer.host, &answer.why) {
        text.push_str(&format!("It is on host {host}: {why}\n"));
    }
    if !answer.status.pending.is_empty() {
        text.push_str(&format!("At its next start: {}\n", answer.status.pending.join(", ")));
    }
    session.terminal.data(&text)?;
    if answer.events.is_empty() { Ok(()) } else { session.list(&answer.events) }
}

async fn list(session: &Session, args: List) -> Result<()> {
    let mut filter: Filter = args.selector.filter();
    filter.fields.extend(args.host.map(|host| ("host", host.to_string())));
    filter.fields.extend(args.state.map(|state| ("state", state)));
    let vms = session.client.vms();
    if !args.watch {
        return session.list(&vms.list(&filter).await?);
    }
    let changes = session.client.watch(None, &["vm"]).await?;
    tokio::pin!(changes);
    loop {
        if session.terminal.width.is_some() {
            // Top left, and everything below it erased: the list stands still while its lines change.
            session.terminal.data("\x1b[H\x1b[2J")?;
        }
        session.list(&vms.list(&filter).await?)?;
        match changes.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => {
                return Err(Failure::failed(
                    "the server ended the stream",
                    "is it being restarted? try again",
                ));
            }
        }
    }
}
