//! A session within a call of the control API: its bytes go both ways as messages.

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use futures_util::StreamExt;
use image_builder_actors::model::fault::Fault;
use tokio::io::{AsyncWriteExt, DuplexStream, WriteHalf, duplex, split};
use tokio_util::io::ReaderStream;
use tonic::metadata::MetadataKey;
use tonic::{Request, Streaming};

use crate::engine::buildkit::control::Control;
use crate::engine::faults::{self, ANSWER_TIMEOUT};

/// Bytes under way in each direction at the most.
const BYTES_AHEAD: usize = 64 * 1024;

/// Opens one: the near end of it, and what carries the bytes for as long as it is waited for.
pub(super) async fn open(
    mut control: Control,
    headers: &[(&str, &str)],
    what: &str,
) -> Result<(DuplexStream, impl Future<Output = ()> + Send + 'static), Fault> {
    let broke = |error: &dyn std::fmt::Display| faults::engine_broke(what, error);
    let (near, far) = duplex(BYTES_AHEAD);
    let (reading, writing) = split(far);
    let said = ReaderStream::with_capacity(reading, BYTES_AHEAD)
        // An error here is that of the near end, which knows it.
        .filter_map(|read| async { Some(BytesMessage { data: read.ok()?.into() }) });
    let mut request = Request::new(said);
    for (name, value) in headers {
        let name = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes());
        let name = name.map_err(|error| broke(&error))?;
        request.metadata_mut().append(name, value.parse().map_err(|error| broke(&error))?);
    }
    let heard = faults::in_time(ANSWER_TIMEOUT, what, control.client.session(request))
        .await?
        .map_err(|status| broke(&status.message()))?
        .into_inner();
    let carrying = async move {
        carry(heard, writing).await;
        drop(control);
    };
    Ok((near, carrying))
}

/// Hands on what comes from the engine, until one of both ends hangs up.
async fn carry(mut heard: Streaming<BytesMessage>, mut to: WriteHalf<DuplexStream>) {
    loop {
        match heard.message().await {
            Ok(Some(BytesMessage { data })) => {
                if to.write_all(&data).await.is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(status) => {
                tracing::debug!(status = status.message(), "a build session was cut");
                break;
            }
        }
    }
    // The near end is told that nothing more comes.
    let _ = to.shutdown().await;
}
