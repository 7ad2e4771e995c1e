//! What the worker and its git child say to each other: JSON in frames, and packs in pieces.
//!
//! A frame begins with its length, four bytes, the first one the most significant. A pack is any number of
//! frames with what it is made of, and an empty one.

use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;

use image_builder_actors::model::fault::{Fault, Reason};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::source::fault;
use crate::source::session::Room;

/// Longest frame, in bytes: what is told of the tree of one repository.
pub(super) const LONGEST: usize = 64 << 20;
/// Longest piece of a pack, in bytes.
pub(super) const PIECE: usize = 64 << 10;

/// The first frame: where the objects are, and what may be spent on them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// A bare repository, which is made where there is none.
    pub(super) repository: PathBuf,
    pub(super) memory_bytes: u64,
    pub(super) cpu_seconds: u64,
}

/// What the child is asked for, one at a time.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Takes the pack that follows.
    Index,
    /// Whether there is such an object.
    Has(String),
    /// The commit that an object is, or that a tag points to in the end.
    Peel(String),
    /// The commits that these tips reach and whose names begin so, two at the most.
    Starting {
        digits: String,
        tips: Vec<String>,
    },
    CheckOut(CheckOut),
    GitDirectory(GitDirectory),
}

/// Asks for the files of a commit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CheckOut {
    pub(super) commit: String,
    /// Empty, or not there.
    pub(super) directory: PathBuf,
    /// Whether files are kept beside the objects.
    pub(super) keeps: bool,
    pub(super) room: Room,
}

/// Asks for a `.git` beside the files of a commit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GitDirectory {
    pub(super) commit: String,
    /// The branch that the commit was found by.
    pub(super) branch: Option<String>,
    /// The tags of the repository, by name, with what they point to.
    pub(super) tags: Vec<(String, String)>,
    /// Where the files are.
    pub(super) directory: PathBuf,
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Is(bool),
    /// `None` = it is no commit.
    Commit(Option<String>),
    Commits(Vec<String>),
    CheckedOut(Box<CheckedOut>),
    Failed {
        reason: Reason,
        message: String,
    },
}

/// What was written, and what of it is unfinished.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::source::git) struct CheckedOut {
    /// Seconds since 1970.
    pub(in crate::source::git) committed_at: i64,
    pub(in crate::source::git) room: Room,
    /// The submodules: their paths and commits. An empty directory stands there.
    pub(in crate::source::git) submodules: Vec<(Vec<u8>, String)>,
    /// The Git LFS pointers that are to be filled in, which stand where their content belongs.
    pub(in crate::source::git) pointers: Vec<FoundPointer>,
    /// The text of `.gitmodules`, where there are submodules.
    pub(in crate::source::git) modules: Option<String>,
    /// The text of `.lfsconfig`, where there are pointers.
    pub(in crate::source::git) lfs_config: Option<String>,
    /// What there is to say of it in the log of the build.
    pub(in crate::source::git) notes: Vec<String>,
}

/// A Git LFS pointer among the files.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::source::git) struct FoundPointer {
    pub(in crate::source::git) path: Vec<u8>,
    pub(in crate::source::git) executable: bool,
    pub(in crate::source::git) oid: String,
    pub(in crate::source::git) size: u64,
}

impl From<Fault> for Answer {
    fn from(fault: Fault) -> Self {
        Answer::Failed { reason: fault.reason, message: fault.message }
    }
}

/// A frame with its length.
pub(super) fn framed(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// Sends an answer; in place of one that is too long, that it is.
pub(super) fn answer(output: &mut impl Write, answer: &Answer) -> io::Result<()> {
    let mut frame = framed(answer)?;
    if frame.len() > LONGEST {
        let message = "The repository has too many submodules or Git LFS files.";
        frame = framed(&Answer::from(fault(Reason::TooLarge, message)))?;
    }
    output.write_all(&frame)?;
    output.flush()
}

/// The next message; `None` at the end.
pub(super) fn message<T: DeserializeOwned>(input: &mut impl Read) -> io::Result<Option<T>> {
    let frame = match frame(input, LONGEST) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        frame => frame?,
    };
    Ok(Some(serde_json::from_slice(&frame)?))
}

/// The next piece of a pack; `None` = that was all.
pub(super) fn piece(input: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let piece = frame(input, PIECE)?;
    Ok((!piece.is_empty()).then_some(piece))
}

fn frame(input: &mut impl Read, longest: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > longest {
        return Err(io::Error::new(ErrorKind::InvalidData, "a frame is too long"));
    }
    let mut frame = vec![0; length];
    input.read_exact(&mut frame)?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_read_and_what_is_too_long_is_refused() {
        let mut sent = framed(&Command::Has("a".to_owned())).expect("written");
        sent.extend(3u32.to_be_bytes());
        sent.extend(b"abc");
        sent.extend(0u32.to_be_bytes());
        let mut input = &sent[..];
        let command = message(&mut input).expect("read");
        assert!(matches!(command, Some(Command::Has(id)) if id == "a"));
        assert_eq!(piece(&mut input).expect("read").as_deref(), Some(&b"abc"[..]));
        assert_eq!(piece(&mut input).expect("read"), None);
        assert!(message::<Command>(&mut input).expect("the end").is_none());
        let long = (PIECE as u32 + 1).to_be_bytes();
        assert!(piece(&mut &long[..]).is_err());
    }
}
