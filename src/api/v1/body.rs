//! Bodies of requests: JSON, not too long, and sent in time.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::problem::Problem;

/// How long a client may take to send a body.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// Reads a body of at most so many bytes, which is said to be JSON.
///
/// # Errors
///
/// It is not, is too long, or was not sent in time.
pub(super) async fn read(headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, Problem> {
    if !is_json(headers) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The body must be JSON: send `Content-Type: application/json`.",
        ));
    }
    collect(body, most).await
}

/// The same where there need be no body.
///
/// # Errors
///
/// There is one, and it is not JSON, is too long, or was not sent in time.
pub(super) async fn read_if_any(
    headers: &HeaderMap,
    body: Body,
    most: usize,
) -> Result<Option<Bytes>, Problem> {
    if body.is_end_stream() {
        return Ok(None);
    }
    let bytes = collect(body, most).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    read(headers, Body::from(bytes), most).await.map(Some)
}

async fn collect(body: Body, most: usize) -> Result<Bytes, Problem> {
    let too_long = || {
        let detail =
            format!("The body has more than {most} bytes, which is the most that is taken.");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    if body.size_hint().lower() > most as u64 {
        return Err(too_long());
    }
    match tokio::time::timeout(BODY_LIMIT, Limited::new(body, most).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_long()),
        Ok(Err(_)) => Err(Problem::bad_request("The body ended early.")),
        Err(_) => {
            let detail = format!("The body was not sent within {} seconds.", BODY_LIMIT.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}
