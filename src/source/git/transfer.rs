//! Getting a commit with as little of its history as the server allows.

use std::fs;
use std::path::Path;

use git2::Oid;
use image_builder_actors::model::fault::Reason;

use super::advertisement::{Advertisement, Ref};
use super::files::disk_fault;
use super::negotiation::{Wish, fetch};
use super::objects::{Objects, Trouble};
use super::remote::Connection;
use super::resolve::Wanted;
use crate::source::fault;

/// How much history is looked through for a short commit before all of it is fetched.
const DEPTHS: [u32; 2] = [50, 500];
/// From this many digits on, a commit that is found in a part of the history is the one that is
/// meant; fewer digits may well mean several commits, so all of them are looked at.
const TELLING_DIGITS: usize = 7;

/// What servers call that they send a part of a history.
const SHALLOW: &str = "shallow";
/// What they call that they give out any commit.
const ANY_REACHABLE: &str = "allow-reachable-sha1-in-want";

/// Whether this server sends what is wanted as a single commit, so that it can be kept.
pub(super) fn is_single(refs: &Advertisement, wanted: &Wanted) -> bool {
    refs.has(SHALLOW)
        && match wanted {
            Wanted::Tip(_) => true,
            Wanted::Commit { .. } => refs.has(ANY_REACHABLE),
            Wanted::Prefix { .. } => false,
        }
}

/// What is fetched, and where to.
pub(super) struct Search<'a> {
    pub(super) connection: &'a Connection,
    pub(super) refs: &'a Advertisement,
    pub(super) objects: &'a mut Objects,
    /// The repository that the objects are in.
    pub(super) repository: &'a Path,
    /// Commits that are there, without their history.
    pub(super) known: &'a [Oid],
}

