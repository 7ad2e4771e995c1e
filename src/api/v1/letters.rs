//! What is done with dead letters, for the API and the page: listed, found, dropped, redriven.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::parse;
use image_builder_actors::ports::build_store::nanos;
use image_builder_actors::ports::{DeadLetterReading, DeadLettersError};
use time::OffsetDateTime;

use super::Api;
use super::builds::requested;
use super::problem::Problem;
use crate::dead_letters::letter::{FaultName, Found, Letters, NotFound, Wanted};
use crate::dead_letters::redrive::{self, Given, Refusal};

/// Which letter a page was the last to have, so that the next one begins behind it. Letters may go from among those
/// before it meanwhile, and it may itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct Cursor {
    /// How many letters there were with it, from the oldest: it is not behind so many.
    letters: usize,
    died_at: Option<i64>,
    name: String,
}

impl Cursor {
    fn of(found: &Found, letters: usize) -> Self {
        Self { letters, died_at: died_at(found), name: found.name() }
    }

    fn is(&self, found: &Found) -> bool {
        self.died_at == died_at(found) && self.name == found.name()
    }

    /// Whether a letter was kept before it for certain.
    fn is_behind(&self, found: &Found) -> bool {
        died_at(found).is_some_and(|at| self.died_at.is_some_and(|own| at < own))
    }
}

fn died_at(found: &Found) -> Option<i64> {
    found.letter.as_ref().map(|letter| nanos(letter.died_at))
}

impl Display for Cursor {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let died_at = self.died_at.map_or_else(String::new, |at| at.to_string());
        write!(f, "{}.{died_at}.{}", self.letters, self.name)
    }
}

impl FromStr for Cursor {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let parts = || {
            let (letters, rest) = text.split_once('.')?;
            let (died_at, name) = rest.split_once('.')?;
            let died_at = match died_at {
                "" => None,
                at => Some(at.parse().ok()?),
            };
            Some(Self { letters: letters.parse().ok()?, died_at, name: name.to_owned() })
        };
        parts().ok_or_else(|| {
            Problem::not_found("There is no such page: `cursor` is none of a page's `next`.")
        })
    }
}

/// A page holds no further letter once it has so many bytes.
const LARGEST_PAGE: usize = 8 << 20;

/// Which letters are meant: those for which everything holds that is said.
#[derive(Debug, Default)]
pub(in crate::api) struct Filter {
    pub(in crate::api) user: Option<String>,
    pub(in crate::api) fault: Option<FaultName>,
}

impl Filter {
    pub(in crate::api) fn takes(&self, found: &Found) -> bool {
        let has_fault = |fault: FaultName| {
            found.letter.as_ref().is_some_and(|letter| fault.names(letter.reason))
        };
        self.user.as_deref().is_none_or(|user| found.user() == Some(user))
            && self.fault.is_none_or(has_fault)
    }
}

impl Api {
    async fn read_letters(&self) -> Result<Box<dyn DeadLetterReading>, Problem> {
        Ok(self.queues()?.dead_letters.read().await?)
    }

