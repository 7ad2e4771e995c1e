//! Getting a commit with as little of its history as the server allows.

use std::sync::Arc;

use git2::{ErrorCode, ObjectType, Oid, Repository};
use image_builder_actors::model::fault::{Fault, Reason};

use super::advertisement::{Advertisement, wanted_ref};
use super::remote::Connection;
use super::repository::{check_size, git_fault};
use super::resolve::Wanted;
use super::transport::{FetchError, fetch};
use crate::source::fault;

/// All history, for a fetch into an empty repository.
const ALL: i32 = 0;
/// All history, where a part of it is there already.
const THE_REST: i32 = i32::MAX;
/// How much history is looked through for a short commit before all of it is fetched.
const DEPTHS: [i32; 2] = [50, 500];
/// From this many digits on, a commit that is found in a part of the history is the one that is
/// meant; fewer digits may well mean several commits, so all of them are looked at.
const TELLING_DIGITS: usize = 7;

/// Fetches what is wanted into an empty repository; returns the commit.
pub(super) fn obtain(
    connection: &Arc<Connection>,
    refs: &Advertisement,
    wanted: &Wanted,
    repository: &Repository,
) -> Result<Oid, Fault> {
    let search = Search { connection, refs, repository };
    match wanted {
        Wanted::Tip(id) => search.tip(*id),
        Wanted::Commit { id, branch } => search.commit(*id, branch.as_deref()),
        Wanted::Prefix { digits, branch } => search.prefix(digits, branch.as_deref()),
    }
}

struct Search<'a> {
    connection: &'a Arc<Connection>,
    refs: &'a Advertisement,
    repository: &'a Repository,
}

impl Search<'_> {
    fn tip(&self, id: Oid) -> Result<Oid, Fault> {
        self.shallow(id).map_err(|error| self.of_listed(error))?;
        self.peel(id)
    }

    fn commit(&self, id: Oid, branch: Option<&str>) -> Result<Oid, Fault> {
        let any_reachable = self.refs.has("allow-reachable-sha1-in-want");
        if any_reachable || self.refs.has("allow-tip-sha1-in-want") {
            match self.shallow(id) {
                Ok(()) => return self.peel(id),
                Err(FetchError::NotOurs) if any_reachable => return Err(self.missing_commit(id)),
                Err(FetchError::NotOurs) => {}
                Err(FetchError::Fault(fault)) => return Err(fault),
            }
        }
        self.connection
            .http
            .session
            .note("the server gives out no single commits: fetching the history");
        for tips in self.places(branch) {
            self.history(&tips, ALL)?;
            if self.repository.find_object(id, None).is_ok() {
                return self.peel(id);
            }
        }
        Err(self.missing_commit(id))
    }

    fn prefix(&self, digits: &str, branch: Option<&str>) -> Result<Oid, Fault> {
        self.connection.http.session.note(format!("looking for commit {digits} in the history"));
        let shallow = self.refs.has("shallow");
        for tips in self.places(branch) {
            if shallow {
                for depth in DEPTHS {
                    self.history(&tips, depth)?;
                    let found = self.starting_with(digits, tips.len())?;
                    if digits.len() >= TELLING_DIGITS && found.len() == 1 {
                        return self.the_one(digits, &found);
                    }
                    if !self.repository.is_shallow() {
                        break;
                    }
                }
            }
            if self.repository.is_shallow() {
                self.history(&tips, THE_REST)?;
            } else if !shallow {
                self.history(&tips, ALL)?;
            }
            let found = self.starting_with(digits, tips.len())?;
            if !found.is_empty() {
                return self.the_one(digits, &found);
            }
        }
        self.the_one(digits, &[])
    }

    fn the_one(&self, digits: &str, found: &[Oid]) -> Result<Oid, Fault> {
        let label = self.label();
        match found {
            [one] => Ok(*one),
            [] => Err(fault(
                Reason::RefNotFound,
                format!("The {label} has no commit that begins with `{digits}`."),
            )),
            [_, _, ..] => Err(fault(
                Reason::RefNotFound,
                format!(
                    "Commit `{digits}` is ambiguous: the {label} has several that begin with it. \
                     Give more digits."
                ),
            )),
        }
    }

    /// Where to look for a commit, one after the other: the hinted branch, then all branches and tags.
    fn places(&self, branch: Option<&str>) -> Vec<Vec<Oid>> {
        let hinted = branch.and_then(|name| self.refs.find(&format!("refs/heads/{name}")));
        let mut all: Vec<Oid> = self
            .refs
            .refs
            .iter()
            .filter(|each| {
                each.name == "HEAD"
                    || each.name.starts_with("refs/heads/")
                    || each.name.starts_with("refs/tags/")
            })
            .map(|each| each.id)
            .collect();
        all.sort_unstable();
        all.dedup();
        hinted.map(|hinted| vec![hinted.id]).into_iter().chain([all]).collect()
    }

    /// Fetches one object at depth 1, or with its history where the server knows no depth.
    fn shallow(&self, id: Oid) -> Result<(), FetchError> {
        let depth = if self.refs.has("shallow") { 1 } else { ALL };
        fetch(self.connection, self.refs, &[id], depth, self.repository)
    }

    fn history(&self, tips: &[Oid], depth: i32) -> Result<(), Fault> {
        fetch(self.connection, self.refs, tips, depth, self.repository)
            .map_err(|error| self.of_listed(error))
    }

    /// The fault of not getting what was listed a moment ago.
    fn of_listed(&self, error: FetchError) -> Fault {
        match error {
            FetchError::NotOurs => fault(
                Reason::ForgeFailed,
                format!("The {} changed while it was being fetched.", self.label()),
            ),
            FetchError::Fault(fault) => fault,
        }
    }

    /// The commits that were fetched and begin with these digits, two at the most.
    fn starting_with(&self, digits: &str, tips: usize) -> Result<Vec<Oid>, Fault> {
        let mut walk = self.repository.revwalk().map_err(|error| git_fault(&error))?;
        for index in 0..tips {
            // A tag may point to something without a history.
            let _ = walk.push_ref(&wanted_ref(index));
        }
        let mut found = Vec::new();
        for id in walk {
            self.connection.http.session.check()?;
            let id = id.map_err(|error| git_fault(&error))?;
            if id.to_string().starts_with(digits) {
                found.push(id);
                if found.len() > 1 {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The commit that an object is, or that a tag points to in the end.
    fn peel(&self, id: Oid) -> Result<Oid, Fault> {
        check_size(self.repository, id, self.label())?;
        let object = self.repository.find_object(id, None).map_err(|error| git_fault(&error))?;
        match object.peel(ObjectType::Commit) {
            Ok(commit) => Ok(commit.id()),
            Err(error)
                if matches!(error.code(), ErrorCode::InvalidSpec | ErrorCode::Peel)
                    || object.kind() != Some(ObjectType::Tag) =>
            {
                Err(fault(
                    Reason::RefNotFound,
                    format!("What `{id}` of the {} names is not a commit.", self.label()),
                ))
            }
            Err(error) => Err(git_fault(&error)),
        }
    }

    fn missing_commit(&self, id: Oid) -> Fault {
        fault(Reason::RefNotFound, format!("The {} has no commit `{id}`.", self.label()))
    }

    /// How messages name the repository.
    fn label(&self) -> &str {
        &self.connection.address.label
    }
}
