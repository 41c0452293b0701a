//! Who may talk to the API.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sterna_model::meta::Name;
use sterna_model::token::Role;

use crate::Client;
use crate::error::Result;
use crate::object::{Answer, Object, all};

/// What is shown of a token: never its hash, never its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub role: Role,
}

pub type Token = Object<Shown>;

/// A new token with its secret, shown this once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Made {
    pub secret: String,
    #[serde(flatten)]
    pub more: serde_json::Map<String, Value>,
}

/// The calls about tokens.
#[derive(Debug)]
pub struct Tokens<'a>(&'a Client);

impl Client {
    #[must_use]
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens(self)
    }
}

impl Tokens<'_> {
    pub async fn list(&self) -> Result<Vec<Token>> {
        all(self.0, "/v1/tokens", Vec::new()).await
    }

    pub async fn create(&self, name: &Name, role: Role) -> Result<Made> {
        self.0.post("/v1/tokens", &serde_json::json!({ "name": name, "role": role })).await
    }

    pub async fn delete(&self, name: &Name) -> Result<Answer<Token>> {
        self.0.delete(&format!("/v1/tokens/{name}"), &[]).await
    }
}
