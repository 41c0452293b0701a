//! `sterna server init`: from nothing to a server with its first host. Prints exactly the one line for the other machines.
//!
//! What a running server does is not done twice here: once CA and first token are written, the server is run inside this
//! process for as long as it takes to join this machine, set the default pool and take in the first image, all through
//! the API. Every step may be repeated.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use sterna_cli::exit::Failure;
use sterna_cli::machine::InitArgs;
use sterna_cli::{Format, Global, Terminal};
use sterna_client::object::{New, Patch};
use sterna_client::{Client, Context as ClientContext};
use sterna_model::error::Code;
use sterna_model::image::ImageSpec;
use sterna_model::meta::Name;
use sterna_model::network::NetworkKind;
use sterna_model::pool::PoolKind;
use sterna_server::{Config, Ready, Server};
use sterna_wire::join::JoinToken;
use tokio_util::sync::CancellationToken;

use crate::service::Service;
use crate::{config, guard, join, machine, run};

const PORT: u16 = 7443;
/// A server opens its store and its port in well under a second; a busy machine may take longer.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The pool and the network that every installation begins with.
const DEFAULT: &str = "default";
/// Where packages put the guest image.
const TINY: &str = "/usr/share/sterna/tiny.qcow2";

pub async fn init(args: &InitArgs, global: &Global, terminal: &Terminal) -> Result<()> {
    let config = settings(args)?;
    let (store, history) = run::open(&config)?;
    let ready = sterna_server::init(&config, &store).await?;
    config::write(&args.config_out, &config)?;
    guard::prepare_witness(args, &config)?;
    let context = save_context(&config, &ready, global)?;
    terminal.talk(&format!(
        "server: set up in {}, settings in {}",
        config.data_dir.display(),
        args.config_out.display()
    ));

    let cancel = CancellationToken::new();
    let inside = Config { listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))], ..config.clone() };
    let server = Server::bind(inside, store, history).await?;
    let address = *server.addresses()?.first().context("find the server's address")?;
    let serving = tokio::spawn(server.serve(cancel.clone()));
    let reached = ClientContext { server: address.to_string(), ..context.clone() };
    let furnished = furnish(args, &config, &Client::new(&reached)?, address, terminal).await;
    cancel.cancel();
    serving.await.context("end the server")?.context("run the server")?;
    furnished?;

    if args.no_start {
        terminal.talk(&format!(
            "not started; `sterna server run --settings {}` runs it",
            args.config_out.display()
        ));
    } else {
        start(args, &config, &context, terminal).await?;
    }
    tell(&ready, &config, terminal, global)
}

/// The server's settings as asked for, with an address that others reach.
fn settings(args: &InitArgs) -> Result<Config> {
    let listen = if args.listen.is_empty() {
        vec![SocketAddr::from(([0, 0, 0, 0], PORT))]
    } else {
        args.listen.clone()
    };
    let reachable = |at: &&SocketAddr| !at.ip().is_unspecified() && !at.ip().is_loopback();
    let advertise = match (&args.advertise, listen.iter().find(reachable), listen.first()) {
        (Some(given), ..) => given.clone(),
        (None, Some(at), _) => at.to_string(),
        (None, None, Some(at)) if at.ip().is_unspecified() => {
            SocketAddr::new(machine::address()?, at.port()).to_string()
        }
        (None, None, at) => at.map(ToString::to_string).unwrap_or_default(),
    };
    let data_dir = config::absolute(&args.data_dir)?;
    Ok(Config {
        fencing: guard::fencing(args, &advertise)?,
        listen,
        data_dir,
        datacentre: args.datacentre.clone(),
        advertise: Some(advertise),
        ..Config::default()
    })
}

/// Where a client on this machine reaches the server.
fn local_address(config: &Config) -> String {
    let Some(first) = config.listen.first() else { return String::new() };
    if first.ip().is_unspecified() { format!("127.0.0.1:{}", first.port()) } else { first.to_string() }
}

