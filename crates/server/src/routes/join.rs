//! A machine becomes a host: a single-use token and a certificate request for a certificate.
//!
//! The one thing that works without a client certificate beside the API. The server sets every name in the certificate.

use axum::Json;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use sterna_model::error::Code;
use sterna_model::host::HostSpec;
use sterna_model::key::{Key, Kind};
use sterna_model::meta::{Labels, Name, Object};
use sterna_model::token::JoinTokenSpec;
use sterna_plan::View;
use sterna_plan::view::{Row, VmEntry};
use sterna_store::Txn;
use sterna_store::history::Audit;
use sterna_wire::join::{JoinAnswer, JoinRequest};

use crate::app::App;
use crate::auth::{hash, same};
use crate::body::Body;
use crate::error::{Answer, Refusal, refuse};
use crate::gateway::link::record;
use crate::shown::{Clusters, Datacentres};
use crate::tls::Peer;
use crate::write::{self, new_meta, put_new, refer};

/// A certificate request and some names.
const BODY_MAX: usize = 64 * 1024;

pub fn routes() -> axum::Router<App> {
    axum::Router::new().route(PATH, post(join).layer(DefaultBodyLimit::max(BODY_MAX)))
}

async fn join(
    State(app): State<App>,
    peer: Option<axum::Extension<Peer>>,
    body: Result<Body<JoinRequest>, Refusal>,
) -> Response {
    let source = peer.map(|peer| peer.address.to_string()).unwrap_or_default();
    let host = body.as_ref().map(|body| body.value.host.to_string()).unwrap_or_default();
    let audit = |outcome: String| Audit {
        time_ms: app.now().as_millis(),
        actor: format!("joining host {host}"),
        source: source.clone(),
        method: "POST".to_owned(),
        path: PATH.to_owned(),
        request_hash: String::new(),
        outcome,
    };
    let joined = match &body {
        Ok(body) => admit(&app, &body.value, audit("accepted".to_owned())).await,
        Err(refusal) => Err(Refusal(refusal.0.clone())),
    };
    let outcome = match &joined {
        Ok(_) => "201".to_owned(),
        Err(refusal) => format!("{} {}", refusal.0.code.http_status(), refusal.0.message),
    };
    if joined.is_ok() || app.strangers.may_be_recorded() {
        // That it was accepted is durable already; the caller does not wait for the outcome's row.
        tokio::spawn(app.history.append_audit(audit(outcome)));
    }
    match joined {
        Ok(answer) => (StatusCode::CREATED, Json(answer)).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

async fn admit(app: &App, request: &JoinRequest, audit: Audit) -> Answer<JoinAnswer> {
    if request.version != sterna_wire::VERSION {
        let message =
            format!("the agent speaks version {}, this server {}", request.version, sterna_wire::VERSION);
        return Err(refuse(Code::Invalid, message).hint("install the same version of sterna on both"));
    }
    let (token, row) = find_token(app, &app.view(), request)?;
    app.history.append_audit(audit).await?;
    let txn = use_up(Txn::new(), &token, &row, &request.host)?;
    let (certificate, txn) = new_host(app, request, txn)?;
    app.commit(txn).await.map_err(|refusal| match refusal.0.code {
        // The token is used up in the transaction that makes the host: of two that come at once one fails.
        Code::Conflict => refuse(Code::Forbidden, "the token was used just now").hint(NEW_TOKEN),
        _ => refusal,
    })?;
    record(app, &request.host, "joined", "a single-use token was shown");
    Ok(JoinAnswer { certificate, ca: app.ca.pem().to_owned() })
}

fn use_up(txn: Txn, token: &Name, row: &Row<Object<JoinTokenSpec>>, host: &Name) -> Answer<Txn> {
    let mut used = (*row.value).clone();
    used.spec.used_by = Some(host.clone());
    let key = Key::spec(Kind::JoinToken, token).to_string();
    Ok(txn.require(key.clone(), row.revision).put(key, write::bytes(&used)?))
}

/// The host's certificate, and the transaction that makes the host.
fn new_host(app: &App, request: &JoinRequest, txn: Txn) -> Answer<(String, Txn)> {
    let (view, name) = (app.view(), &request.host);
    if view.hosts.contains_key(name) {
        return Err(refuse(Code::AlreadyExists, format!("host {name} exists already"))
            .hint("choose another name, or delete that host first"));
    }
    refuse_remains(&view, name)?;
    let datacentre = request.datacentre.clone().unwrap_or_else(|| app.config.datacentre.clone());
    let cluster = cluster_of(&view, &datacentre)?;
    let meta = new_meta(name.clone(), Labels::new(), String::new(), app.now())?;
    let certificate = app.ca.sign_host(&request.csr, name, meta.uid).map_err(|error| match error {
        crate::ca::Error::Request => refuse(Code::Invalid, error.to_string()),
        error => refuse(Code::Internal, error.to_string()),
    })?;
    let txn = refer::<Datacentres>(&view, txn, &datacentre)?;
    let txn = refer::<Clusters>(&view, txn, &cluster)?;
    let addresses = request.addresses.clone();
    let spec = HostSpec {
        datacentre,
        cluster,
        addresses,
        cordoned: false,
        draining: false,
        confirmed_dead: None,
        fence: None,
    };
    Ok((certificate, put_new(txn, Kind::Host, meta, spec)?))
}

/// Rows of an earlier host of this name would be taken for words of the new one. Control removes them within moments.
fn refuse_remains(view: &View, name: &Name) -> Answer<()> {
    let has_row = |(_, entry): &(&Name, &VmEntry)| entry.reports.contains_key(name);
    let Some((vm, _)) = view.vms.iter().find(has_row) else { return Ok(()) };
    let message = format!("an earlier host {name} is still being removed: vm {vm} has its report");
    Err(refuse(Code::WrongState, message).hint("try again, or choose another name"))
}

const PATH: &str = "/agent/v1/join";
const NEW_TOKEN: &str = "make a new one with `sterna host token`";

fn find_token(app: &App, view: &View, request: &JoinRequest) -> Answer<(Name, Row<Object<JoinTokenSpec>>)> {
    let given = hash(&request.token);
    let mut found = None;
    for (name, entry) in &view.join_tokens {
        if let Some(row) = &entry.spec
            && same(&row.value.spec.hash, &given)
        {
            found = Some((name.clone(), row.clone()));
        }
    }
    let no = |why: &str| Err(refuse(Code::Forbidden, why).hint(NEW_TOKEN));
    let Some((name, row)) = found else { return no("the token is not valid") };
    let spec = &row.value.spec;
    if let Some(used_by) = &spec.used_by {
        let why = format!("a join token that host {used_by} has used was shown again, by {}", request.host);
        record(app, used_by, "join-token-reused", &why);
        return no("the token has been used");
    }
    if spec.expires <= app.now() {
        return no("the token has expired");
    }
    if let Some(bound) = spec.host.as_ref().filter(|bound| **bound != request.host) {
        let why = format!("a join token for host {bound} was shown by {}", request.host);
        record(app, bound, "join-token-misused", &why);
        return no("the token is for another host");
    }
    Ok((name, row))
}

/// The datacentre's cluster: the one of its name, else its only one.
fn cluster_of(view: &View, datacentre: &Name) -> Answer<Name> {
    let inside = view
        .clusters
        .iter()
        .filter(|(_, entry)| entry.spec.as_ref().is_some_and(|row| row.value.spec.datacentre == *datacentre));
    let names: Vec<&Name> = inside.map(|(name, _)| name).collect();
    let own = names.iter().find(|name| ***name == *datacentre);
    match (own, names.as_slice()) {
        (Some(own), _) => Ok((*own).clone()),
        (None, [only]) => Ok((*only).clone()),
        (None, []) if !view.datacentres.contains_key(datacentre) => {
            Err(refuse(Code::Unmet, format!("datacentre {datacentre} does not exist"))
                .hint("create it first, or name another"))
        }
        (None, _) => Err(refuse(Code::Unmet, format!("datacentre {datacentre} has no cluster of its name"))
            .hint(format!("create cluster {datacentre} in it"))),
    }
}
