//! What every source connector promises. A [`World`] makes the repositories of the scenarios real: in
//! memory for the fake, on a git server for an adapter.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;

use tempfile::TempDir;

use crate::model::build_log::BuildLog;
use crate::model::fault::{Fault, Kind, Reason, StageName};
use crate::model::request::{BuildRequest, ForgeName, PlanRequest, RepoName, Target};
use crate::model::scope::Scope;
use crate::model::secret::Secret;
use crate::model::workspace::Workspace;
use crate::ports::{FetchedSource, SourceConnector};
use crate::testing::source::{FakeCommit, FakeRelease, FakeRepository};

/// A place in which repositories exist and a connector fetches them.
pub trait World {
    fn connector(&self) -> &dyn SourceConnector;
    /// Makes a repository as described; returns its name and the ids that its commits have here.
    fn publish(&self, repository: FakeRepository) -> impl Future<Output = (RepoName, Vec<String>)>;
    /// The token that private repositories want here.
    fn token(&self) -> &'static str;
    /// Whether the forge has releases; where it has none, one is its tag, and none is the latest.
    fn has_releases(&self) -> bool {
        true
    }
}

/// Makes a test of each promise, each in a world of its own.
#[macro_export]
macro_rules! source_conformance {
    ($world:expr) => {
        $crate::conformance! {
            source, $world,
            the_default_branch_is_what_the_repository_says_it_is,
            a_branch_is_fetched_at_its_head,
            a_tag_is_fetched_at_its_commit,
            a_release_is_found_by_its_tag_by_its_name_and_as_the_latest,
            a_commit_is_fetched_by_its_full_and_by_its_short_name,
            a_pinned_commit_wins_over_what_the_ref_points_to,
            the_tree_is_inside_the_workspace_and_goes_with_it,
            a_ref_that_does_not_exist_is_not_found,
            a_repository_that_does_not_exist_is_not_found,
            a_private_repository_wants_the_right_token,
            a_wrong_token_does_no_harm_to_a_public_repository,
        }
    };
}

/// A request for a target of a repository.
pub fn request(repo: &RepoName, target: Target, token: Option<&str>) -> BuildRequest {
    BuildRequest {
        supersede: false,
        commit_status: false,
        redrive_of: None,
        token_ref: None,
        build_id: "a-build".to_owned(),
        user_id: "a-user".to_owned(),
        application_id: "an-application".to_owned(),
        forge: ForgeName::Github,
        repo: repo.clone(),
        target,
        token: token.map(Secret::new),
        force: false,
        plan: PlanRequest::default(),
    }
}

/// Fetches into a fresh workspace in `scratch`.
pub async fn fetch_into(
    scratch: &TempDir,
    connector: &dyn SourceConnector,
    request: &BuildRequest,
    pinned: Option<&str>,
) -> Result<FetchedSource, Fault> {
    let workspace = Workspace::create(scratch.path()).expect("a workspace can be made");
    let progress = BuildLog::new(&request.build_id, request.redactor());
    connector.fetch(request, pinned, workspace, &progress).await
}

/// A fetched source, with the directory that its workspace is in.
pub struct Got {
    pub source: FetchedSource,
    pub scratch: TempDir,
}

impl Got {
    /// The text of a file of the tree.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.source.tree.join(path))
            .unwrap_or_else(|error| panic!("{path} cannot be read: {error}"))
    }

    /// Whether the tree has a path.
    pub fn has(&self, path: &str) -> bool {
        self.source.tree.join(path).symlink_metadata().is_ok()
    }
}

/// A directory for workspaces.
pub fn scratch() -> TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

/// Fetches into a fresh workspace in a directory of its own.
pub async fn fetch(
    connector: &dyn SourceConnector,
    request: &BuildRequest,
    pinned: Option<&str>,
) -> Result<Got, Fault> {
    let scratch = scratch();
    let source = fetch_into(&scratch, connector, request, pinned).await?;
    Ok(Got { source, scratch })
}

/// Fetches what must succeed.
pub async fn fetched(connector: &dyn SourceConnector, request: &BuildRequest) -> Got {
    fetch(connector, request, None)
        .await
        .unwrap_or_else(|fault| panic!("the fetch failed: {fault}"))
}

