//! The parent of one QEMU process: small, single-threaded, and the only holder of QEMU's QMP connection.
//!
//! It outlives the agent, so that an agent may crash or be replaced with no effect on the guest; QEMU does not
//! outlive it. It writes down what runs ([`RunRecord`]) before the guest can run and what became of it
//! ([`ExitRecord`]) once it is reaped. It knows nothing of Sterna beside `wire::shim`: it decides nothing.
//!
//! [`RunRecord`]: sterna_wire::shim::RunRecord
//! [`ExitRecord`]: sterna_wire::shim::ExitRecord

/// Starts QEMU: descriptors, user, death signal.
mod child;
/// What each line from either side leads to; no I/O.
mod exchange;
/// QEMU's standard error: a capped file and its last words.
mod log;
/// Run and exit records.
mod record;
/// The loop that moves lines.
mod serve;
/// Opens existing tap devices.
mod tap;

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::Context;
use sterna_wire::shim::{EXIT_RECORD, LAUNCH_LOCK, Launch, RUN_RECORD, SOCKET};

/// What is written to standard output once QEMU answers QMP. End of file without it: QEMU did not come up.
pub const READY: &str = "ready\n";

/// Starts the QEMU that `launch` describes and serves it until it has ended.
///
/// The launch file's directory holds everything the shim writes.
pub fn run(launch: &Path) -> anyhow::Result<()> {
    let directory = launch.parent().context("the launch file has no directory")?;
    let text = std::fs::read(launch).with_context(|| format!("read {}", launch.display()))?;
    let order: Launch = serde_json::from_slice(&text).context("understand the launch file")?;
    let _lock = hold_lock(directory)?;
    ignore_signals();
    sterna_base::file::remove_if_there(&directory.join(EXIT_RECORD)).context("remove an old exit record")?;
    let mut child = child::start(&order)?;
    let written = record::write_run(directory, &order, child.pid());
    if let Err(error) = written {
        // Nobody could find this process again: better none than that.
        child.kill();
        return Err(error).with_context(|| format!("write {RUN_RECORD}"));
    }
    let listener = listen(&directory.join(SOCKET))?;
    let ended = serve::serve(&mut child, &listener, &order, directory)?;
    record::write_exit(directory, &ended).with_context(|| format!("write {EXIT_RECORD}"))
}

/// Two shims for one VM on one host would be two copies: the second one refuses.
fn hold_lock(directory: &Path) -> anyhow::Result<File> {
    let lock = File::create(directory.join(LAUNCH_LOCK)).context("open the launch lock")?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .context("take the launch lock: another shim runs here")?;
    Ok(lock)
}

/// Only `shim-kill` or QEMU's own end ends a shim: a stray signal would take a guest with it.
fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: sets a disposition without a handler; no other thread exists.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    sterna_base::file::remove_if_there(socket).context("remove an old socket")?;
    let listener = UnixListener::bind(socket).with_context(|| format!("listen at {}", socket.display()))?;
    listener.set_nonblocking(true).context("prepare the socket")?;
    Ok(listener)
}

/// Tells whoever started us. Nobody has to listen: the agent may be gone already.
fn say_ready() {
    let mut out = std::io::stdout();
    let _ = out.write_all(READY.as_bytes()).and_then(|()| out.flush());
}