/// Writes the context of whoever runs this. A secret is shown once: a repeated `init` needs the context of the first.
fn save_context(config: &Config, ready: &Ready, global: &Global) -> Result<ClientContext> {
    let path = global.config.clone().unwrap_or_else(ClientContext::default_path);
    let path = config::absolute(&path)?;
    let Some(token) = &ready.admin_token else {
        return ClientContext::load(&path).map_err(|error| {
            let message = format!("the server was set up before, but its first context is not here: {error}");
            Failure::failed(message, "name the context that was written then with --config").into()
        });
    };
    let directory = path.parent().context("find the context's directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let ca = directory.join("ca.pem");
    sterna_base::file::write_durably(&ca, ready.ca.as_bytes(), 0o644)
        .context("write the CA beside the context")?;
    let context = ClientContext { server: local_address(config), token: token.clone(), ca };
    context.save(&path)?;
    Ok(context)
}

/// First host, default pool, default network, first image.
async fn furnish(
    args: &InitArgs,
    config: &Config,
    client: &Client,
    inside: SocketAddr,
    terminal: &Terminal,
) -> Result<()> {
    let host =
        if args.server_only { None } else { Some(first_host(args, config, client, inside, terminal).await?) };
    default_network(args, client).await?;
    if let Some(kind) = pool_kind(args, host.as_ref())? {
        default_pool(client, kind, terminal).await?;
    }
    match image(args) {
        Some(file) => import_tiny(client, &file, terminal).await,
        None => {
            terminal.talk("no image yet: `sterna image import tiny --file FILE`");
            Ok(())
        }
    }
}

async fn first_host(
    args: &InitArgs,
    config: &Config,
    client: &Client,
    inside: SocketAddr,
    terminal: &Terminal,
) -> Result<Name> {
    let name = args.host.host.clone().map_or_else(machine::name, Ok)?;
    if args.host.agent_config_out.exists() {
        terminal.talk(&format!("host {name}: joined before"));
        return Ok(name);
    }
    let made = client.host_token(Some(&name)).await?;
    let token: JoinToken = made.token.parse().context("read the token for this machine")?;
    // Over loopback now; afterwards at the address that does not change.
    let token = JoinToken { server: inside.to_string(), ..token };
    let advertised = config.advertise.clone().unwrap_or_else(|| local_address(config));
    let mut host = args.host.clone();
    host.host = Some(name);
    if host.address.is_none() {
        host.address = Some(machine::resolve(&advertised)?.ip());
    }
    let order = join::Order { token: &token, server: &advertised, datacentre: Some(args.datacentre.clone()) };
    let name = join::join(&order, &host).await?;
    terminal.talk(&format!("host {name}: joined"));
    Ok(name)
}

/// Without shared storage given, this machine serves its own folder to the others: VMs can move from the first day.
fn pool_kind(args: &InitArgs, host: Option<&Name>) -> Result<Option<PoolKind>> {
    let text = |path: &Path| -> Result<String> { Ok(config::absolute(path)?.to_string_lossy().into_owned()) };
    if let Some(shared) = &args.shared_dir {
        return Ok(Some(PoolKind::SharedDir { path: text(shared)? }));
    }
    let Some(host) = host else { return Ok(None) };
    let path = args.pool_dir.clone().unwrap_or_else(|| args.host.agent_data_dir.join("pools/default"));
    Ok(Some(PoolKind::Nbd { host: host.clone(), path: text(&path)? }))
}

async fn default_pool(client: &Client, kind: PoolKind, terminal: &Terminal) -> Result<()> {
    let name = Name::new(DEFAULT)?;
    let sentence = match &kind {
        PoolKind::Nbd { host, path } => format!("{path} on host {host}, served to the other hosts"),
        PoolKind::SharedDir { path } | PoolKind::Dir { path } => format!("{path}, mounted on every host"),
    };
    let present = client.pools().get(&name).await?;
    if present.spec.kind != kind {
        client.pools().patch(&name, &Patch::of(json!({ "kind": kind, "default": true }))).await?;
    }
    terminal.talk(&format!("pool {name}: {sentence}"));
    Ok(())
}

async fn default_network(args: &InitArgs, client: &Client) -> Result<()> {
    let name = Name::new(DEFAULT)?;
    let kind = NetworkKind::Overlay { cidr: args.network };
    let present = client.networks().get(&name).await?;
    if present.spec.kind != kind {
        client.networks().patch(&name, &Patch::of(json!({ "kind": kind }))).await?;
    }
    Ok(())
}

/// The image given, or the one that was installed with this program.
fn image(args: &InitArgs) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|binary| Some(binary.parent()?.join("tiny.qcow2")));
    args.image.clone().or_else(|| beside.into_iter().chain([PathBuf::from(TINY)]).find(|path| path.is_file()))
}

