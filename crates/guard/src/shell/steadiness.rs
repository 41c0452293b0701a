//! Makes this process one that runs when it has to: never paged out, before all others, not the one that is killed when
//! memory runs out. What is refused is said: such a host is offered for best effort only.

use rustix::mm::{MlockAllFlags, mlockall};
use serde::Serialize;

/// Above every ordinary process, below the kernel's own threads at 50.
const PRIORITY: libc::c_int = 40;

/// What was granted. `None` means granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Steadiness {
    pub memory_refused: Option<String>,
    pub scheduler_refused: Option<String>,
    pub oom_refused: Option<String>,
}

impl Steadiness {
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.memory_refused.is_none() && self.scheduler_refused.is_none() && self.oom_refused.is_none()
    }
}

pub fn take_hold() -> Steadiness {
    let memory = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(std::io::Error::from);
    let oom = std::fs::write("/proc/self/oom_score_adj", "-1000");
    Steadiness {
        memory_refused: memory.err().map(|error| error.to_string()),
        scheduler_refused: go_first().err().map(|error| error.to_string()),
        oom_refused: oom.err().map(|error| error.to_string()),
    }
}

fn go_first() -> std::io::Result<()> {
    let priority = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: `priority` lives through the call; 0 is this process.
    let outcome =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &priority) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
