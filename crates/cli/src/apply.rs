//! Carrying out a declarative file: each document is an object as it shall be; it is created, or changed where it differs.
//!
//! What a document does not say stays as it is. Nothing is ever deleted.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;
use sterna_client::Client;
use sterna_client::cluster::Clusters;
use sterna_client::datacentre::Datacentres;
use sterna_client::host::Hosts;
use sterna_client::image::Images;
use sterna_client::network::Networks;
use sterna_client::object::{Answer, Api, New, Object, Patch, Resource};
use sterna_client::pool::Pools;
use sterna_client::vm::Vms;
use sterna_client::volume::Volumes;
use sterna_model::error::Code;
use sterna_model::key::Kind;

use crate::crud;
use crate::exit::{Failure, Result};
use crate::session::Session;
use crate::wait::Wait;

/// What would change, field by field.
mod diff;
/// Documents and what may stand in them.
mod document;
/// YAML, behind one door.
pub(crate) mod yaml;

use diff::Difference;
use document::Document;

#[derive(Debug, Args)]
pub struct Apply {
    /// File with YAML documents or JSON; `-` reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Show what would change, field by field, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wait: Wait,
}

/// The largest file; what is larger is no description of a cluster.
const FILE_MAX: u64 = 8 * 1024 * 1024;

pub async fn run(session: &Session, args: Apply) -> Result<()> {
    let text = read(&args.file)?;
    let documents = document::parse(&text)?;
    let mut failed = 0;
    let mut code = crate::exit::OK;
    for document in &documents {
        if let Err(failure) = one(session, &args, document).await {
            failed += 1;
            code = code.max(failure.code());
            session.talk(&format!("{document}:"));
            failure.tell(&session.terminal);
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Some { failed, all: documents.len(), code }) }
}

fn read(file: &Path) -> Result<String> {
    let failed = |error: std::io::Error| {
        Failure::usage(format!("read {}: {error}", file.display()), "give a file, or `-` for stdin")
    };
    let mut text = String::new();
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(failed)?)
    };
    let size = source.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if size as u64 > FILE_MAX {
        return Err(Failure::usage(format!("{} is larger than 8 MiB", file.display()), "split it"));
    }
    Ok(text)
}

async fn one(session: &Session, args: &Apply, document: &Document) -> Result<()> {
    match document.kind {
        Kind::Datacentre => apply::<Datacentres>(session, args, document).await,
        Kind::Cluster => apply::<Clusters>(session, args, document).await,
        Kind::Host => apply::<Hosts>(session, args, document).await,
        Kind::Pool => apply::<Pools>(session, args, document).await,
        Kind::Image => apply::<Images>(session, args, document).await,
        Kind::Network => apply::<Networks>(session, args, document).await,
        Kind::Volume => apply::<Volumes>(session, args, document).await,
        Kind::Vm => apply::<Vms>(session, args, document).await,
        // `document::parse` lets no other kind through.
        Kind::Migration | Kind::Operation | Kind::Token | Kind::JoinToken | Kind::Store | Kind::Alert => {
            Ok(())
        }
    }
}

/// The same calls with columns as plain JSON: a document says only some fields of a spec.
struct Loose<R>(std::marker::PhantomData<R>);

impl<R: Resource> Resource for Loose<R> {
    const PATH: &'static str = R::PATH;
    const KIND: &'static str = R::KIND;
    type Spec = Value;
    type Decision = Value;
    type Report = Value;
    type Status = Value;
}

async fn present<R: Resource>(client: &Client, document: &Document) -> Result<Option<Object<Value>>> {
    match Api::<Loose<R>>::new(client).get(&document.name).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is(Code::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn apply<R: Resource>(session: &Session, args: &Apply, document: &Document) -> Result<()> {
    let present = present::<R>(&session.client, document).await?;
    let differences = diff::between(document, present.as_ref());
    let is_new = present.is_none();
    if is_new && document.kind == Kind::Host {
        return Err(Failure::failed(
            "a host cannot be made by a file",
            "run `sterna agent join` on the machine",
        ));
    }
    if args.dry_run {
        return show(session, document, is_new, &differences);
    }
    if !is_new && differences.is_empty() {
        session.talk(&format!("{document}: nothing to change"));
        return Ok(());
    }
    let api = Api::<Loose<R>>::new(&session.client);
    let answer: Answer<Object<Value>> = match &present {
        None => {
            let labels = document.labels.clone().unwrap_or_default();
            let notes = document.notes.clone().unwrap_or_default();
            api.create(&New { name: document.name.clone(), labels, notes, spec: document.spec.clone() })
                .await?
        }
        Some(present) => {
            // With the revision: what was compared is what is changed.
            let patch = Patch {
                revision: Some(present.revision),
                labels: document.labels.clone(),
                notes: document.notes.clone(),
                spec: Some(document.spec.clone()),
            };
            api.patch(&document.name, &patch).await?
        }
    };
    let mut done = if is_new { "created" } else { "changed" }.to_owned();
    if !answer.at_next_start.is_empty() {
        done = format!("{done}; at next start: {}", answer.at_next_start.join(", "));
    }
    crud::finish(session, args.wait, &document.to_string(), &done, answer).await
}

fn show(session: &Session, document: &Document, is_new: bool, differences: &[Difference]) -> Result<()> {
    let verdict = match (is_new, differences.is_empty()) {
        (true, _) => "would be created",
        (false, true) => "is as described",
        (false, false) => "would be changed",
    };
    let lines: String = differences.iter().map(|difference| format!("  {difference}\n")).collect();
    session.terminal.data(&format!("{document} {verdict}\n{lines}"))
}
