//! What tells a tag that a worker put from one that somebody else did.
//!
//! Whoever may push to the registry can move a tag, and copy every label. Nobody else can tell what the seal of a tag
//! on another digest is called: so a tag is believed only where the registry has its seal on the same digest.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::model::digest::{add_part, hex};
use crate::model::reference::ImageReference;
use crate::model::secret::Secret;

/// Hex digits of a seal (128 bits).
const DIGITS: usize = 32;

/// Names the seals of tags. Workers with the same key believe each other's.
#[derive(Debug, Clone)]
pub struct Seal {
    key: Secret,
}

impl Seal {
    pub fn new(key: Secret) -> Self {
        Self { key }
    }

    /// The tag that says that a worker put the reference's tag on this digest.
    pub fn of(&self, reference: &ImageReference, digest: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose().as_bytes())
            .expect("HMAC takes a key of any length");
        // The registry may be called otherwise by another worker.
        for part in [&reference.repository, &reference.tag, digest] {
            add_part(&mut mac, part);
        }
        format!("seal-{}", &hex(&mac.finalize().into_bytes())[..DIGITS])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seal_is_of_one_key_repository_tag_and_digest() {
        let of = |key: &str, user: &str, tag: &str, digest: &str| {
            let reference = ImageReference::for_build("localhost:5000", user, "shop", tag);
            Seal::new(Secret::new(key)).of(&reference, digest)
        };
        let all = [
            of("key", "alice", "key-1", "sha256:1"),
            of("other", "alice", "key-1", "sha256:1"),
            of("key", "bob", "key-1", "sha256:1"),
            of("key", "alice", "key-2", "sha256:1"),
            of("key", "alice", "key-1", "sha256:2"),
        ];
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(all[0], of("key", "alice", "key-1", "sha256:1"));
    }
}
