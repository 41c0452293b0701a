//! Tasks that end together: a cancellation token and a tracker in one.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns a group of tasks. `shut_down` cancels and waits for all of them.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Scope {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope that ends when this one is cancelled, and can be ended on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: TaskTracker::new() }
    }

    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs `task` until it ends or the scope is cancelled, whichever is first.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                biased; // What is cancelled does nothing more; and a simulation runs the same each time.
                () = token.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Cancels every task and waits until the last has ended.
    pub async fn shut_down(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
