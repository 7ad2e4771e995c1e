//! The description of the API for machines: OpenAPI 3.1, made from the code.

use std::sync::LazyLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use image_builder_actors::model::fault::Reason;
use serde_json::json;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::problem::PROBLEM;
use super::{builds, dead, hooks, log, plan, problem, schema, summary, workers};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "image-builder",
        description = "Builds container images from Git repositories.",
        license(name = "MIT", identifier = "MIT"),
    ),
    paths(
        builds::submit, plan::plan, builds::list, builds::show, builds::cancel, summary::summary, log::log,
        dead::list, dead::show, dead::drop, dead::redrive,
        hooks::github, hooks::gitlab, hooks::gitea, workers::list, document,
    ),
    components(schemas(problem::Body, hooks::Heard)),
    modifiers(&Shared),
)]
struct Description;

/// What every route has in common.
struct Shared;

impl Modify for Shared {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        components
            .add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        api.security = Some(vec![
            utoipa::openapi::SecurityRequirement::new("token", [] as [&str; 0]),
            // Without an API_TOKEN this machine is served.
            utoipa::openapi::SecurityRequirement::default(),
        ]);
        for (route, path) in &mut api.paths.paths {
            let is_of_one = route.contains("{id}");
            let reads = [&mut path.get];
            let writes = [&mut path.post, &mut path.delete];
            for operation in reads.into_iter().chain(writes).flatten() {
                answers(operation, if is_of_one { &OF_ONE } else { &[] });
            }
            if let Some(operation) = &mut path.post {
                let bodies = [
                    (408, "The body was not sent in time."),
                    (413, "The body is too long."),
                    (415, "The body is not JSON."),
                ];
                answers(operation, &bodies);
            }
        }
    }
}

/// What is answered where one build, or one letter, is named.
const OF_ONE: [(u16, &str); 2] = [
    (404, "None of this id is known."),
    (409, "Several users have one of this id: say whose is meant."),
];

/// Adds what is answered instead: what these say, and what is common to all.
fn answers(operation: &mut Operation, further: &[(u16, &str)]) {
    let common = [
        (400, "Something of the request is wrong."),
        (401, "The token is missing or wrong."),
        (429, "Too many changes are asked for, or too many wrong tokens came from this address."),
        (403, "Only this machine is served, and no foreign page."),
        (503, "Something that it takes is not available: `Retry-After` says when to try again."),
    ];
    for (status, description) in common.iter().chain(further) {
        let schema = RefOr::Ref(Ref::from_schema_name("Problem"));
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let response = ResponseBuilder::new().description(*description).content(PROBLEM, content);
        let all = &mut operation.responses.responses;
        all.entry(status.to_string()).or_insert_with(|| response.build().into());
    }
}

/// The document, as it is served.
pub(super) static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let described = serde_json::to_value(Description::openapi());
    let mut described = described.expect("the description has only string keys");
    described["components"]["schemas"]["BuildRequest"] = schema::request();
    let parameters = described["paths"]["/v1/dead"]["get"]["parameters"].as_array_mut();
    let fault = parameters.into_iter().flatten().find(|parameter| parameter["name"] == "fault");
    let reasons = Reason::ALL.iter().map(|reason| reason.as_str());
    let names: Vec<_> = ["user", "service"].into_iter().chain(reasons).collect();
    fault.expect("letters are listed by their faults")["schema"] = json!({"enum": names});
    format!("{described:#}\n")
});

/// Describe this API
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "this API", operation_id = "describeApi",
    responses((status = 200, description = "OpenAPI 3.1", body = Value))
)]
pub(super) async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}