/// Fetches what must fail: the fault, which is of this reason and names `naming`.
pub async fn refused(
    connector: &dyn SourceConnector,
    request: &BuildRequest,
    reason: Reason,
    naming: &str,
) -> Fault {
    let fault = match fetch(connector, request, None).await {
        Err(fault) => fault,
        Ok(got) => panic!("the fetch of {} succeeded", got.source.commit),
    };
    assert_eq!((fault.stage, fault.reason), (StageName::Connector, reason), "{fault}");
    assert!(fault.message.contains(naming), "{:?} does not name {naming:?}", fault.message);
    if fault.kind() == Kind::Capacity && fault.scope != Scope::Service {
        let scopes = connector.scopes(request, None);
        assert!(scopes.contains(&fault.scope), "{:?} is none of {scopes:?}", fault.scope);
    }
    fault
}

/// A branch as the target.
pub fn branch(name: &str) -> Target {
    Target::Branch(name.to_owned())
}

/// A commit as the target, full or short.
pub fn commit(id: &str) -> Target {
    Target::Commit { id: id.to_owned(), branch: None }
}

/// Two commits; `trunk` (the default) and the release `First` (tag `v1`) at the first and the branch
/// `next/thing` at the second.
fn story() -> FakeRepository {
    FakeRepository {
        token: None,
        commits: vec![
            FakeCommit::new("one", &[("Dockerfile", "FROM scratch\n"), ("src/a.txt", "one\n")]),
            FakeCommit::new("two", &[("Dockerfile", "FROM scratch\n"), ("src/a.txt", "two\n")]),
        ],
        branches: BTreeMap::from([("trunk".to_owned(), 0), ("next/thing".to_owned(), 1)]),
        tags: BTreeMap::from([("v1".to_owned(), 0)]),
        default_branch: "trunk".to_owned(),
        releases: vec![FakeRelease { tag: "v1".to_owned(), name: "First".to_owned() }],
    }
}

pub async fn the_default_branch_is_what_the_repository_says_it_is(world: &impl World) {
    let (repo, commits) = world.publish(story()).await;
    let request = request(&repo, Target::DefaultBranch, None);
    let got = fetched(world.connector(), &request).await;
    assert_eq!(got.source.commit, commits[0]);
    assert_eq!(got.source.version, "trunk");
    assert_eq!(got.read("src/a.txt"), "one\n");
    assert!(got.source.url.ends_with(&repo.to_string()), "{}", got.source.url);
}

pub async fn a_branch_is_fetched_at_its_head(world: &impl World) {
    let (repo, commits) = world.publish(story()).await;
    let got = fetched(world.connector(), &request(&repo, branch("next/thing"), None)).await;
    assert_eq!(got.source.commit, commits[1]);
    assert_eq!(got.source.version, "next/thing");
    assert_eq!(got.read("src/a.txt"), "two\n");
}

pub async fn a_tag_is_fetched_at_its_commit(world: &impl World) {
    let (repo, commits) = world.publish(story()).await;
    let got = fetched(world.connector(), &request(&repo, Target::Tag("v1".to_owned()), None)).await;
    assert_eq!((&got.source.commit, got.source.version.as_str()), (&commits[0], "v1"));
}

pub async fn a_release_is_found_by_its_tag_by_its_name_and_as_the_latest(world: &impl World) {
    let (repo, commits) = world.publish(story()).await;
    let names: &[&str] = if world.has_releases() { &["v1", "First", "latest"] } else { &["v1"] };
    for &name in names {
        let request = request(&repo, Target::Release(name.to_owned()), None);
        let got = fetched(world.connector(), &request).await;
        assert_eq!((&got.source.commit, got.source.version.as_str()), (&commits[0], "v1"));
    }
    if !world.has_releases() {
        let request = request(&repo, Target::Release("latest".to_owned()), None);
        refused(world.connector(), &request, Reason::Unsupported, "name a tag").await;
    }
}

