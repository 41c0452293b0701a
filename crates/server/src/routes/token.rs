//! Who may talk to the API.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use sterna_base::clock::Timestamp;
use sterna_model::error::{Code, Error};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::{Labels, Name};
use sterna_model::token::{Role, TokenSpec};
use sterna_plan::View;
use sterna_store::Txn;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::{Actor, new_secret};
use crate::body::{Body, PathName, Words};
use crate::error::{Answer, refuse};
use crate::list::{self, Page};
use crate::routes::Deleted;
use crate::shown::{Token, Tokens};
use crate::write::{create as commit_new, delete_columns, known_revision, new_meta, put_new};

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(delete))
}

/// All tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "token", operation_id = "token_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query)),
    responses((status = 200, body = Page<Token>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Token>>> {
    words.only(&list::WORDS)?;
    list::list::<Tokens>(&app, &actor, &words)
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateApiToken {
    name: Name,
    role: Role,
}

/// A new token with its secret, shown this once.
#[derive(Debug, Serialize, ToSchema)]
struct TokenCreated {
    secret: String,
    object: Token,
}

/// Makes a token. The secret is in the answer and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", tag = "token", operation_id = "token_create", request_body = CreateApiToken,
    responses((status = 201, body = TokenCreated), (status = "default", body = Error)))]
async fn create(
    State(app): State<App>,
    actor: Actor,
    Body { value, .. }: Body<CreateApiToken>,
) -> Answer<(StatusCode, Json<TokenCreated>)> {
    let (secret, txn) = new_token(&value.name, value.role, app.now())?;
    commit_new(&app, Kind::Token, &value.name, txn).await?;
    let object = list::show::<Tokens>(&app, actor.role, &value.name)?;
    Ok((StatusCode::CREATED, Json(TokenCreated { secret, object })))
}

/// A secret, and the transaction that makes it valid.
pub fn new_token(name: &Name, role: Role, now: Timestamp) -> Answer<(String, Txn)> {
    let (secret, hash) = new_secret();
    let meta = new_meta(name.clone(), Labels::new(), String::new(), now)?;
    Ok((secret, put_new(Txn::new(), Kind::Token, meta, TokenSpec { hash, role })?))
}

/// Takes a token back. The last admin's stays: nobody could make another.
#[utoipa::path(delete, path = "/v1/tokens/{name}", tag = "token", operation_id = "token_delete",
    params(("name" = Name, Path)), responses((status = 200, body = Deleted), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<Json<Deleted>> {
    let known = known_revision(&headers, None)?;
    let shown = list::show::<Tokens>(&app, actor.role, &name)?;
    if known.is_some_and(|known| known != shown.revision) {
        return Err(refuse(Code::Conflict, format!("token {name} is at revision {}", shown.revision)));
    }
    let view = app.view();
    let mut txn = delete_columns(&view, Txn::new(), Kind::Token, &name);
    if shown.spec.role == Role::Admin {
        // Two admins who delete each other's token at once must not both succeed.
        let other = other_admin(&view, &name).ok_or_else(|| {
            refuse(Code::WrongState, format!("token {name} is the last one that may change anything"))
                .hint("make another admin token first")
        })?;
        let key = Key::spec(Kind::Token, &other);
        txn = txn.require(key.to_string(), view.revision_of(&key));
    }
    app.commit(txn).await?;
    Ok(Json(Deleted { deleted: name }))
}

fn other_admin(view: &View, not: &Name) -> Option<Name> {
    let admins = view.tokens.iter().filter(|(name, entry)| {
        *name != not && entry.spec.as_ref().is_some_and(|row| row.value.spec.role == Role::Admin)
    });
    admins.map(|(name, _)| name.clone()).next()
}
