//! What fuzz targets (`tests/fuzz`) call: a pack, and the files of the commits in it.

use std::fs;

use git2::Oid;
use image_builder_actors::model::fault::{Fault, Reason};
use tempfile::TempDir;

use super::child;
use super::wire::{CheckOut, PIECE};
use crate::source::session::Room;

/// What a tree may hold: little, so that a target never waits for a disk.
const MOST: u64 = 1 << 20;

/// The git child's work, in this process.
pub struct Git {
    place: TempDir,
}

impl Git {
    pub fn new() -> Self {
        child::set_up().expect("libgit2 can be set up");
        Self { place: TempDir::new().expect("a directory can be made") }
    }

    /// Takes a pack, and writes the files of what is a commit of these objects.
    ///
    /// # Panics
    /// If what is wrong with the pack is taken for the worker's fault, or something is written beside the trees.
    pub fn take(&mut self, pack: &[u8], names: &[Oid]) {
        let place = self.place.path();
        let (repository, trees) = (place.join("repository"), place.join("trees"));
        // Packs are all that a repository gets; to make it anew takes longer than all else.
        for emptied in [&trees, &repository.join("objects/pack")] {
            drop(fs::remove_dir_all(emptied));
        }
        fs::create_dir(&trees).expect("it was removed");
        let mut input = Vec::new();
        for piece in pack.chunks(PIECE).chain([&[][..]]) {
            input.extend((piece.len() as u32).to_be_bytes());
            input.extend(piece);
        }
        let packs = repository.join("objects/pack");
        let repository = super::repository::open(&repository).expect("a repository");
        fs::create_dir_all(packs).expect("it was removed");
        if let Err(fault) = child::index(&repository, &mut &input[..]) {
            return senders(&fault);
        }
        for (number, name) in names.iter().enumerate() {
            match child::peel(&repository, *name) {
                Err(fault) => senders(&fault),
                Ok(None) => {}
                Ok(Some(commit)) => {
                    let directory = trees.join(number.to_string());
                    let room = Room::new(MOST, MOST, 1_000);
                    let wish = CheckOut { commit, directory, keeps: false, room };
                    if let Err(fault) = child::check_out(&repository, &wish) {
                        senders(&fault);
                    }
                }
            }
        }
        let beside = fs::read_dir(place).expect("it is there").count();
        assert_eq!(beside, 2, "something was written beside the trees");
        for tree in fs::read_dir(&trees).expect("it is there") {
            let name = tree.expect("it can be read").file_name();
            let number = name.to_str().and_then(|name| name.parse::<usize>().ok());
            assert!(number.is_some_and(|number| number < names.len()), "{name:?} beside the trees");
        }
    }
}

/// Whoever sent the pack is at fault, and the message has an end.
fn senders(fault: &Fault) {
    assert!(
        matches!(fault.reason, Reason::ForgeFailed | Reason::ForbiddenSource | Reason::TooLarge),
        "{fault:?}"
    );
    assert!(fault.message.len() < 4096, "{} bytes", fault.message.len());
}
