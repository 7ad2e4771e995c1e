//! The page: what people look at. HTML that is whole without its script, which keeps it up to date and reads logs
//! by way of the API, [`v1`](super::v1).
//!
//! | file | what it does |
//! |---|---|
//! | `visitor.rs` | who is served, and whose forms are taken |
//! | `login.rs` | the token for a session, and back |
//! | `view.rs` | what all pages have in common: the frame, times, sizes, strangers' texts |
//! | `refused.rs` | errors, as pages |
//! | `builds.rs` | the list of builds |
//! | `build.rs` | one build, and its end |
//! | `attempts.rs` | a build's attempts, as they are shown |
//! | `submit.rs` | the form that asks for a build, and shows the plan before |
//! | `planned.rs` | plans that were shown, until they are built |
//! | `dead.rs` | dead letters |
//! | `dead_forms.rs` | what is done to them, one or all that are meant |
//! | `workers.rs` | this worker, its actors, and who waits |
//! | `assets.rs` | the stylesheet, the script and the icon |
//!
//! What it shows is partly strangers' text. It is escaped by the templates, and should one ever not be: the
//! content security policy runs no script and takes no style but the files of `assets.rs`.

mod assets;
mod attempts;
mod build;
mod builds;
mod dead;
mod dead_forms;
mod login;
mod planned;
mod refused;
mod submit;
#[cfg(test)]
mod tests;
mod view;
mod visitor;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post};
use uuid::Uuid;

use self::dead_forms::{DROP, REDRIVE};
use self::refused::Refused;
pub use self::view::path_of;
use super::v1::Api;
use super::v1::problem::Problem;

/// Nothing from elsewhere, nothing inline, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What the page works with.
struct Page {
    api: Arc<Api>,
    /// What a form shows where nobody logs in: pages of other sites cannot know it.
    form_token: String,
    planned: planned::Planned,
}

/// The routes.
pub(super) fn router(api: Arc<Api>) -> Router {
    let form_token = Uuid::new_v4().simple().to_string();
    let page = Arc::new(Page { api, form_token, planned: planned::Planned::default() });
    Router::new()
        .route("/", get(builds::list))
        .route("/builds/{id}", get(build::show))
        .route("/builds/{id}/cancel", get(build::confirm_cancel).post(build::cancel))
        .route("/new", get(submit::form).post(submit::submit))
        .route("/new/planned", post(submit::submit_planned))
        .route("/dead", get(dead::list))
        .route("/dead/{id}", get(dead::show))
        .route("/dead/{id}/drop", get(dead_forms::confirm::<DROP>).post(dead_forms::drop))
        .route("/dead/{id}/redrive", get(dead_forms::confirm::<REDRIVE>).post(dead_forms::redrive))
        .route("/all-dead/drop", get(dead_forms::confirm_all::<DROP>).post(dead_forms::drop_all))
        .route(
            "/all-dead/redrive",
            get(dead_forms::confirm_all::<REDRIVE>).post(dead_forms::redrive_all),
        )
        .route("/workers", get(workers::show))
        .route("/logout", post(login::log_out))
        .layer(from_fn_with_state(page.clone(), visitor::admit))
        .route("/login", get(login::form).post(login::log_in))
        .route("/assets/{name}", get(asset))
        .method_not_allowed_fallback(refused::other_method)
        .layer(map_response(guarded))
        .with_state(page)
}

async fn asset(Path(name): Path<String>) -> Result<Response, Refused> {
    assets::file(&name).ok_or_else(|| Problem::not_found("There is no such file.").into())
}

/// Adds what has a browser guard an answer, and nobody keep it.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