impl Search<'_> {
    /// Fetches what is wanted, as far as it is not there; returns the commit.
    pub(super) fn obtain(&mut self, wanted: &Wanted) -> Result<String, Trouble> {
        match wanted {
            Wanted::Tip(id) => self.tip(*id),
            Wanted::Commit { id, branch } => self.commit(*id, branch.as_deref()),
            Wanted::Prefix { digits, branch } => self.prefix(digits, branch.as_deref()),
        }
    }

    /// Fetches all commits that lead to one, with their tags; its files are there.
    pub(super) fn commits(&mut self, commit: &str) -> Result<(), Trouble> {
        let is_it = |id: &Oid| id.to_string() == commit;
        let listed = |each: &&Ref| is_it(&each.peeled.unwrap_or(each.id));
        let mut wanted: Vec<Oid> = match self.refs.refs.iter().find(listed) {
            Some(tip) => vec![tip.id],
            None if self.refs.has(ANY_REACHABLE) => Oid::from_str(commit).into_iter().collect(),
            None => self.places(None).pop().unwrap_or_default(),
        };
        if !self.refs.has("include-tag") {
            wanted.extend(
                self.refs.refs.iter().filter(|each| each.peeled.is_some()).map(|tag| tag.id),
            );
        }
        self.connection.http.session.note("fetching the history");
        let wish = Wish { wanted: &wanted, depth: None, known: &[], commits_alone: true };
        fetch(self.connection, self.refs, &wish, self.objects)
            .map_err(|trouble| self.of_listed(trouble))?;
        // The history goes on to its beginning now.
        fs::write(self.repository.join("shallow"), "")
            .map_err(|error| disk_fault(&error, "the clone").into())
    }

    fn tip(&mut self, id: Oid) -> Result<String, Trouble> {
        // The server has just listed it, so it gives it out.
        if self.known.is_empty() || !self.objects.has(&id.to_string())? {
            self.shallow(id).map_err(|trouble| self.of_listed(trouble))?;
        }
        self.peel(id)
    }

    fn commit(&mut self, id: Oid, branch: Option<&str>) -> Result<String, Trouble> {
        let any_reachable = self.refs.has(ANY_REACHABLE);
        if any_reachable || self.refs.has("allow-tip-sha1-in-want") {
            // The server is asked even where the commit is there: it may no longer give it out.
            match self.shallow(id) {
                Ok(()) => return self.peel(id),
                Err(Trouble::NotOurs) if any_reachable => return Err(self.missing_commit(id)),
                Err(Trouble::NotOurs) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        self.connection
            .http
            .session
            .note("the server gives out no single commits: fetching the history");
        for tips in self.places(branch) {
            self.history(&tips, None)?;
            if self.objects.has(&id.to_string())? {
                return self.peel(id);
            }
        }
        Err(self.missing_commit(id))
    }

    fn prefix(&mut self, digits: &str, branch: Option<&str>) -> Result<String, Trouble> {
        self.connection.http.session.note(format!("looking for commit {digits} in the history"));
        let shallow = self.refs.has(SHALLOW);
        for tips in self.places(branch) {
            let depths = DEPTHS.into_iter().filter(|_| shallow).map(Some).chain([None]);
            for depth in depths {
                let is_all = self.history(&tips, depth)? || depth.is_none();
                let names: Vec<_> = tips.iter().map(Oid::to_string).collect();
                let found = self.objects.starting(digits, &names)?;
                let is_telling = digits.len() >= TELLING_DIGITS && found.len() == 1;
                if is_telling || (is_all && !found.is_empty()) {
                    return self.the_one(digits, &found);
                }
                if is_all {
                    break;
                }
            }
        }
        self.the_one(digits, &[])
    }

    fn the_one(&self, digits: &str, found: &[String]) -> Result<String, Trouble> {
        let label = self.label();
        let missing = |message: String| Err(fault(Reason::RefNotFound, message).into());
        match found {
            [one] => Ok(one.clone()),
            [] => missing(format!("The {label} has no commit that begins with `{digits}`.")),
            [_, _, ..] => missing(format!(
                "Commit `{digits}` is ambiguous: the {label} has several that begin with it. Give more \
                 digits."
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
    fn shallow(&mut self, id: Oid) -> Result<(), Trouble> {
        let depth = self.refs.has(SHALLOW).then_some(1);
        let wish = Wish { wanted: &[id], depth, known: self.known, commits_alone: false };
        fetch(self.connection, self.refs, &wish, self.objects).map(drop)
    }

    /// Fetches so much history; whether that is all there is.
    fn history(&mut self, tips: &[Oid], depth: Option<u32>) -> Result<bool, Trouble> {
        let wish = Wish { wanted: tips, depth, known: &[], commits_alone: false };
        let ends = fetch(self.connection, self.refs, &wish, self.objects)
            .map_err(|trouble| self.of_listed(trouble))?;
        let text: String = ends.iter().map(|id| format!("{id}\n")).collect();
        // Where the history ends, as git has it: a walk goes no further.
        fs::write(self.repository.join("shallow"), text)
            .map_err(|error| disk_fault(&error, "the clone"))?;
        Ok(ends.is_empty())
    }

    /// The trouble of not getting what was listed a moment ago.
    fn of_listed(&self, trouble: Trouble) -> Trouble {
        match trouble {
            Trouble::NotOurs => fault(
                Reason::ForgeFailed,
                format!("The {} changed while it was being fetched.", self.label()),
            )
            .into(),
            trouble => trouble,
        }
    }

    /// The commit that an object is, or that a tag points to in the end.
    fn peel(&mut self, id: Oid) -> Result<String, Trouble> {
        let commit = self.objects.peel(&id.to_string())?;
        commit.ok_or_else(|| {
            fault(
                Reason::RefNotFound,
                format!("What `{id}` of the {} names is not a commit.", self.label()),
            )
            .into()
        })
    }

    fn missing_commit(&self, id: Oid) -> Trouble {
        fault(Reason::RefNotFound, format!("The {} has no commit `{id}`.", self.label())).into()
    }

    /// How messages name the repository.
    fn label(&self) -> &str {
        &self.connection.address.label
    }
}