pub async fn a_commit_is_fetched_by_its_full_and_by_its_short_name(world: &impl World) {
    let (repo, commits) = world.publish(story()).await;
    for digits in [40, 10] {
        let request = request(&repo, commit(&commits[0][..digits]), None);
        let got = fetched(world.connector(), &request).await;
        assert_eq!(got.source.commit, commits[0]);
        assert_eq!(got.source.version, commits[0][..12]);
        assert_eq!(got.read("src/a.txt"), "one\n");
    }
}

pub async fn a_pinned_commit_wins_over_what_the_ref_points_to(world: &impl World) {
    let (repo, commits) = world.publish(story()).await;
    let request = request(&repo, branch("next/thing"), None);
    let got = fetch(world.connector(), &request, Some(&commits[0])).await;
    let got = got.unwrap_or_else(|fault| panic!("the fetch failed: {fault}"));
    assert_eq!((&got.source.commit, got.source.version.as_str()), (&commits[0], "next/thing"));
    assert_eq!(got.read("src/a.txt"), "one\n");
}

pub async fn the_tree_is_inside_the_workspace_and_goes_with_it(world: &impl World) {
    let (repo, _) = world.publish(story()).await;
    let got = fetched(world.connector(), &request(&repo, Target::DefaultBranch, None)).await;
    assert!(got.source.tree.starts_with(got.source.workspace.path()));
    let names: Vec<_> = list(&got.source.tree);
    assert_eq!(names, ["Dockerfile", "src"]);
    let Got { source, scratch } = got;
    // Off the runtime, a workspace is removed at once.
    std::thread::spawn(move || drop(source)).join().expect("dropping a source does not panic");
    assert_eq!(list(scratch.path()), Vec::<String>::new());
}

pub async fn a_ref_that_does_not_exist_is_not_found(world: &impl World) {
    let (repo, _) = world.publish(story()).await;
    let release = if world.has_releases() { "release `v9`" } else { "tag `v9`" };
    for (target, naming) in [
        (branch("nowhere"), "branch `nowhere`"),
        (Target::Tag("v9".to_owned()), "tag `v9`"),
        (Target::Release("v9".to_owned()), release),
        (commit(&"0123456789".repeat(4)), "0123456789012345678901234567890123456789"),
        (commit("0123456789"), "0123456789"),
    ] {
        let request = request(&repo, target, None);
        let fault = refused(world.connector(), &request, Reason::RefNotFound, naming).await;
        assert!(fault.message.contains(&repo.to_string()), "{}", fault.message);
    }
}

pub async fn a_repository_that_does_not_exist_is_not_found(world: &impl World) {
    let repo = RepoName { owner: "nobody".to_owned(), name: "nothing".to_owned() };
    let request = request(&repo, Target::DefaultBranch, None);
    let reason = Reason::RepositoryNotFound;
    refused(world.connector(), &request, reason, "nobody/nothing").await;
}

pub async fn a_private_repository_wants_the_right_token(world: &impl World) {
    let token = world.token();
    let (repo, commits) =
        world.publish(FakeRepository { token: Some(token.to_owned()), ..story() }).await;
    let connector = world.connector();
    for wrong in [None, Some("the wrong token")] {
        let request = request(&repo, Target::DefaultBranch, wrong);
        refused(connector, &request, Reason::Unauthorized, &repo.to_string()).await;
    }
    let got = fetched(connector, &request(&repo, Target::DefaultBranch, Some(token))).await;
    assert_eq!(got.source.commit, commits[0]);
}

pub async fn a_wrong_token_does_no_harm_to_a_public_repository(world: &impl World) {
    let (repo, commits) = world.publish(story()).await;
    let request = request(&repo, Target::DefaultBranch, Some("the wrong token"));
    assert_eq!(fetched(world.connector(), &request).await.source.commit, commits[0]);
}

/// Waits until a directory is empty: workspaces are removed off the async threads.
pub async fn empties(directory: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !list(directory).is_empty() {
        assert!(std::time::Instant::now() < deadline, "still there: {:?}", list(directory));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// The names in a directory, sorted.
pub fn list(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .expect("the directory exists")
        .map(|entry| entry.expect("can be read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
