//! Sources of boot disks: their objects and their content.

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sterna_model::error::{Code, Error};
use sterna_model::image::{ImageReport, ImageSpec};
use sterna_model::key::{Key, Kind};
use sterna_model::meta::Name;
use sterna_model::operation::Goal;
use sterna_plan::View;
use sterna_store::Txn;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::{Actor, HostActor};
use crate::body::{Body, PathName, Words};
use crate::error::{Answer, refuse};
use crate::importer::{self, fetch, is_url};
use crate::list::{self, Page};
use crate::routes::{Change, Deleted, change_plain, delete_plain};
use crate::shown::{Image, Images, Operation};
use crate::write::{self, Create, bytes, new_meta, operation, put_new, started};

/// Read from disk at once when an agent fetches an image.
const CHUNK: usize = 256 * 1024;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, change, delete))
        .routes(routes!(upload))
}

/// A new image, and the operation that waits for its content.
#[derive(Debug, Serialize, ToSchema)]
struct ImageCreated {
    object: Image,
    operation: Operation,
}

/// All images that match.
#[utoipa::path(get, path = "/v1/images", tag = "image", operation_id = "image_list",
    params(("limit" = Option<usize>, Query), ("after" = Option<String>, Query), ("label" = Option<String>, Query),
        ("state" = Option<String>, Query)),
    responses((status = 200, body = Page<Image>), (status = "default", body = Error)))]
async fn list(State(app): State<App>, actor: Actor, words: Words) -> Answer<Json<Page<Image>>> {
    words.only(&list::WORDS)?;
    list::list::<Images>(&app, &actor, &words)
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{name}", tag = "image", operation_id = "image_get",
    params(("name" = Name, Path)), responses((status = 200, body = Image), (status = "default", body = Error)))]
async fn get(State(app): State<App>, actor: Actor, PathName(name): PathName) -> Answer<Json<Image>> {
    Ok(Json(list::show::<Images>(&app, actor.role, &name)?))
}

/// Makes an image known; its content comes from the URL in `spec.source`, or with `PUT content`.
#[utoipa::path(post, path = "/v1/images", tag = "image", operation_id = "image_create",
    request_body = Create<ImageSpec>,
    responses((status = 202, body = ImageCreated), (status = "default", body = Error)))]
async fn create(
    State(app): State<App>,
    actor: Actor,
    Body { value, .. }: Body<Create<ImageSpec>>,
) -> Answer<(StatusCode, Json<ImageCreated>)> {
    let Create { name, labels, notes, spec } = value;
    check(&spec)?;
    let now = app.now();
    let source = spec.source.clone();
    let meta = new_meta(name.clone(), labels, notes, now)?;
    let txn = put_new(Txn::new(), Kind::Image, meta, spec)?;
    let report = Key::report(Kind::Image, &name).to_string();
    let txn = txn.put(report, bytes(&ImageReport::Waiting)?);
    let (id, txn) = operation(txn, &actor, Goal::ImageReady { image: name.clone() }, now)?;
    write::create(&app, Kind::Image, &name, txn).await?;
    if is_url(&source) {
        importer::start_fetch(&app, name.clone(), source);
    }
    let object = list::show::<Images>(&app, actor.role, &name)?;
    Ok((
        StatusCode::ACCEPTED,
        Json(ImageCreated { object, operation: started(&app, &actor, &id)?.operation }),
    ))
}

fn check(spec: &ImageSpec) -> Answer<()> {
    if is_url(&spec.source) {
        fetch::parse(&spec.source).map_err(|error| refuse(Code::Invalid, format!("spec.source: {error}")))?;
        if spec.source.len() > 2000 {
            return Err(refuse(Code::Invalid, "spec.source has more than 2000 characters"));
        }
    } else if spec.source != "upload" {
        return Err(refuse(Code::Invalid, format!("spec.source {:.60?} is not allowed", spec.source))
            .hint("give an http or https URL, or `upload` and send the content"));
    }
    let is_sum =
        |text: &String| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match &spec.sha256 {
        Some(sum) if !is_sum(sum) => Err(refuse(Code::Invalid, "spec.sha256 is not a SHA-256 sum")
            .hint("64 digits of lower-case hexadecimal")),
        _ => Ok(()),
    }
}

