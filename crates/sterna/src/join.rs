//! `sterna agent join`: this machine becomes a host. It trusts the server by the pin in the token, and gets a certificate
//! for a key that never leaves this machine.

use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
use sterna_base::file;
use sterna_cli::Terminal;
use sterna_cli::exit::Failure;
use sterna_cli::machine::{HostArgs, JoinArgs};
use sterna_client::tls::Trust;
use sterna_client::{Client, Error};
use sterna_model::host::Addresses;
use sterna_model::meta::Name;
use sterna_server::ca::HostIdentity;
use sterna_wire::join::{JoinAnswer, JoinRequest, JoinToken};
use uuid::Uuid;

use crate::config::{self, AgentSettings};
use crate::service::Service;
use crate::{guard, machine};

/// `sterna agent join TOKEN`.
pub async fn command(args: &JoinArgs, terminal: &Terminal) -> Result<()> {
    let token = read_token(&args.token)?;
    let order = Order { token: &token, server: &token.server, datacentre: args.datacentre.clone() };
    let host = join(&order, &args.host).await?;
    terminal.talk(&format!("host {host}: joined {}", token.server));
    if args.no_start {
        let settings = args.host.agent_config_out.display();
        terminal.talk(&format!("not started; `sterna agent run --settings {settings}` runs it"));
        return Ok(());
    }
    start(&args.host, terminal)
}

/// Guard and agent of a host that has joined. A guard without a watchdog votes for the others.
pub fn start(args: &HostArgs, terminal: &Terminal) -> Result<()> {
    let settings = guard::settings_beside(&args.agent_config_out)?;
    let guard = Service { role: "guard", settings, run_dir: config::absolute(&args.run_dir)? };
    terminal.talk(&format!("guard: {}", guard.start()?));
    terminal.talk(&format!("agent: {}", service(args)?.start()?));
    if args.watchdog.is_none() {
        terminal.talk(
            "no watchdog: when this host is lost, its VMs are not started elsewhere by themselves; join it with \
             --watchdog /dev/watchdog where it has one",
        );
    }
    Ok(())
}

/// The whole printed line is understood as well.
fn read_token(text: &str) -> Result<JoinToken> {
    let last = text.split_whitespace().last().unwrap_or_default();
    last.parse::<JoinToken>().map_err(|error| {
        Failure::Usage {
            message: error.to_string(),
            hint: Some("`sterna host token` prints a new line".to_owned()),
        }
        .into()
    })
}

/// Whom to join, and where the agent will find the server afterwards.
#[derive(Debug)]
pub struct Order<'a> {
    pub token: &'a JoinToken,
    pub server: &'a str,
    pub datacentre: Option<Name>,
}

/// Joins and writes what the agent needs. Returns the host's name.
pub async fn join(order: &Order<'_>, args: &HostArgs) -> Result<Name> {
    if args.agent_config_out.exists() {
        let message = format!("this machine is a host already: {} exists", args.agent_config_out.display());
        return Err(Failure::failed(
            message,
            "`sterna host leave` first, or join with another --agent-config-out",
        )
        .into());
    }
    let host = args.host.clone().map_or_else(machine::name, Ok)?;
    let addresses = addresses(order.server, args)?;
    let data_dir = config::absolute(&args.agent_data_dir)?;
    let run_dir = config::absolute(&args.run_dir)?;
    make_dir(&data_dir)?;
    let key = KeyPair::generate().context("make a key")?;
    let csr = CertificateParams::default().serialize_request(&key).context("make a certificate request")?;
    let request = JoinRequest {
        version: sterna_wire::VERSION,
        token: order.token.secret.clone(),
        host: host.clone(),
        datacentre: order.datacentre.clone(),
        addresses: addresses.clone(),
        csr: csr.pem().context("write the certificate request")?,
    };
    // Before the token is used up: a folder that cannot be written is found out now.
    let secret = |name: &str, text: &str| {
        let path = data_dir.join(name);
        file::write_durably(&path, text.as_bytes(), 0o600)
            .with_context(|| format!("write {}", path.display()))
    };
    secret("host.key", &key.serialize_pem())?;
    let trust = Trust::Pin(order.token.ca_pin.clone());
    let client = Client::trusting(&order.token.server, &trust, None)?;
    let answer: JoinAnswer = client.post("/agent/v1/join", &request).await.map_err(|error| match error {
        Error::Untrusted { server, .. } => anyhow::Error::new(Failure::failed(
            format!("the server at {server} is not the one that made this token"),
            "`sterna host token` prints a new line for the server that the context names",
        )),
        error => error.into(),
    })?;
    ensure!(pin_of(&answer.ca)? == order.token.ca_pin, "the server sent another CA than the token names");
    secret("host.pem", &answer.certificate)?;
    secret("ca.pem", &answer.ca)?;
    let guard_out = guard::settings_beside(&args.agent_config_out)?;
    guard::prepare(&guard::Place {
        settings: &guard_out,
        host: uid_of(&answer.certificate)?,
        listen: SocketAddr::new(addresses.management, guard::PORT),
        data_dir: &data_dir,
        run_dir: &run_dir,
        watchdog: args.watchdog.as_deref(),
    })?;
    let settings = AgentSettings {
        server: order.server,
        host: &host,
        data_dir: &data_dir,
        run_dir: &run_dir,
        guard: &guard_out,
    };
    config::write(&args.agent_config_out, &settings)?;
    Ok(host)
}

/// By which the others know this host's guard.
fn uid_of(certificate: &str) -> Result<Uuid> {
    let list = sterna_client::tls::certificates(certificate.as_bytes())?;
    let first = list.first().context("find the certificate in the answer")?;
    Ok(HostIdentity::read(first).context("find the host in its certificate")?.uid)
}

fn pin_of(ca: &str) -> Result<String> {
    let list = sterna_client::tls::certificates(ca.as_bytes())?;
    let first = list.first().context("find the CA in the answer")?;
    Ok(sterna_client::tls::pin(first))
}

/// Without an address given: the one from which this machine reaches the server.
fn addresses(server: &str, args: &HostArgs) -> Result<Addresses> {
    let found = || -> Result<IpAddr> { machine::address_towards(machine::resolve(server)?) };
    let management = args.address.map_or_else(found, Ok)?;
    Ok(Addresses { management, migration: args.migration_address, storage: args.storage_address })
}

/// QEMU runs as another user and must be able to pass through; the files in it have their own modes.
fn make_dir(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o711).create(path);
    made.with_context(|| format!("make {}", path.display()))
}

/// The agent as a service of this machine.
fn service(args: &HostArgs) -> Result<Service> {
    let settings = config::absolute(&args.agent_config_out)?;
    Ok(Service { role: "agent", settings, run_dir: config::absolute(&args.run_dir)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_printed_line_is_understood() {
        let token =
            JoinToken { server: "10.0.0.1:7443".into(), secret: "a".repeat(64), ca_pin: "b".repeat(64) };
        assert_eq!(read_token(&token.to_string()).unwrap(), token);
        assert_eq!(read_token(&format!("sterna agent join {token}\n")).unwrap(), token);
        assert!(read_token("sterna agent join").is_err());
    }
}
