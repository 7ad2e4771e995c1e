//! In-memory source.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::script::{Record, Script};
use crate::model::build_log::BuildLog;
use crate::model::digest::hex;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::request::{BuildRequest, RepoName, Target};
use crate::model::scope::{Fingerprint, Scope};
use crate::model::secret::Secret;
use crate::model::workspace::Workspace;
use crate::ports::{FetchedSource, SourceConnector};

/// The host of all repositories.
pub const HOST: &str = "forge.invalid";

/// A repository as the fake knows it.
#[derive(Debug, Clone, Default)]
pub struct FakeRepository {
    /// The token that it wants; `None` = it is public.
    pub token: Option<String>,
    /// Every commit, oldest first.
    pub commits: Vec<FakeCommit>,
    /// Branches by name, each at a commit by its place in `commits`.
    pub branches: BTreeMap<String, usize>,
    pub tags: BTreeMap<String, usize>,
    pub default_branch: String,
    /// Releases, newest first.
    pub releases: Vec<FakeRelease>,
}

/// One commit of a [`FakeRepository`].
#[derive(Debug, Clone)]
pub struct FakeCommit {
    /// 40 lower-case hex digits.
    pub id: String,
    pub committed_at: OffsetDateTime,
    /// The files of the tree: path and content.
    pub files: BTreeMap<String, String>,
}

impl FakeCommit {
    /// A commit of these files, made at the beginning of time; its id depends on `name` alone.
    pub fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        Self {
            id: hex(&Sha256::digest(name.as_bytes()))[..40].to_owned(),
            committed_at: OffsetDateTime::UNIX_EPOCH,
            files: files.collect(),
        }
    }
}

/// One release of a [`FakeRepository`].
#[derive(Debug, Clone)]
pub struct FakeRelease {
    pub tag: String,
    pub name: String,
}

/// One call of [`SourceConnector::fetch`].
#[derive(Debug, Clone)]
pub struct FetchCall {
    pub build_id: String,
    pub pinned: Option<String>,
}

/// A connector that makes its sources up. Clones share everything.
///
/// A repository that was not [added](Self::add) has one Dockerfile and whatever ref is asked for,
/// unless the fake knows [no others](Self::only_known).
#[derive(Debug, Clone, Default)]
pub struct FakeSource {
    repositories: Arc<Mutex<Repositories>>,
    pub script: Script<Fault>,
    /// All calls so far, those that failed included.
    pub calls: Record<FetchCall>,
    /// Builds whose sources take long to fetch.
    held: watch::Sender<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Repositories {
    known: HashMap<RepoName, FakeRepository>,
    no_others: bool,
}

impl FakeSource {
    /// From now on, every repository that was not added does not exist.
    pub fn only_known(&self) {
        self.repositories().no_others = true;
    }

    /// The sources of these builds are fetched for as long as nobody [lets](Self::let_go) them.
    pub fn hold(&self, build_ids: &[&str]) {
        self.held.send_modify(|held| held.extend(build_ids.iter().map(|&id| id.to_owned())));
    }

    pub fn let_go(&self, build_id: &str) {
        self.held.send_modify(|held| {
            held.remove(build_id);
        });
    }

    /// Adds a repository, or replaces it.
    pub fn add(&self, repo: RepoName, repository: FakeRepository) {
        self.repositories().known.insert(repo, repository);
    }

