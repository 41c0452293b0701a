//! The store as a process of the world reaches it: commits take time, never happen after that process died, and are
//! looked at by the checker the moment they happen.

use std::time::Duration;

use serde_json::json;
use sterna_store::{BoxFuture, Entry, Error, Lease, Memory, Revision, Snapshot, Store, Txn, Watch, Write};

use crate::mutation::Mutation;
use crate::world::World;

/// The store, for one life of the server.
pub struct Reached {
    pub world: World,
    pub life: u64,
    /// Control's own; the gateway's else.
    pub is_control: bool,
}

impl Reached {
    fn memory(&self) -> &Memory {
        &self.world.store
    }

    async fn lives(&self) {
        if !self.world.is_server_alive(self.life) {
            std::future::pending::<()>().await;
        }
    }

    fn mutated(&self, mut txn: Txn) -> Txn {
        let defect: Option<(&str, Defect)> = match self.world.lock().config.mutation {
            Some(Mutation::EpochStays) => Some(("vm/", with_old_epoch)),
            Some(Mutation::ReturnsUnderItsOldEpoch) => Some(("vm/", with_epoch_of_before)),
            Some(Mutation::TakenUnderItsOldEpoch) => Some(("vm/", taken_under_old_epoch)),
            Some(Mutation::FencingCountsAsFenced) => Some(("host/", fenced_at_once)),
            Some(Mutation::HostEpochStays) => Some(("host/", joined_under_old_epoch)),
            Some(Mutation::SilenceHasNoTime) => Some(("host/", without_time_of_silence)),
            _ => None,
        };
        if let (true, Some((kind, defect))) = (self.is_control, defect) {
            for write in &mut txn.writes {
                if let Write::Put { key, value } = write
                    && key.starts_with(kind)
                    && key.ends_with("/decision")
                    && let Some(older) = defect(value)
                {
                    *value = older.into();
                }
            }
        }
        txn
    }
}

/// What a defect makes of a VM's decision, if it concerns it.
type Defect = fn(&[u8]) -> Option<Vec<u8>>;

/// A restart's decision with the epoch before its own.
fn with_old_epoch(value: &[u8]) -> Option<Vec<u8>> {
    let mut decision: serde_json::Value = serde_json::from_slice(value).ok()?;
    if decision.get("restarts")?.as_u64()? == 0 || decision.get("continues").is_some() {
        return None;
    }
    let epoch = decision["owner"]["epoch"].as_u64()?;
    decision["owner"]["epoch"] = (epoch - 1).into();
    serde_json::to_vec(&decision).ok()
}

/// A hand-back's decision with the epoch that the source's copy had.
fn with_epoch_of_before(value: &[u8]) -> Option<Vec<u8>> {
    let mut decision: serde_json::Value = serde_json::from_slice(value).ok()?;
    let opened = decision.get("opened")?.as_u64()?;
    decision["owner"]["epoch"] = opened.into();
    serde_json::to_vec(&decision).ok()
}

/// A takeover under the epoch that the lost copy has.
fn taken_under_old_epoch(value: &[u8]) -> Option<Vec<u8>> {
    let mut decision: serde_json::Value = serde_json::from_slice(value).ok()?;
    let from = decision.get("takeover")?["from_epoch"].clone();
    decision["owner"]["epoch"] = from;
    serde_json::to_vec(&decision).ok()
}

/// A host that nobody has proven lost.
fn fenced_at_once(value: &[u8]) -> Option<Vec<u8>> {
    let mut decision: serde_json::Value = serde_json::from_slice(value).ok()?;
    if decision["state"] != "fencing" {
        return None;
    }
    let (epoch, at) = (decision["epoch"].clone(), decision["since"].clone());
    let proof = json!({ "kind": "f3", "configuration": 1, "acks": [], "decided_at": 0 });
    decision["state"] = "fenced".into();
    decision["fenced"] = json!({ "epoch": epoch, "proof": proof, "at": at });
    serde_json::to_vec(&decision).ok()
}

/// A second joining that raises nothing.
fn joined_under_old_epoch(value: &[u8]) -> Option<Vec<u8>> {
    let mut decision: serde_json::Value = serde_json::from_slice(value).ok()?;
    let epoch = decision["epoch"].as_u64().filter(|epoch| *epoch > 1)?;
    decision["epoch"] = (epoch - 1).into();
    serde_json::to_vec(&decision).ok()
}

fn without_time_of_silence(value: &[u8]) -> Option<Vec<u8>> {
    let mut decision: serde_json::Value = serde_json::from_slice(value).ok()?;
    decision.as_object_mut()?.remove("silent_since")?;
    serde_json::to_vec(&decision).ok()
}

impl Store for Reached {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, Error>> {
        Box::pin(async move {
            self.lives().await;
            self.memory().get(key).await
        })
    }

    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> BoxFuture<'a, Result<Snapshot, Error>> {
        Box::pin(async move {
            self.lives().await;
            self.memory().range(prefix, at).await
        })
    }

    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, Error>> {
        Box::pin(async move {
            self.world.pause(0, 2).await;
            self.lives().await;
            let result = self.memory().commit(self.mutated(txn)).await;
            if result.is_ok() {
                self.world.on_commit();
            }
            // A server that is killed here has committed and does not know.
            self.lives().await;
            result
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watch, Error>> {
        Box::pin(async move {
            self.lives().await;
            self.memory().watch(prefix, from).await
        })
    }

    fn compact(&self, before: Revision) -> BoxFuture<'_, Result<(), Error>> {
        self.memory().compact(before)
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, Error>> {
        self.memory().revision()
    }

    fn campaign<'a>(
        &'a self,
        name: &'a str,
        holder: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Lease, Error>> {
        Box::pin(async move {
            self.lives().await;
            self.memory().campaign(name, holder, ttl).await
        })
    }

    fn keep<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.lives().await;
            self.memory().keep(lease).await
        })
    }

    fn resign<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), Error>> {
        self.memory().resign(lease)
    }

    fn leader<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Lease>, Error>> {
        self.memory().leader(name)
    }
}

/// Answers a future that is ready at once, as all of the memory store's are.
///
/// # Panics
/// When it is not.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("the memory store answers at once"),
    }
}
