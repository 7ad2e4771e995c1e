//! What every planner promises.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use time::OffsetDateTime;

use super::source;
use crate::model::build_log::BuildLog;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::login::RegistryLogin;
use crate::model::platform::Platform;
use crate::model::request::{BuildRequest, BuilderKind, PlanRequest, RepoName, Target};
use crate::model::secret::Secret;
use crate::model::workspace::Workspace;
use crate::ports::{FetchedSource, Plan, Planner};

/// Makes a test of each promise. The world is the planner itself.
#[macro_export]
macro_rules! planner_conformance {
    ($planner:expr) => {
        $crate::conformance! {
            planner, $planner,
            a_dockerfile_in_the_root_is_the_plan,
            without_a_dockerfile_nixpacks_makes_the_plan,
            the_requested_builder_wins_over_what_is_in_the_root,
            a_dockerfile_path_asks_for_the_builder_dockerfile,
            the_root_directory_is_the_context,
            a_root_directory_that_is_not_in_the_repository_is_an_invalid_plan,
            a_source_that_nobody_knows_has_no_build_plan,
            an_asked_for_dockerfile_that_is_missing_is_no_build_plan,
            fields_of_the_other_builder_are_refused_by_name,
            envs_are_build_arguments_and_build_args_win,
            secrets_are_handed_on,
            the_fingerprint_is_the_same_for_the_same_plan_elsewhere,
            the_fingerprint_changes_with_what_decides_the_image,
            the_fingerprint_does_not_know_the_values_of_secrets,
            platforms_and_credentials_for_base_images_are_handed_on_and_only_platforms_count,
            files_that_other_trees_share_are_never_written_into,
        }
    };
}

