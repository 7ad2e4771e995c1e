//! A build's log: as a whole, from an offset, or a range of its bytes.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::header::{
    ACCEPT, ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE, VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use image_builder_actors::model::identity::BuildIdentity;
use serde::Deserialize;
use utoipa::IntoParams;

use super::builds::{OneBuild, Whose};
use super::events::{self, EVENT_STREAM};
use super::problem::{self, Problem};
use super::{Api, PART, Reader};
use crate::api::server::Connection;

/// Which part of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// Where to begin, in bytes.
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// Read a build's log
///
/// As text: all that there is by now, or a part of it. With `Accept: text/event-stream` it is sent live, as
/// server-sent events, until the build has ended: each event is one or more whole lines, its `id` is the offset
/// behind them, and `Last-Event-ID` goes on from there. Comments say how far the build is. The last event is
/// called `end`, and holds the outcome as JSON: `buildID`, `state`, and `type` and `data` of the notification.
#[utoipa::path(
    get, path = "/v1/builds/{id}/log", tag = "builds", operation_id = "readLog",
    params(
        ("id" = String, Path, description = "The build's id"),
        Whose,
        Part,
        ("Range" = Option<String>, Header, description = "One range of bytes"),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event that came"),
    ),
    responses(
        (status = 200, description = "The log, or its events.",
            content((String = "text/plain"), (String = "text/event-stream"))),
        (status = 206, description = "The range that was asked for.", body = String,
            content_type = "text/plain"),
        (status = 416, description = "The log ends before what was asked for.",
            body = problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn log(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    OneBuild { id, user }: OneBuild,
    part: Result<Query<Part>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(Part { offset }) = part?;
    let offset = offset.map(u64::try_from).transpose();
    let offset = offset.map_err(|_| Problem::bad_request("`offset` is 0 or more."))?;
    let found = api.find(&id, user.as_deref()).await?;
    let reader = api.reader(&connection)?;
    let (build, total) = (found.requested.build, found.log_bytes);
    if wants_events(&headers) {
        let offset = events::resumed(&headers).or(offset).unwrap_or(0);
        return Ok(events::answer(api, reader, build, offset));
    }
    let wanted = match (offset, headers.get(RANGE)) {
        (Some(offset), _) if offset > total => return Err(Problem::range_not_satisfiable(total)),
        (Some(offset), _) => Wanted::Whole { from: offset },
        (None, Some(range)) => Wanted::of(range, total)?,
        (None, None) => Wanted::Whole { from: 0 },
    };
    let (status, from, end) = match wanted {
        Wanted::Whole { from } => (StatusCode::OK, from, total),
        Wanted::Range { from, end } => (StatusCode::PARTIAL_CONTENT, from, end),
    };
    let body = Body::from_stream(parts(api, reader, build, from, end));
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONTENT_LENGTH, (end - from).into());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = HeaderValue::try_from(format!("bytes {from}-{}/{total}", end - 1));
        headers.insert(CONTENT_RANGE, range.expect("numbers are text"));
    }
    Ok(response)
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|kinds| kinds.split(',')).any(|kind| {
        kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(EVENT_STREAM)
    })
}

/// What of a log is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole { from: u64 },
    Range { from: u64, end: u64 },
}

impl Wanted {
    /// What a `Range` header means for a log of so many bytes. One that cannot be read, or names several
    /// ranges, means nothing.
    fn of(header: &HeaderValue, total: u64) -> Result<Self, Problem> {
        let range = header.to_str().ok().and_then(|text| text.trim().strip_prefix("bytes="));
        let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
            return Ok(Self::Whole { from: 0 });
        };
        let (from, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
            (Ok(from), Ok(last)) if from <= last => (from, total.min(last.saturating_add(1))),
            (Ok(from), Err(_)) if last.trim().is_empty() => (from, total),
            (Err(_), Ok(count)) if first.trim().is_empty() => (total - total.min(count), total),
            _ => return Ok(Self::Whole { from: 0 }),
        };
        if from >= end {
            return Err(Problem::range_not_satisfiable(total));
        }
        Ok(Self::Range { from, end })
    }
}

/// The bytes of a log in `from..end`, a part at a time and each when it is wanted.
fn parts(
    api: Arc<Api>,
    reader: Reader,
    build: BuildIdentity,
    from: u64,
    end: u64,
) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((from, reader), move |(at, reader)| {
        let (api, build) = (api.clone(), build.clone());
        async move {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            if left == 0 {
                return Ok(None);
            }
            let part = api.backend.store.log(&build, at, left.min(PART)).await;
            let part = part.map_err(io::Error::other)?.map(|part| part.bytes).unwrap_or_default();
            if part.is_empty() {
                return Err(io::Error::other("the log was removed while it was read"));
            }
            let next = at + part.len() as u64;
            Ok(Some((Bytes::from(part), (next, reader))))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_it_says_of_what_there_is() {
        let of = |text: &'static str| Wanted::of(&HeaderValue::from_static(text), 10).ok();
        let range = |from, end| Some(Wanted::Range { from, end });
        for (text, wanted) in [
            ("bytes=0-3", range(0, 4)),
            ("bytes=3-", range(3, 10)),
            ("bytes=-4", range(6, 10)),
            ("bytes=-40", range(0, 10)),
            ("bytes=9-100", range(9, 10)),
            ("bytes=10-", None),
            ("bytes=-0", None),
            ("bytes=5-3", Some(Wanted::Whole { from: 0 })),
            ("bytes=0-1,4-5", Some(Wanted::Whole { from: 0 })),
            ("lines=0-1", Some(Wanted::Whole { from: 0 })),
        ] {
            assert_eq!(of(text), wanted, "{text}");
        }
    }
}
