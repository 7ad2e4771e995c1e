//! The build arguments that a Dockerfile can declare without anybody giving them: what commit is built.

use std::collections::{BTreeMap, BTreeSet};

use image_builder_actors::ports::FetchedSource;
use time::format_description::well_known::Rfc3339;

/// The predefined build arguments with their values.
#[derive(Debug, Clone)]
pub(in crate::planner) struct Predefined([(&'static str, String); 3]);

impl Predefined {
    /// `None` = the source is no commit.
    pub(in crate::planner) fn of(source: &FetchedSource) -> Option<Self> {
        if source.commit.is_empty() {
            return None;
        }
        // Every time that a commit can have is one of RFC 3339, but for years of more than four digits.
        let time = source.committed_at.format(&Rfc3339).unwrap_or_default();
        Some(Self([
            ("SOURCE_COMMIT", source.commit.clone()),
            ("SOURCE_REF", source.version.clone()),
            ("SOURCE_COMMIT_TIME", time),
        ]))
    }

    /// Gives those that are declared, and nobody gave. What is not declared is not given: it would make another
    /// plan of each commit.
    pub(super) fn give(
        &self,
        declared: &BTreeSet<String>,
        build_args: &mut BTreeMap<String, String>,
    ) {
        for (name, value) in self.0.iter().filter(|(name, _)| declared.contains(*name)) {
            build_args.entry((*name).to_owned()).or_insert_with(|| value.clone());
        }
    }
}
