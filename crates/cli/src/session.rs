//! One command being carried out: client, output, terminal.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use sterna_client::{Client, Context};

use crate::exit::{Failure, Result};
use crate::noun::Global;
use crate::output::{self, Format, Listed};

/// Where data and talk go, and whether a person is there. Tests bring their own.
#[derive(Clone)]
pub struct Terminal {
    data: Arc<Mutex<dyn Write + Send>>,
    talk: Arc<Mutex<dyn Write + Send>>,
    /// A person reads stderr and can answer on stdin.
    pub is_person: bool,
    /// stdout is a terminal of this width.
    pub width: Option<u16>,
}

impl Terminal {
    /// The process's own.
    #[must_use]
    pub fn of_process() -> Self {
        let stdout = std::io::stdout();
        let width = if stdout.is_terminal() {
            rustix::termios::tcgetwinsize(&stdout).ok().map(|size| size.ws_col).filter(|width| *width > 0)
        } else {
            None
        };
        Self {
            data: Arc::new(Mutex::new(stdout)),
            talk: Arc::new(Mutex::new(std::io::stderr())),
            is_person: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
            width,
        }
    }

    /// Into memory, with nobody there.
    pub fn captured(data: Arc<Mutex<Vec<u8>>>, talk: Arc<Mutex<Vec<u8>>>) -> Self {
        Self { data, talk, is_person: false, width: None }
    }

    /// One line for people. That nobody listens is no reason to fail.
    pub fn talk(&self, line: &str) {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(talk, "{line}");
    }

    /// Text on stdout.
    pub fn data(&self, text: &str) -> Result<()> {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let written = data.write_all(text.as_bytes()).and_then(|()| data.flush());
        written.map_err(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Failed { message: format!("write to stdout: {error}"), hint: None },
        })
    }
}

/// What every verb gets.
pub struct Session {
    pub client: Client,
    pub terminal: Terminal,
    pub format: Format,
}

impl Session {
    pub fn open(global: &Global, terminal: Terminal) -> Result<Self> {
        let path = global.config.clone().unwrap_or_else(Context::find);
        let client = Client::new(&Context::load(&path)?)?;
        Ok(Self { client, terminal, format: global.output })
    }

    pub fn talk(&self, line: &str) {
        self.terminal.talk(line);
    }

    /// A list as the user asked to see it.
    pub fn list<T: Listed>(&self, items: &[T]) -> Result<()> {
        match self.format {
            Format::Table => {
                if items.is_empty() {
                    self.talk(&format!("no {}", T::WORDS));
                    return Ok(());
                }
                let rows = items.iter().map(Listed::row).collect();
                self.terminal.data(&output::table(T::HEAD, rows, self.terminal.width))
            }
            _ => self.value(items),
        }
    }

    /// One object in full.
    pub fn object<T: Serialize>(&self, object: &T) -> Result<()> {
        match self.format {
            Format::Table => self.terminal.data(&output::pairs(object)?),
            _ => self.value(object),
        }
    }

    /// JSON or YAML, whichever was asked for; JSON when a table was asked for and there is none.
    pub fn value<T: Serialize + ?Sized>(&self, value: &T) -> Result<()> {
        self.terminal.data(&output::text(self.format, value)?)
    }

    /// What a verb did: a sentence for people, the data for programs.
    pub fn done<T: Serialize>(&self, sentence: &str, data: &T) -> Result<()> {
        self.talk(sentence);
        self.done_quietly(data)
    }

    /// Data for programs; people were told already.
    pub fn done_quietly<T: Serialize>(&self, data: &T) -> Result<()> {
        if self.format == Format::Table { Ok(()) } else { self.value(data) }
    }
}
