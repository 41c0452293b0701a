//! What switches a host off when it is lost.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::str::FromStr;

use clap::Subcommand;
use serde::Serialize;
use sterna_base::clock::Timestamp;
use sterna_client::host::{Host, NewFence};
use sterna_model::fence::{DeviceSeen, Secret};
use sterna_model::meta::Name;

use crate::Format;
use crate::ask::{Yes, confirm};
use crate::crud;
use crate::exit::{Failure, Result};
use crate::output::Listed;
use crate::session::Session;
use crate::wait::Wait;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Set the device that switches a host off; it is asked first, and refused when it does not answer
    Set {
        name: Name,
        /// Fence agent on the server, such as fence_ipmilan
        #[arg(long, value_name = "AGENT")]
        agent: String,
        /// Option as the agent's manual names it, such as ip=10.0.0.9; several may be given
        #[arg(long = "option", value_name = "KEY=VALUE")]
        options: Vec<Pair>,
        /// Option that is never shown, such as password: the first line of the file, or of the input with -
        #[arg(long = "secret", value_name = "KEY=FILE")]
        secrets: Vec<Pair>,
    },
    /// Ask the device of a host whether the host is on; nothing is switched
    Test { name: Name },
    /// Show the device of a host, and what it said last
    Show { name: Name },
    /// Take the device of a host away
    Remove {
        name: Name,
        #[command(flatten)]
        yes: Yes,
    },
}

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair(String, String);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self(key.to_owned(), value.to_owned())),
            _ => Err("it has no = after a key".to_owned()),
        }
    }
}

/// A device for people. What it said last is control's; older servers do not tell.
#[derive(Debug, Serialize)]
struct Shown {
    host: Name,
    agent: String,
    options: BTreeMap<String, String>,
    /// Their names; the values stay where they are.
    secrets: Vec<String>,
    since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<DeviceSeen>,
}

impl Listed for Shown {
    const WORDS: &'static str = "fence devices";
    const HEAD: &'static [&'static str] = &["host", "agent", "options", "says", "since", "fails"];

    fn row(&self) -> Vec<String> {
        let options = self.options.iter().map(|(key, value)| format!("{key}={value}"));
        let secrets = self.secrets.iter().map(|key| format!("{key}=(hidden)"));
        let options: Vec<_> = options.chain(secrets).collect();
        let power = self.said.as_ref().and_then(|said| said.power).map_or("", |power| power.word());
        let since = self.said.as_ref().map_or(self.since, |said| said.since);
        let fails = self.said.as_ref().and_then(|said| said.failed.clone()).unwrap_or_default();
        let (host, agent) = (self.host.to_string(), self.agent.clone());
        vec![host, agent, options.join(" "), power.to_owned(), since.to_string(), fails]
    }
}

impl Shown {
    fn of(host: &Host) -> Result<Self> {
        let name = host.meta.name.clone();
        let device = host.spec.fence.clone().ok_or_else(|| {
            let message = format!("host {name} has no fence device");
            Failure::failed(message, "`sterna host fence set` gives it one")
        })?;
        let said = host
            .decision
            .as_ref()
            .and_then(|decision| serde_json::from_value::<DeviceSeen>(decision.get("device")?.clone()).ok());
        Ok(Self {
            host: name,
            agent: device.agent,
            options: device.options,
            secrets: device.secrets.into_keys().collect(),
            since: device.since,
            said: said.filter(|said| said.device == device.id),
        })
    }
}

pub async fn run(session: &Session, verb: Verb) -> Result<()> {
    let hosts = session.client.hosts();
    match verb {
        Verb::Set { name, agent, options, secrets } => {
            let options = options.into_iter().map(|Pair(key, value)| (key, value)).collect();
            let secrets = secrets.into_iter().map(read).collect::<Result<_>>()?;
            let answer = hosts.set_fence(&name, &NewFence { agent, options, secrets }).await?;
            crud::finish(
                session,
                Wait::ALWAYS,
                &format!("host {name}"),
                "has a fence device that answers",
                answer,
            )
            .await
        }
        Verb::Test { name } => {
            let tested = hosts.test_fence(&name).await?;
            if session.format != Format::Table {
                return session.value(&tested);
            }
            session.talk(&format!("{} says that host {name} is {}", tested.agent, tested.power.word()));
            Ok(())
        }
        Verb::Show { name } => {
            let shown = Shown::of(&hosts.get(&name).await?)?;
            if session.format != Format::Table {
                return session.value(&shown);
            }
            session.list(&[shown])
        }
        Verb::Remove { name, yes } => {
            let question = format!("take the fence device of host {name} away?");
            confirm(&session.terminal, yes, &question)?;
            let answer = hosts.remove_fence(&name).await?;
            crud::finish(session, Wait::ALWAYS, &format!("host {name}"), "has no fence device", answer).await
        }
    }
}

/// From a file, because what is on a command line is seen by everybody on the machine.
fn read(Pair(key, file): Pair) -> Result<(String, Secret)> {
    let mut line = String::new();
    let read = if file == "-" {
        std::io::stdin().lock().read_line(&mut line)
    } else {
        std::fs::File::open(&file).and_then(|file| std::io::BufReader::new(file).read_line(&mut line))
    };
    read.map_err(|error| {
        Failure::failed(format!("cannot read {file}: {error}"), "the first line of it is the value")
    })?;
    Ok((key, Secret(line.trim_end_matches(['\r', '\n']).to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_a_key_and_keeps_its_value_whole() {
        assert_eq!("a=b=c".parse(), Ok(Pair("a".into(), "b=c".into())));
        assert_eq!("a=".parse(), Ok(Pair("a".into(), String::new())));
        assert!("a".parse::<Pair>().is_err() && "=a".parse::<Pair>().is_err());
    }
}
