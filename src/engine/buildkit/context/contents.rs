//! A name for all that a build is sent.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use image_builder_actors::model::digest::{add_part, hex};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::digests::{Digests, digest_of};
use super::{Unsent, Visitor, open_seen, unreadable};

/// Hashes what it is shown: paths, what is there, its mode as far as it is sent, and its content.
pub(super) struct Contents {
    hash: Sha256,
    digests: Digests,
    unwanted: CancellationToken,
}

impl Contents {
    /// Until the token says that nobody wants to know.
    pub(super) fn new(unwanted: CancellationToken) -> Self {
        Self { hash: Sha256::new(), digests: Digests::default(), unwanted }
    }

    /// The name, and the digests of the files.
    pub(super) fn finish(self) -> (String, Digests) {
        (hex(&self.hash.finalize()), self.digests)
    }
}

impl Visitor for Contents {
    fn has_left(&self) -> bool {
        self.unwanted.is_cancelled()
    }

    fn directory(&mut self, path: &[u8]) -> Result<(), Unsent> {
        add_part(&mut self.hash, b"directory");
        add_part(&mut self.hash, path);
        Ok(())
    }

    fn entry(&mut self, path: &[u8], on_disk: &Path, metadata: &Metadata) -> Result<(), Unsent> {
        let shown = String::from_utf8_lossy(path);
        let failed = |error: io::Error| unreadable(&shown, &error);
        if metadata.is_symlink() {
            add_part(&mut self.hash, b"link");
            add_part(&mut self.hash, path);
            let target = fs::read_link(on_disk).map_err(failed)?;
            add_part(&mut self.hash, target.as_os_str().as_bytes());
            return Ok(());
        }
        // What is neither is refused when it is sent.
        let is_executable = metadata.permissions().mode() & 0o111 != 0;
        add_part(&mut self.hash, if is_executable { b"executable" as &[u8] } else { b"file" });
        add_part(&mut self.hash, path);
        if metadata.is_file() {
            let file = open_seen(on_disk, (metadata.dev(), metadata.ino()), &shown)?;
            let digest = digest_of(file, metadata.len(), || self.has_left()).map_err(failed)?;
            add_part(&mut self.hash, digest);
            self.digests.add(metadata, digest);
        }
        Ok(())
    }
}
