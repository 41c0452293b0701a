//! Facts recorded for people.

use sterna_base::clock::Timestamp;
use sterna_model::event::Event;

use crate::Client;
use crate::error::Result;
use crate::object::Page;

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct Which {
    /// `KIND/NAME`, such as `vm/web`.
    pub object: Option<String>,
    pub since: Option<Timestamp>,
    pub limit: Option<usize>,
}

impl Client {
    /// Events, the oldest first.
    pub async fn events(&self, which: &Which) -> Result<Vec<Event>> {
        let object = which.object.iter().map(|object| ("object", object.clone()));
        let since = which.since.iter().map(|since| ("since", since.to_string()));
        let limit = which.limit.iter().map(|limit| ("limit", limit.to_string()));
        let query: Vec<_> = object.chain(since).chain(limit).collect();
        let page: Page<Event> = self.get("/v1/events", &query).await?;
        Ok(page.items)
    }
}
