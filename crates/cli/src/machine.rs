//! Verbs that act on this machine: parsed here, carried out by the binary.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use sterna_model::meta::Name;

use crate::ask::Yes;

/// What the binary is asked to do on this machine.
#[derive(Debug)]
pub enum Machine {
    ServerRun(RunArgs),
    ServerInit(Box<InitArgs>),
    ServerBackup(BackupArgs),
    ServerRestore(RestoreArgs),
    Agent(AgentVerb),
    HostCheck(CheckArgs),
    HostLeave(LeaveArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Settings file [default: /etc/sterna/server.toml or /etc/sterna/agent.toml]
    #[arg(long = "settings", visible_alias = "file", short = 'f', value_name = "FILE")]
    pub settings: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// File to write; it must not be there [default: one with the time in its name, among the scheduled ones]
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// The server's settings file [default: /etc/sterna/server.toml]
    #[arg(long = "settings", short = 'f', value_name = "FILE")]
    pub settings: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Put what is in the data directory aside; its images are kept
    #[arg(long)]
    pub replace: bool,
    /// The server's settings file: kept when it is there, else written from the backup
    /// [default: /etc/sterna/server.toml]
    #[arg(long = "settings", short = 'f', value_name = "FILE")]
    pub settings: Option<PathBuf>,
    /// Where the server keeps its state [default: where the settings say]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Name of the datacentre that this machine is in
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub datacentre: Name,
    /// Addresses to serve on [default: port 7443 on every address]
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS:PORT")]
    pub listen: Vec<SocketAddr>,
    /// HOST:PORT under which the other machines reach this one [default: this machine's first address]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Where the server keeps its state
    #[arg(long, default_value = "/var/lib/sterna/server", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where the server's settings are written
    #[arg(long, default_value = "/etc/sterna/server.toml", value_name = "FILE")]
    pub config_out: PathBuf,
    /// Folder on this machine that holds the volumes of the default pool, served to the other hosts
    /// [default: pools/default in the agent's data directory]
    #[arg(long, value_name = "DIR", conflicts_with = "shared_dir")]
    pub pool_dir: Option<PathBuf>,
    /// Folder that every host mounts at this path, such as NFS: the default pool instead of one served by this machine
    #[arg(long, value_name = "DIR")]
    pub shared_dir: Option<PathBuf>,
    /// Addresses of the default network
    #[arg(long, default_value = "10.100.0.0/24", value_name = "CIDR")]
    pub network: sterna_model::network::Cidr,
    /// Image file to import as `tiny` [default: the one installed with sterna, if there is one]
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Do not make this machine a host
    #[arg(long)]
    pub server_only: bool,
    /// Write files only; start nothing
    #[arg(long)]
    pub no_start: bool,
    #[command(flatten)]
    pub host: HostArgs,
}

/// The process on each host.
#[derive(Debug, Subcommand)]
pub enum AgentVerb {
    /// Run the agent in the foreground
    Run(RunArgs),
    /// Make this machine a host, with the token that `server init` or `host token` printed
    Join(Box<JoinArgs>),
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The token; a line from `server init` or `host token`
    pub token: String,
    /// Datacentre that this machine is in [default: the server's]
    #[arg(long, value_name = "NAME")]
    pub datacentre: Option<Name>,
    /// Do not start the agent
    #[arg(long)]
    pub no_start: bool,
    #[command(flatten)]
    pub host: HostArgs,
}

/// How this machine appears as a host.
#[derive(Debug, Clone, Args)]
pub struct HostArgs {
    /// Name of this host [default: the machine's host name]
    #[arg(long, value_name = "NAME")]
    pub host: Option<Name>,
    /// Address at which the other hosts reach this one [default: the one it reaches the server from]
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Separate address for memory on its way between hosts
    #[arg(long, value_name = "IP")]
    pub migration_address: Option<IpAddr>,
    /// Separate address for volumes served between hosts
    #[arg(long, value_name = "IP")]
    pub storage_address: Option<IpAddr>,
    /// Watchdog that resets this host when its guard cannot, such as /dev/watchdog; its VMs are then started elsewhere when it
    /// is lost [default: none]
    #[arg(long, value_name = "DEVICE")]
    pub watchdog: Option<PathBuf>,
    /// Where the agent keeps its state
    #[arg(long = "agent-data-dir", default_value = "/var/lib/sterna/agent", value_name = "DIR")]
    pub agent_data_dir: PathBuf,
    /// Where the agent keeps what lasts until the next boot
    #[arg(long, default_value = "/run/sterna", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Where the agent's settings are written
    #[arg(long = "agent-config-out", default_value = "/etc/sterna/agent.toml", value_name = "FILE")]
    pub agent_config_out: PathBuf,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Other machines to measure the line to
    #[arg(value_name = "ADDRESS")]
    pub peers: Vec<IpAddr>,
    /// HOST:PORT of the server that it is to join
    #[arg(long, value_name = "HOST:PORT")]
    pub server: Option<String>,
    /// The agent's settings file, when this machine is a host already
    #[arg(long = "settings", short = 'f', value_name = "FILE")]
    pub settings: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LeaveArgs {
    #[command(flatten)]
    pub yes: Yes,
    /// The agent's settings file
    #[arg(long = "settings", short = 'f', default_value = "/etc/sterna/agent.toml", value_name = "FILE")]
    pub settings: PathBuf,
}
