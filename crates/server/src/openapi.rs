//! The router of the API, and the document that describes it.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::{Json, middleware};
use serde_json::json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, Info, OpenApi, OpenApiBuilder, SecurityRequirement};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;
use crate::{auth, error, gateway, page, routes};

/// Every path of the API, annotated.
fn api() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(described())
        .merge(routes::vm::routes())
        .merge(routes::host::routes())
        .merge(routes::image::routes())
        .merge(routes::volume::routes())
        .merge(routes::pool::routes())
        .merge(routes::network::routes())
        .merge(routes::datacentre::routes())
        .merge(routes::cluster::routes())
        .merge(routes::migration::routes())
        .merge(routes::operation::routes())
        .merge(routes::event::routes())
        .merge(routes::audit::routes())
        .merge(routes::alert::routes())
        .merge(routes::server::routes())
        .merge(routes::token::routes())
        .merge(routes::watch::routes())
}

fn described() -> OpenApi {
    let mut info = Info::new("Sterna", "1");
    info.description = Some("Keeps virtual servers running, and moves them while they run.".to_owned());
    let mut components = Components::new();
    components
        .security_schemes
        .insert("token".to_owned(), SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)).into());
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new::<_, [&str; 0], &str>("token", [])]))
        .build()
}

/// The whole document as text.
#[must_use]
pub fn document() -> String {
    let (_, document) = api().split_for_parts();
    // Serialising a document that the derive macros built cannot fail; an empty one would be seen by the golden test.
    document.to_pretty_json().unwrap_or_default() + "\n"
}

/// Everything that the one port serves.
pub fn router(app: App) -> axum::Router {
    let (api, _) = api().split_for_parts();
    let api = api.layer(middleware::from_fn_with_state(App::clone(&app), auth::admit));
    let open = axum::Router::new()
        .route("/healthz", axum::routing::get(healthz))
        .route("/v1/openapi.json", axum::routing::get(openapi))
        .merge(page::routes())
        .merge(routes::join::routes())
        .merge(gateway::routes());
    api.merge(open)
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .with_state(app)
}

async fn healthz(State(app): State<App>) -> impl IntoResponse {
    let version = env!("CARGO_PKG_VERSION");
    Json(json!({ "status": "ok", "version": version, "revision": app.view().revision }))
}

async fn openapi(State(app): State<App>) -> impl IntoResponse {
    let document = app.openapi.get_or_init(document).clone();
    ([(header::CONTENT_TYPE, "application/json")], document)
}
