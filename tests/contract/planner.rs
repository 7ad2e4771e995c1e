//! The planner port.
//!
//! The suite in this file runs on the planner in memory and on the real one; the modules below test
//! what only the real one does.

#[path = "planner/dockerfile.rs"]
mod dockerfile;
#[path = "planner/hostile.rs"]
mod hostile;
#[path = "planner/nixpacks.rs"]
mod nixpacks;
#[path = "planner/world.rs"]
mod world;

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::request::{BuilderKind, PlanRequest};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Planner;
use image_builder_actors::testing::planner::FakePlanner;

use self::world::{Source, plan, real, refusal};

const PACKAGE: (&str, &str) =
    ("package.json", r#"{"name": "app", "scripts": {"start": "node ."}}"#);
const DOCKERFILE: (&str, &str) = ("Dockerfile", "FROM scratch AS base\nARG MODE\n");

/// One test a behaviour and implementation.
macro_rules! suite {
    ($($behaviour:ident),* $(,)?) => {
        mod in_memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                super::$behaviour(super::FakePlanner::new()).await;
            })*
        }
        mod on_disk {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $behaviour() {
                super::$behaviour(super::real()).await;
            })*
        }
    };
}

suite! {
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
}

async fn a_dockerfile_in_the_root_is_the_plan(planner: impl Planner) {
    let source = Source::of(&[DOCKERFILE, PACKAGE]);
    let plan = plan(&planner, &source, PlanRequest::default()).await;
    assert_eq!(plan.builder, BuilderKind::Dockerfile);
    assert_eq!(plan.context, source.tree());
    assert_eq!(plan.dockerfile, "Dockerfile");
    assert_eq!(plan.target, None);
}

async fn without_a_dockerfile_nixpacks_makes_the_plan(planner: impl Planner) {
    let source = Source::of(&[PACKAGE]);
    let plan = plan(&planner, &source, PlanRequest::default()).await;
    assert_eq!(plan.builder, BuilderKind::Nixpacks);
    assert_eq!(plan.context, source.tree());
    assert_eq!(plan.dockerfile, ".nixpacks/Dockerfile");
    assert!(source.read(&plan.dockerfile).starts_with("FROM "));
}

async fn the_requested_builder_wins_over_what_is_in_the_root(planner: impl Planner) {
    let source = Source::of(&[DOCKERFILE, PACKAGE]);
    for builder in [BuilderKind::Nixpacks, BuilderKind::Dockerfile] {
        let wish = PlanRequest { builder: Some(builder), ..PlanRequest::default() };
        assert_eq!(plan(&planner, &source, wish).await.builder, builder);
    }
}

async fn a_dockerfile_path_asks_for_the_builder_dockerfile(planner: impl Planner) {
    let source = Source::of(&[PACKAGE, ("docker/Dockerfile.small", DOCKERFILE.1)]);
    let wish = PlanRequest {
        dockerfile_path: Some("docker/Dockerfile.small".to_owned()),
        target: Some("base".to_owned()),
        ..PlanRequest::default()
    };
    let plan = plan(&planner, &source, wish).await;
    assert_eq!(plan.builder, BuilderKind::Dockerfile);
    assert_eq!(plan.dockerfile, "docker/Dockerfile.small");
    assert_eq!(plan.target.as_deref(), Some("base"));
}

async fn the_root_directory_is_the_context(planner: impl Planner) {
    let source = Source::of(&[DOCKERFILE, ("apps/web/package.json", PACKAGE.1)]);
    for root_directory in ["apps/web", "/apps/web", "./apps/web/", "apps/../apps/web"] {
        let wish = PlanRequest { root_directory: root_directory.into(), ..PlanRequest::default() };
        let plan = plan(&planner, &source, wish).await;
        assert_eq!(plan.context, source.tree().join("apps/web"), "{root_directory}");
        assert_eq!(plan.builder, BuilderKind::Nixpacks, "{root_directory}");
    }
    for root_directory in ["", "/", "."] {
        let wish = PlanRequest { root_directory: root_directory.into(), ..PlanRequest::default() };
        let plan = plan(&planner, &source, wish).await;
        assert_eq!(plan.context, source.tree(), "{root_directory}");
        assert_eq!(plan.builder, BuilderKind::Dockerfile, "{root_directory}");
    }
}

async fn a_root_directory_that_is_not_in_the_repository_is_an_invalid_plan(planner: impl Planner) {
    let source = Source::of(&[DOCKERFILE]);
    source.link("away", source.outside());
    for root_directory in ["missing", "Dockerfile", "..", "a/../..", "/../..", "away", "a\0b"] {
        let wish = PlanRequest { root_directory: root_directory.into(), ..PlanRequest::default() };
        let fault = refusal(&planner, &source, wish).await;
        assert_eq!(fault.reason, Reason::InvalidPlan, "{root_directory}");
        assert!(fault.message.contains(&format!("`{root_directory}`")), "{fault}");
        assert!(fault.message.contains("rootDirectory"), "{fault}");
    }
}

async fn a_source_that_nobody_knows_has_no_build_plan(planner: impl Planner) {
    for files in [&[][..], &[("README.md", "nothing to build"), ("docs/a.txt", "")]] {
        let source = Source::of(files);
        let fault = refusal(&planner, &source, PlanRequest::default()).await;
        assert_eq!(fault.reason, Reason::NoBuildPlan);
        assert!(fault.message.contains("Dockerfile"), "{fault}");
    }
}

