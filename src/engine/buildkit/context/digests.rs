//! What the files of a context hold, so that a build reads each of them once: first they are read for the name
//! of all that it sees, and then to tell the engine of them.

use std::collections::{HashMap, VecDeque};
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Files that are remembered of all contexts together: about 100 bytes each.
const MOST_FILES: usize = 100_000;

/// Bytes of a file that are read at once: as many as the hash can take side by side.
const CHUNK: usize = 64 * 1024;

/// BLAKE3 of a file's content. Nobody but the worker compares it, and where a processor has no instructions for SHA-256
/// that would take ten times as long.
pub(in crate::engine::buildkit) type Digest = [u8; 32];

/// That of the first `size` bytes, or of as many as were read when nobody wanted it any more.
pub(in crate::engine::buildkit) fn digest_of(
    file: impl Read,
    size: u64,
    has_left: impl Fn() -> bool,
) -> io::Result<Digest> {
    let mut file = file.take(size);
    let mut hash = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
    while !has_left() {
        match file.read(&mut chunk)? {
            0 => break,
            read => hash.update(&chunk[..read]),
        };
    }
    Ok(hash.finalize().into())
}

/// One state of a file: device, number, and the time of its last change of any kind, which nobody can set.
type State = (u64, u64, i64, i64);

/// The digests of files that were read.
#[derive(Debug, Default)]
pub(in crate::engine::buildkit) struct Digests(HashMap<State, Digest>);

impl Digests {
    /// That of a file which is still as it was.
    pub(in crate::engine::buildkit) fn of(&self, file: &Metadata) -> Option<Digest> {
        self.0.get(&state(file)).copied()
    }

    pub(super) fn add(&mut self, file: &Metadata, digest: Digest) {
        if self.0.len() < MOST_FILES {
            self.0.insert(state(file), digest);
        }
    }
}

fn state(file: &Metadata) -> State {
    (file.dev(), file.ino(), file.ctime(), file.ctime_nsec())
}

/// The digests of contexts that were read and may be sent soon.
#[derive(Debug, Default)]
pub(in crate::engine::buildkit) struct ReadContexts(Mutex<VecDeque<(PathBuf, Digests)>>);

impl ReadContexts {
    pub(in crate::engine::buildkit) fn keep(&self, root: PathBuf, digests: Digests) {
        let mut contexts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contexts.push_back((root, digests));
        // Of those that are not built nobody asks for theirs.
        while contexts.iter().map(|(_, digests)| digests.0.len()).sum::<usize>() > MOST_FILES {
            contexts.pop_front();
        }
    }

    pub(in crate::engine::buildkit) fn take(&self, root: &Path) -> Digests {
        let mut contexts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = contexts.iter().position(|(of, _)| of == root);
        found.and_then(|at| contexts.remove(at)).map(|(_, digests)| digests).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_hashed_as_far_as_it_is_sent() {
        let text = vec![7; 3 * CHUNK + 1];
        for size in [0, 1, CHUNK, text.len()] {
            let digest = digest_of(&text[..], size as u64, || false).expect("read");
            assert_eq!(digest, *blake3::hash(&text[..size]).as_bytes(), "{size}");
        }
        let unwanted = digest_of(&text[..], 1, || true).expect("not read");
        assert_eq!(unwanted, *blake3::hash(b"").as_bytes());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_was_read_first_is_forgotten() {
        let read = ReadContexts::default();
        let some = |files: usize| {
            Digests((0..files as u64).map(|file| ((0, file, 0, 0), [0; 32])).collect())
        };
        for (root, files) in [("a", MOST_FILES / 2), ("b", MOST_FILES / 2), ("c", 1)] {
            read.keep(root.into(), some(files));
        }
        let taken = ["a", "b", "c"].map(|root| read.take(Path::new(root)).0.len());
        assert_eq!(taken, [0, MOST_FILES / 2, 1]);
    }
}
