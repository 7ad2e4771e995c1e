//! What one application wants of an event, and the request that comes of it.

use std::fmt;

use globset::{Candidate, GlobSet};
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::model::request::{ForgeName, RepoName};
use image_builder_actors::model::secret::Secret;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::event::{Changes, Event, Happened};

/// What a head's message has to hold for nothing to be built, in any case of letters.
const SKIP: [&str; 2] = ["[skip ci]", "[ci skip]"];

/// An application that is built when something happens in its repository.
#[derive(Clone)]
pub struct Application {
    /// The line of the applications file that it begins in.
    pub line: usize,
    pub user_id: String,
    pub application_id: String,
    pub forge: ForgeName,
    pub repo: RepoName,
    pub(super) watched: Watched,
    /// What its hooks are signed with.
    pub(super) secret: Secret,
    /// A credential for the forge.
    pub(super) token: Option<Secret>,
    /// The fields of its requests that are always the same.
    pub(super) fields: Map<String, Value>,
    pub(super) supersede: bool,
}

/// What of a repository it is built for.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched {
    /// `None` = the default branch, if nothing else is watched either.
    pub branches: Option<GlobSet>,
    pub tags: Option<GlobSet>,
    pub releases: Option<GlobSet>,
    /// `None` = all paths.
    pub paths: Option<GlobSet>,
    /// Paths that do not count.
    pub ignore: Option<GlobSet>,
}

/// What an application wants of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A build: this request, under this id.
    Build { build_id: String, body: Vec<u8> },
    /// Nothing, for this reason.
    Nothing(String),
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, user_id, application_id, repo, .. } = self;
        write!(f, "Application({user_id:?}/{application_id:?} of {repo} in line {line})")
    }
}

impl Application {
    /// Whether it is of this repository. Forges take no notice of the case of letters.
    pub fn is_of(&self, forge: ForgeName, repo: &str) -> bool {
        self.forge == forge && self.repo.to_string().eq_ignore_ascii_case(repo)
    }

    /// What its hooks are signed with.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What it wants of an event in its repository, of which the forge told by this delivery.
    pub fn wants(&self, event: &Event, delivery: &str) -> Wanted {
        let nothing = |why: &str| Wanted::Nothing(why.to_owned());
        match &event.happened {
            Happened::Nothing(why) => Wanted::Nothing(why.clone()),
            Happened::Branch { name, commit, is_default, message, changes } => {
                if !self.watched.takes_branch(name, *is_default) {
                    return Wanted::Nothing(format!("The branch `{name}` is not watched."));
                }
                let message = message.to_lowercase();
                if let Some(skip) = SKIP.into_iter().find(|skip| message.contains(skip)) {
                    return Wanted::Nothing(format!("The head's message says `{skip}`."));
                }
                if !self.watched.takes_changes(changes) {
                    return nothing("No file that is watched was changed.");
                }
                let target = [("branch", &**name), ("commit", commit)];
                self.build(delivery, &[name, commit], true, &target)
            }
            Happened::Tag { name, .. } if !takes(self.watched.tags.as_ref(), name) => {
                Wanted::Nothing(format!("The tag `{name}` is not watched."))
            }
            Happened::Tag { name, commit } => {
                self.build(delivery, &[name, commit], false, &[("type", "tag"), ("tag", name)])
            }
            Happened::Release { tag } if !takes(self.watched.releases.as_ref(), tag) => {
                Wanted::Nothing(format!("The release `{tag}` is not watched."))
            }
            Happened::Release { tag } => {
                let target = [("type", "release"), ("release", &**tag)];
                self.build(delivery, &["release", tag], false, &target)
            }
        }
    }

    /// The request of a ref. Its id is that of the delivery, the application and what was built, so that a delivery
    /// that comes again asks for the same build.
    fn build(&self, delivery: &str, what: &[&str], pins: bool, target: &[(&str, &str)]) -> Wanted {
        let of = BuildIdentity::new(Some(&self.user_id), delivery);
        let parts = [self.forge.as_str(), &self.application_id];
        let hash = of.hash("hook", parts.iter().chain(what)).to_string();
        let build_id = Uuid::parse_str(&hash).map_or(hash, |uuid| uuid.to_string());
        let body = self.request(&build_id, pins, target);
        Wanted::Build { body: body.to_string().into_bytes(), build_id }
    }

    /// A request in the one shape or the other: only the older one has a branch beside a commit.
    pub(super) fn request(&self, build_id: &str, pins: bool, target: &[(&str, &str)]) -> Value {
        let mut source = Map::from_iter([
            ("userID".to_owned(), json!(self.user_id)),
            ("connector".to_owned(), json!(self.forge.as_str())),
            ("repo".to_owned(), json!(self.repo.to_string())),
        ]);
        if let Some(token) = &self.token {
            source.insert("token".to_owned(), json!(token.expose()));
        }
        source.extend(target.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
        let mut request = self.fields.clone();
        request.insert("uuid".to_owned(), json!(build_id));
        request.insert("applicationID".to_owned(), json!(self.application_id));
        if self.supersede {
            request.insert("supersede".to_owned(), json!(true));
        }
        if pins {
            request.insert("pullInfo".to_owned(), Value::Object(source));
        } else {
            request.extend(source);
        }
        Value::Object(request)
    }
}

impl Watched {
    fn takes_branch(&self, name: &str, is_default: bool) -> bool {
        let says_nothing =
            self.branches.is_none() && self.tags.is_none() && self.releases.is_none();
        takes(self.branches.as_ref(), name) || (says_nothing && is_default)
    }

    fn takes_changes(&self, changes: &Changes) -> bool {
        let Changes::Files(files) = changes else { return true };
        if self.paths.is_none() && self.ignore.is_none() {
            return true;
        }
        files.iter().map(Candidate::new).any(|file| {
            self.paths.as_ref().is_none_or(|paths| paths.is_match_candidate(&file))
                && !self.ignore.as_ref().is_some_and(|ignore| ignore.is_match_candidate(&file))
        })
    }
}

fn takes(patterns: Option<&GlobSet>, name: &str) -> bool {
    patterns.is_some_and(|patterns| patterns.is_match(name))
}
