//! Uses a set share of the CPU. 100 percent is one CPU; a guest with two can burn 200.

use std::hint;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Short enough that a second's average is smooth, long enough that sleeping is exact.
const SLICE: Duration = Duration::from_millis(20);
/// How soon an idle burner sees a new setting. Few wake-ups: an idle guest should look idle.
const IDLE_POLL: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct Burner {
    percent: AtomicU32,
}

impl Burner {
    pub fn percent(&self) -> u32 {
        self.percent.load(Ordering::Relaxed)
    }

    pub fn set_percent(&self, percent: u32) {
        self.percent.store(percent, Ordering::Relaxed);
    }

    /// The loop of the burner of one CPU; never returns.
    pub fn run(&self, cpu: u32) {
        loop {
            let share = share_of_cpu(self.percent(), cpu);
            if share == 0 {
                thread::sleep(IDLE_POLL);
                continue;
            }
            let busy = SLICE * share / 100;
            spin(busy);
            thread::sleep(SLICE - busy);
        }
    }
}

/// CPUs are filled one after the other.
fn share_of_cpu(percent: u32, cpu: u32) -> u32 {
    percent.saturating_sub(cpu.saturating_mul(100)).min(100)
}

fn spin(time: Duration) {
    let began = Instant::now();
    let mut value = 1_u64;
    while began.elapsed() < time {
        for _ in 0..1000 {
            value = hint::black_box(value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (value >> 7));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::share_of_cpu;

    #[test]
    fn cpus_are_filled_one_after_the_other() {
        let shares = |percent| [share_of_cpu(percent, 0), share_of_cpu(percent, 1)];
        assert_eq!(shares(0), [0, 0]);
        assert_eq!(shares(50), [50, 0]);
        assert_eq!(shares(130), [100, 30]);
        assert_eq!(shares(900), [100, 100]);
    }
}
