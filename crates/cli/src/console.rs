//! A VM's serial console in this terminal: raw bytes both ways, until Ctrl-].

use rustix::termios::{self, OptionalActions, Termios};
use sterna_model::meta::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::exit::{Failure, Result};
use crate::session::Session;

/// Ctrl-], as in telnet and virsh.
const LEAVE: u8 = 0x1d;

/// Puts the terminal back as it was, whatever ends the console.
struct Raw(Termios);

impl Raw {
    /// `None` when stdin is no terminal: then bytes pass as they are.
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&stdin, OptionalActions::Flush, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that has gone.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

pub async fn run(session: &Session, name: &Name) -> Result<()> {
    let stream = session.client.vms().console(name).await?;
    session.talk(&format!("console of vm {name}; Ctrl-] leaves"));
    let raw = Raw::enter();
    let end = pump(stream).await;
    drop(raw);
    session.talk("");
    match end {
        Ok(End::Left) => Ok(()),
        Ok(End::Closed) => {
            session.talk("the console was closed at the other end");
            Ok(())
        }
        Err(error) => Err(Failure::failed(format!("console of vm {name}: {error}"), "open it again")),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Left,
    Closed,
}

async fn pump(stream: sterna_client::Stream) -> std::io::Result<End> {
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let (mut stdin, mut stdout) = (tokio::io::stdin(), tokio::io::stdout());
    let (mut typed, mut shown) = ([0; 1024], [0; 16 * 1024]);
    let mut stdin_open = true;
    loop {
        tokio::select! {
            count = from_guest.read(&mut shown) => match count? {
                0 => return Ok(End::Closed),
                count => {
                    stdout.write_all(&shown[..count]).await?;
                    stdout.flush().await?;
                }
            },
            count = stdin.read(&mut typed), if stdin_open => {
                let count = count?;
                // A closed stdin types nothing more; what the guest says is still wanted.
                stdin_open = count > 0;
                let (send, left) = until_leave(&typed[..count]);
                to_guest.write_all(send).await?;
                to_guest.flush().await?;
                if left {
                    return Ok(End::Left);
                }
            }
        }
    }
}

/// What is typed before Ctrl-], and whether it was.
fn until_leave(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|byte| *byte == LEAVE) {
        Some(at) => (&typed[..at], true),
        None => (typed, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_bracket_leaves_and_what_came_before_is_sent() {
        assert_eq!(until_leave(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(until_leave(b"ls\x1dmore"), (&b"ls"[..], true));
        assert_eq!(until_leave(b""), (&b""[..], false));
    }
}
