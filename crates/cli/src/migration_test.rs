//! The acceptance check: one VM moved live between two hosts, whatever happens removed afterwards.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use sterna_base::clock::{Clock, SystemClock};
use sterna_base::units::Span;
use sterna_client::Filter;
use sterna_client::host::Host;
use sterna_client::object::{New, Patch};
use sterna_client::vm::{Ask, Move};
use sterna_model::meta::Name;
use sterna_model::migration::Phase;
use sterna_model::vm::Place;
use tokio::time::{Instant, sleep};

use crate::exit::{Failure, Result};
use crate::migration;
use crate::session::Session;
use crate::wait::{self, Talker, Wait};

/// A host that has just joined first tries guests and opens pools, in seconds; a busy machine may take longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A VM that has not started by then will not: no host fits, or no pool is usable.
const START: Span = Span::from_secs(120);
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub struct Test {
    /// Start on this host [default: the first that is ready]
    #[arg(long, value_name = "HOST")]
    from: Option<Name>,
    /// Move to this host [default: the next that is ready]
    #[arg(long, value_name = "HOST")]
    to: Option<Name>,
    /// Image to boot
    #[arg(long, default_value = "tiny", value_name = "NAME")]
    image: Name,
}

pub async fn run(session: &Session, args: &Test) -> Result<()> {
    let (from, to) = choose(session, args).await?;
    let name = Name::new(&format!("migration-test-{:x}", SystemClock.now().as_millis()))
        .map_err(|error| Failure::failed(error.to_string(), "this is a defect"))?;
    session.talk(&format!("making vm {name} on host {from}, to be moved to host {to}"));
    let result = make_and_move(session, args, &name, (&from, &to)).await;
    // It goes whatever happened; that it does not go is worth an error only when all else went well.
    let removed = remove(session, &name).await;
    result?;
    removed?;
    session.talk("fine: a running VM moves between these hosts");
    Ok(())
}

/// Two hosts that are ready, as far as they were not named. Those that have just joined are waited for.
async fn choose(session: &Session, args: &Test) -> Result<(Name, Name)> {
    let talker = Talker::new(session);
    let until = Instant::now() + PATIENCE;
    loop {
        let hosts = session.client.hosts().list(&Filter::default()).await?;
        let is_ready = |host: &&Host| host.status.as_ref().is_some_and(|status| status.state == "ready");
        let ready: Vec<_> = hosts.iter().filter(is_ready).map(|host| host.name().clone()).collect();
        if let Some(pair) = pick(args, &ready) {
            return Ok(pair);
        }
        if Instant::now() > until {
            return Err(Failure::failed(
                "two hosts that are ready are needed",
                "`sterna host list` shows them; `sterna host token` prints the line that adds one",
            ));
        }
        talker.say(&format!("waiting until two hosts are ready; {} of {} are", ready.len(), hosts.len()));
        sleep(LOOK).await;
    }
}

/// Those asked for, or the first two.
fn pick(args: &Test, ready: &[Name]) -> Option<(Name, Name)> {
    let mut free =
        ready.iter().filter(|name| Some(*name) != args.from.as_ref() && Some(*name) != args.to.as_ref());
    let mut take = |asked: &Option<Name>| match asked {
        Some(asked) => ready.contains(asked).then(|| asked.clone()),
        None => free.next().cloned(),
    };
    let (from, to) = (take(&args.from)?, take(&args.to)?);
    (from != to).then_some((from, to))
}

/// Waits until nothing speaks against the move any more: the target's agent may not have seen the pool yet.
async fn until_it_may_go(session: &Session, name: &Name, to: &Name) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    let order = Move { to: Some(to.clone()), ..Move::default() };
    while !session.client.vms().forecast(name, &order).await?.reasons.is_empty() && Instant::now() < until {
        sleep(LOOK).await;
    }
    // What still speaks against it is said by the order itself.
    Ok(())
}

async fn make_and_move(
    session: &Session,
    args: &Test,
    name: &Name,
    (from, to): (&Name, &Name),
) -> Result<()> {
    let ask = Ask {
        image: Some(args.image.clone()),
        place: Some(Place { host: Some(from.clone()), ..Place::default() }),
        ..Ask::default()
    };
    let vms = session.client.vms();
    let what = format!("vm {name}");
    let made = vms.create(&New::named(name.clone(), ask)).await?;
    if let Some(operation) = made.operation {
        wait::follow(session, Wait::within(START), &what, operation).await?;
    }
    // Pinned to its first host it could not move: from here on it may be anywhere.
    vms.patch(name, &Patch::of(json!({ "place": { "host": null } }))).await?;
    until_it_may_go(session, name, to).await?;
    session.talk(&format!("moving {what}"));
    let moved = vms.migrate(name, &Move { to: Some(to.clone()), ..Move::default() }).await?;
    let migration = moved.migration.clone();
    if let Some(operation) = moved.operation {
        wait::follow(session, Wait::ALWAYS, &what, operation).await?;
    }
    let Some(migration) = migration else {
        return Err(Failure::failed(
            "the server did not name the migration",
            "client and server differ in version",
        ));
    };
    migration::report(session, &migration).await?;
    confirm(session, name, &migration, to).await
}

/// Where it is said to be is not enough: its owner and its state must say so too.
async fn confirm(session: &Session, name: &Name, migration: &Name, to: &Name) -> Result<()> {
    let ended = session.client.migrations().get(migration).await?;
    let succeeded = ended.decision.as_ref().is_some_and(|decision| decision.phase == Phase::Succeeded);
    let vm = session.client.vms().get(name).await?;
    let arrived = vm.decision.as_ref().is_some_and(|decision| decision.owner.host == *to);
    if succeeded && arrived {
        return Ok(());
    }
    let state =
        vm.status.map(|status| format!("{} {}", status.state.word(), status.message)).unwrap_or_default();
    Err(Failure::failed(
        format!("the VM did not arrive on host {to}: {state}"),
        format!("`sterna vm why {name}`"),
    ))
}

async fn remove(session: &Session, name: &Name) -> Result<()> {
    let vms = session.client.vms();
    match vms.delete(name).await {
        Ok(answer) => {
            if let Some(operation) = answer.operation {
                wait::follow(session, Wait::ALWAYS, &format!("vm {name}"), operation).await?;
            }
            Ok(())
        }
        Err(error) if error.is(sterna_model::error::Code::NotFound) => Ok(()),
        Err(error) => {
            session.talk(&format!("vm {name} could not be removed: `sterna vm delete {name}`"));
            Err(error.into())
        }
    }
}
