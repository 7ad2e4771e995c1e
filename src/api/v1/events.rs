//! A build's log, live, as server-sent events.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use futures_util::{FutureExt, poll, stream};
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::build_store::{BuildState, StoreError, StoredBuild};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Api, PART, Reader};

/// The media type of server-sent events.
pub(super) const EVENT_STREAM: &str = "text/event-stream";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells a reverse proxy to hand on what comes as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How long a client waits before it connects anew, in milliseconds.
const RECONNECT: u32 = 1000;
/// Longest silence: so a proxy keeps the connection, and a client that is gone is noticed.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// At least so long between two looks at the store, which hears of every build's changes.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// Pause before a store that did not answer is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// Where a client that was connected before goes on.
pub(super) fn resumed(headers: &HeaderMap) -> Option<u64> {
    headers.get(LAST_EVENT_ID)?.to_str().ok()?.trim().parse().ok()
}

/// Sends a build's log from an offset on, until the build has ended.
pub(super) fn answer(api: Arc<Api>, reader: Reader, build: BuildIdentity, offset: u64) -> Response {
    let follower =
        Follower { api, build, offset, state: None, looked: Instant::now(), stage: Stage::Opening };
    let events = stream::unfold((follower, reader), async |(mut follower, reader)| {
        let events = follower.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(events)), (follower, reader)))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// One who follows a build.
struct Follower {
    api: Arc<Api>,
    build: BuildIdentity,
    /// How much of the log was sent, in bytes.
    offset: u64,
    /// The state that was last told.
    state: Option<BuildState>,
    looked: Instant,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Following,
    Ended,
}

/// What a look at the store found.
enum Found {
    News(String),
    Nothing,
    /// The build is not known any more.
    Gone,
}

impl Follower {
    /// The next events; `None` = there are no more.
    async fn next(&mut self) -> Option<String> {
        match self.stage {
            Stage::Ended => return None,
            // So that the client knows at once that it is heard.
            Stage::Opening => {
                self.stage = Stage::Following;
                return Some(format!("retry: {RECONNECT}\n\n"));
            }
            Stage::Following => {}
        }
        let silence = Instant::now() + self.api.keep_alive;
        loop {
            let store = self.api.backend.store.clone();
            let mut changed = store.changed().fuse();
            // It listens from here on: what is recorded while the store is read is heard of.
            let mut is_changed = poll!(&mut changed).is_ready();
            match self.look().await {
                Ok(Found::News(events)) => return Some(events),
                Ok(Found::Gone) => return None,
                Ok(Found::Nothing) => {}
                Err(error) => {
                    tracing::debug!(%error, "a log cannot be followed for now");
                    sleep(PAUSE).await;
                    is_changed = true;
                }
            }
            self.looked = Instant::now();
            if !is_changed {
                tokio::select! {
                    () = changed => {}
                    () = sleep_until(silence) => {}
                }
            }
            if Instant::now() >= silence {
                return Some(self.comment());
            }
            sleep_until(self.looked + BETWEEN_LOOKS).await;
        }
    }

    async fn look(&mut self) -> Result<Found, StoreError> {
        let store = &self.api.backend.store;
        let builds = store.builds_of_id(&self.build.build_id).await?;
        let found = builds.into_iter().find(|found| found.requested.build == self.build);
        let Some(found) = found else { return Ok(Found::Gone) };
        if self.offset > found.log_bytes {
            // The build was begun anew, and its log with it.
            self.offset = 0;
        }
        let is_news = self.state.replace(found.state) != Some(found.state);
        let mut events = if is_news { self.comment() } else { String::new() };
        let Some(log) = store.log(&self.build, self.offset, PART).await? else {
            return Ok(Found::Gone);
        };
        let is_all = self.offset + log.bytes.len() as u64 == log.total;
        let lines = whole_lines(&log.bytes, found.state.is_ended() && is_all);
        if lines > 0 {
            self.offset += lines as u64;
            write_event(&mut events, self.offset, &String::from_utf8_lossy(&log.bytes[..lines]));
        }
        // The state was read before the log: when the build has ended, so has its log.
        if found.state.is_ended() && self.offset >= log.total {
            self.stage = Stage::Ended;
            let _ = write!(events, "event: end\nid: {}\ndata: {}\n\n", self.offset, outcome(found));
        }
        Ok(if events.is_empty() { Found::Nothing } else { Found::News(events) })
    }

    /// Says how far the build is, to whoever reads comments.
    fn comment(&self) -> String {
        format!(": {}\n\n", self.state.map_or("waiting for the build store", BuildState::as_str))
    }
}

/// How many of these bytes are whole lines. Where no more come, or a line is longer than what is read at once,
/// all are taken, or as many as are whole characters.
fn whole_lines(bytes: &[u8], is_all: bool) -> usize {
    if is_all {
        return bytes.len();
    }
    match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => end + 1,
        None if bytes.len() < PART => 0,
        None => match std::str::from_utf8(bytes) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => bytes.len(),
        },
    }
}

/// One event of the log: a line of it in each line of data.
fn write_event(events: &mut String, offset: u64, text: &str) {
    let _ = writeln!(events, "id: {offset}");
    // What else ends a line for a reader of events ends one here.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    for line in text.strip_suffix('\n').unwrap_or(&text).split('\n') {
        let _ = writeln!(events, "data: {line}");
    }
    events.push('\n');
}

/// How a build ended.
fn outcome(found: StoredBuild) -> Value {
    let build = super::builds::Build::from(found);
    json!({"buildID": build.build_id, "state": build.state, "type": build.kind, "data": build.data})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_whole_lines() {
        assert_eq!(whole_lines(b"one\ntwo", false), 4);
        assert_eq!(whole_lines(b"one", false), 0);
        assert_eq!(whole_lines(b"one\ntwo", true), 7);
        let mut long = vec![b'x'; PART - 1];
        long.push("é".as_bytes()[0]);
        assert_eq!(whole_lines(&long, false), PART - 1);
    }

    #[test]
    fn every_line_of_the_log_is_a_line_of_data() {
        let mut events = String::new();
        write_event(&mut events, 9, "a\n\nb\rc\r\n");
        assert_eq!(events, "id: 9\ndata: a\ndata: \ndata: b\ndata: c\n\n");
    }
}
