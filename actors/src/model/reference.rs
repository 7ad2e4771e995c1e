//! Image names: from users and applications to what a registry accepts.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::model::digest::hex;

/// `registry/repository:tag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    /// Host, optional port and optional path prefix, as the engine knows the registry: `localhost:5000`.
    pub registry: String,
    /// Path below the registry: `user/application`.
    pub repository: String,
    pub tag: String,
}

impl ImageReference {
    /// The name of a commit's image: each part normalised by [`component`].
    pub fn for_build(registry: &str, user: &str, application: &str, commit: &str) -> Self {
        Self {
            registry: registry.to_owned(),
            repository: format!("{}/{}", component(user), component(application)),
            tag: commit.to_owned(),
        }
    }

    /// The same repository with another tag.
    pub fn with_tag(&self, tag: &str) -> Self {
        Self { tag: tag.to_owned(), ..self.clone() }
    }

    /// Registry and repository, without a tag: what stands before `@digest`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

/// Longest component that is taken over as it is.
const LONGEST: usize = 80;
/// Hex digits of the hash that tells altered components apart (64 bits).
const HASH_DIGITS: usize = 16;

/// One path component of a repository's name. A text that already is one is taken over as it is;
/// any other is sanitised, and a hash of the original is appended, so that two different texts never
/// share a component. A text that itself ends like such a hash gets one too.
///
/// The rule for a component is the distribution specification's:
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
pub fn component(text: &str) -> String {
    if is_component(text) && text.len() <= LONGEST && !ends_like_a_hash(text) {
        return text.to_owned();
    }
    let mut clean = String::new();
    for c in text.to_lowercase().chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            clean.push(c);
        } else if !clean.is_empty() && !clean.ends_with('-') {
            clean.push('-');
        }
        if clean.len() >= LONGEST - HASH_DIGITS - 1 {
            break;
        }
    }
    let clean = clean.trim_end_matches('-');
    let hash = &hex(&Sha256::digest(text.as_bytes()))[..HASH_DIGITS];
    if clean.is_empty() { format!("x-{hash}") } else { format!("{clean}-{hash}") }
}

/// Whether `text` is a path component by the distribution specification.
pub fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.starts_with(alphanumeric) || !text.ends_with(alphanumeric) {
        return false;
    }
    text.split(alphanumeric).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.chars().all(|c| c == '-')
    })
}

fn ends_like_a_hash(text: &str) -> bool {
    text.rsplit_once('-').is_some_and(|(_, end)| {
        end.len() == HASH_DIGITS && end.chars().all(|c| c.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_component_is_taken_over_as_it_is() {
        for text in ["alice", "web-app", "a.b_c__d---e", "42"] {
            assert_eq!(component(text), text);
        }
    }

    #[test]
    fn every_other_text_becomes_a_valid_component_of_its_own() {
        let texts = [
            "Alice",
            "ALICE",
            "a/b",
            "a b",
            "a..b",
            "-a",
            "a-",
            "a___b",
            "",
            "日本",
            "ä",
            ".",
            "..",
            &"x".repeat(500),
            &"x".repeat(501),
            "auth0|5f7c",
            "a@b.c",
        ];
        let mut seen = std::collections::HashSet::new();
        for text in texts {
            let component = component(text);
            assert!(is_component(&component), "{text:?} became {component:?}");
            assert!(component.len() <= LONGEST, "{text:?} became {component:?}");
            assert!(seen.insert(component.clone()), "{text:?} became {component:?} as another did");
        }
    }

    #[test]
    fn a_text_cannot_pose_as_the_altered_form_of_another() {
        let altered = component("Alice");
        assert_ne!(component(&altered), altered);
    }
}