async fn import_tiny(client: &Client, file: &Path, terminal: &Terminal) -> Result<()> {
    let name = Name::new("tiny")?;
    let spec = ImageSpec { source: "upload".to_owned(), sha256: None };
    match client.images().create(&New::named(name.clone(), spec)).await {
        Err(error) if error.is(Code::AlreadyExists) => return Ok(()),
        created => created.context("make image tiny")?,
    };
    let answer =
        client.images().upload(&name, file, Arc::new(AtomicU64::new(0))).await.context("import tiny")?;
    if let Some(operation) = answer.operation {
        client.operations().wait(&operation.meta.name).await.context("import tiny")?;
    }
    terminal.talk(&format!("image {name}: imported from {}", file.display()));
    Ok(())
}

async fn start(args: &InitArgs, config: &Config, context: &ClientContext, terminal: &Terminal) -> Result<()> {
    let settings = config::absolute(&args.config_out)?;
    let server = Service { role: "server", settings, run_dir: config::absolute(&args.host.run_dir)? };
    terminal.talk(&format!("server: {}", server.start()?));
    let here = ClientContext { server: local_address(config), ..context.clone() };
    answers(&Client::new(&here)?).await?;
    if !args.server_only {
        join::start(&args.host, terminal)?;
        terminal.talk(
            "two machines cannot tell which of them is lost: from a third voter on (another host, or a server on a machine of its \
             own) VMs of a lost host are started elsewhere",
        );
        return Ok(());
    }
    match config.fencing.as_ref().and_then(|fencing| fencing.witness.clone()) {
        Some(settings) => {
            let witness = Service { role: "guard", settings, run_dir: config::absolute(&args.host.run_dir)? };
            terminal.talk(&format!("guard beside the server: {}", witness.start()?));
        }
        None => terminal.talk(
            "no host gets a lease, and nothing is started elsewhere when one is lost: --advertise is no address that guards could use",
        ),
    }
    Ok(())
}

/// The line that is printed next must work at once.
async fn answers(client: &Client) -> Result<()> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        match client.health().await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("the server was started and does not answer; see its log");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The one line that is data; everything around it is talk.
fn tell(ready: &Ready, config: &Config, terminal: &Terminal, global: &Global) -> Result<()> {
    let line = format!("sterna agent join {}", ready.join_token);
    let text = match global.output {
        Format::Table => {
            terminal.talk("on each other machine, as root (works once, within 15 minutes; `sterna host token` prints more):");
            format!("{line}\n")
        }
        Format::Json | Format::Yaml => {
            let context = global.config.clone().unwrap_or_else(ClientContext::default_path);
            let data = json!({
                "join": line,
                "token": ready.join_token,
                "server": config.advertise,
                "context": context,
                "ca_pin": ready.join_token.rsplit('/').next(),
            });
            format!("{data:#}\n")
        }
    };
    Ok(terminal.data(&text)?)
}
