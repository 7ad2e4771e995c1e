//! The stylesheet, the script and the icon.

use std::sync::LazyLock;

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use image_builder_actors::model::digest::hex;
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");
const LOG_SCRIPT: &str = include_str!("assets/log.js");
const ICON: &str = include_str!("assets/icon.svg");

/// What the addresses of these files end in, so that browsers may keep each for ever.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let all = [STYLE, SCRIPT, LOG_SCRIPT, ICON].concat();
    hex(&Sha256::digest(all.as_bytes()))[..12].to_owned()
});

/// The file of this name, as it is answered.
pub(super) fn file(name: &str) -> Option<Response> {
    let (kind, text) = match name {
        "page.css" => ("text/css; charset=utf-8", STYLE),
        "page.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "log.js" => ("text/javascript; charset=utf-8", LOG_SCRIPT),
        "icon.svg" => ("image/svg+xml", ICON),
        _ => return None,
    };
    // Its address changes with it.
    let headers = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "public, max-age=31536000, immutable")];
    Some((headers, text).into_response())
}
