//! Looks for secrets in an image, wherever it is: in what it tells of itself, and in the files of its layers.

pub(crate) mod layers;
pub(crate) mod shown;

use std::io::{self, Read};
use std::sync::LazyLock;

use bytes::{Buf, Bytes};
use image_builder_actors::model::build_log::cut;
use regex::Regex;
use tokio::sync::mpsc;

/// A step's name is cut to this many bytes in a message.
const LONGEST_STEP: usize = 300;

/// A step's name for a sentence: without its number and the flags that stand before its command, in one line, and
/// not too long.
pub(crate) fn shown_step(name: &str) -> String {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^\[[^\]]*\d+/\d+\] ").expect("the pattern is a constant, and a test uses it")
    });
    static FLAGS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"^(?i:RUN)\s+(?:--(?:"[^"]*"|'[^']*'|\S)+\s+)+"#)
            .expect("the pattern is a constant, and a test uses it")
    });
    let name = NUMBER.replace(name, "");
    let name = FLAGS.replace(&name, "RUN ");
    cut(name.split_whitespace().collect::<Vec<_>>().join(" "), LONGEST_STEP)
}

/// Reads what comes in pieces from elsewhere, on a thread that may block.
pub(crate) struct Pieces {
    received: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl From<mpsc::Receiver<Bytes>> for Pieces {
    fn from(received: mpsc::Receiver<Bytes>) -> Self {
        Self { received, piece: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.received.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let read = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_by_its_command_whatever_it_mounts() {
        let mounts =
            "--mount=type=cache,id=0123456789abcdef,target=/root/.cache/of/something ".repeat(6);
        for (name, shown) in [
            (format!("[build 2/7] RUN {mounts} npm ci"), "RUN npm ci"),
            (
                "[2/2] RUN --mount=type=secret,\"id=a b\" --network=none  make  all".to_owned(),
                "RUN make all",
            ),
            ("[2/2] RUN x --mount=y".to_owned(), "RUN x --mount=y"),
            ("[2/2] COPY --from=a /b /c".to_owned(), "COPY --from=a /b /c"),
            ("/bin/sh -c x".to_owned(), "/bin/sh -c x"),
        ] {
            assert_eq!(shown_step(&name), shown);
        }
        assert!(shown_step(&"x".repeat(1_000)).len() < LONGEST_STEP + 10);
    }
}
