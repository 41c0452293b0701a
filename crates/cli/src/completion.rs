//! Scripts that complete words in a shell.

use clap_complete::Shell;

use crate::exit::Result;
use crate::session::Terminal;

#[derive(Debug, clap::Args)]
pub struct Completion {
    /// For which shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Known,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

pub fn run(completion: &Completion, mut grammar: clap::Command, terminal: &Terminal) -> Result<()> {
    let shell = match completion.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar, "sterna", &mut script);
    terminal.data(&String::from_utf8_lossy(&script))
}
