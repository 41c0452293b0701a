//! The few things asked of the kernel that the standard library does not offer.

use std::fs;
use std::thread;

// Declared here instead of taken from a crate: this program has no dependencies.
mod libc {
    unsafe extern "C" {
        pub fn gettid() -> i32;
        pub fn setpriority(which: i32, who: u32, nice: i32) -> i32;
        pub fn sync();
        pub fn reboot(how: i32) -> i32;
    }
    pub const PRIO_PROCESS: i32 = 0;
    pub const RB_POWER_OFF: i32 = 0x4321_fedc;
}

/// First line of a file, empty when it cannot be read.
pub fn read_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

pub fn uptime_s() -> f64 {
    read_line("/proc/uptime").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

pub fn cpu_count() -> u32 {
    thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// What the kernel believes could still be allocated.
pub fn available_mib() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().nth(1)).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0)
        >> 10
}

/// Sets the nice value of the calling thread only (on Linux it belongs to the thread).
pub fn set_thread_nice(nice: i32) {
    // SAFETY: both calls take and return plain integers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, libc::gettid() as u32, nice) };
}

/// Flushes the disks and switches the machine off; returns only when the kernel refuses.
pub fn power_off() {
    // SAFETY: neither call touches memory of this process.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}
