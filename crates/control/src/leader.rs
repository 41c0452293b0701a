//! Holds the control lease, or waits for it.
//!
//! The lease only says who plans. What a deposed leader may still write is decided by its epoch, which every commit of
//! control compares.

use std::time::Duration;

use sterna_store::{Error, Lease, Store};
use tokio::time::sleep;

const NAME: &str = "control";
/// Long enough for a slow disk, short enough that a second server takes over within seconds.
const TTL: Duration = Duration::from_secs(5);
/// A third of the time, so that two renewals may fail.
pub const KEEP_EVERY: Duration = Duration::from_millis(1600);

/// Waits until this server leads.
pub async fn win(store: &dyn Store, holder: &str) -> Result<Lease, Error> {
    loop {
        match store.campaign(NAME, holder, TTL).await {
            Ok(lease) => return Ok(lease),
            Err(Error::Held { holder, .. }) => {
                tracing::debug!(holder, "another server leads");
                sleep(KEEP_EVERY).await;
            }
            Err(error) => return Err(error),
        }
    }
}
