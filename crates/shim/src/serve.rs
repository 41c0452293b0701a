//! The loop that moves lines.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use sterna_wire::shim::{ExitRecord, LOG, Launch};

use crate::child::Child;
use crate::exchange::{Exchange, Out};
use crate::log::Log;

/// Longest line of either side; QEMU's schema, the longest honest one, has 0.3 MB.
const LINE_MAX: usize = 16 << 20;
/// A client that leaves this much unread is dropped; it can come back and ask again.
const UNREAD_MAX: usize = 32 << 20;
/// While QEMU leaves this much unread, nothing more is taken from the client.
const HELD_MAX: usize = 1 << 20;
/// One read.
const CHUNK: usize = 64 << 10;

/// One side of the conversation: bytes read up to the next line end, bytes still to be written.
struct Side {
    stream: UnixStream,
    read: Vec<u8>,
    unsent: Vec<u8>,
}

impl Side {
    fn new(stream: UnixStream) -> Self {
        Self { stream, read: Vec::new(), unsent: Vec::new() }
    }

    /// Reads what is there. `false`: the other end is gone.
    fn fill(&mut self) -> bool {
        fill(&mut self.stream, &mut self.read) && self.read.len() <= LINE_MAX
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let end = self.read.iter().position(|byte| *byte == b'\n')?;
        Some(self.read.drain(..=end).collect())
    }

    /// Writes what fits. `false`: the other end is gone or does not read.
    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return false,
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.unsent.len() <= UNREAD_MAX
    }

    fn interest(&self, may_read: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, may_read);
        flags.set(PollFlags::OUT, !self.unsent.is_empty());
        flags
    }
}

/// Appends what is there to `buffer`. `false`: end of file or an error that will not pass.
fn fill(stream: &mut impl Read, buffer: &mut Vec<u8>) -> bool {
    let mut chunk = [0; CHUNK];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(read) => {
                buffer.extend_from_slice(&chunk[..read]);
                if read < CHUNK {
                    return true;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

struct Server<'a> {
    child: &'a mut Child,
    listener: &'a UnixListener,
    exchange: Exchange,
    qemu: Option<Side>,
    client: Option<Side>,
    has_stderr: bool,
    log: Log,
}

/// Serves until QEMU has ended and is reaped.
pub fn serve(
    child: &mut Child,
    listener: &UnixListener,
    launch: &Launch,
    directory: &Path,
) -> anyhow::Result<ExitRecord> {
    let log = Log::create(&directory.join(LOG)).context("open QEMU's log")?;
    let exchange = Exchange::new(launch.epoch, child.pid());
    let qemu = Some(Side::new(child.qmp.try_clone().context("share the QMP connection")?));
    let mut server = Server { child, listener, exchange, qemu, client: None, has_stderr: true, log };
    while !server.turn()? {}
    let (code, signal) = server.child.reap()?;
    server.read_rest();
    Ok(ExitRecord {
        epoch: launch.epoch,
        code,
        signal,
        shutdown_reason: server.exchange.shutdown_reason.take(),
        last_words: server.log.last_words(),
    })
}

impl Server<'_> {
    /// Waits for something and handles it. `true`: QEMU has ended.
    fn turn(&mut self) -> anyhow::Result<bool> {
        let ready = self.wait()?;
        let [ended, qemu, client, listener, stderr] = ready;
        if !qemu.is_empty() {
            self.on_qemu();
        }
        if !client.is_empty() {
            self.on_client();
        }
        if !listener.is_empty() {
            self.on_new_client();
        }
        if !stderr.is_empty() {
            self.on_stderr();
        }
        self.flush();
        Ok(!ended.is_empty())
    }

    fn wait(&self) -> anyhow::Result<[PollFlags; 5]> {
        let may_ask = self.qemu.as_ref().is_some_and(|qemu| qemu.unsent.len() < HELD_MAX);
        let mut fds =
            vec![PollFd::new(&self.child.ended, PollFlags::IN), PollFd::new(self.listener, PollFlags::IN)];
        if self.has_stderr {
            fds.push(PollFd::new(&self.child.stderr, PollFlags::IN));
        }
        if let Some(qemu) = &self.qemu {
            fds.push(PollFd::new(&qemu.stream, qemu.interest(true)));
        }
        if let Some(client) = &self.client {
            // Without QEMU's connection its answers to us still matter: `shim-kill`.
            fds.push(PollFd::new(&client.stream, client.interest(may_ask || self.qemu.is_none())));
        }
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for something to happen"),
            }
        }
        let mut seen = fds.iter().map(PollFd::revents);
        let mut next = |is_there: bool| match is_there {
            true => seen.next().unwrap_or(PollFlags::empty()),
            false => PollFlags::empty(),
        };
        let (ended, listener, stderr) = (next(true), next(true), next(self.has_stderr));
        Ok([ended, next(self.qemu.is_some()), next(self.client.is_some()), listener, stderr])
    }

    fn on_qemu(&mut self) {
        let Some(mut qemu) = self.qemu.take() else { return };
        let is_open = qemu.fill();
        while let Some(line) = qemu.next_line() {
            let out = self.exchange.on_qemu_line(&line);
            qemu.unsent.extend_from_slice(&out.to_qemu);
            self.tell_client(&out);
            if out.is_ready {
                crate::say_ready();
            }
        }
        // Its end closes QMP first and the process a moment later: `ended` decides.
        self.qemu = is_open.then_some(qemu);
    }

    fn on_client(&mut self) {
        let Some(mut client) = self.client.take() else { return };
        let is_open = client.fill();
        let lines: Vec<_> = std::iter::from_fn(|| client.next_line()).collect();
        self.client = is_open.then_some(client);
        for line in lines {
            let out = self.exchange.on_client_line(&line);
            if let Some(qemu) = &mut self.qemu {
                qemu.unsent.extend_from_slice(&out.to_qemu);
            }
            self.tell_client(&out);
            if out.kill {
                self.child.send_kill();
            }
        }
    }

    fn on_new_client(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if stream.set_nonblocking(true).is_ok() {
            self.exchange.on_connected();
            self.client = Some(Side::new(stream));
        }
    }

    fn on_stderr(&mut self) {
        let mut said = Vec::new();
        self.has_stderr = fill(&mut self.child.stderr, &mut said);
        self.log.add(&said);
    }

    fn tell_client(&mut self, out: &Out) {
        if let Some(client) = &mut self.client {
            client.unsent.extend_from_slice(&out.to_client);
        }
    }

    fn flush(&mut self) {
        if self.client.as_mut().is_some_and(|client| !client.flush()) {
            self.client = None;
        }
        if self.qemu.as_mut().is_some_and(|qemu| !qemu.flush()) {
            self.qemu = None;
        }
    }

    /// What QEMU said before its end and nobody has read yet.
    fn read_rest(&mut self) {
        self.on_qemu();
        self.on_stderr();
        self.flush();
    }
}
