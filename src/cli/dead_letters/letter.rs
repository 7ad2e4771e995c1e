//! What is kept, and which of it is meant.

use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::digest::hex;
use image_builder_actors::ports::{DeadLetterReading, DeadLettersError, KeptLetter};
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::text::plain;

/// Ids that are named where a beginning is not unique.
const NAMED: usize = 5;

/// One letter, or what is kept among them.
#[derive(Debug)]
pub(super) struct Found {
    /// The build's id, or what stands for it where there is none.
    pub(super) id: String,
    /// Its name within the reading.
    pub(super) tag: u64,
    pub(super) body: Vec<u8>,
    /// `None` = something that is no letter, or one of another version.
    pub(super) letter: Option<Box<DeadLetter>>,
    /// When it is dropped.
    pub(super) kept_until: Option<OffsetDateTime>,
}

impl Found {
    pub(super) fn of(kept: KeptLetter) -> Self {
        let KeptLetter { tag, message_id, body, kept_until } = kept;
        let letter = serde_json::from_slice::<DeadLetter>(&body).ok().map(Box::new);
        let id = letter.as_ref().map(|letter| letter.build_id.clone()).or(message_id);
        let id = id
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| format!("sha256-{}", &hex(&Sha256::digest(&body))[..12]));
        Self { id, tag, body, letter, kept_until }
    }

    /// A text of the request, in the older shape as well.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let request = &self.letter.as_ref()?.request;
        let nested = request.get("pullInfo").and_then(|nested| nested.get(name));
        nested.or_else(|| request.get(name)).and_then(Value::as_str)
    }
}

/// The letters of one build, oldest first; more than one where the same failure was told twice.
#[derive(Debug)]
pub(super) struct Letters(pub(super) Vec<Found>);

/// No letter, or too many, for what an operator named.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotFound {
    #[error("there is no dead letter of a build `{0}`; `image-builder dead list` shows all")]
    None(String),
    #[error("{count} builds begin with `{prefix}`, among them {}; write more of the id", examples.join(", "))]
    Ambiguous { prefix: String, count: usize, examples: Vec<String> },
}

impl Letters {
    /// Reads all letters for the build whose id this is, or the only one whose id begins so.
    pub(super) async fn find(
        reading: &mut dyn DeadLetterReading,
        id: &str,
    ) -> Result<Result<Self, NotFound>, DeadLettersError> {
        let mut search = Search::new(id);
        while let Some(batch) = reading.next().await? {
            batch.into_iter().for_each(|kept| search.see(Found::of(kept)));
        }
        Ok(search.result())
    }

    /// The letters' names within the reading.
    pub(super) fn tags(&self) -> Vec<u64> {
        self.0.iter().map(|found| found.tag).collect()
    }

    /// The build's id.
    pub(super) fn id(&self) -> &str {
        &self.newest().id
    }

    pub(super) fn newest(&self) -> &Found {
        self.0.last().expect("letters are made of one at least")
    }
}

/// Holds the letters of one build at the most, however many begin alike.
struct Search<'a> {
    wanted: &'a str,
    letters: Vec<Found>,
    /// Builds besides that one whose ids begin as wanted.
    others: std::collections::BTreeSet<String>,
}

impl<'a> Search<'a> {
    fn new(wanted: &'a str) -> Self {
        Self { wanted, letters: Vec::new(), others: Default::default() }
    }

    fn see(&mut self, found: Found) {
        if !found.id.starts_with(self.wanted) {
            return;
        }
        match self.letters.first() {
            None => self.letters.push(found),
            Some(first) if first.id == found.id => self.letters.push(found),
            Some(first) if found.id == self.wanted => {
                self.others.insert(first.id.clone());
                self.letters = vec![found];
            }
            Some(_) => {
                self.others.insert(found.id);
            }
        }
    }

    fn result(self) -> Result<Letters, NotFound> {
        match self.letters.first() {
            None => Err(NotFound::None(plain(self.wanted))),
            Some(first) if first.id == self.wanted || self.others.is_empty() => {
                Ok(Letters(self.letters))
            }
            Some(first) => {
                let ids = std::iter::once(&first.id).chain(&self.others).take(NAMED);
                Err(NotFound::Ambiguous {
                    prefix: plain(self.wanted),
                    count: self.others.len() + 1,
                    examples: ids.map(|id| plain(id)).collect(),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(wanted: &str, ids: &[&str]) -> Result<Vec<u64>, NotFound> {
        let mut search = Search::new(wanted);
        for (tag, id) in ids.iter().enumerate() {
            let id = (*id).to_owned();
            let tag = tag as u64;
            search.see(Found { id, tag, body: Vec::new(), letter: None, kept_until: None });
        }
        search.result().map(|letters| letters.0.iter().map(|found| found.tag).collect())
    }

    #[test]
    fn an_id_is_found_by_its_only_beginning() {
        assert_eq!(find("ab", &["aa", "abc", "b"]), Ok(vec![1]));
        assert_eq!(find("x", &["aa"]), Err(NotFound::None("x".to_owned())));
    }

    #[test]
    fn a_beginning_of_two_builds_names_both() {
        let error = find("a", &["aa", "ab", "b", "aa"]).expect_err("two of them");
        let examples = vec!["aa".to_owned(), "ab".to_owned()];
        assert_eq!(error, NotFound::Ambiguous { prefix: "a".to_owned(), count: 2, examples });
    }

    #[test]
    fn a_whole_id_wins_over_those_that_begin_with_it() {
        assert_eq!(find("ab", &["abc", "ab", "abd", "ab"]), Ok(vec![1, 3]));
        assert_eq!(find("ab", &["ab", "abc"]), Ok(vec![0]));
    }

    #[test]
    fn all_letters_of_a_build_are_found() {
        assert_eq!(find("a", &["ab", "b", "ab"]), Ok(vec![0, 2]));
    }
}
