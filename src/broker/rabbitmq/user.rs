//! Whose request it is, as a header carries it.

use image_builder_actors::model::digest::hex;
use image_builder_actors::ports::Load;
use sha2::{Digest, Sha256};

/// The longest id that is carried as it is, in bytes: all headers of a message travel in one frame.
const LONGEST: usize = 64;

/// How the name of a longer one begins.
const HASHED: &str = "sha256:";

/// A user, by an id that is not too long for a header.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct User(String);

impl User {
    pub(super) fn of(user_id: &str) -> Self {
        if user_id.len() <= LONGEST && !user_id.starts_with(HASHED) {
            return Self(user_id.to_owned());
        }
        Self(format!("{HASHED}{}", hex(&Sha256::digest(user_id))))
    }

    /// The one that a header names.
    pub(super) fn named(name: String) -> Self {
        Self(name)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// How many builds of theirs are in hand.
    pub(super) fn in_hand(&self, load: &Load) -> usize {
        self.id(load).map_or(0, |id| load.of(id))
    }

    /// Whether they may have one more.
    pub(super) fn is_admitted(&self, load: &Load) -> bool {
        self.in_hand(load) < load.most_per_user
    }

    /// Their id, if it can be told.
    pub(super) fn id<'a>(&'a self, load: &'a Load) -> Option<&'a str> {
        if !self.0.starts_with(HASHED) {
            return Some(&self.0);
        }
        load.builds.keys().find(|id| Self::of(id) == *self).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_id_is_known_by_its_hash_and_counted_as_its_own() {
        let (long, other) = ("u".repeat(65), "u".repeat(66));
        let load = Load { builds: [(long.clone(), 2)].into(), most_per_user: 2, at_hand: false };
        assert_eq!(User::of(&long).in_hand(&load), 2);
        assert!(!User::of(&long).is_admitted(&load));
        assert_eq!(User::of(&long).id(&load), Some(long.as_str()));
        assert_eq!(User::of(&other).in_hand(&load), 0);
        assert_eq!(User::of(&other).id(&load), None);
    }

    #[test]
    fn nobody_can_have_an_id_that_reads_as_the_hash_of_another() {
        let long = "u".repeat(65);
        let pretender = User::of(&long).as_str().to_owned();
        assert_ne!(User::of(&pretender), User::of(&long));
        assert_eq!(User::of("plain").as_str(), "plain");
    }
}
