//! Waiting for work, with a bar. A verb waits unless `--no-wait` says otherwise; leaving off waiting stops nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sterna_base::units::Span;
use sterna_client::operation::{self, Operation};
use sterna_model::meta::Name;
use sterna_model::operation::{Goal, OperationState};

use crate::exit::{Failure, Result};
use crate::migration;
use crate::session::Session;

/// For verbs whose work goes on after the answer.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Wait {
    /// Wait for the end of the work (this is the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Print the operation and return at once
    #[arg(long)]
    no_wait: bool,
    /// Stop waiting, not the work, after this time
    #[arg(long, value_name = "DURATION", conflicts_with = "no_wait")]
    timeout: Option<Span>,
}

impl Wait {
    /// Waits for ever: for verbs that only make sense with their result.
    pub const ALWAYS: Wait = Wait { wait: true, no_wait: false, timeout: None };

    /// Gives up after a while.
    pub const fn within(limit: Span) -> Wait {
        Wait { wait: true, no_wait: false, timeout: Some(limit) }
    }

    pub fn wanted(self) -> bool {
        self.wait || !self.no_wait
    }
}

/// How often a bar is redrawn from new numbers.
const REDRAW: Duration = Duration::from_millis(250);

/// Waits for the end of an operation, or says how to. `what` is the sentence's subject, such as `vm web`.
pub async fn follow(session: &Session, wait: Wait, what: &str, operation: Operation) -> Result<Operation> {
    let name = operation.meta.name.clone();
    if !wait.wanted() {
        session.talk(&format!("{what}: under way; `sterna operation show {name}` tells how far it is"));
        return Ok(operation);
    }
    let ended = async {
        match operation.spec.goal.clone() {
            Goal::MigrationEnds { migration } => migration::watch(session, &migration, &name).await,
            _ => plain(session, what, &name).await,
        }
    };
    let operation = match wait.timeout {
        None => ended.await?,
        Some(limit) => tokio::time::timeout(limit.0, ended).await.map_err(|_| {
            Failure::failed(
                format!("{what}: not done after {limit}; the work goes on"),
                format!("`sterna operation show {name}` tells how far it is"),
            )
        })??,
    };
    verdict(what, operation)
}

/// A failed operation is a failed command.
fn verdict(what: &str, operation: Operation) -> Result<Operation> {
    match operation::state(&operation) {
        Some(OperationState::Failed { message }) => {
            let (kind, name) = operation.spec.goal.target();
            let hint = match kind {
                "vm" => format!("`sterna vm why {name}` tells more"),
                kind => format!("`sterna event list --object {kind}/{name}` tells more"),
            };
            Err(Failure::failed(format!("{what}: {message}"), hint))
        }
        _ => Ok(operation),
    }
}

/// What an operation says of itself now.
pub fn message(operation: &Operation) -> String {
    match operation::state(operation) {
        Some(
            OperationState::Running { message }
            | OperationState::Succeeded { message }
            | OperationState::Failed { message },
        ) => message.clone(),
        None => "waits to begin".to_owned(),
    }
}

async fn plain(session: &Session, what: &str, name: &Name) -> Result<Operation> {
    let talker = Talker::new(session);
    let operations = session.client.operations();
    let ended = operations.wait(name);
    tokio::pin!(ended);
    loop {
        tokio::select! {
            operation = &mut ended => {
                talker.finish();
                return Ok(operation?);
            }
            () = tokio::time::sleep(REDRAW) => {
                // Only for the text of the bar: what ends the wait is the answer above.
                if let Ok(now) = operations.get(name).await {
                    talker.say(&format!("{what}: {}", message(&now)));
                }
            }
        }
    }
}

/// One changing line for a person; a line for each change otherwise.
pub struct Talker<'a> {
    session: &'a Session,
    bar: Option<ProgressBar>,
    last: std::cell::RefCell<String>,
}

impl<'a> Talker<'a> {
    pub fn new(session: &'a Session) -> Self {
        let bar = session.terminal.is_person.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style("{spinner} {msg}"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { session, bar, last: std::cell::RefCell::default() }
    }

    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if *self.last.borrow() != text => self.session.talk(text),
            None => {}
        }
        text.clone_into(&mut self.last.borrow_mut());
    }

    /// Shows how far it is, where a person watches.
    pub fn fraction(&self, done: u64, of: u64) {
        if let Some(bar) = &self.bar {
            bar.set_style(style("{spinner} [{bar:20}] {msg}"));
            bar.set_length(of);
            bar.set_position(done.min(of));
        }
    }

    pub fn is_person(&self) -> bool {
        self.bar.is_some()
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Talker<'_> {
    fn drop(&mut self) {
        self.finish();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("=> ")
}
