//! Looks whether some QEMU has an image open, on this host or (over NFS) on another, without opening it as QEMU does.
//!
//! QEMU marks an image in use with open-file-description locks on bytes from 100 (what it does) and from 200 (what it
//! lets nobody else do); see block/file-posix.c in QEMU's source.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const FIRST: i64 = 100;
/// Both groups of bytes.
const COUNT: i64 = 200;

/// Some process holds an image lock on this file.
pub fn is_in_use(file: &File) -> io::Result<bool> {
    // SAFETY: `flock` is plain data for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = FIRST;
    lock.l_len = COUNT;
    // SAFETY: the descriptor is open for as long as `file` lives, and `lock` outlives the call.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}
