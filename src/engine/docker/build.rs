//! One build: `POST /build` with the context as its body, under a session of its own.

use std::collections::BTreeMap;
use std::io;

use bollard::ClientVersion;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Response, StatusCode};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{REVISION_LABEL, SOURCE_LABEL};
use image_builder_actors::ports::BuildOrder;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;

use super::context::{Context, Unsent};
use super::events::Follower;
use super::session::Session;
use super::wire::{self, Body, Connection};
use super::{DockerEngine, faults, local};
use crate::blocking::{blocking, joined};

/// Longest line of the engine's progress that is read, in bytes.
const LONGEST_LINE: usize = 32 << 20;
/// Longest request line that is sent, in bytes: HTTP libraries refuse more than 64 KiB.
const LONGEST_QUERY: usize = 60 * 1024;

/// Makes the engine run every step.
const NO_CACHE: &str = "&nocache=1";

/// Builds an image and returns the engine's id of it.
pub(super) async fn build(
    engine: &DockerEngine,
    version: ClientVersion,
    order: &BuildOrder,
    progress: &BuildLog,
) -> Result<String, Fault> {
    let plan = order.plan.clone();
    let limits = engine.settings.limits.clone();
    let context = blocking(move || {
        #[cfg(feature = "failpoints")]
        fail::fail_point!("builder::opening");
        Context::open(&plan, &limits)
    })
    .await?;

    let session = Session::open(
        &engine.address,
        version,
        order.plan.secrets.clone(),
        engine.settings.pull_credentials(&order.plan),
    )
    .await?;
    let build_id = uuid::Uuid::new_v4().simple().to_string();
    let network = engine.settings.network.as_deref();
    let proxies = engine.settings.proxies.variables();
    let mut target = target(order, &context.dockerfile, &session.id, &build_id, network, proxies)?;
    let source = source(order).filter(|_| context.mounts_caches);
    if source.is_some_and(|(repository, commit)| engine.revisions.begin(repository, commit)) {
        progress.note(
            "another commit was built since this one was: no layers are taken from the cache, since \
             they are older than what that build left in cache mounts",
        );
        target.push_str(NO_CACHE);
    } else if engine.settings.no_cache {
        target.push_str(NO_CACHE);
    }
    let mut connection = Connection::open(&engine.address).await?;
    let mut cancel = CancelOnDrop { engine, version, build_id: Some(build_id) };

    progress.note("sending the build context to the engine");
    let (chunks, sending) = context.send(time_of(engine).await?);
    let request = wire::request(Method::POST, &engine.address, version, &target)
        .header(CONTENT_TYPE, "application/x-tar")
        .body(body(chunks))
        .map_err(|error| faults::engine_broke("starting the build", &error))?;
    let mut follower = Follower::new(progress, engine.settings.limits.output_bytes);
    let outcome = match connection.send(request).await {
        Ok(response) => follow(response, &mut follower).await,
        Err(error) => Err(faults::engine_broke("building", &error)),
    };
    drop(connection);

    // The closed connection ends the sending. A tree that cannot be sent is the cause of whatever
    // the engine says about half a context.
    if let Err(Unsent::Unusable(fault)) = joined(sending).await {
        return Err(fault);
    }
    outcome?;
    cancel.build_id = None;
    if let Some(error) = &follower.error {
        return Err(faults::of_build(error, follower.failed.as_ref()));
    }
    let image_id = follower.image_id.ok_or_else(|| {
        faults::engine_broke("building", &"its answer ended before the build did")
    })?;
    engine.keep_one_name(&image_id, &order.reference).await;
    if let Some((repository, commit)) = source {
        engine.revisions.succeeded(repository, commit);
    }
    Ok(image_id)
}

/// The repository and the commit that are built.
fn source(order: &BuildOrder) -> Option<(&str, &str)> {
    let label = |name: &str| order.labels.get(name).map(String::as_str);
    label(SOURCE_LABEL).zip(label(REVISION_LABEL))
}

/// Reads the engine's answer to its end.
async fn follow(response: Response<Incoming>, follower: &mut Follower<'_>) -> Result<(), Fault> {
    if response.status() != StatusCode::OK {
        let server_error = response.status().is_server_error();
        let message = wire::error_message(response).await;
        if server_error {
            follower.error = Some(message);
            return Ok(());
        }
        return Err(faults::engine_broke("starting the build", &message));
    }
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| faults::engine_broke("building", &error))?;
        let Ok(data) = frame.into_data() else { continue };
        // Only what is new can hold the end of a line.
        let mut searched = buffer.len();
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(searched + end + 1);
            follower.line(&line);
            searched = 0;
        }
        if buffer.len() > LONGEST_LINE {
            return Err(faults::engine_broke("building", &"it wrote an endless line"));
        }
    }
    follower.line(&buffer);
    Ok(())
}