    /// At most `most` letters, oldest first, from where `after` says; and where the next ones begin, unless there is
    /// none. Where the letter is gone that `after` names, those come that were not kept before it for certain.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub(in crate::api) async fn letters(
        &self,
        filter: &Filter,
        after: Option<&Cursor>,
        most: usize,
    ) -> Result<(Vec<Found>, Option<Cursor>), Problem> {
        let mut reading = self.read_letters().await?;
        let (mut letters, mut bytes, mut last, mut seen) = (Vec::new(), 0, 0, 0);
        let (mut is_passed, mut has_more) = (after.is_none(), false);
        'pages: while let Some(batch) = reading.next().await? {
            for kept in batch {
                let found = Found::of(kept);
                seen += 1;
                let earlier = after.filter(|after| seen <= after.letters);
                if earlier.is_some_and(|after| after.is(&found)) {
                    (is_passed, has_more, bytes) = (true, false, 0);
                    letters.clear();
                    continue;
                }
                if !is_passed && earlier.is_some_and(|after| after.is_behind(&found)) {
                    continue;
                }
                if letters.len() == most || bytes > LARGEST_PAGE {
                    has_more = true;
                    if earlier.is_none() {
                        break 'pages;
                    }
                } else if filter.takes(&found) {
                    (last, bytes) = (seen, bytes + found.body.len());
                    letters.push(found);
                }
            }
        }
        reading.close().await?;
        let next = letters.last().filter(|_| has_more).map(|found| Cursor::of(found, last));
        Ok((letters, next))
    }

    /// The newest letter of a build.
    ///
    /// # Errors
    ///
    /// There is none, it is not clear whose is meant, or they cannot be read.
    pub(in crate::api) async fn letter(
        &self,
        id: &str,
        user: Option<String>,
    ) -> Result<Found, Problem> {
        let mut reading = self.read_letters().await?;
        let found = find(&mut *reading, id, user).await?;
        reading.close().await?;
        Ok(found?.into_newest())
    }

    /// Removes all letters of a build for good, or the one that is meant.
    ///
    /// # Errors
    ///
    /// As of [`Self::letter`].
    pub(in crate::api) async fn drop_letter(
        &self,
        id: &str,
        user: Option<String>,
        name: Option<&str>,
    ) -> Result<(), Problem> {
        let mut reading = self.read_letters().await?;
        let found = find(&mut *reading, id, user).await?.and_then(|all| named(all, name));
        if let Ok(letters) = &found {
            reading.remove(&letters.tags()).await?;
        }
        reading.close().await?;
        found.map(|_| ())
    }

    /// Asks for a build again, and removes its letters, or the one that is meant. Answers which build that is, as far as
    /// its request says so clearly, and its id.
    ///
    /// # Errors
    ///
    /// It lacks something; or as of [`Self::letter`].
    pub(in crate::api) async fn redrive_letter(
        &self,
        id: &str,
        user: Option<String>,
        name: Option<&str>,
        given: &Given,
    ) -> Result<(Option<BuildIdentity>, String), Problem> {
        let mut reading = self.read_letters().await?;
        let prepared = find(&mut *reading, id, user).await?.and_then(|letters| {
            let letters = named(letters, name)?;
            let request = self.prepare(letters.newest(), given, redrive::Token::Always)?;
            Ok((letters.tags(), request))
        });
        let (tags, again) = match prepared {
            Ok(prepared) => prepared,
            Err(problem) => {
                reading.close().await?;
                return Err(problem);
            }
        };
        let new_id = again.new_id.clone();
        let build = parse::identity(&again.body, Some(&new_id));
        self.put_again(&mut *reading, again, &tags).await?;
        reading.close().await?;
        Ok((build, new_id))
    }

    /// The request that a letter makes.
    fn prepare(
        &self,
        letter: &Found,
        given: &Given,
        token: redrive::Token,
    ) -> Result<Again, Refusal> {
        let new_id = redrive::new_id(letter);
        redrive::check_secrets(letter, given)?;
        let body = redrive::request(letter, given, token, &new_id)?;
        Ok(Again { new_id, body })
    }

    /// Puts such a request into the queue, and removes the letters that it was made of.
    async fn put_again(
        &self,
        reading: &mut dyn DeadLetterReading,
        Again { new_id, body }: Again,
        tags: &[u64],
    ) -> Result<(), DeadLettersError> {
        let known = parse::parse(&body, &new_id, &self.backend.rules).ok();
        let known = known.map(|request| requested(&request, &body));
        if let Some(requested) = &known
            && let Err(error) = self.backend.store.accept(requested).await
        {
            tracing::warn!(%error, "a request that is made again will be listed once a worker has it");
        }
        reading.redrive(redrive::message(body, &new_id), tags).await?;
        if let Some(requested) = known {
            self.note_requested(requested).await;
        }
        Ok(())
    }

    /// Removes all letters for good that a filter takes, of those that were there at a time. Answers how many.
    ///
    /// # Errors
    ///
    /// They cannot be read, or not be removed.
    pub(in crate::api) async fn drop_letters(
        &self,
        filter: &Filter,
        until: OffsetDateTime,
    ) -> Result<usize, Problem> {
        let (mut reading, mut dropped) = (self.read_letters().await?, 0);
        while let Some(batch) = reading.next().await? {
            let found = batch.into_iter().map(Found::of);
            let tags: Vec<_> = found
                .filter(|found| filter.takes(found) && was_there(found, until))
                .map(|found| found.tag)
                .collect();
            reading.remove(&tags).await?;
            dropped += tags.len();
        }
        reading.close().await?;
        Ok(dropped)
    }

    /// Asks again for all builds whose letters a filter takes, of those that were there at a time. Those that
    /// lack something stay, unless that is to be gone on without. Answers how many were asked for, and how many
    /// stayed.
    ///
    /// # Errors
    ///
    /// The letters cannot be read, or the queue does not take a request: those before it were asked for.
    pub(in crate::api) async fn redrive_letters(
        &self,
        filter: &Filter,
        until: OffsetDateTime,
        given: &Given,
    ) -> Result<(usize, usize), Problem> {
        let (mut reading, mut redriven, mut left) =
            (self.read_letters().await?, BTreeSet::new(), 0);
        while let Some(batch) = reading.next().await? {
            let found = batch.into_iter().map(Found::of);
            for found in found.filter(|found| filter.takes(found) && was_there(found, until)) {
                if redriven.contains(&found.build()) {
                    // Another copy of the same user's request.
                    reading.remove(&[found.tag]).await?;
                    continue;
                }
                match self.prepare(&found, given, redrive::Token::WhereNeeded) {
                    Ok(again) => {
                        self.put_again(&mut *reading, again, &[found.tag]).await?;
                        redriven.insert(found.build());
                    }
                    Err(_) => left += 1,
                }
            }
        }
        reading.close().await?;
        Ok((redriven.len(), left))
    }
}

/// A request that is made again.
struct Again {
    new_id: String,
    body: Vec<u8>,
}

/// Whether a letter was kept before a time, as far as it says when it was.
fn was_there(found: &Found, at: OffsetDateTime) -> bool {
    found.letter.as_ref().is_none_or(|letter| letter.died_at <= at)
}

/// Those of a build's letters that have this name, where one is said.
fn named(letters: Letters, name: Option<&str>) -> Result<Letters, Problem> {
    let Some(name) = name else { return Ok(letters) };
    let letters: Vec<_> = letters.0.into_iter().filter(|found| found.name() == name).collect();
    match letters.is_empty() {
        false => Ok(Letters(letters)),
        true => Err(Problem::not_found("There is no such dead letter of this build.")),
    }
}

/// The letters of one user's build of exactly this id.
async fn find(
    reading: &mut dyn DeadLetterReading,
    id: &str,
    user: Option<String>,
) -> Result<Result<Letters, Problem>, DeadLettersError> {
    let wanted = Wanted { id: id.to_owned(), user };
    let found = Letters::find(reading, &wanted).await?.and_then(Letters::of_one_user);
    Ok(match found {
        Ok(letters) if letters.id() == id => Ok(letters),
        Err(NotFound::OfSeveralUsers { .. }) => Err(Problem::conflict(
            "Several users have a dead letter of this id: say whose is meant, with `?user=`.",
        )),
        Ok(_) | Err(_) => Err(Problem::not_found("There is no dead letter of such a build.")),
    })
}
