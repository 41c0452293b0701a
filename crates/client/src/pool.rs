//! Places that hold volumes.

use serde_json::Value;
use sterna_model::pool::PoolSpec;

use crate::Client;
use crate::object::{Api, Object, Resource};

#[derive(Debug)]
pub struct Pools;

impl Resource for Pools {
    const PATH: &'static str = "pools";
    const KIND: &'static str = "pool";
    type Spec = PoolSpec;
    type Decision = Value;
    type Report = Value;
    type Status = Value;
}

pub type Pool = Object<PoolSpec, Value, Value, Value>;

impl Client {
    #[must_use]
    pub fn pools(&self) -> Api<'_, Pools> {
        Api::new(self)
    }
}
