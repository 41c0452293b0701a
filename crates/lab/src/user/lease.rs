//! Leases: asked for by profile, waited for before anything is lost.

use anyhow::{Context as _, Result};
use serde_json::json;
use sterna_client::object::Patch;
use sterna_client::vm::Vm;
use sterna_model::ha::Profile;
use sterna_model::meta::Name;

use super::User;

impl User {
    /// How long leases of a datacentre are to last.
    pub async fn set_profile(&self, datacentre: &Name, profile: Profile) -> Result<()> {
        let patch = Patch::of(json!({ "ha": { "profile": profile } }));
        let set = self.client.datacentres().patch(datacentre, &patch).await;
        set.with_context(|| format!("set profile {} of datacentre {datacentre}", profile.as_str())).map(drop)
    }

    /// Whether the host holds a lease of this profile, and all that is known of voters has been settled.
    pub async fn holds_lease(&self, host: &Name, profile: Profile) -> Result<bool> {
        let host = self.client.hosts().get(host).await?;
        let voters = self.client.datacentres().get(&host.spec.datacentre).await?.decision;
        let is_settled = voters.is_some_and(|it| it["profile"] == json!(profile) && it["former"].is_null());
        Ok(is_settled && host.status.is_some_and(|status| status.protected_by.iter().any(|way| way == "F3")))
    }

    /// Whether the VM is known to live under its host's lease: only then is it started elsewhere.
    pub async fn is_under_lease(&self, name: &Name) -> Result<bool> {
        let vm: Vm = self.client.vms().get(name).await?;
        Ok(vm.decision.is_some_and(|decision| decision.host_epoch.is_some()))
    }
}
