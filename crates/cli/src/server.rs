//! Is the server there, is its store what the hosts have seen, and can it come back?

use clap::{Args, Subcommand};
use sterna_client::status::{Finding, ServerShown};
use sterna_model::meta::Name;

use crate::Format;
use crate::ask::{Yes, confirm};
use crate::exit::Result;
use crate::machine::{BackupArgs, InitArgs, RestoreArgs, RunArgs};
use crate::output::{Listed, pairs, table};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Say whether the server answers, and how fast
    Status,
    /// Show the server's store and its backups
    Show,
    /// End the VMs that hosts have and the store does not know
    ///
    /// After the store was restored from an older copy, VMs that are younger than the copy are unknown to it. They are
    /// held and go on running until this is said.
    AcceptStore(Yes),
    /// Take a backup of the server on this machine, while it runs or not
    Backup(BackupArgs),
    /// Make this machine the server again, from a backup
    ///
    /// The server begins in recovery mode: it starts, moves and deletes nothing until every host that it knows has said
    /// what it has. See `sterna server recover`.
    Restore(RestoreArgs),
    /// Show how far a restored server is, and go on without hosts that do not answer
    Recover(Recover),
    /// Run the server in the foreground
    Run(RunArgs),
    /// Set up the server on this machine, and this machine as the first host
    Init(Box<InitArgs>),
}

#[derive(Debug, Args)]
pub struct Recover {
    /// Do not wait for this host: a person looked, and it will not say what it has. VMs that the store has on it stay
    /// with it and are unknown until it is back or removed
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    without: Vec<Name>,
    #[command(flatten)]
    yes: Yes,
}

impl Listed for Finding {
    const WORDS: &'static str = "differences";
    const HEAD: &'static [&'static str] = &["vm", "the store said", "found", "done"];

    fn row(&self) -> Vec<String> {
        vec![self.vm.to_string(), self.stored.clone(), self.found.clone(), self.done.clone()]
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    // The others act on this machine and never come here.
    match verb {
        Verb::Status => status(session).await,
        Verb::Show => show(session).await,
        Verb::AcceptStore(yes) => accept_store(session, yes).await,
        Verb::Recover(args) => recover(session, args).await,
        Verb::Backup(_) | Verb::Restore(_) | Verb::Run(_) | Verb::Init(_) => Ok(()),
    }
}

async fn show(session: &Session) -> Result<()> {
    let server = session.client.server_state().await?;
    if session.format == Format::Table {
        return session.terminal.data(&pairs(&server)?);
    }
    session.value(&server)
}

async fn recover(session: &Session, args: Recover) -> Result<()> {
    let server = if args.without.is_empty() {
        session.client.server_state().await?
    } else {
        let hosts: Vec<_> = args.without.iter().map(ToString::to_string).collect();
        let question = format!(
            "go on without {}? A VM that moved there after the backup is not started elsewhere, but what the store has \
             elsewhere and runs there would be",
            hosts.join(", ")
        );
        confirm(&session.terminal, args.yes, &question)?;
        session.client.recover_without(&args.without).await?
    };
    if session.format != Format::Table {
        return session.value(&server);
    }
    tell(session, &server)
}

fn tell(session: &Session, server: &ServerShown) -> Result<()> {
    let Some(restored) = &server.restored else {
        session.talk("this store did not come back from a backup: there is nothing to recover");
        return Ok(());
    };
    session.talk(&format!(
        "restored at {} from a backup of {} (revision {})",
        restored.at, restored.taken, restored.revision
    ));
    if !server.findings.is_empty() {
        let rows = server.findings.iter().map(Listed::row).collect();
        session.terminal.data(&table(Finding::HEAD, rows, session.terminal.width))?;
    }
    if server.more > 0 {
        session.talk(&format!("and {} more; the events of each VM tell", server.more));
    }
    let names = |hosts: &[Name]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !server.without.is_empty() {
        session.talk(&format!("not waited for: {}", names(&server.without)));
    }
    if server.is_recovering() && !server.waits_for.is_empty() {
        session.talk(&format!(
            "waits for {}; nothing is started, moved or deleted until then. Will one not come back? `sterna server \
             recover --without HOST`",
            names(&server.waits_for)
        ));
    }
    for open in &server.unsettled {
        session.talk(&format!("vm {} waits: {}", open.vm, open.why));
    }
    match server.recovered {
        Some(at) => session.talk(&format!("recovered at {at}")),
        None if server.waits_for.is_empty() => session.talk("every host has told; VMs are being settled"),
        None => {}
    }
    Ok(())
}

async fn accept_store(session: &Session, yes: Yes) -> Result<()> {
    let question = "end every VM that the store does not know? Their disks stay, their memory is lost";
    confirm(&session.terminal, yes, question)?;
    let accepted = session.client.accept_store().await?;
    if session.format != Format::Table {
        return session.value(&accepted);
    }
    if accepted.released.is_empty() {
        session.talk("the store knows every VM; nothing was ended");
    }
    for released in &accepted.released {
        session.talk(&format!("vm {} on host {}: is being ended", released.vm, released.host));
    }
    Ok(())
}

async fn status(session: &Session) -> Result<()> {
    let health = session.client.health().await?;
    if session.format == Format::Table {
        session.talk(&format!("{} answers in {} ms", health.server, health.round_trip_ms));
        return session.terminal.data(&pairs(&health.says)?);
    }
    session.value(&health)
}
