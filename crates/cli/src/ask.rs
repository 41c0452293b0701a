//! Asking before something is lost.

use std::io::BufRead;

use sterna_model::meta::Name;

use crate::exit::{Failure, Result};
use crate::session::Terminal;

/// For verbs after which something is gone.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Yes {
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
}

/// Asks a person; refuses when none is there and `--yes` was not given.
pub fn confirm(terminal: &Terminal, yes: Yes, question: &str) -> Result<()> {
    if yes.yes {
        return Ok(());
    }
    if !terminal.is_person {
        return Err(Failure::usage(
            format!("not confirmed: {question}"),
            "add --yes; nobody is here to be asked",
        ));
    }
    terminal.talk(&format!("{question} [y/N]"));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && is_yes(&answer) {
        Ok(())
    } else {
        Err(Failure::Failed { message: "not confirmed, nothing was changed".to_owned(), hint: None })
    }
}

/// Asks a person for a name; refuses with `hint` when none is there.
pub fn name(terminal: &Terminal, question: &str, hint: &str) -> Result<Name> {
    if !terminal.is_person {
        return Err(Failure::usage(format!("not confirmed: {question}"), hint));
    }
    terminal.talk(question);
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).ok();
    Name::new(answer.trim())
        .map_err(|_| Failure::Failed { message: "not confirmed, nothing was changed".to_owned(), hint: None })
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_a_clear_yes_is_one() {
        assert!(super::is_yes("y\n") && super::is_yes(" YES "));
        assert!(!super::is_yes("") && !super::is_yes("n") && !super::is_yes("yep, delete"));
    }
}
