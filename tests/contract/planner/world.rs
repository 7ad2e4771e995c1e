//! Sources to plan, and planners to plan them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use image_builder::planner::{ExplainedPlan, PlannerSettings, SourcePlanner};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, StageName};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::{
    BuildRequest, ForgeName, PlanRequest, RepoName, Target,
};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::ports::{FetchedSource, Plan, Planner};
use tempfile::TempDir;
use time::OffsetDateTime;

/// The settings of [`real`].
pub(super) fn settings() -> PlannerSettings {
    PlannerSettings {
        // The tests' own program is not the worker.
        program: env!("CARGO_BIN_EXE_image-builder").into(),
        ..PlannerSettings::new(Limits::default(), Secret::new("the tests' cache secret"))
    }
}

/// The planner that a worker has.
pub(super) fn real() -> SourcePlanner {
    SourcePlanner::new(settings())
}

/// A fetched source, in a directory of its own.
pub(super) struct Source {
    pub(super) fetched: FetchedSource,
    directory: TempDir,
}

impl Source {
    /// A source of these files: paths and texts.
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let source = Self::empty();
        for (path, text) in files {
            source.write(path, text);
        }
        source
    }

    /// A source that is a copy of `tests/fixtures/apps/<name>`.
    pub(super) fn fixture(name: &str) -> Self {
        let source = Self::empty();
        copy(&fixture(name), &source.fetched.tree);
        source
    }

    fn empty() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the test");
        fs::write(directory.path().join("outside"), "").expect("a file outside of the source");
        let workspace = Workspace::create(directory.path()).expect("a workspace");
        let tree = workspace.path().join("source");
        fs::create_dir(&tree).expect("a source tree");
        let fetched = FetchedSource {
            commit: "c".repeat(40),
            committed_at: OffsetDateTime::UNIX_EPOCH,
            version: "1.0".to_owned(),
            url: "https://forge.example/owner/app".to_owned(),
            tree: tree.canonicalize().expect("the source tree"),
            workspace,
        };
        Self { fetched, directory }
    }

    pub(super) fn tree(&self) -> &Path {
        &self.fetched.tree
    }

    /// A directory that is not part of the source.
    pub(super) fn outside(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.tree().join(path);
        let parent = path.parent().expect("a path below the source tree");
        fs::create_dir_all(parent).expect("a directory of the source");
        fs::write(path, text).expect("a file of the source");
    }

    /// Makes a symbolic link in the source.
    pub(super) fn link(&self, path: &str, target: impl AsRef<Path>) {
        symlink(target, self.tree().join(path)).expect("a link of the source");
    }

    pub(super) fn read(&self, path: &str) -> String {
        let path = self.tree().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// The directory of a fixture.
pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/apps").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory to copy to");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("an entry to copy");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a kind of entry").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copied file");
        }
    }
}

/// A request that asks for this plan.
pub(super) fn request(plan: PlanRequest) -> BuildRequest {
    BuildRequest {
        build_id: "build".to_owned(),
        user_id: "user".to_owned(),
        application_id: "app".to_owned(),
        forge: ForgeName::Github,
        repo: RepoName { owner: "owner".to_owned(), name: "app".to_owned() },
        target: Target::DefaultBranch,
        token: None,
        force: false,
        redrive_of: None,
        plan,
    }
}

/// The plan that the planner makes.
pub(super) async fn plan(planner: &impl Planner, source: &Source, wish: PlanRequest) -> Plan {
    try_plan(planner, source, wish).await.unwrap_or_else(|fault| panic!("no plan: {fault}"))
}

/// Why the planner makes no plan.
pub(super) async fn refusal(planner: &impl Planner, source: &Source, wish: PlanRequest) -> Fault {
    let fault = match try_plan(planner, source, wish).await {
        Ok(plan) => panic!("planned against expectation: {plan:?}"),
        Err(fault) => fault,
    };
    assert_eq!(fault.stage, StageName::Builder);
    let place = source.tree().to_str().expect("a path of text");
    assert!(!fault.message.contains(place), "tells where the worker keeps the source: {fault}");
    fault
}

pub(super) async fn try_plan(
    planner: &impl Planner,
    source: &Source,
    wish: PlanRequest,
) -> Result<Plan, Fault> {
    let request = request(wish);
    let progress = BuildLog::new(&request.build_id, request.redactor());
    planner.plan(&source.fetched, &request, &progress).await
}

/// The real planner's plan, with nixpacks' own beside it.
pub(super) async fn explain(source: &Source, wish: PlanRequest) -> ExplainedPlan {
    let request = request(wish);
    let progress = BuildLog::new(&request.build_id, request.redactor());
    real()
        .explain(&source.fetched, &request, &progress)
        .await
        .unwrap_or_else(|fault| panic!("no plan: {fault}"))
}
