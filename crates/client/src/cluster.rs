//! Clusters: hosts with one CPU baseline.

use serde_json::Value;
use sterna_model::cluster::{ClusterDecision, ClusterSpec};

use crate::Client;
use crate::object::{Api, Object, Resource};

#[derive(Debug)]
pub struct Clusters;

impl Resource for Clusters {
    const PATH: &'static str = "clusters";
    const KIND: &'static str = "cluster";
    type Spec = ClusterSpec;
    type Decision = ClusterDecision;
    type Report = Value;
    type Status = Value;
}

pub type Cluster = Object<ClusterSpec, ClusterDecision, Value, Value>;

impl Client {
    #[must_use]
    pub fn clusters(&self) -> Api<'_, Clusters> {
        Api::new(self)
    }
}
