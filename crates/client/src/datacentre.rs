//! Sites with their own failure domain.

use serde_json::Value;
use sterna_model::datacentre::DatacentreSpec;

use crate::Client;
use crate::object::{Api, Object, Resource};

#[derive(Debug)]
pub struct Datacentres;

impl Resource for Datacentres {
    const PATH: &'static str = "datacentres";
    const KIND: &'static str = "datacentre";
    type Spec = DatacentreSpec;
    type Decision = Value;
    type Report = Value;
    type Status = Value;
}

pub type Datacentre = Object<DatacentreSpec, Value, Value, Value>;

impl Client {
    #[must_use]
    pub fn datacentres(&self) -> Api<'_, Datacentres> {
        Api::new(self)
    }
}