    fn repositories(&self) -> MutexGuard<'_, Repositories> {
        self.repositories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The repository of a request; one that is made up has what the request asks for.
    fn repository(&self, request: &BuildRequest, pinned: Option<&str>) -> Option<FakeRepository> {
        let repositories = self.repositories();
        if let Some(known) = repositories.known.get(&request.repo) {
            return Some(known.clone());
        }
        if repositories.no_others {
            return None;
        }
        let name = format!("{} {}", request.repo, request.target);
        let mut commit = FakeCommit::new(&name, &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
        let mut repository =
            FakeRepository { default_branch: "main".to_owned(), ..FakeRepository::default() };
        repository.branches.insert("main".to_owned(), 0);
        match &request.target {
            Target::DefaultBranch => {}
            Target::Branch(name) => drop(repository.branches.insert(name.clone(), 0)),
            Target::Tag(name) => drop(repository.tags.insert(name.clone(), 0)),
            Target::Release(name) => {
                let tag = if name == "latest" { "v1.0.0" } else { name };
                repository.tags.insert(tag.to_owned(), 0);
                repository.releases =
                    vec![FakeRelease { tag: tag.to_owned(), name: tag.to_owned() }];
            }
            Target::Commit { id, .. } => {
                commit.id = format!("{id}{}", &commit.id[id.len().min(40)..]);
            }
        }
        if let Some(pinned) = pinned {
            commit.id = pinned.to_owned();
        }
        repository.commits.push(commit);
        Some(repository)
    }
}

impl SourceConnector for FakeSource {
    fn fetch<'a>(
        &'a self,
        request: &'a BuildRequest,
        pinned: Option<&'a str>,
        workspace: Workspace,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<FetchedSource, Fault>> {
        Box::pin(async move {
            let (build_id, pinned_commit) = (request.build_id.clone(), pinned.map(str::to_owned));
            self.calls.push(FetchCall { build_id, pinned: pinned_commit });
            self.script.play().await?;
            let is_let_go = |held: &BTreeSet<String>| !held.contains(&request.build_id);
            // The sender lives in `self`.
            let _ = self.held.subscribe().wait_for(is_let_go).await;
            let repository = self.repository(request, pinned).ok_or_else(|| {
                fault(Reason::RepositoryNotFound, &request.repo, "does not exist")
            })?;
            let token = request.token.as_ref().map(|token| token.expose());
            if repository.token.is_some() && repository.token.as_deref() != token {
                return Err(fault(Reason::Unauthorized, &request.repo, "wants another token"));
            }
            let (commit, version) = repository.resolve(&request.repo, &request.target, pinned)?;
            progress.note(format!("made up {} at {}", request.repo, commit.id));
            let tree = workspace.path().join("tree");
            write(&tree, &commit.files).map_err(|error| {
                Fault::new(StageName::Connector, Reason::Crashed, format!("cannot write: {error}"))
            })?;
            Ok(FetchedSource {
                commit: commit.id.clone(),
                committed_at: commit.committed_at,
                version: version.unwrap_or_else(|| commit.id[..12].to_owned()),
                url: format!("https://forge.invalid/{}", request.repo),
                tree,
                workspace,
            })
        })
    }

    fn scopes(&self, request: &BuildRequest, pinned: Option<&str>) -> Vec<Scope> {
        let asks_api = matches!(request.target, Target::Release(_)) && pinned.is_none();
        let token = request.token_ref.as_ref().map(Secret::new).or(request.token.clone());
        let asker = match token {
            Some(token) => Some(Scope::Token(Fingerprint::of(HOST, &token))),
            None => asks_api.then(|| Scope::Anonymous(HOST.to_owned())),
        };
        let repository = Scope::Repository(request.repo.to_string());
        [Scope::Host(HOST.to_owned()), repository].into_iter().chain(asker).collect()
    }
}

impl FakeRepository {
    /// The commit that is asked for, and what a person would call it.
    fn resolve(
        &self,
        repo: &RepoName,
        target: &Target,
        pinned: Option<&str>,
    ) -> Result<(&FakeCommit, Option<String>), Fault> {
        let missing = || fault(Reason::RefNotFound, repo, &format!("has no {target}"));
        let (place, version) = match target {
            Target::DefaultBranch => {
                (self.branches.get(&self.default_branch), Some(self.default_branch.clone()))
            }
            Target::Branch(name) => (self.branches.get(name), Some(name.clone())),
            Target::Tag(name) => (self.tags.get(name), Some(name.clone())),
            Target::Release(name) => {
                let release = self.releases.iter().find(|release| {
                    name == "latest" || release.tag == *name || release.name == *name
                });
                let tag = release.map(|release| release.tag.clone());
                (tag.as_ref().and_then(|tag| self.tags.get(tag)), tag)
            }
            Target::Commit { .. } => (None, None),
        };
        let digits = match (pinned, target) {
            (Some(pinned), _) => pinned,
            (None, Target::Commit { id, .. }) => id,
            (None, _) => {
                let commit = place.and_then(|place| self.commits.get(*place));
                return Ok((commit.ok_or_else(missing)?, version));
            }
        };
        let mut found = self.commits.iter().filter(|commit| commit.id.starts_with(digits));
        let commit = found.next().ok_or_else(missing)?;
        if found.next().is_some() {
            return Err(fault(Reason::RefNotFound, repo, &format!("`{digits}` is ambiguous")));
        }
        Ok((commit, version))
    }
}

fn fault(reason: Reason, repo: &RepoName, what: &str) -> Fault {
    Fault::new(StageName::Connector, reason, format!("The repository `{repo}` {what}."))
}

fn write(tree: &Path, files: &BTreeMap<String, String>) -> std::io::Result<()> {
    std::fs::create_dir_all(tree)?;
    for (path, text) in files {
        let path = tree.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)?;
    }
    Ok(())
}