/// Changes labels and notes of an image; its content and checksum do not change.
#[utoipa::path(patch, path = "/v1/images/{name}", tag = "image", operation_id = "image_change",
    params(("name" = Name, Path)), request_body = Change,
    responses((status = 200, body = Image), (status = "default", body = Error)))]
async fn change(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    headers: HeaderMap,
    Body { value, .. }: Body<Change>,
) -> Answer<Json<Image>> {
    change_plain::<Images>(&app, &actor, &name, (&headers, &value), |_, old, new, txn| {
        if old != new {
            return Err(
                refuse(Code::Invalid, "an image does not change").hint("import it under another name")
            );
        }
        Ok(txn)
    })
    .await
}

/// Deletes an image that no volume was cloned from.
#[utoipa::path(delete, path = "/v1/images/{name}", tag = "image", operation_id = "image_delete",
    params(("name" = Name, Path)), responses((status = 200, body = Deleted), (status = "default", body = Error)))]
async fn delete(
    State(app): State<App>,
    PathName(name): PathName,
    headers: HeaderMap,
) -> Answer<Json<Deleted>> {
    let deleted = delete_plain::<Images>(&app, &name, &headers, |view| users(view, &name)).await?;
    if let Err(error) = tokio::fs::remove_file(importer::path(&app, &name)).await {
        tracing::debug!(image = %name, %error, "there was no content");
    }
    Ok(deleted)
}

fn users(view: &View, name: &Name) -> Vec<String> {
    let volumes = view.volumes.iter().filter(|(_, entry)| {
        let asked = entry.spec.as_ref().is_some_and(|row| row.value.spec.image.as_ref() == Some(name));
        let decided = entry
            .decision
            .as_ref()
            .and_then(|row| row.image.as_ref())
            .is_some_and(|image| image.name == *name);
        asked || decided
    });
    volumes.map(|(volume, _)| format!("volume {volume}")).collect()
}

/// Sends the content of an image that waits for it.
#[utoipa::path(put, path = "/v1/images/{name}/content", tag = "image", operation_id = "image_upload",
    params(("name" = Name, Path)), request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Image), (status = "default", body = Error)))]
async fn upload(
    State(app): State<App>,
    actor: Actor,
    PathName(name): PathName,
    request: Request,
) -> Answer<Json<Image>> {
    let shown = list::show::<Images>(&app, actor.role, &name)?;
    if is_url(&shown.spec.source) {
        return Err(refuse(Code::WrongState, format!("image {name} is fetched from a URL")));
    }
    importer::take(&app, &name, request.into_body().into_data_stream()).await?;
    Ok(Json(list::show::<Images>(&app, actor.role, &name)?))
}

/// `GET /agent/v1/images/NAME/content`: the bytes, which the agent checks against the sum that it was told.
pub async fn content_for_agent(
    State(app): State<App>,
    HostActor(_): HostActor,
    PathName(name): PathName,
) -> Answer<Response> {
    let report = list::show::<Images>(&app, sterna_model::token::Role::Viewer, &name)?.report;
    let Some(ImageReport::Ready { size, .. }) = report else {
        return Err(refuse(Code::WrongState, format!("image {name} has no content yet")));
    };
    let file = tokio::fs::File::open(importer::path(&app, &name)).await.map_err(|error| {
        tracing::error!(image = %name, %error, "the content of an image is missing");
        refuse(Code::Unavailable, format!("the content of image {name} is missing on the server"))
    })?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.as_u64().to_string()),
    ];
    Ok((headers, HttpBody::from_stream(ReaderStream::with_capacity(file, CHUNK))).into_response())
}
