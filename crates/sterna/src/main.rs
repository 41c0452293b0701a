//! The one binary. Wires the crates together and decides nothing: `sterna shim` is QEMU's parent, `sterna guard` holds the
//! host's lease, `sterna server run` and `sterna agent run` are the two services, `sterna lab` is a small world, and
//! everything else talks to the API.

/// `sterna server backup` and `sterna server restore`.
mod backup;
/// `sterna host check`: can this machine be a host?
mod check;
/// What the services' settings files say, as far as this binary writes them.
mod config;
/// Keys and settings of the guards on this machine.
mod guard;
/// `sterna server init`: from nothing to a server with its first host.
mod init;
/// `sterna agent join`: this machine becomes a host.
mod join;
/// `sterna host leave`: this machine stops being one.
mod leave;
/// Which address of this machine others reach.
mod machine;
/// The roles that run until they are told to end.
mod run;
/// Starting and stopping the services, with systemd or without.
mod service;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{FromArgMatches, Subcommand};
use sterna_cli::machine::{AgentVerb, Machine};
use sterna_cli::{Sterna, Task, Terminal};
use sterna_lab::cli::LabVerb;

/// Nouns whose whole command line belongs to the lab.
const OF_THE_LAB: [&str; 2] = ["lab", "supervise"];

/// Verbs of the lab that may be said without it.
const SHORT: [&str; 2] = ["demo", "bench"];

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let noun = args.get(1).and_then(|word| word.to_str()).unwrap_or_default().to_owned();
    // A shim is started for every VM and lives beside it: no runtime, no command line parser.
    if noun == "shim" {
        return shim(&args);
    }
    // So does a guard, on which every VM of its host depends.
    if noun == "guard" {
        return guard(&args);
    }
    // A second call finds it set; there is one provider in the whole program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if SHORT.contains(&noun.as_str()) {
        args.insert(1, "lab".into());
        return sterna_lab::cli(args);
    }
    if OF_THE_LAB.contains(&noun.as_str()) {
        return sterna_lab::cli(args);
    }
    let mut matches = grammar().get_matches_from(args);
    // Options of every command may stand before the noun.
    if let Some(("lab", words)) = matches.subcommand() {
        return match LabVerb::from_arg_matches(words) {
            Ok(verb) => match sterna_lab::cli::run(verb) {
                Ok(code) => code,
                Err(error) => finish(Err(error)),
            },
            Err(error) => error.exit(),
        };
    }
    match Sterna::from_arg_matches_mut(&mut matches) {
        Ok(sterna) => carry_out(sterna.task()),
        Err(error) => error.exit(),
    }
}

/// The command line with the nouns that need no API.
fn grammar() -> clap::Command {
    let lab = LabVerb::augment_subcommands(clap::Command::new("lab"));
    let about = "A small world on this machine: two datacentres, hosts, a slow line between them";
    sterna_cli::command().subcommand(lab.about(about).subcommand_required(true).arg_required_else_help(true))
}

fn shim(args: &[OsString]) -> ExitCode {
    match args {
        [_, _, launch] => finish(sterna_shim::run(Path::new(launch))),
        _ => finish(Err(anyhow::anyhow!("usage: sterna shim LAUNCH_FILE"))),
    }
}

fn guard(args: &[OsString]) -> ExitCode {
    match args {
        [_, _, option, path] if option == "--config" => {
            sterna_base::log::init(sterna_base::log::Format::Text);
            finish(
                sterna_guard::Config::read(Path::new(path)).map_err(Into::into).and_then(sterna_guard::run),
            )
        }
        _ => finish(Err(anyhow::anyhow!("usage: sterna guard --config FILE"))),
    }
}

/// The services go before guests: what they do is little, and a guest that moves stands still meanwhile. QEMU itself is
/// started without it (`shim/child.rs`).
const SERVICE_NICE: i32 = -10;

fn carry_out(task: Task) -> ExitCode {
    let is_service =
        matches!(task, Task::Machine(Machine::ServerRun(_) | Machine::Agent(AgentVerb::Run(_)), _));
    // Before there is a second thread, which would keep the old one. Where it is not allowed, moves take longer.
    if is_service && let Err(error) = rustix::process::setpriority_process(None, SERVICE_NICE) {
        eprintln!("no priority over guests: {error}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return finish(Err(error.into())),
    };
    let code = runtime.block_on(async {
        match task {
            Task::Api(task) => sterna_cli::run(task, Terminal::of_process(), grammar()).await.into(),
            Task::Machine(machine, global) => finish(on_this_machine(machine, &global).await),
        }
    });
    // A console's read from the terminal cannot be called off: do not wait for it.
    runtime.shutdown_background();
    code
}

async fn on_this_machine(machine: Machine, global: &sterna_cli::Global) -> anyhow::Result<()> {
    let terminal = Terminal::of_process();
    match machine {
        Machine::ServerRun(args) => run::server(&args).await,
        Machine::ServerInit(args) => init::init(&args, global, &terminal).await,
        Machine::ServerBackup(args) => backup::backup(&args, global, &terminal).await,
        Machine::ServerRestore(args) => backup::restore(&args, global, &terminal).await,
        Machine::Agent(AgentVerb::Run(args)) => run::agent(&args).await,
        Machine::Agent(AgentVerb::Join(args)) => join::command(&args, &terminal).await,
        Machine::HostCheck(args) => check::check(&args, global, &terminal).await,
        Machine::HostLeave(args) => leave::leave(&args, global, &terminal).await,
    }
}

/// Says what went wrong, with the cause behind it and what to do.
fn finish(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let terminal = Terminal::of_process();
    terminal.talk(&format!("error: {error:#}"));
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<sterna_cli::exit::Failure>());
    let client = error.chain().find_map(|cause| cause.downcast_ref::<sterna_client::Error>());
    let refusal = error.chain().find_map(|cause| cause.downcast_ref::<sterna_model::error::Error>());
    let hint = failure
        .and_then(sterna_cli::exit::Failure::hint)
        .or_else(|| client.and_then(sterna_client::Error::hint))
        .or_else(|| refusal.and_then(|refusal| refusal.hint.clone()));
    if let Some(hint) = hint {
        terminal.talk(&format!("hint: {hint}"));
    }
    let unreachable =
        |error: &sterna_client::Error| matches!(error, sterna_client::Error::Unreachable { .. });
    let code = match (failure, client) {
        (Some(failure), _) => failure.code(),
        (None, Some(error)) if unreachable(error) => sterna_cli::exit::UNREACHABLE,
        _ => sterna_cli::exit::FAILED,
    };
    code.into()
}
