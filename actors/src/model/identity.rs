//! Which build something is about.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::model::digest::{add_part, hex};

/// Which build: whose it is, and its id. Users choose ids, so two users may have chosen one: theirs are two
/// builds, and nothing of the one is ever taken for the other's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuildIdentity {
    /// The owner, compared byte by byte; `None` = the request does not say it clearly. Those are nobody's
    /// builds, and no user's.
    pub user_id: Option<String>,
    /// Stable through all tries: the client's `uuid`, else the message's id.
    pub build_id: String,
}

impl BuildIdentity {
    pub fn new(user_id: Option<&str>, build_id: &str) -> Self {
        Self { user_id: user_id.map(str::to_owned), build_id: build_id.to_owned() }
    }

    /// The hash that names `what` of this build, and of no other one. `parts` tell several apart.
    pub fn hash<P: AsRef<[u8]>>(
        &self,
        what: &str,
        parts: impl IntoIterator<Item = P>,
    ) -> BuildHash {
        let mut hash = Sha256::new();
        add_part(&mut hash, what);
        add_part(&mut hash, [u8::from(self.user_id.is_some())]);
        add_part(&mut hash, self.user_id.as_deref().unwrap_or_default());
        add_part(&mut hash, &self.build_id);
        parts.into_iter().for_each(|part| add_part(&mut hash, part));
        let whole = hash.finalize();
        BuildHash(std::array::from_fn(|at| whole[at]))
    }
}

/// Names something of one build; written as 32 hexadecimal digits. Nobody finds a second build that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuildHash([u8; 16]);

impl BuildHash {
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for BuildHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_builds_share_a_hash_and_no_two_things_of_one() {
        let users = [None, Some(""), Some("a"), Some("ab"), Some("a\n"), Some("A")];
        let identities = users
            .into_iter()
            .flat_map(|user| ["", "b", "c", "bc"].map(|id| BuildIdentity::new(user, id)));
        let parts: [&[&str]; 3] = [&[], &["b"], &["b", "c"]];
        let hashes: BTreeSet<String> = identities
            .flat_map(|identity| {
                let of = |what: &str| parts.map(|parts| identity.hash(what, parts).to_string());
                [of("one"), of("other")]
            })
            .flatten()
            .collect();
        assert_eq!(hashes.len(), 6 * 4 * 3 * 2);
    }
}
