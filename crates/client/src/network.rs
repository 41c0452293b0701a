//! L2 segments.

use serde_json::Value;
use sterna_model::network::{NetworkDecision, NetworkSpec};

use crate::Client;
use crate::object::{Api, Object, Resource};

#[derive(Debug)]
pub struct Networks;

impl Resource for Networks {
    const PATH: &'static str = "networks";
    const KIND: &'static str = "network";
    type Spec = NetworkSpec;
    type Decision = NetworkDecision;
    type Report = Value;
    type Status = Value;
}

pub type Network = Object<NetworkSpec, NetworkDecision, Value, Value>;

impl Client {
    #[must_use]
    pub fn networks(&self) -> Api<'_, Networks> {
        Api::new(self)
    }
}
