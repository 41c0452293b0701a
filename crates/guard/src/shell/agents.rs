//! The socket on which the agent, and people who look, talk to the guard. A connection that misbehaves is closed.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

/// One agent, its successor, and some who only look.
const CONNECTIONS_MAX: usize = 16;
/// 512 VMs and nine peers, and as much again.
const LINE_MAX: usize = 256 << 10;
/// What one turn reads from a connection.
const READ_MAX: usize = 64 << 10;

pub struct Agents {
    listener: UnixListener,
    connections: Vec<Connection>,
    next: u64,
}

struct Connection {
    number: u64,
    stream: UnixStream,
    heard: Vec<u8>,
    is_over: bool,
}

/// A line, and whom to answer.
pub struct Line {
    pub connection: u64,
    pub text: Vec<u8>,
}

impl Agents {
    pub fn listen(path: &Path) -> anyhow::Result<Self> {
        sterna_base::file::remove_if_there(path).context("remove an old socket")?;
        let listener = UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
        listener.set_nonblocking(true).context("prepare the socket")?;
        Ok(Self { listener, connections: Vec::new(), next: 0 })
    }

    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub fn streams(&self) -> impl Iterator<Item = &UnixStream> {
        self.connections.iter().map(|connection| &connection.stream)
    }

    /// Takes new connections and every whole line that has come.
    pub fn receive(&mut self) -> Vec<Line> {
        self.accept();
        let mut lines = Vec::new();
        for connection in &mut self.connections {
            connection.read();
            while let Some(end) = connection.heard.iter().position(|byte| *byte == b'\n') {
                let mut text: Vec<u8> = connection.heard.drain(..=end).collect();
                text.pop();
                lines.push(Line { connection: connection.number, text });
            }
        }
        // Lines of one that has hung up are heard all the same.
        self.connections.retain(|connection| !connection.is_over);
        lines
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() < CONNECTIONS_MAX && stream.set_nonblocking(true).is_ok() {
                let (number, heard) = (self.next, Vec::new());
                self.connections.push(Connection { number, stream, heard, is_over: false });
                self.next += 1;
            }
        }
    }

    /// Whoever does not read is closed: half a line would be worse than none.
    pub fn answer(&mut self, connection: u64, answer: &impl Serialize) {
        if let Some(at) = self.connections.iter().position(|one| one.number == connection) {
            self.connections[at].write(answer);
        }
    }

    pub fn tell_all(&mut self, report: &impl Serialize) {
        self.connections.iter_mut().for_each(|connection| connection.write(report));
    }

    /// The process at the other end, for as long as it lives.
    pub fn process_of(&self, connection: u64) -> anyhow::Result<(Pid, OwnedFd)> {
        let connection =
            self.connections.iter().find(|one| one.number == connection).context("it hung up")?;
        let peer = rustix::net::sockopt::socket_peercred(&connection.stream).context("ask who it is")?;
        let process = pidfd_open(peer.pid, PidfdFlags::empty()).context("hold on to the agent's process")?;
        Ok((peer.pid, process))
    }
}

impl Connection {
    fn read(&mut self) {
        let mut bytes = vec![0; READ_MAX];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.is_over = true,
            Ok(length) => self.heard.extend_from_slice(&bytes[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.is_over = true,
        }
        if self.heard.len() > LINE_MAX && !self.heard.contains(&b'\n') {
            self.is_over = true;
        }
    }

    fn write(&mut self, value: &impl Serialize) {
        let Ok(mut text) = serde_json::to_vec(value) else { return };
        text.push(b'\n');
        match self.stream.write(&text) {
            Ok(length) if length == text.len() => {}
            _ => self.is_over = true,
        }
    }
}
