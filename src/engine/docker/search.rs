//! Looks for secrets in an image before it is pushed.
//!
//! What the engine tells of an image is asked for in two short questions. Its files come as the archive of
//! `docker save`, which the engine writes to its disk first: only images of a bounded size are asked for it,
//! and only for a bounded time.

use bollard::errors::Error;
use bollard::models::{ImageHistoryResponseItem, ImageInspect};
use bytes::Bytes;
use futures_util::{StreamExt, pin_mut};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::secret::Tripwire;
use image_builder_actors::ports::Exposed;
use tokio::sync::mpsc;

use super::{DockerEngine, faults};
use crate::blocking::{begin, joined};
use crate::exposure::shown::{Configuration, Step};
use crate::exposure::{Pieces, layers};

const WHAT: &str = "searching an image for secrets";
/// Pieces of the archive that wait to be searched.
const WAITING: usize = 8;

/// How often an engine is asked that says it has no such image: with containerd's store it says so of one that is there,
/// while another is removed.
const QUESTIONS: usize = 3;

/// The first secret that is found. An image that is not there was not searched, which is a fault.
pub(super) async fn search(
    engine: &DockerEngine,
    image_id: &str,
    wanted: &Tripwire,
    files: bool,
    progress: &BuildLog,
) -> Result<Option<Exposed>, Fault> {
    let (image, history) = told(engine, image_id).await?;
    let size = image.size.unwrap_or_default();
    let shown = configuration(image, history).shows(wanted);
    if shown.is_some() || !files {
        return Ok(shown);
    }
    let most = engine.settings.builds.limits.searched_image_bytes;
    if u64::try_from(size).unwrap_or_default() > most {
        let (size, most) = (size >> 20, most >> 20);
        progress.note(format!(
            "the image's files are not searched for secrets: it has {size} MiB, more than {most} MiB"
        ));
        return Ok(None);
    }
    in_files(engine, image_id, wanted, progress).await
}

/// What the engine tells of an image.
async fn told(
    engine: &DockerEngine,
    image_id: &str,
) -> Result<(ImageInspect, Vec<ImageHistoryResponseItem>), Fault> {
    for _ in 0..QUESTIONS {
        let Some(image) = engine.inspect(image_id, WHAT).await? else { continue };
        match engine.docker.image_history(image_id).await {
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(faults::of_client(&engine.address, WHAT, &error)),
            Ok(history) => return Ok((image, history)),
        }
    }
    Err(gone(image_id))
}

fn gone(image_id: &str) -> Fault {
    let message = format!("{WHAT}: the engine no longer has {image_id}");
    Fault::new(StageName::Pusher, Reason::EngineFailed, message)
}

/// The same, as the image itself has it.
fn configuration(image: ImageInspect, history: Vec<ImageHistoryResponseItem>) -> Configuration {
    let step = |made: ImageHistoryResponseItem| Step {
        created_by: made.created_by,
        comment: made.comment,
        ..Step::default()
    };
    Configuration {
        author: image.author,
        comment: image.comment,
        config: serde_json::to_value(&image.config).unwrap_or_default(),
        // The engine lists the newest first.
        history: Some(history.into_iter().rev().map(step).collect()),
    }
}

async fn in_files(
    engine: &DockerEngine,
    image_id: &str,
    wanted: &Tripwire,
    progress: &BuildLog,
) -> Result<Option<Exposed>, Fault> {
    let (pieces, received) = mpsc::channel(WAITING);
    let wanted = wanted.clone();
    let searching = begin(move || layers::in_archive(Pieces::from(received), &wanted));
    let time = engine.settings.builds.limits.search_time;
    let sent = tokio::time::timeout(time, send(engine, image_id, pieces)).await;
    // Dropping the sender has ended what is searched.
    let searched = joined(searching).await;
    let incomplete = match (sent, searched.read) {
        (Ok(Err(Error::DockerResponseServerError { status_code: 404, .. })), _) => {
            return Err(gone(image_id));
        }
        (Ok(Err(error)), _) => return Err(faults::of_client(&engine.address, WHAT, &error)),
        (Err(_), _) => Some(format!("it took longer than {} s", time.as_secs())),
        (Ok(Ok(())), Err(error)) => Some(format!("they cannot be read: {error}")),
        (Ok(Ok(())), Ok(())) => None,
    };
    let found = searched.found;
    if let (None, Some(why)) = (&found, incomplete) {
        progress.note(format!("not all of the image's files were searched for secrets: {why}"));
    }
    Ok(found)
}

/// Sends the image's archive, for as long as somebody takes it.
async fn send(
    engine: &DockerEngine,
    image_id: &str,
    pieces: mpsc::Sender<Bytes>,
) -> Result<(), Error> {
    let archive = engine.docker.export_image(image_id);
    pin_mut!(archive);
    while let Some(piece) = archive.next().await {
        if pieces.send(piece?).await.is_err() {
            break;
        }
    }
    Ok(())
}
