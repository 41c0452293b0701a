//! The serial console: raw bytes between a person and the guest, through the agent of its owner.

use axum::extract::{Request, State};
use axum::response::Response;
use sterna_model::error::{Code, Error};
use sterna_model::meta::Name;
use sterna_wire::down::{Down, End};

use crate::app::App;
use crate::body::{PathName, Words};
use crate::error::{Answer, refuse};
use crate::gateway::ticket::{PATIENCE, splice, switching, upgrade_of};
use crate::list;
use crate::shown::Vms;

/// Turns the connection into raw bytes from and to the guest. Needs HTTP/1.1 and `Upgrade: sterna-stream`.
#[utoipa::path(get, path = "/v1/vms/{name}/console", tag = "vm", operation_id = "vm_console",
    params(("name" = Name, Path), ("end" = Option<String>, Query, description = "`serial` or `vnc`")),
    responses((status = 101, description = "a raw stream"), (status = "default", body = Error)))]
pub async fn console(
    State(app): State<App>,
    PathName(name): PathName,
    words: Words,
    mut request: Request,
) -> Answer<Response> {
    words.only(&["end"])?;
    let end = match words.one("end") {
        None | Some("serial") => End::Serial,
        Some("vnc") => End::Vnc,
        Some(_) => return Err(refuse(Code::Invalid, "a VM has the ends serial and vnc")),
    };
    let (host, uid) = owner(&app, &name)?;
    let person = upgrade_of(&mut request)?;
    let (ticket, arrives) = app.gateway.tickets.issue(&host)?;
    app.gateway.order(&host, Down::Attach { ticket, vm: name, uid, end })?;
    let no_answer = || refuse(Code::Unmet, format!("host {host} did not connect the console in time"));
    let agent =
        tokio::time::timeout(PATIENCE, arrives).await.map_err(|_| no_answer())?.map_err(|_| no_answer())?;
    splice(person, agent);
    Ok(switching())
}

fn owner(app: &App, name: &Name) -> Answer<(Name, uuid::Uuid)> {
    let view = app.view();
    let vm = view.vm(name).ok_or_else(|| list::not_found::<Vms>(name))?;
    let running = vm.owner_report().is_some_and(|report| report.state.has_process());
    match vm.decision() {
        Some(decision) if running => Ok((decision.owner.host.clone(), vm.meta.uid)),
        _ => Err(refuse(Code::WrongState, format!("vm {name} does not run")).hint("start it first")),
    }
}
