//! Bodies of requests: JSON, not too long, and sent in time.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

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

/// Reads a body of at most so many bytes, whatever it is.
///
/// # Errors
///
/// It is too long, or was not sent in time.
pub(in crate::api) async fn collect(body: Body, most: usize) -> Result<Bytes, Problem> {
    in_time(most, async { Ok(limited(body, most)?.collect().await?.to_bytes()) }).await
}

/// Reads a body of at most so many bytes, whatever it is, and takes room for what has come of it: whoever says that
/// much will come takes none away from others.
///
/// # Errors
///
/// It is too long, there is no room, or it was not sent in time.
pub(super) async fn collect_within(
    body: Body,
    most: usize,
    room: &Arc<Semaphore>,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Problem> {
    let (mut bytes, mut held) = (Vec::new(), None::<OwnedSemaphorePermit>);
    let reading = async {
        let mut body = limited(body, most)?;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let more = room.clone().try_acquire_many_owned(length)?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(())
    };
    in_time(most, reading).await?;
    Ok((bytes, held))
}

type ReadError = Box<dyn Error + Send + Sync>;

/// Refuses at once what is said to be too long.
fn limited(body: Body, most: usize) -> Result<Limited<Body>, ReadError> {
    if body.size_hint().lower() > most as u64 {
        return Err(TooLong.into());
    }
    Ok(Limited::new(body, most))
}

#[derive(Debug, thiserror::Error)]
#[error("it is too long")]
struct TooLong;

async fn in_time<T>(
    most: usize,
    reading: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(BODY_LIMIT, reading).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) if error.is::<LengthLimitError>() || error.is::<TooLong>() => {
            let detail =
                format!("The body has more than {most} bytes, which is the most that is taken.");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
        }
        Ok(Err(error)) if error.is::<TryAcquireError>() => {
            Err(Problem::unavailable("Too much is sent at the moment: send it again later.", 5))
        }
        Ok(Err(_)) => Err(Problem::bad_request("The body ended early.")),
        Err(_) => {
            let detail = format!("The body was not sent within {} seconds.", BODY_LIMIT.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
        }
    }
}

pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}
