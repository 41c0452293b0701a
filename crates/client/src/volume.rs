//! Virtual disks.

use serde_json::{Value, json};
use sterna_base::units::Bytes;
use sterna_model::meta::Name;
use sterna_model::volume::{VolumeDecision, VolumeReport, VolumeSpec};

use crate::Client;
use crate::error::Result;
use crate::object::{Answer, Api, Object, Resource};

#[derive(Debug)]
pub struct Volumes;

impl Resource for Volumes {
    const PATH: &'static str = "volumes";
    const KIND: &'static str = "volume";
    type Spec = VolumeSpec;
    type Decision = VolumeDecision;
    type Report = VolumeReport;
    type Status = Value;
}

pub type Volume = Object<VolumeSpec, VolumeDecision, VolumeReport, Value>;

impl Client {
    #[must_use]
    pub fn volumes(&self) -> Api<'_, Volumes> {
        Api::new(self)
    }
}

impl Api<'_, Volumes> {
    /// Makes the disk larger. A running guest sees the new size when it looks.
    pub async fn grow(&self, name: &Name, size: Bytes) -> Result<Answer<Volume>> {
        self.ask(name, "grow", &json!({ "size": size })).await
    }
}
