//! The nouns, and which arguments they share.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::exit::Result;
use crate::machine::{self, Machine};
use crate::output::Format;
use crate::session::{Session, Terminal};
use crate::{
    alert, apply, audit, cluster, completion, datacentre, event, ha, host, image, migration, network, nic,
    operation, pool, server, token, vm, volume,
};

/// Keeps virtual servers running wherever it is best for them to run, and moves them while they run.
#[derive(Debug, Parser)]
#[command(name = "sterna", version, max_term_width = 100, subcommand_required = true)]
#[command(
    after_help = "Start with `sterna server init` on one machine; it prints the line for the others.\n\
    A first VM: sterna vm create web --image tiny"
)]
pub struct Sterna {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

/// Arguments of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Show data as a table, as JSON or as YAML
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Context file with server, token and CA [default: ~/.config/sterna/config.toml]
    #[arg(long, global = true, env = "STERNA_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Virtual servers
    #[command(subcommand)]
    Vm(vm::Verb),
    /// Machines that run VMs
    #[command(subcommand)]
    Host(host::Verb),
    /// Sources of boot disks
    #[command(subcommand)]
    Image(image::Verb),
    /// Virtual disks
    #[command(subcommand, alias = "disk")]
    Volume(volume::Verb),
    /// Places that hold volumes
    #[command(subcommand)]
    Pool(pool::Verb),
    /// L2 segments that VMs are on
    #[command(subcommand)]
    Network(network::Verb),
    /// A VM's ports on networks
    #[command(subcommand)]
    Nic(nic::Verb),
    /// Sites with their own failure domain
    #[command(subcommand)]
    Datacentre(datacentre::Verb),
    /// Hosts with one CPU baseline
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// What happens to VMs when hosts fail
    #[command(subcommand)]
    Ha(ha::Verb),
    /// Moves of running VMs
    #[command(subcommand)]
    Migration(migration::Verb),
    /// Long work that can be waited for
    #[command(subcommand)]
    Operation(operation::Verb),
    /// What happened, and why
    #[command(subcommand)]
    Event(event::Verb),
    /// What needs a person
    #[command(subcommand)]
    Alert(alert::Verb),
    /// Who did what
    #[command(subcommand)]
    Audit(audit::Verb),
    /// Who may talk to the API
    #[command(subcommand)]
    Token(token::Verb),
    /// The process that serves the API
    #[command(subcommand)]
    Server(server::Verb),
    /// The process on each host
    #[command(subcommand)]
    Agent(machine::AgentVerb),
    /// Create or change what a file describes
    Apply(apply::Apply),
    /// Print a script that completes words in a shell
    Completion(completion::Completion),
}

/// Where a command is carried out.
#[derive(Debug)]
pub enum Task {
    /// By this crate, through the API.
    Api(ApiTask),
    /// By the binary, on this machine.
    Machine(Machine, Global),
}

/// A command that needs only the API.
#[derive(Debug)]
pub struct ApiTask(Sterna);

impl Sterna {
    /// Splits what acts on this machine from what only talks to the API.
    #[must_use]
    pub fn task(self) -> Task {
        let global = self.global.clone();
        match self.noun {
            Noun::Agent(verb) => Task::Machine(Machine::Agent(verb), global),
            Noun::Server(server::Verb::Run(args)) => Task::Machine(Machine::ServerRun(args), global),
            Noun::Server(server::Verb::Init(args)) => Task::Machine(Machine::ServerInit(args), global),
            Noun::Server(server::Verb::Backup(args)) => Task::Machine(Machine::ServerBackup(args), global),
            Noun::Server(server::Verb::Restore(args)) => Task::Machine(Machine::ServerRestore(args), global),
            Noun::Host(host::Verb::Check(args)) => Task::Machine(Machine::HostCheck(args), global),
            Noun::Host(host::Verb::Leave(args)) => Task::Machine(Machine::HostLeave(args), global),
            noun => Task::Api(ApiTask(Sterna { global, noun })),
        }
    }
}

/// The grammar of this crate; the binary adds nouns that need no API to it.
#[must_use]
pub fn command() -> clap::Command {
    Sterna::command()
}

/// Carries out a command through the API. `grammar` is what completions complete.
pub(crate) async fn dispatch(
    ApiTask(sterna): ApiTask,
    terminal: Terminal,
    grammar: clap::Command,
) -> Result<()> {
    if let Noun::Completion(completion) = &sterna.noun {
        return completion::run(completion, grammar, &terminal);
    }
    let session = Session::open(&sterna.global, terminal)?;
    match sterna.noun {
        Noun::Vm(verb) => vm::run(&session, verb).await,
        Noun::Host(verb) => host::run(&session, verb).await,
        Noun::Image(verb) => image::run(&session, verb).await,
        Noun::Volume(verb) => volume::run(&session, verb).await,
        Noun::Pool(verb) => pool::run(&session, verb).await,
        Noun::Network(verb) => network::run(&session, verb).await,
        Noun::Nic(verb) => nic::run(&session, verb).await,
        Noun::Datacentre(verb) => datacentre::run(&session, verb).await,
        Noun::Cluster(verb) => cluster::run(&session, verb).await,
        Noun::Ha(verb) => ha::run(&session, verb).await,
        Noun::Migration(verb) => migration::run(&session, verb).await,
        Noun::Operation(verb) => operation::run(&session, verb).await,
        Noun::Event(verb) => event::run(&session, verb).await,
        Noun::Alert(verb) => alert::run(&session, verb).await,
        Noun::Audit(verb) => audit::run(&session, verb).await,
        Noun::Token(verb) => token::run(&session, verb).await,
        Noun::Server(verb) => server::run(&session, verb).await,
        Noun::Apply(args) => apply::run(&session, args).await,
        // `task` and the lines above took these.
        Noun::Agent(_) | Noun::Completion(_) => Ok(()),
    }
}