const PACKAGE: (&str, &str) =
    ("package.json", r#"{"name": "app", "scripts": {"start": "node ."}}"#);
const DOCKERFILE: (&str, &str) = ("Dockerfile", "FROM scratch AS base\nARG MODE\n");

/// A fetched source, in a directory of its own.
pub struct Source {
    pub fetched: FetchedSource,
    directory: TempDir,
}

impl Source {
    /// A source of these files: paths and texts.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let source = Self::empty();
        for (path, text) in files {
            source.write(path, text);
        }
        source
    }

    /// A source without any file.
    pub fn empty() -> Self {
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

    pub fn tree(&self) -> &Path {
        &self.fetched.tree
    }

    /// A directory that is not part of the source.
    pub fn outside(&self) -> &Path {
        self.directory.path()
    }

    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.tree().join(path);
        let parent = path.parent().expect("a path below the source tree");
        fs::create_dir_all(parent).expect("a directory of the source");
        fs::write(path, text).expect("a file of the source");
    }

    /// Makes a symbolic link in the source.
    pub fn link(&self, path: &str, target: impl AsRef<Path>) {
        symlink(target, self.tree().join(path)).expect("a link of the source");
    }

    pub fn read(&self, path: &str) -> String {
        let path = self.tree().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// A request that asks for this plan.
pub fn request(plan: PlanRequest) -> BuildRequest {
    let repo = RepoName { owner: "owner".to_owned(), name: "app".to_owned() };
    let request = source::request(&repo, Target::DefaultBranch, None);
    BuildRequest {
        build_id: "build".to_owned(),
        user_id: "user".to_owned(),
        application_id: "app".to_owned(),
        plan,
        ..request
    }
}

/// The plan that the planner makes.
pub async fn plan(planner: &dyn Planner, source: &Source, wish: PlanRequest) -> Plan {
    try_plan(planner, source, wish).await.unwrap_or_else(|fault| panic!("no plan: {fault}"))
}

/// Why the planner makes no plan.
pub async fn refusal(planner: &dyn Planner, source: &Source, wish: PlanRequest) -> Fault {
    let fault = match try_plan(planner, source, wish).await {
        Ok(plan) => panic!("planned against expectation: {plan:?}"),
        Err(fault) => fault,
    };
    assert_eq!(fault.stage, StageName::Builder);
    let place = source.tree().to_str().expect("a path of text");
    assert!(!fault.message.contains(place), "tells where the worker keeps the source: {fault}");
    fault
}

pub async fn try_plan(
    planner: &dyn Planner,
    source: &Source,
    wish: PlanRequest,
) -> Result<Plan, Fault> {
    let request = request(wish);
    let progress = BuildLog::new(&request.build_id, request.redactor());
    planner.plan(&source.fetched, &request, &progress).await
}

fn in_root(directory: &str) -> PlanRequest {
    PlanRequest { root_directory: directory.to_owned(), ..PlanRequest::default() }
}

fn with_env(name: &str, value: &str) -> PlanRequest {
    PlanRequest { envs: [(name.to_owned(), value.to_owned())].into(), ..PlanRequest::default() }
}

fn with_secret(id: &str, value: &str) -> PlanRequest {
    PlanRequest { secrets: [(id.to_owned(), Secret::new(value))].into(), ..PlanRequest::default() }
}

pub async fn a_dockerfile_in_the_root_is_the_plan(planner: &impl Planner) {
    let source = Source::of(&[DOCKERFILE, PACKAGE]);
    let plan = plan(planner, &source, PlanRequest::default()).await;
    assert_eq!(plan.builder, BuilderKind::Dockerfile);
    assert_eq!(plan.context, source.tree());
    assert_eq!(plan.dockerfile, "Dockerfile");
    assert_eq!(plan.target, None);
}

pub async fn without_a_dockerfile_nixpacks_makes_the_plan(planner: &impl Planner) {
    let source = Source::of(&[PACKAGE]);
    let plan = plan(planner, &source, PlanRequest::default()).await;
    assert_eq!(plan.builder, BuilderKind::Nixpacks);
    assert_eq!(plan.context, source.tree());
    assert_eq!(plan.dockerfile, ".nixpacks/Dockerfile");
    assert!(source.read(&plan.dockerfile).starts_with("FROM "));
}

pub async fn the_requested_builder_wins_over_what_is_in_the_root(planner: &impl Planner) {
    let source = Source::of(&[DOCKERFILE, PACKAGE]);
    for builder in [BuilderKind::Nixpacks, BuilderKind::Dockerfile] {
        let wish = PlanRequest { builder: Some(builder), ..PlanRequest::default() };
        assert_eq!(plan(planner, &source, wish).await.builder, builder);
    }
}

pub async fn a_dockerfile_path_asks_for_the_builder_dockerfile(planner: &impl Planner) {
    let source = Source::of(&[PACKAGE, ("docker/Dockerfile.small", DOCKERFILE.1)]);
    let wish = PlanRequest {
        dockerfile_path: Some("docker/Dockerfile.small".to_owned()),
        target: Some("base".to_owned()),
        ..PlanRequest::default()
    };
    let plan = plan(planner, &source, wish).await;
    assert_eq!(plan.builder, BuilderKind::Dockerfile);
    assert_eq!(plan.dockerfile, "docker/Dockerfile.small");
    assert_eq!(plan.target.as_deref(), Some("base"));
}

pub async fn the_root_directory_is_the_context(planner: &impl Planner) {
    let source = Source::of(&[DOCKERFILE, ("apps/web/package.json", PACKAGE.1)]);
    for root_directory in ["apps/web", "/apps/web", "./apps/web/", "apps/../apps/web"] {
        let plan = plan(planner, &source, in_root(root_directory)).await;
        assert_eq!(plan.context, source.tree().join("apps/web"), "{root_directory}");
        assert_eq!(plan.builder, BuilderKind::Nixpacks, "{root_directory}");
    }
    for root_directory in ["", "/", "."] {
        let plan = plan(planner, &source, in_root(root_directory)).await;
        assert_eq!(plan.context, source.tree(), "{root_directory}");
        assert_eq!(plan.builder, BuilderKind::Dockerfile, "{root_directory}");
    }
}

pub async fn a_root_directory_that_is_not_in_the_repository_is_an_invalid_plan(
    planner: &impl Planner,
) {
    let source = Source::of(&[DOCKERFILE]);
    source.link("away", source.outside());
    for root_directory in ["missing", "Dockerfile", "..", "a/../..", "/../..", "away", "a\0b"] {
        let fault = refusal(planner, &source, in_root(root_directory)).await;
        assert_eq!(fault.reason, Reason::InvalidPlan, "{root_directory}");
        assert!(fault.message.contains(&format!("`{root_directory}`")), "{fault}");
        assert!(fault.message.contains("rootDirectory"), "{fault}");
    }
}

pub async fn a_source_that_nobody_knows_has_no_build_plan(planner: &impl Planner) {
    for files in [&[][..], &[("README.md", "nothing to build"), ("docs/a.txt", "")]] {
        let source = Source::of(files);
        let fault = refusal(planner, &source, PlanRequest::default()).await;
        assert_eq!(fault.reason, Reason::NoBuildPlan);
        assert!(fault.message.contains("Dockerfile"), "{fault}");
    }
}

pub async fn an_asked_for_dockerfile_that_is_missing_is_no_build_plan(planner: &impl Planner) {
    let source = Source::of(&[PACKAGE]);
    for (path, named) in [(None, "`Dockerfile`"), (Some("a/B"), "`a/B`")] {
        let wish = PlanRequest {
            builder: Some(BuilderKind::Dockerfile),
            dockerfile_path: path.map(str::to_owned),
            ..PlanRequest::default()
        };
        let fault = refusal(planner, &source, wish).await;
        assert_eq!(fault.reason, Reason::NoBuildPlan);
        assert!(fault.message.contains(named), "{fault}");
    }
}

pub async fn fields_of_the_other_builder_are_refused_by_name(planner: &impl Planner) {
    let some = || Some("x".to_owned());
    let for_nixpacks = PlanRequest {
        nixpacks_path: some(),
        nix_pkgs: vec!["x".into()],
        nix_libs: vec!["x".into()],
        apt_pkgs: vec!["x".into()],
        install_command: some(),
        build_command: some(),
        start_command: some(),
        ..PlanRequest::default()
    };
    let for_dockerfile = PlanRequest {
        builder: Some(BuilderKind::Nixpacks),
        dockerfile_path: some(),
        target: some(),
        build_args: [("X".to_owned(), String::new())].into(),
        ..PlanRequest::default()
    };
    let nixpacks_fields = [
        "nixpacksPath",
        "nixPkgs",
        "nixLibs",
        "aptPkgs",
        "installCommand",
        "buildCommand",
        "startCommand",
    ];
    let source = Source::of(&[DOCKERFILE, PACKAGE]);
    for (wish, fields) in [
        (for_nixpacks, &nixpacks_fields[..]),
        (for_dockerfile, &["dockerfilePath", "target", "buildArgs"]),
    ] {
        let fault = refusal(planner, &source, wish).await;
        assert_eq!(fault.reason, Reason::InvalidPlan);
        for field in fields {
            assert!(fault.message.contains(field), "{field} is not in: {fault}");
        }
    }
}

pub async fn envs_are_build_arguments_and_build_args_win(planner: &impl Planner) {
    let source = Source::of(&[DOCKERFILE]);
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let wish = PlanRequest {
        envs: pairs(&[("MODE", "env"), ("ONLY", "env")]),
        build_args: pairs(&[("MODE", "arg")]),
        ..PlanRequest::default()
    };
    let plan = plan(planner, &source, wish).await;
    assert_eq!(plan.build_args, pairs(&[("MODE", "arg"), ("ONLY", "env")]));
}

pub async fn secrets_are_handed_on(planner: &impl Planner) {
    for files in [DOCKERFILE, PACKAGE] {
        let source = Source::of(&[files]);
        let plan = plan(planner, &source, with_secret("npm", "s3cr3t")).await;
        assert_eq!(plan.secrets.get("npm").map(Secret::expose), Some("s3cr3t"));
        assert!(!source.read(&plan.dockerfile).contains("s3cr3t"));
        assert!(!format!("{plan:?}").contains("s3cr3t"));
    }
}

pub async fn the_fingerprint_is_the_same_for_the_same_plan_elsewhere(planner: &impl Planner) {
    for files in [DOCKERFILE, PACKAGE] {
        let (here, there) = (Source::of(&[files]), Source::of(&[files]));
        let first = plan(planner, &here, with_env("MODE", "a")).await;
        let second = plan(planner, &there, with_env("MODE", "a")).await;
        assert_ne!(first.context, second.context);
        assert_eq!(first.fingerprint, second.fingerprint);
        // And again in the same place.
        let again = plan(planner, &here, with_env("MODE", "a")).await;
        assert_eq!(first.fingerprint, again.fingerprint);
    }
}

pub async fn the_fingerprint_changes_with_what_decides_the_image(planner: &impl Planner) {
    let target = PlanRequest { target: Some("base".into()), ..PlanRequest::default() };
    let start = PlanRequest {
        builder: Some(BuilderKind::Nixpacks),
        start_command: Some("node other.js".into()),
        ..PlanRequest::default()
    };
    let nixpacks = PlanRequest { builder: Some(BuilderKind::Nixpacks), ..PlanRequest::default() };
    let source = Source::of(&[DOCKERFILE, PACKAGE]);
    let mut fingerprints = std::collections::BTreeSet::new();
    for wish in [
        PlanRequest::default(),
        with_env("MODE", "a"),
        with_env("MODE", "b"),
        with_secret("npm", "s3cr3t"),
        target,
        nixpacks,
        start,
    ] {
        let described = format!("{wish:?}");
        let plan = plan(planner, &source, wish).await;
        assert!(fingerprints.insert(plan.fingerprint), "seen before: {described}");
    }
    let other_text = Source::of(&[("Dockerfile", "FROM scratch\n"), PACKAGE]);
    let plan = plan(planner, &other_text, PlanRequest::default()).await;
    assert!(fingerprints.insert(plan.fingerprint), "another Dockerfile");
}

pub async fn the_fingerprint_does_not_know_the_values_of_secrets(planner: &impl Planner) {
    for files in [DOCKERFILE, PACKAGE] {
        let source = Source::of(&[files]);
        let one = plan(planner, &source, with_secret("npm", "one")).await;
        let other = plan(planner, &source, with_secret("npm", "other")).await;
        assert_eq!(one.fingerprint, other.fingerprint);
    }
}

pub async fn platforms_and_credentials_for_base_images_are_handed_on_and_only_platforms_count(
    planner: &impl Planner,
) {
    let platforms: Vec<_> = Platform::from_name("linux/arm64").into_iter().collect();
    let login = RegistryLogin { username: "joe".to_owned(), password: Secret::new("a-password") };
    let registry_auth = BTreeMap::from([("registry.example".to_owned(), login)]);
    for files in [DOCKERFILE, PACKAGE] {
        let source = Source::of(&[files]);
        let usual = plan(planner, &source, PlanRequest::default()).await;
        assert!(usual.platforms.is_empty() && usual.registry_auth.is_empty());
        let wish = PlanRequest { registry_auth: registry_auth.clone(), ..PlanRequest::default() };
        let with_login = plan(planner, &source, wish).await;
        assert_eq!(with_login.registry_auth, registry_auth);
        assert_eq!(with_login.fingerprint, usual.fingerprint);
        let wish = PlanRequest { platforms: platforms.clone(), ..PlanRequest::default() };
        let elsewhere = plan(planner, &source, wish).await;
        assert_eq!(elsewhere.platforms, platforms);
        assert_ne!(elsewhere.fingerprint, usual.fingerprint);
    }
}

/// See [`planner_conformance!`].
pub async fn files_that_other_trees_share_are_never_written_into(planner: &impl Planner) {
    let own = [(".dockerignore", ".nixpacks"), (".nixpacks/Dockerfile", "x"), (".nixpacks/x", "x")];
    for files in [vec![PACKAGE], vec![DOCKERFILE]] {
        let source = Source::of(&[&files[..], &own].concat());
        let other = source.outside().join("another tree");
        fs::create_dir(&other).expect("a directory");
        let shared = files.iter().chain(&own).enumerate();
        let shared: Vec<_> = shared.map(|(n, file)| (other.join(n.to_string()), file)).collect();
        for (link, (path, _)) in &shared {
            fs::hard_link(source.tree().join(path), link).expect("a link");
        }
        plan(planner, &source, PlanRequest::default()).await;
        for (link, (path, text)) in &shared {
            assert_eq!(fs::read_to_string(link).expect("still there"), *text, "{path}");
        }
    }
}
