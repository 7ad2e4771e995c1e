//! What fuzz targets (`tests/fuzz`) call: the readers of what git servers send.

use bytes::Bytes;
use image_builder_actors::model::fault::Fault;

use super::advertisement::Advertisement;
use super::answer::{Answer, Pieces};
use super::objects::Trouble;
pub use super::objects::fuzzing::Git;

/// Reads a list of refs.
pub fn advertisement(bytes: &[u8]) -> Result<(), String> {
    let read = Advertisement::parse(bytes)?;
    let _ = (read.head_target(), read.find("HEAD"), read.names_agents());
    Ok(())
}

/// Reads the answer to a fetch. Returns its pack, or why it has none.
pub fn answer(
    pieces: Vec<Vec<u8>>,
    with_side_bands: bool,
    with_depth: bool,
) -> Result<Vec<u8>, String> {
    let list = |capabilities: &str| {
        let line = format!("{} HEAD\0{capabilities}", "0".repeat(40));
        Advertisement::parse(format!("{:04x}{line}0000", line.len() + 4).as_bytes())
    };
    let refs = list(if with_side_bands { "side-band-64k" } else { "" })?;
    let read = async {
        let mut answer = Answer::new("repository", InMemory(pieces.into_iter()));
        if with_depth {
            answer.ends().await?;
        }
        let mut first = answer.acknowledged(&refs).await?;
        let mut pack = Vec::new();
        while let Some(piece) = answer.pack(&refs, &mut first).await? {
            pack.extend(piece);
        }
        Ok(pack)
    };
    futures_util::FutureExt::now_or_never(read).expect("it waits for nothing").map_err(
        |trouble: Trouble| match trouble {
            Trouble::NotOurs => "not ours".to_owned(),
            Trouble::Unreadable(fault) | Trouble::Fault(fault) => fault.message,
        },
    )
}

struct InMemory(std::vec::IntoIter<Vec<u8>>);

impl Pieces for InMemory {
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        Ok(self.0.next().map(Bytes::from))
    }
}
