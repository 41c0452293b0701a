//! Who did what.

use serde_json::Value;

use crate::Client;
use crate::error::Result;
use crate::object::Page;

impl Client {
    /// The latest requests that changed something or were refused.
    pub async fn audit(&self, limit: usize) -> Result<Vec<Value>> {
        let page: Page<Value> = self.get("/v1/audit", &[("limit", limit.to_string())]).await?;
        Ok(page.items)
    }
}
