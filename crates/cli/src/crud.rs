//! What every kind of object can be asked: list, show, delete, and doing one thing to many.

use serde::Serialize;
use sterna_client::object::{Answer, Api, New, Of, Patch, Resource};
use sterna_model::meta::Name;

use crate::ask::{Yes, confirm};
use crate::exit::{Failure, Result};
use crate::output::Listed;
use crate::select::{Label, LabelChange, Many, Selector, changed, labels};
use crate::session::Session;
use crate::wait::{self, Wait};

/// What is given to every object when it is made.
#[derive(Debug, Clone, clap::Args)]
pub struct About {
    /// Label to give; several may be given
    #[arg(short = 'l', long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// Free text for people
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub notes: String,
}

impl About {
    pub fn new_object<S>(&self, name: Name, spec: S) -> New<S> {
        New { name, labels: labels(&self.labels), notes: self.notes.clone(), spec }
    }
}

/// For verbs that delete.
#[derive(Debug, clap::Args)]
pub struct Delete {
    #[command(flatten)]
    pub many: Many,
    #[command(flatten)]
    pub yes: Yes,
    #[command(flatten)]
    pub wait: Wait,
}

pub async fn list<R: Resource>(session: &Session, selector: &Selector) -> Result<()>
where
    Of<R>: Listed,
{
    session.list(&Api::<R>::new(&session.client).list(&selector.filter()).await?)
}

pub async fn show<R: Resource>(session: &Session, name: &Name) -> Result<()>
where
    Of<R>: Serialize,
{
    session.object(&Api::<R>::new(&session.client).get(name).await?)
}

pub async fn create<R: Resource, S: Serialize>(session: &Session, new: &New<S>, wait: Wait) -> Result<()>
where
    Of<R>: Serialize,
{
    let answer = Api::<R>::new(&session.client).create(new).await?;
    finish(session, wait, &format!("{} {}", R::KIND, new.name), "created", answer).await
}

/// Deletes what was named, after asking. `loss` says what goes with it.
pub async fn delete<R: Resource>(session: &Session, args: &Delete, loss: &str) -> Result<()>
where
    Of<R>: Serialize,
{
    let names = args.many.resolve::<R>(&session.client).await?;
    let shown: Vec<_> = names.iter().map(Name::as_str).collect();
    confirm(&session.terminal, args.yes, &format!("delete {} {}?{loss}", R::KIND, shown.join(", ")))?;
    each(session, &names, async |name| {
        let answer = Api::<R>::new(&session.client).delete(name).await?;
        finish(session, args.wait, &format!("{} {name}", R::KIND), "deleted", answer).await
    })
    .await
}

/// Does one thing to several objects: each is tried, whatever became of those before.
pub async fn each(session: &Session, names: &[Name], act: impl AsyncFn(&Name) -> Result<()>) -> Result<()> {
    if let [only] = names {
        return act(only).await;
    }
    let mut failed = 0;
    let mut code = crate::exit::OK;
    for name in names {
        match act(name).await {
            Ok(()) => {}
            Err(Failure::Closed) => return Err(Failure::Closed),
            Err(failure) => {
                failed += 1;
                code = code.max(failure.code());
                failure.tell(&session.terminal);
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Some { failed, all: names.len(), code }) }
}

/// Waits for what an answer began, then says what became of it.
pub async fn finish<O: Serialize>(
    session: &Session,
    wait: Wait,
    what: &str,
    done: &str,
    mut answer: Answer<O>,
) -> Result<()> {
    let Some(operation) = answer.operation.take() else {
        return session.done(&format!("{what}: {done}"), &answer);
    };
    let ended = wait::follow(session, wait, what, operation).await?;
    let sentence = if wait.wanted() { wait::message(&ended) } else { return session.done_quietly(&ended) };
    let sentence = if sentence.is_empty() { done.to_owned() } else { sentence };
    answer.operation = Some(ended);
    session.done(&format!("{what}: {sentence}"), &answer)
}

/// Adds changes of labels to a patch. The server takes all labels as they shall be, so they are computed from those
/// present, and the revision they were read at goes with them.
pub async fn with_labels<R: Resource, S>(
    session: &Session,
    name: &Name,
    patch: Patch<S>,
    changes: &[LabelChange],
) -> Result<Patch<S>> {
    if changes.is_empty() {
        return Ok(patch);
    }
    let present: Of<R> = Api::<R>::new(&session.client).get(name).await?;
    let labels = changed(present.meta.labels, changes);
    Ok(Patch { labels: Some(labels), revision: Some(present.revision), ..patch })
}
