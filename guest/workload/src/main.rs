//! The program that runs in the tiny guest: something to serve, to measure and to disturb.
//!
//! HTTP on port 80 (see `routes`), UDP echo on port 7, a counter on the disk, a memory dirtier, what a database and a
//! file server do to memory and disk, a CPU burner and a memory filler, and the answer to the power button. Standard
//! library only: it is linked statically.

mod burner;
mod churn;
mod counter;
mod database;
mod dirtier;
mod echo;
mod filler;
mod http;
mod knob;
mod power;
mod routes;
mod rows;
mod spare;
mod system;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use std::{env, fs, thread};

/// Everything the routes read and change.
pub struct Workload {
    /// Random for each boot of the guest, so that a restart is never mistaken for a migration.
    pub boot: String,
    pub requests: AtomicU64,
    pub counter: counter::Counter,
    pub dirtier: dirtier::Dirtier,
    pub burner: burner::Burner,
    pub filler: filler::Filler,
    pub database: database::Database,
    pub churn: churn::Churn,
    /// The partition of the counter: behind it, and the others, there may be space.
    pub partition: Option<String>,
    started: Instant,
    uptime_at_start_s: f64,
}

impl Workload {
    fn new(disk: Option<String>) -> Self {
        let boot: String = system::read_line("/proc/sys/kernel/random/boot_id").chars().take(8).collect();
        Self {
            counter: counter::Counter::open(disk.clone(), &boot),
            boot,
            requests: AtomicU64::new(0),
            dirtier: dirtier::Dirtier::default(),
            burner: burner::Burner::default(),
            filler: filler::Filler::default(),
            database: database::Database::default(),
            churn: churn::Churn::default(),
            partition: disk,
            started: Instant::now(),
            uptime_at_start_s: system::uptime_s(),
        }
    }

    /// Seconds the guest has been running; stands still while the guest is paused.
    pub fn uptime_s(&self) -> f64 {
        self.uptime_at_start_s + self.started.elapsed().as_secs_f64()
    }

    pub fn count_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Read every time: cloud-init or DHCP may name the guest after this program started.
    pub fn hostname(&self) -> String {
        system::read_line("/proc/sys/kernel/hostname")
    }
}

/// `workload [DISK]`: DISK is the raw partition that keeps the counter.
fn main() {
    let workload = Arc::new(Workload::new(env::args().nth(1)));
    // QEMU's log of the serial line shows how far a boot came.
    let _ = fs::write("/dev/kmsg", format!("<5>workload: serving, boot {}\n", workload.boot));

    spawn("echo", echo::run);
    spawn("power", power::run);
    spawn("counter", on(&workload, |w| w.counter.run()));
    spawn("dirtier", on(&workload, |w| w.dirtier.run()));
    spawn("database", on(&workload, |w| w.database.run(w.partition.as_deref())));
    spawn("churn", on(&workload, |w| w.churn.run(w.partition.as_deref())));
    for cpu in 0..system::cpu_count() {
        spawn("burner", on(&workload, move |w| w.burner.run(cpu)));
    }
    http::serve(&workload);
}

fn on(
    workload: &Arc<Workload>,
    run: impl FnOnce(&Workload) + Send + 'static,
) -> impl FnOnce() + Send + 'static {
    let workload = Arc::clone(workload);
    move || run(&workload)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    let thread = thread::Builder::new().name(name.to_owned()).stack_size(64 << 10);
    thread.spawn(run).expect("a guest with memory for this program has memory for its threads");
}
