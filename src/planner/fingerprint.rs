//! A hash over everything in a plan that decides the image.

use std::collections::BTreeMap;

use image_builder_actors::model::digest::{add_part, hex};
use image_builder_actors::model::platform::Platform;
use sha2::{Digest, Sha256};

/// Collects the parts of a plan; the same parts in the same order give the same text everywhere.
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    /// `planner` names the strategy and its version: a new version is a new plan.
    pub(super) fn new(planner: &str) -> Self {
        Self(Sha256::new()).part("planner", planner)
    }

    pub(super) fn part(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        add_part(&mut self.0, name);
        add_part(&mut self.0, value);
        self
    }

    pub(super) fn pairs(self, name: &str, pairs: &BTreeMap<String, String>) -> Self {
        let counted = self.part(name, pairs.len().to_string());
        pairs.iter().fold(counted, |hash, (key, value)| hash.part(key, value))
    }

    pub(super) fn names<'a>(
        self,
        name: &str,
        names: impl ExactSizeIterator<Item = &'a String>,
    ) -> Self {
        let counted = self.part(name, names.len().to_string());
        names.fold(counted, |hash, value| hash.part("", value))
    }

    /// Where none are named nothing is added: images that were made before there were any keep their keys.
    pub(super) fn platforms(self, platforms: &[Platform]) -> Self {
        platforms.iter().fold(self, |hash, one| hash.part("platform", one.as_str()))
    }

    /// Where none is kept nothing is added.
    pub(super) fn git_directory(self, is_kept: bool) -> Self {
        if is_kept { self.part("git directory", "kept") } else { self }
    }

    pub(super) fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}
