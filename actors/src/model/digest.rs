//! Hashes, and hashes as text.

use sha2::digest::Update;

/// Adds one of several parts to a hash, with its length before it: so no two lists of parts read the
/// same, whatever is in them.
pub fn add_part(hash: &mut impl Update, part: impl AsRef<[u8]>) {
    let part = part.as_ref();
    hash.update(&(part.len() as u64).to_be_bytes());
    hash.update(part);
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn no_two_lists_of_parts_hash_the_same() {
        // A part that looks like a length, and those that only differ in where they are cut.
        let texts = ["", "a", "ab", "b", "\0\0\0\0\0\0\0\u{1}", "\0\0\0\0\0\0\0\u{1}a"];
        let mut lists = vec![Vec::new()];
        for length in 0..3 {
            let longest: Vec<_> =
                lists.iter().filter(|list: &&Vec<&str>| list.len() == length).cloned().collect();
            lists.extend(
                longest
                    .iter()
                    .flat_map(|list| texts.iter().map(move |text| [&list[..], &[*text]].concat())),
            );
        }
        let hashes: BTreeSet<_> = lists
            .iter()
            .map(|list| {
                let mut hash = Sha256::new();
                list.iter().for_each(|part| add_part(&mut hash, part));
                hash.finalize()
            })
            .collect();
        assert_eq!((lists.len(), hashes.len()), (259, 259));
    }
}