/// The path and query of the request.
fn target(
    order: &BuildOrder,
    dockerfile: &str,
    session: &str,
    build_id: &str,
    network: Option<&str>,
    proxies: BTreeMap<String, String>,
) -> Result<String, Fault> {
    let plan = &order.plan;
    let build_args: BTreeMap<_, _> = plan.build_args.clone().into_iter().chain(proxies).collect();
    let build_args = json!(build_args).to_string();
    let labels = json!(order.labels).to_string();
    let name = local::new_name(&order.reference);
    let mut parameters = vec![
        ("version", "2"),
        ("session", session),
        ("buildid", build_id),
        ("dockerfile", dockerfile),
        ("t", &name),
        ("buildargs", &build_args),
        ("labels", &labels),
    ];
    if let Some(target) = &plan.target {
        parameters.push(("target", target));
    }
    if let Some(network) = network {
        parameters.push(("networkmode", network));
    }
    let target = format!("/build{}", wire::query(&parameters));
    if target.len() > LONGEST_QUERY {
        let message = "The build arguments are too long for the container engine: pass large \
                       values as secrets or files.";
        return Err(Fault::new(StageName::Builder, Reason::InvalidPlan, message));
    }
    Ok(target)
}

fn body(chunks: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    let frames = stream::unfold(chunks, |mut chunks| async {
        let chunk = chunks.recv().await?;
        Some((chunk.map(Frame::data), chunks))
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// What the engine's clock says: files that build steps make have its time, which need not be the
/// worker's.
async fn time_of(engine: &DockerEngine) -> Result<OffsetDateTime, Fault> {
    let what = "asking for its time";
    let info = faults::in_time(super::ANSWER_TIMEOUT, what, engine.docker().info())
        .await?
        .map_err(|error| faults::of_client(&engine.address, what, &error))?;
    let told = info.system_time.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok());
    Ok(told.unwrap_or_else(OffsetDateTime::now_utc))
}

/// Stops the build on the engine when its future is dropped. The closed connection alone would do,
/// but not while the engine still reads the context.
struct CancelOnDrop<'a> {
    engine: &'a DockerEngine,
    version: ClientVersion,
    /// `None` = the build has ended.
    build_id: Option<String>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let Some(build_id) = self.build_id.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (address, version) = (self.engine.address.clone(), self.version);
        // Only one who waits for the last cancellation keeps others from it, and begins none.
        let under_way = self.engine.cancelling.clone().try_read_owned();
        runtime.spawn(async move {
            let _under_way = under_way;
            let what = "cancelling a build";
            let cancelled = async {
                let target = format!("/build/cancel{}", wire::query(&[("id", &build_id)]));
                let request = wire::request(Method::POST, &address, version, &target)
                    .body(wire::no_body())
                    .map_err(|error| faults::engine_broke(what, &error))?;
                let mut connection = Connection::open(&address).await?;
                faults::in_time(super::ANSWER_TIMEOUT, what, connection.send(request))
                    .await?
                    .map_err(|error| faults::engine_broke(what, &error))
            };
            if let Err(fault) = cancelled.await {
                tracing::warn!(%fault, "cannot cancel a build on the engine");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;
    use crate::engine::docker::DockerSettings;
    use crate::engine::docker::address::Address;

    #[tokio::test]
    async fn a_dropped_build_is_cancelled_and_an_ended_one_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = Address::Tcp(listener.local_addr().expect("its address").to_string());
        let version = *bollard::API_DEFAULT_VERSION;
        let settings = DockerSettings { host: address.to_string(), ..DockerSettings::default() };
        let engine = DockerEngine::connect(settings).expect("a good address");
        drop(CancelOnDrop { engine: &engine, version, build_id: None });
        engine.cancelled().await;
        drop(CancelOnDrop { engine: &engine, version, build_id: Some("the-id".to_owned()) });

        // What comes first is the cancelling of the second: the first one sends nothing.
        let accepted = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
        let (stream, _) = accepted.expect("a request in time").expect("a connection");
        let mut line = String::new();
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut line).await.expect("a request");
        assert_eq!(line.trim_end(), format!("POST /v{version}/build/cancel?id=the-id HTTP/1.1"));
        let mut cancelled = std::pin::pin!(engine.cancelled());
        let unanswered = tokio::time::timeout(Duration::from_millis(50), &mut cancelled).await;
        assert!(unanswered.is_err(), "the engine has not answered yet");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("sent");
        tokio::time::timeout(Duration::from_secs(10), cancelled).await.expect("it is cancelled");
    }
}
