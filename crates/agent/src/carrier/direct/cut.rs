//! Closes connections of another process from outside: QEMU's main thread waits for its mirrors when it stops a guest, and
//! answers nobody while the target's disk hangs.

use std::io;
use std::net::SocketAddr;

use rustix::fd::OwnedFd;
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Shuts down whatever the process has open to this address; answers how many there were.
pub(super) fn connections(pid: u32, to: SocketAddr) -> io::Result<usize> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(number, PidfdFlags::empty())?;
    let mut count = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let is_socket = std::fs::read_link(entry.path())
            .is_ok_and(|link| link.to_str().is_some_and(|link| link.starts_with("socket:")));
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !is_socket {
            continue;
        }
        // It may have been closed meanwhile.
        let Ok(socket) = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()) else { continue };
        if peer(&socket) == Some(to) {
            rustix::net::shutdown(&socket, Shutdown::Both)?;
            count += 1;
        }
    }
    Ok(count)
}

fn peer(socket: &OwnedFd) -> Option<SocketAddr> {
    let peer = rustix::net::getpeername(socket).ok()??;
    SocketAddr::try_from(peer).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_connections_to_that_address_are_closed() {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (one, other) = (listen(), listen());
        let connect = |to: &TcpListener| TcpStream::connect(to.local_addr().unwrap()).unwrap();
        let (mut cut, kept) = (connect(&one), connect(&other));
        let (_one, mut accepted) = (one.accept().unwrap(), other.accept().unwrap().0);
        assert_eq!(connections(std::process::id(), one.local_addr().unwrap()).unwrap(), 1);
        assert_eq!(cut.read(&mut [0; 1]).unwrap(), 0, "it is at its end");
        io::Write::write_all(&mut (&kept), b"x").unwrap();
        accepted.read_exact(&mut [0; 1]).unwrap();
    }
}
