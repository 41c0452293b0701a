//! The port to what a copy is built from: disks, taps, seed.

use std::future::Future;

use sterna_model::meta::Name;
use sterna_wire::assignment::Machine;
use uuid::Uuid;

use crate::hypervisor::Parts;

/// Whose parts they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whose {
    pub name: Name,
    pub uid: Uuid,
    pub epoch: u64,
}

/// Why the parts are not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Something is still being made or fetched; ask again. `step` tells people what.
    #[error("{step}")]
    Wait { step: String },
    /// It will not come by waiting.
    #[error("{why}")]
    Never { why: String },
}

pub trait Resources: Send + Sync + 'static {
    /// Makes everything ready that a copy needs on this host, or says what is missing. Idempotent; may be
    /// dropped half way and called again.
    fn prepare(
        &self,
        whose: &Whose,
        machine: &Machine,
    ) -> impl Future<Output = Result<Parts, NotReady>> + Send;

    /// Takes away what `prepare` made for this VM alone. Idempotent.
    fn release(&self, uid: Uuid, taps: &[String]) -> impl Future<Output = ()> + Send;
}
