//! Whether a guest that was moved here answers on its network: asked beside everything else, for the gap in the report.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::hypervisor::Guest;

/// At most one question is open.
#[derive(Default)]
pub(super) struct Echo(Option<JoinHandle<Option<Duration>>>);

impl Echo {
    pub fn start<G: Guest>(&mut self, guest: G, at: Ipv4Addr) {
        self.stop();
        self.0 = Some(tokio::spawn(async move { guest.answers(at).await }));
    }

    pub fn stop(&mut self) {
        if let Some(asking) = self.0.take() {
            asking.abort();
        }
    }

    /// How long the answer took, `None` if there was none. Never resolves while nobody is asked.
    pub async fn heard(&mut self) -> Option<Duration> {
        let Some(asking) = &mut self.0 else { return std::future::pending().await };
        let answered = asking.await.ok().flatten();
        self.0 = None;
        answered
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop();
    }
}