async fn an_asked_for_dockerfile_that_is_missing_is_no_build_plan(planner: impl Planner) {
    let source = Source::of(&[PACKAGE]);
    for (path, named) in [(None, "`Dockerfile`"), (Some("a/B"), "`a/B`")] {
        let wish = PlanRequest {
            builder: Some(BuilderKind::Dockerfile),
            dockerfile_path: path.map(str::to_owned),
            ..PlanRequest::default()
        };
        let fault = refusal(&planner, &source, wish).await;
        assert_eq!(fault.reason, Reason::NoBuildPlan);
        assert!(fault.message.contains(named), "{fault}");
    }
}

async fn fields_of_the_other_builder_are_refused_by_name(planner: impl Planner) {
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
        let fault = refusal(&planner, &source, wish).await;
        assert_eq!(fault.reason, Reason::InvalidPlan);
        for field in fields {
            assert!(fault.message.contains(field), "{field} is not in: {fault}");
        }
    }
}

async fn envs_are_build_arguments_and_build_args_win(planner: impl Planner) {
    let source = Source::of(&[DOCKERFILE]);
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let wish = PlanRequest {
        envs: pairs(&[("MODE", "env"), ("ONLY", "env")]),
        build_args: pairs(&[("MODE", "arg")]),
        ..PlanRequest::default()
    };
    let plan = plan(&planner, &source, wish).await;
    assert_eq!(plan.build_args, pairs(&[("MODE", "arg"), ("ONLY", "env")]));
}

async fn secrets_are_handed_on(planner: impl Planner) {
    for files in [DOCKERFILE, PACKAGE] {
        let source = Source::of(&[files]);
        let plan = plan(&planner, &source, with_secret("npm", "s3cr3t")).await;
        assert_eq!(plan.secrets.get("npm").map(Secret::expose), Some("s3cr3t"));
        assert!(!source.read(&plan.dockerfile).contains("s3cr3t"));
        assert!(!format!("{plan:?}").contains("s3cr3t"));
    }
}

async fn the_fingerprint_is_the_same_for_the_same_plan_elsewhere(planner: impl Planner) {
    for files in [DOCKERFILE, PACKAGE] {
        let (here, there) = (Source::of(&[files]), Source::of(&[files]));
        let first = plan(&planner, &here, with_env("MODE", "a")).await;
        let second = plan(&planner, &there, with_env("MODE", "a")).await;
        assert_ne!(first.context, second.context);
        assert_eq!(first.fingerprint, second.fingerprint);
        // And again in the same place.
        let again = plan(&planner, &here, with_env("MODE", "a")).await;
        assert_eq!(first.fingerprint, again.fingerprint);
    }
}

async fn the_fingerprint_changes_with_what_decides_the_image(planner: impl Planner) {
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
        let plan = plan(&planner, &source, wish).await;
        assert!(fingerprints.insert(plan.fingerprint), "seen before: {described}");
    }
    let other_text = Source::of(&[("Dockerfile", "FROM scratch\n"), PACKAGE]);
    let plan = plan(&planner, &other_text, PlanRequest::default()).await;
    assert!(fingerprints.insert(plan.fingerprint), "another Dockerfile");
}

async fn the_fingerprint_does_not_know_the_values_of_secrets(planner: impl Planner) {
    for files in [DOCKERFILE, PACKAGE] {
        let source = Source::of(&[files]);
        let one = plan(&planner, &source, with_secret("npm", "one")).await;
        let other = plan(&planner, &source, with_secret("npm", "other")).await;
        assert_eq!(one.fingerprint, other.fingerprint);
    }
}

fn with_env(name: &str, value: &str) -> PlanRequest {
    PlanRequest { envs: [(name.to_owned(), value.to_owned())].into(), ..PlanRequest::default() }
}

fn with_secret(id: &str, value: &str) -> PlanRequest {
    PlanRequest { secrets: [(id.to_owned(), Secret::new(value))].into(), ..PlanRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_planner_in_memory_fails_waits_and_panics_as_it_is_told() {
    let planner = FakePlanner::new();
    let source = Source::of(&[DOCKERFILE]);
    let fault = Fault::new(StageName::Builder, Reason::DiskLow, "the disk is nearly full");
    planner.fail(2, fault.clone());
    for _ in 0..2 {
        assert_eq!(refusal(&planner, &source, PlanRequest::default()).await, fault);
    }

    let gate = planner.hold();
    let waiting = plan(&planner, &source, PlanRequest::default());
    let ((), held) = tokio::join!(
        async {
            gate.reached().await;
            assert_eq!(planner.wait_for_calls(3).await.len(), 3);
            gate.open();
        },
        waiting
    );
    assert_eq!(held.builder, BuilderKind::Dockerfile);

    planner.panic();
    let told = planner.clone();
    let panicking = tokio::spawn(async move {
        let source = Source::of(&[DOCKERFILE]);
        plan(&told, &source, PlanRequest::default()).await
    });
    assert!(panicking.await.expect_err("it was told to panic").is_panic());
    assert_eq!(planner.calls().len(), 4);
    assert!(planner.calls().iter().all(|call| call.build_id == "build"));
}
