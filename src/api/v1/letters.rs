//! What is done with dead letters, for the API and the page: listed, found, dropped, redriven.

use std::collections::BTreeSet;

use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::parse;
use image_builder_actors::ports::{DeadLetterReading, DeadLettersError};
use time::OffsetDateTime;

use super::Api;
use super::builds::requested;
use super::problem::Problem;
use crate::dead_letters::letter::{FaultName, Found, Letters, NotFound, Wanted};
use crate::dead_letters::redrive::{self, Given, Refusal};

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

    /// At most `most` letters, oldest first, of those behind so many of all; and how many are behind the last
    /// of them, unless there is none.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub(in crate::api) async fn letters(
        &self,
        filter: &Filter,
        skipped: usize,
        most: usize,
    ) -> Result<(Vec<Found>, Option<usize>), Problem> {
        let mut reading = self.read_letters().await?;
        let (mut letters, mut seen, mut bytes, mut next) = (Vec::new(), 0, 0, None);
        'pages: while let Some(batch) = reading.next().await? {
            for kept in batch {
                if seen >= skipped && (letters.len() == most || bytes > LARGEST_PAGE) {
                    next = Some(seen);
                    break 'pages;
                }
                seen += 1;
                let found = Found::of(kept);
                if seen > skipped && filter.takes(&found) {
                    bytes += found.body.len();
                    letters.push(found);
                }
            }
        }
        reading.close().await?;
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

    /// Removes all letters of a build for good.
    ///
    /// # Errors
    ///
    /// As of [`Self::letter`].
    pub(in crate::api) async fn drop_letter(
        &self,
        id: &str,
        user: Option<String>,
    ) -> Result<(), Problem> {
        let mut reading = self.read_letters().await?;
        let found = find(&mut *reading, id, user).await?;
        if let Ok(letters) = &found {
            reading.remove(&letters.tags()).await?;
        }
        reading.close().await?;
        found.map(|_| ())
    }

    /// Asks for a build again, and removes its letters. Answers which build that is, as far as its request says
    /// so clearly, and its id.
    ///
    /// # Errors
    ///
    /// It lacks something; or as of [`Self::letter`].
    pub(in crate::api) async fn redrive_letter(
        &self,
        id: &str,
        user: Option<String>,
        given: &Given,
    ) -> Result<(Option<BuildIdentity>, String), Problem> {
        let mut reading = self.read_letters().await?;
        let prepared = find(&mut *reading, id, user).await?.and_then(|letters| {
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
