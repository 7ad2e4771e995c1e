//! In-memory connector.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::model::build_log::BuildLog;
use crate::model::digest::hex;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::request::{BuildRequest, RepoName, Target};
use crate::model::workspace::Workspace;
use crate::ports::{FetchedSource, SourceConnector};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchCall {
    pub build_id: String,
    pub repo: RepoName,
    pub target: Target,
    pub pinned: Option<String>,
    pub with_token: bool,
}

/// A connector that makes its sources up. Clones share everything.
///
/// A repository that was not [added](Self::add) has one Dockerfile and whatever ref is asked for,
/// unless the fake was told to know [no others](Self::only_known).
#[derive(Clone)]
pub struct FakeConnector {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    open: watch::Sender<bool>,
    calls: watch::Sender<usize>,
    abandoned: AtomicUsize,
}

#[derive(Default)]
struct State {
    repositories: HashMap<RepoName, FakeRepository>,
    only_known: bool,
    faults: VecDeque<Fault>,
    panic_on_next: bool,
    calls: Vec<FetchCall>,
}

impl Default for FakeConnector {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeConnector {
    pub fn new() -> Self {
        let shared = Shared {
            state: Mutex::default(),
            open: watch::Sender::new(true),
            calls: watch::Sender::new(0),
            abandoned: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// From now on, every repository that was not added does not exist.
    pub fn only_known(&self) {
        self.state().only_known = true;
    }

    /// Adds a repository, or replaces it.
    pub fn add(&self, repo: RepoName, repository: FakeRepository) {
        self.state().repositories.insert(repo, repository);
    }

    /// Makes the next `times` calls fail with `fault`.
    pub fn fail_next(&self, times: usize, fault: &Fault) {
        self.state().faults.extend(std::iter::repeat_n(fault.clone(), times));
    }

    /// Makes the next call panic.
    pub fn panic_on_next(&self) {
        self.state().panic_on_next = true;
    }

    /// Makes every call wait, before it does anything, until [`Self::let_go`].
    pub fn hold(&self) {
        self.shared.open.send_replace(false);
    }

    /// Lets the calls that wait go on, and those to come.
    pub fn let_go(&self) {
        self.shared.open.send_replace(true);
    }

    /// All calls so far, those that failed included.
    pub fn calls(&self) -> Vec<FetchCall> {
        self.state().calls.clone()
    }

    /// Waits until there were `count` calls.
    pub async fn called(&self, count: usize) {
        // The sender is as old as the fake, so this cannot fail.
        let _ = self.shared.calls.subscribe().wait_for(|calls| *calls >= count).await;
    }

    /// How many calls were dropped before they had an answer.
    pub fn abandoned(&self) -> usize {
        self.shared.abandoned.load(Ordering::SeqCst)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, request: &BuildRequest, pinned: Option<&str>) {
        let count = {
            let mut state = self.state();
            state.calls.push(FetchCall {
                build_id: request.build_id.clone(),
                repo: request.repo.clone(),
                target: request.target.clone(),
                pinned: pinned.map(str::to_owned),
                with_token: request.token.is_some(),
            });
            state.calls.len()
        };
        self.shared.calls.send_replace(count);
    }

    /// The repository of a request; one that is made up has what the request asks for.
    fn repository(&self, request: &BuildRequest, pinned: Option<&str>) -> Option<FakeRepository> {
        let state = self.state();
        if let Some(known) = state.repositories.get(&request.repo) {
            return Some(known.clone());
        }
        if state.only_known {
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

    /// What the calls are scripted to do, one after the other.
    fn scripted(&self) -> Result<(), Fault> {
        let (panics, fault) = {
            let mut state = self.state();
            if std::mem::take(&mut state.panic_on_next) {
                (true, None)
            } else {
                (false, state.faults.pop_front())
            }
        };
        assert!(!panics, "the fake connector was told to panic");
        fault.map_or(Ok(()), Err)
    }
}

/// Counts a call that is dropped before it has an answer.
struct Unanswered<'a> {
    abandoned: &'a AtomicUsize,
    answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl SourceConnector for FakeConnector {
    async fn fetch(
        &self,
        request: &BuildRequest,
        pinned: Option<&str>,
        workspace: Workspace,
        progress: &BuildLog,
    ) -> Result<FetchedSource, Fault> {
        let mut unanswered = Unanswered { abandoned: &self.shared.abandoned, answered: false };
        let mut open = self.shared.open.subscribe();
        self.record(request, pinned);
        // The sender is as old as the fake, so this cannot fail.
        let _ = open.wait_for(|open| *open).await;
        unanswered.answered = true;
        self.scripted()?;

        let repository = self
            .repository(request, pinned)
            .ok_or_else(|| fault(Reason::RepositoryNotFound, &request.repo, "does not exist"))?;
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::model::request::{ForgeName, PlanRequest};

    fn request() -> BuildRequest {
        BuildRequest {
            redrive_of: None,
            build_id: "b".to_owned(),
            user_id: "u".to_owned(),
            application_id: "a".to_owned(),
            forge: ForgeName::Github,
            repo: RepoName { owner: "o".to_owned(), name: "n".to_owned() },
            target: Target::DefaultBranch,
            token: None,
            force: false,
            plan: PlanRequest::default(),
        }
    }

    async fn fetch(fake: &FakeConnector) -> Result<FetchedSource, Fault> {
        let request = request();
        let workspace = Workspace::create(&std::env::temp_dir()).expect("can be made");
        fake.fetch(&request, None, workspace, &BuildLog::new("b", request.redactor())).await
    }

    #[tokio::test]
    async fn scripted_faults_come_as_often_as_told_and_a_panic_once() {
        let fake = FakeConnector::new();
        let down = Fault::new(StageName::Connector, Reason::ForgeDown, "is down");
        fake.fail_next(2, &down);
        assert_eq!(fetch(&fake).await.err(), Some(down.clone()));
        fake.panic_on_next();
        let panicked = std::panic::AssertUnwindSafe(fetch(&fake)).catch_unwind().await;
        assert!(panicked.is_err());
        assert_eq!(fetch(&fake).await.err(), Some(down));
        let source = fetch(&fake).await.expect("the script is over");
        assert!(source.tree.join("Dockerfile").exists());
        assert_eq!((fake.calls().len(), fake.abandoned()), (4, 0));
    }

    #[tokio::test]
    async fn held_calls_wait_until_they_are_let_go_and_dropped_ones_are_counted() {
        let fake = FakeConnector::new();
        fake.hold();
        let held = tokio::spawn({
            let fake = fake.clone();
            async move { fetch(&fake).await.map(|source| source.commit) }
        });
        fake.called(1).await;
        assert!(fetch(&fake).now_or_never().is_none());
        assert_eq!(fake.abandoned(), 1);
        fake.let_go();
        assert!(held.await.expect("does not panic").is_ok());
        assert_eq!(fake.calls().len(), 2);
    }
}
