//! The parts of the service that targets run and that are of the worker's own crate: its sources, compiled
//! here by themselves. The whole crate would be minutes of other people's code under instruments.

#![allow(dead_code, unused_imports, reason = "targets use a part of each")]
#![allow(unexpected_cfgs, reason = "the worker's features are none of this crate")]

#[path = "../../src/blocking.rs"]
mod blocking;
#[path = "../../src/planner/dockerfile/stages.rs"]
mod dockerfile;
#[path = "../../src/engine/buildkit/context/bases.rs"]
mod bases;
#[path = "../../src/child.rs"]
mod child;
#[path = "../../src/engine/buildkit/context/ignore.rs"]
mod ignore;
#[path = "../../src/net/mod.rs"]
mod net;
#[path = "../../src/engine/buildkit/context/pattern.rs"]
mod pattern;
#[path = "../../src/source/mod.rs"]
mod source;
#[path = "../../src/text.rs"]
mod text;

use std::collections::BTreeMap;

pub use self::source::fuzzing::{Git, advertisement, answer};

/// A stranger's text as a terminal is shown it.
pub fn plain(text: &str) -> String {
    text::plain(text)
}

/// Whether it turns or hides text.
pub fn is_unsafe(c: char) -> bool {
    text::is_unsafe(c)
}

/// Whether an engine would be sent this Dockerfile, or what is wrong with it.
pub fn dockerfile(text: &str, build_args: &BTreeMap<String, String>) -> Result<(), String> {
    // What it names is read from the same text, by another reader.
    let _ = bases::bases(text);
    dockerfile::check(text, build_args)
}

/// Whether an ignore file of these rules leaves out this path; the error says what is wrong with the rules.
pub fn is_ignored(rules: &str, path: &str) -> Result<bool, String> {
    let rules = ignore::IgnoreRules::parse(rules)?;
    let mut matched = ignore::Matched::default();
    for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let upto = &path[..at];
        let below_ignored = matched.ignored && !rules.may_keep_below(parent(upto));
        matched = rules.matched(upto, &matched);
        assert!(!below_ignored || matched.ignored, "{upto:?} is kept below what is not walked");
    }
    Ok(matched.ignored)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}
