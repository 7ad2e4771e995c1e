//! What is kept, and which of it is meant.

use std::collections::BTreeSet;
use std::str::FromStr;

use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::digest::hex;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::notification::Culprit;
use image_builder_actors::ports::{DeadLetterReading, DeadLettersError, KeptLetter};
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::text::plain;

/// Ids that are named where a beginning is not unique.
const NAMED: usize = 5;

/// One letter, or what is kept among them.
#[derive(Debug)]
pub(crate) struct Found {
    /// The build's id, or what stands for it where there is none.
    pub(crate) id: String,
    /// Its name within the reading.
    pub(crate) tag: u64,
    pub(crate) body: Vec<u8>,
    /// `None` = something that is no letter, or one of another version.
    pub(crate) letter: Option<Box<DeadLetter>>,
    /// When it is dropped.
    pub(crate) kept_until: Option<OffsetDateTime>,
}

impl Found {
    pub(crate) fn of(kept: KeptLetter) -> Self {
        let KeptLetter { tag, message_id, body, kept_until } = kept;
        let letter = serde_json::from_slice::<DeadLetter>(&body).ok().map(Box::new);
        let id = letter.as_ref().map(|letter| letter.build_id.clone()).or(message_id);
        let id = id
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| format!("sha256-{}", &hex(&Sha256::digest(&body))[..12]));
        Self { id, tag, body, letter, kept_until }
    }

    /// What tells it from other letters, of the same build as well; copies of one have one name.
    pub(crate) fn name(&self) -> String {
        hex(&Sha256::digest(&self.body)[..16])
    }

    /// Whose build it is, as far as the letter says so.
    pub(crate) fn user(&self) -> Option<&str> {
        self.text("userID")
    }

    /// Which build it is a letter of.
    pub(crate) fn build(&self) -> BuildIdentity {
        BuildIdentity::new(self.user(), &self.id)
    }

    /// A text of the request, in the older shape as well.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let request = &self.letter.as_ref()?.request;
        let nested = request.get("pullInfo").and_then(|nested| nested.get(name));
        nested.or_else(|| request.get(name)).and_then(Value::as_str)
    }
}

/// Letters of which builds: those that were given up for a reason, or by somebody's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultName {
    Reason(Reason),
    Of(Culprit),
}

impl FaultName {
    /// Whether it names this reason.
    pub(crate) fn names(self, reason: Reason) -> bool {
        match self {
            FaultName::Reason(named) => named == reason,
            FaultName::Of(culprit) => Culprit::of(reason) == Some(culprit),
        }
    }
}

impl FromStr for FaultName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "user" => return Ok(FaultName::Of(Culprit::User)),
            "service" => return Ok(FaultName::Of(Culprit::Service)),
            _ => {}
        }
        let reason = Reason::ALL.iter().find(|reason| reason.as_str() == name);
        reason.map(|reason| FaultName::Reason(*reason)).ok_or_else(|| {
            let names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            format!("it is none of user, service, {}", names.join(", "))
        })
    }
}

/// What an operator names.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// A build's id, or the beginning of one.
    pub(crate) id: String,
    /// `None` = whosever it is.
    pub(crate) user: Option<String>,
}

/// The letters of one id, oldest first: more than one where the same failure was told twice, or where
/// several users have a build of this id.
#[derive(Debug)]
pub(crate) struct Letters(pub(crate) Vec<Found>);

/// No letter, or too many, for what an operator named.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotFound {
    #[error("there is no dead letter of a build `{0}`; `image-builder dead list` shows all")]
    None(String),
    #[error("{count} builds begin with `{prefix}`, among them {}; write more of the id", examples.join(", "))]
    Ambiguous { prefix: String, count: usize, examples: Vec<String> },
    #[error("several users have a build `{id}`, among them {}; say whose with --user", users.join(", "))]
    OfSeveralUsers { id: String, users: Vec<String> },
}

impl Letters {
    /// Reads all letters for the build whose id this is, or the only one whose id begins so.
    pub(crate) async fn find(
        reading: &mut dyn DeadLetterReading,
        wanted: &Wanted,
    ) -> Result<Result<Self, NotFound>, DeadLettersError> {
        let mut search = Search::new(&wanted.id);
        let user = wanted.user.as_deref();
        while let Some(batch) = reading.next().await? {
            let found = batch.into_iter().map(Found::of);
            let of_user = found.filter(|found| user.is_none() || found.user() == user);
            of_user.for_each(|found| search.see(found));
        }
        Ok(search.result())
    }

    /// The letters, if they are of one build: what is done to one user's is not done to another's.
    pub(crate) fn of_one_user(self) -> Result<Self, NotFound> {
        let users: BTreeSet<_> = self.0.iter().map(Found::user).collect();
        if users.len() == 1 {
            return Ok(self);
        }
        let users = users.into_iter().take(NAMED).map(|user| user.map_or("-".to_owned(), plain));
        Err(NotFound::OfSeveralUsers { id: plain(self.id()), users: users.collect() })
    }

    /// The letters' names within the reading.
    pub(crate) fn tags(&self) -> Vec<u64> {
        self.0.iter().map(|found| found.tag).collect()
    }

    /// The build's id.
    pub(crate) fn id(&self) -> &str {
        &self.newest().id
    }

    pub(crate) fn newest(&self) -> &Found {
        self.0.last().expect("letters are made of one at least")
    }

    pub(crate) fn into_newest(mut self) -> Found {
        self.0.pop().expect("letters are made of one at least")
    }
}

/// Holds the letters of one id at the most, however many begin alike.
struct Search<'a> {
    wanted: &'a str,
    letters: Vec<Found>,
    /// Builds besides that one whose ids begin as wanted.
    others: BTreeSet<String>,
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
    use image_builder_actors::model::fault::{Fault, StageName};
    use image_builder_actors::model::history::History;

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

    #[test]
    fn letters_of_several_users_are_those_of_several_builds() {
        let found = |tag: u64, user: &str| {
            let letter = DeadLetter::new(
                "b",
                format!(r#"{{"userID":"{user}","repo":"o/n"}}"#).as_bytes(),
                &History::new(OffsetDateTime::UNIX_EPOCH),
                &Fault::new(StageName::Builder, Reason::BuildFailed, "no"),
            );
            let body = letter.to_json();
            Found {
                id: "b".to_owned(),
                tag,
                body,
                letter: Some(Box::new(letter)),
                kept_until: None,
            }
        };
        let one = Letters(vec![found(1, "u"), found(2, "u")]);
        assert_eq!(one.of_one_user().expect("one user's").tags(), [1, 2]);
        let two = Letters(vec![found(1, "v"), found(2, "u")]);
        let refused = two.of_one_user().expect_err("two users'");
        let users = vec!["u".to_owned(), "v".to_owned()];
        assert_eq!(refused, NotFound::OfSeveralUsers { id: "b".to_owned(), users });
        assert_ne!(found(1, "u").build(), found(1, "v").build());
    }
}
