//! The command line: `sterna <noun> <verb>`. stdout is data, stderr is talk, errors end with a hint.
//!
//! Holds the whole grammar, also of the verbs that act on this machine ([`machine`]): those are only parsed here and
//! carried out by the binary, because this crate knows the API and nothing of servers, agents or labs.

/// Facts that need a person.
mod alert;
/// Carrying out a declarative file.
mod apply;
/// Asking before something is lost.
pub mod ask;
/// Who did what.
mod audit;
/// Clusters: hosts with one CPU baseline.
mod cluster;
/// Scripts that complete words in a shell.
mod completion;
/// A VM's serial console in this terminal.
mod console;
/// What every kind of object can be asked.
mod crud;
/// Sites with their own failure domain.
mod datacentre;
/// Facts recorded for people.
mod event;
/// How a command ends: message, hint, exit code.
pub mod exit;
/// What happens to VMs when hosts fail.
mod ha;
/// Machines that run VMs.
mod host;
/// Sources of boot disks.
mod image;
/// Verbs that act on this machine: parsed here, carried out by the binary.
pub mod machine;
/// Moving a running VM, and what it took.
mod migration;
/// The acceptance check: one VM moved live between two hosts.
mod migration_test;
/// L2 segments.
mod network;
/// A VM's ports on networks.
mod nic;
/// The nouns, and which arguments they share.
mod noun;
/// Long work.
mod operation;
/// Tables, JSON, YAML.
mod output;
/// Places that hold volumes.
mod pool;
/// Sizes, spans and times for people.
mod readable;
/// Names, labels, selectors.
mod select;
/// Is the server there?
mod server;
/// One command being carried out: client, output, terminal.
mod session;
/// Who may talk to the API.
mod token;
/// Virtual servers.
mod vm;
/// Virtual disks.
mod volume;
/// Waiting for work, with a bar.
mod wait;

pub use noun::{ApiTask, Global, Sterna, Task, command};
pub use output::{Format, table, text};
pub use session::Terminal;

/// Carries out a command that needs only the API; `grammar` is the binary's whole command line, for completions.
/// The value is the process's exit code.
pub async fn run(task: ApiTask, terminal: Terminal, grammar: clap::Command) -> u8 {
    let talks = terminal.clone();
    match noun::dispatch(task, terminal, grammar).await {
        Ok(()) => exit::OK,
        Err(failure) => {
            failure.tell(&talks);
            failure.code()
        }
    }
}
