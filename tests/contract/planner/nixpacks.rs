//! What only the real planner does with nixpacks: its plans are those of the nixpacks command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use image_builder::planner::{NIXPACKS_VERSION, PlannerSettings, SourcePlanner, cache_secret};
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::request::{BuilderKind, PlanRequest};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::Planner;
use serde_json::Value;

use super::world::{
    Source, explain, fixture, plan, real, refusal, request, settings, source_of_fixture,
};

/// The nixpacks command, as `.devcontainer/nixpacks.sh` installs it.
fn command() -> PathBuf {
    let state = std::env::var_os("IMAGE_BUILDER_STATE")
        .map_or_else(|| PathBuf::from("/var/lib/image-builder-dev"), PathBuf::from);
    let command = state.join("tools/bin/nixpacks");
    assert!(
        command.is_file(),
        "this test needs the nixpacks command at {}: run .devcontainer/nixpacks.sh",
        command.display()
    );
    command
}

/// What the command prints.
fn run(arguments: &[String]) -> String {
    let output = Command::new(command()).args(arguments).output().expect("nixpacks starts");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nixpacks {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).expect("nixpacks prints text")
}

/// The command's flags for a request.
fn flags(wish: &PlanRequest) -> Vec<String> {
    let envs: Vec<_> = wish.envs.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let one = |value: &Option<String>| value.iter().cloned().collect::<Vec<_>>();
    [
        ("--env", envs),
        ("--pkgs", wish.nix_pkgs.clone()),
        ("--libs", wish.nix_libs.clone()),
        ("--apt", wish.apt_pkgs.clone()),
        ("--install-cmd", one(&wish.install_command)),
        ("--build-cmd", one(&wish.build_command)),
        ("--start-cmd", one(&wish.start_command)),
        ("--config", one(&wish.nixpacks_path)),
    ]
    .into_iter()
    .flat_map(|(flag, values)| values.into_iter().flat_map(move |value| [flag.to_owned(), value]))
    .collect()
}

/// What `nixpacks plan` prints for a directory and a request.
fn commands_plan(directory: &Path, wish: &PlanRequest) -> Value {
    let mut arguments = vec!["plan".to_owned(), "--format".to_owned(), "json".to_owned()];
    arguments.push(directory.display().to_string());
    arguments.extend(flags(wish));
    serde_json::from_str(&run(&arguments)).expect("nixpacks prints JSON")
}

/// The Dockerfile that `nixpacks build --out` writes.
fn commands_dockerfile(directory: &Path, wish: &PlanRequest) -> String {
    let out = tempfile::tempdir().expect("a directory for nixpacks");
    let mut arguments = vec!["build".to_owned(), directory.display().to_string()];
    arguments.extend(["--out".to_owned(), out.path().display().to_string()]);
    arguments.extend(["--cache-key".to_owned(), "CACHE".to_owned()]);
    arguments.extend(flags(wish));
    run(&arguments);
    std::fs::read_to_string(out.path().join(".nixpacks/Dockerfile")).expect("a Dockerfile")
}

/// `dockerfile` with the command's cache key in place of the planner's.
fn with_commands_cache_key(dockerfile: &str) -> String {
    let key = regex::Regex::new("id=[0-9a-f]{64}-").expect("a regular expression");
    key.replace_all(dockerfile, "id=CACHE-").into_owned()
}

/// Every field of a request that nixpacks knows, one at a time and all together; each with what has
/// to be seen of it in the Dockerfile or its Nix file.
fn overrides() -> Vec<(PlanRequest, Vec<&'static str>)> {
    let some = |text: &str| Some(text.to_owned());
    let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let none = PlanRequest::default;
    vec![
        (none(), vec![]),
        (PlanRequest { envs: env("GREETING", "Guten Tag"), ..none() }, vec!["GREETING=$GREETING"]),
        (PlanRequest { envs: env("NIXPACKS_NODE_VERSION", "20"), ..none() }, vec!["nodejs_20"]),
        (PlanRequest { nix_pkgs: list(&["jq", "ripgrep"]), ..none() }, vec!["jq", "ripgrep"]),
        (PlanRequest { nix_libs: list(&["openssl"]), ..none() }, vec!["openssl.dev"]),
        (PlanRequest { apt_pkgs: list(&["curl", "git"]), ..none() }, vec!["recommends curl git"]),
        (PlanRequest { install_command: some("npm i"), ..none() }, vec![" npm i\n"]),
        (PlanRequest { build_command: some("make all"), ..none() }, vec![" make all\n"]),
        (PlanRequest { start_command: some("./go"), ..none() }, vec!["CMD [\"./go\"]"]),
        (
            PlanRequest {
                envs: env("GREETING", "Moin"),
                nix_pkgs: list(&["jq"]),
                nix_libs: list(&["zlib"]),
                apt_pkgs: list(&["curl"]),
                install_command: some("npm install --no-audit"),
                build_command: some("npm run build && echo \"done\""),
                start_command: some("node \"server.js\""),
                ..none()
            },
            vec!["jq", "zlib", "curl", "--no-audit", "echo \"done\"", r#"node \"server.js\""#],
        ),
    ]
}

fn env(name: &str, value: &str) -> BTreeMap<String, String> {
    [(name.to_owned(), value.to_owned())].into()
}

fn nixpacks() -> PlanRequest {
    PlanRequest { builder: Some(BuilderKind::Nixpacks), ..PlanRequest::default() }
}

#[test]
fn the_library_and_the_command_are_of_one_version() {
    assert_eq!(run(&["--version".to_owned()]).trim(), format!("nixpacks {NIXPACKS_VERSION}"));
    let manifest = include_str!("../../../Cargo.toml");
    assert!(manifest.contains(&format!("nixpacks = {{ version = \"={NIXPACKS_VERSION}\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_app_is_planned_as_the_command_does() {
    let apps = [
        ("configured", "python"),
        ("deno", "deno"),
        ("go", "go"),
        ("nested", "python"),
        ("node", "node"),
        ("php", "php"),
        ("procfile", "python"),
        ("python", "python"),
        ("ruby", "ruby"),
        ("rust", "rust"),
        ("static", "staticfile"),
    ];
    for (app, provider) in apps {
        let source = source_of_fixture(app);
        let explained = explain(&source, nixpacks()).await;
        let expected = commands_plan(&fixture(app), &nixpacks());
        assert_eq!(expected["variables"]["NIXPACKS_METADATA"], provider, "{app}");
        assert_eq!(explained.nixpacks, Some(expected.clone()), "{app}");
        let dockerfile =
            std::fs::read_to_string(explained.plan.context.join(&explained.plan.dockerfile))
                .expect("a Dockerfile");
        assert_eq!(
            with_commands_cache_key(&dockerfile),
            commands_dockerfile(&fixture(app), &nixpacks()),
            "{app}"
        );
        let variables: BTreeMap<String, String> =
            serde_json::from_value(expected["variables"].clone()).expect("variables");
        assert_eq!(explained.plan.build_args, variables, "{app}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_override_is_in_the_plan_and_in_the_dockerfile() {
    for (wish, seen) in overrides() {
        let source = source_of_fixture("node");
        let explained = explain(&source, wish.clone()).await;
        assert_eq!(explained.nixpacks, Some(commands_plan(&fixture("node"), &wish)), "{wish:?}");
        let dockerfile = source.read(".nixpacks/Dockerfile");
        assert_eq!(
            with_commands_cache_key(&dockerfile),
            commands_dockerfile(&fixture("node"), &wish),
            "{wish:?}"
        );
        let nix_files = std::fs::read_dir(source.tree().join(".nixpacks"))
            .expect("nixpacks' files")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "nix"))
            .map(|path| std::fs::read_to_string(path).expect("a Nix file"));
        let all = dockerfile.clone() + &nix_files.collect::<String>();
        for text in seen {
            assert!(all.contains(text), "no `{text}` in:\n{all}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_named_configuration_file_is_used() {
    for path in ["small.toml", "/small.toml", "./small.toml"] {
        let source = source_of_fixture("configured");
        let wish = PlanRequest { nixpacks_path: Some(path.to_owned()), ..nixpacks() };
        let explained = explain(&source, wish).await;
        let named = PlanRequest { nixpacks_path: Some("small.toml".to_owned()), ..nixpacks() };
        let expected = commands_plan(&fixture("configured"), &named);
        assert_eq!(explained.nixpacks, Some(expected), "{path}");
        assert_eq!(explained.plan.build_args["MODE"], "small", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_directory_is_planned_by_itself() {
    for (directory, provider) in [("web", "node"), ("worker", "python")] {
        let source = source_of_fixture("monorepo");
        let wish = PlanRequest { root_directory: directory.to_owned(), ..PlanRequest::default() };
        let explained = explain(&source, wish).await;
        assert_eq!(explained.plan.context, source.tree().join(directory));
        assert_eq!(explained.plan.build_args["NIXPACKS_METADATA"], provider);
        let expected = commands_plan(&fixture("monorepo").join(directory), &PlanRequest::default());
        assert_eq!(explained.nixpacks, Some(expected));
    }
    let source = source_of_fixture("monorepo");
    let fault = refusal(&real(), &source, PlanRequest::default()).await;
    assert_eq!(fault.reason, Reason::NoBuildPlan);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_in_the_only_directory_is_built_from_there() {
    let source = source_of_fixture("nested");
    let plan = plan(&real(), &source, PlanRequest::default()).await;
    assert_eq!(plan.context, source.tree().join("app"));
    assert!(plan.context.join(&plan.dockerfile).is_file());
    assert!(!source.tree().join(".nixpacks").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_found_tells_what_was_looked_for() {
    let source = Source::of(&[("README.md", "")]);
    let fault = refusal(&real(), &source, PlanRequest::default()).await;
    for text in ["`Dockerfile`", "the repository's root", "node", "python", "go", "php", "rust"] {
        assert!(fault.message.contains(text), "no {text} in: {fault}");
    }
    let fault = refusal(&real(), &source, nixpacks()).await;
    assert!(!fault.message.contains("Dockerfile"), "it was not looked for: {fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_found_names_what_looks_buildable_elsewhere() {
    let source = Source::of(&[
        ("README.md", ""),
        ("docker/Dockerfile", "FROM scratch\n"),
        ("backend/package.json", "{}"),
        ("backend/node_modules/x/package.json", "{}"),
    ]);
    let fault = refusal(&real(), &source, PlanRequest::default()).await;
    assert_eq!(fault.reason, Reason::NoBuildPlan);
    for text in
        ["`docker/Dockerfile`", "`dockerfilePath`", "`backend/package.json`", "`rootDirectory`"]
    {
        assert!(fault.message.contains(text), "no {text} in: {fault}");
    }
    assert!(!fault.message.contains("node_modules"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_without_a_start_is_told_so() {
    let source = Source::of(&[("requirements.txt", ""), ("library.py", "ANSWER = 42\n")]);
    let fault = refusal(&real(), &source, PlanRequest::default()).await;
    assert_eq!(fault.reason, Reason::NoBuildPlan);
    assert!(fault.message.contains("`startCommand`"), "{fault}");
    let wish =
        PlanRequest { start_command: Some("python library.py".into()), ..PlanRequest::default() };
    plan(&real(), &source, wish).await;
}

/// As npm reads it. In the image it is what the repository has.
#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_before_a_package_json_does_not_matter() {
    let package = "\u{feff}{\"scripts\": {\"start\": \"node index.js\"}}";
    let source = Source::of(&[("package.json", package), ("index.js", "")]);
    plan(&real(), &source, PlanRequest::default()).await;
    let dockerfile = source.read(".nixpacks/Dockerfile");
    assert!(dockerfile.contains("npm run start"), "{dockerfile}");
    assert_eq!(source.read("package.json"), package);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_command_with_backslashes_is_started_as_it_was_given() {
    let command = r#"node -e "console.log('a\\n', \"b\")""#;
    let source = source_of_fixture("node");
    let wish = PlanRequest { start_command: Some(command.to_owned()), ..PlanRequest::default() };
    let wish = PlanRequest { builder: Some(BuilderKind::Nixpacks), ..wish };
    plan(&real(), &source, wish).await;
    let dockerfile = source.read(".nixpacks/Dockerfile");
    let list = dockerfile.lines().find_map(|line| line.strip_prefix("CMD ")).expect("a start");
    assert_eq!(serde_json::from_str::<Vec<String>>(list).expect("a list"), [command]);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_mounted_in_every_step() {
    let source = source_of_fixture("php");
    let secrets = ["npm", "composer"].map(|id| (id.to_owned(), Secret::new("s3cr3t")));
    let wish = PlanRequest { secrets: secrets.into(), ..nixpacks() };
    plan(&real(), &source, wish).await;
    let dockerfile = source.read(".nixpacks/Dockerfile");
    let steps: Vec<_> = dockerfile.lines().filter(|line| line.starts_with("RUN ")).collect();
    assert!(steps.len() >= 3, "{dockerfile}");
    let mounts = "RUN --mount=type=secret,id=composer --mount=type=secret,id=npm ";
    assert!(steps.iter().all(|step| step.starts_with(mounts)), "{dockerfile}");
    assert!(!dockerfile.contains("s3cr3t"));
}

/// The name of the caches of a build by this planner for this user and application.
async fn cache_of(planner: &SourcePlanner, user: &str, application: &str) -> (String, String) {
    let source = source_of_fixture("node");
    let mut request = request(nixpacks());
    request.user_id = user.to_owned();
    request.application_id = application.to_owned();
    let progress = BuildLog::new("build", request.redactor());
    let plan = planner.plan(&source.fetched, &request, &progress).await.expect("a plan");
    let dockerfile = source.read(".nixpacks/Dockerfile");
    let names: Vec<_> = dockerfile
        .split("--mount=type=cache,id=")
        .skip(1)
        .map(|rest| rest.split('-').next().unwrap_or_default())
        .collect();
    assert_eq!(names.len(), 2, "{dockerfile}");
    assert_eq!(names[0], names[1], "{dockerfile}");
    (names[0].to_owned(), plan.fingerprint)
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_belong_to_one_application_of_one_user_and_cannot_be_guessed() {
    let (own, fingerprint) = cache_of(&real(), "user", "app").await;
    assert_eq!(cache_of(&real(), "user", "app").await.0, own);
    assert_ne!(cache_of(&real(), "other", "app").await.0, own);
    assert_ne!(cache_of(&real(), "user", "other").await.0, own);
    assert_ne!(cache_of(&real(), "use", "rapp").await.0, own);

    let data = tempfile::tempdir().expect("a directory for the test");
    let secret = cache_secret(data.path()).expect("a secret");
    let elsewhere = SourcePlanner::new(PlannerSettings { cache_secret: secret, ..settings() });
    let (name, same) = cache_of(&elsewhere, "user", "app").await;
    assert_ne!(name, own, "another installation's caches have the same name");
    assert_eq!(same, fingerprint, "where the caches are kept does not decide the image");
}

#[tokio::test(flavor = "multi_thread")]
async fn nixpacks_files_are_the_same_every_time() {
    let apps = ["configured", "deno", "go", "node", "php", "procfile", "ruby", "rust", "static"];
    for app in apps {
        let mut first = None;
        for _ in 0..5 {
            let source = source_of_fixture(app);
            let plan = plan(&real(), &source, nixpacks()).await;
            assert!(!plan.context.join(".nixpacks/build.sh").exists(), "{app}");
            let fingerprint = plan.fingerprint;
            assert_eq!(*first.get_or_insert(fingerprint.clone()), fingerprint, "{app}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerignore_does_not_keep_nixpacks_files_out() {
    let source = source_of_fixture("node");
    source.write("ignored", "*\n!server.js");
    source.link(".dockerignore", "ignored");
    plan(&real(), &source, nixpacks()).await;
    assert_eq!(source.read(".dockerignore"), "*\n!server.js\n!.nixpacks\n!.nixpacks/**\n");
    assert_eq!(source.read("ignored"), "*\n!server.js", "another file was written to");

    let source = source_of_fixture("node");
    plan(&real(), &source, nixpacks()).await;
    assert!(!source.tree().join(".dockerignore").exists());
}

#[test]
fn nixpacks_writes_nothing_to_the_workers_stdout() {
    // The real stdout is that of a process, so one of the tests is run in a process of its own.
    let test = "planner::conformance::without_a_dockerfile_nixpacks_makes_the_plan";
    let output = Command::new(std::env::current_exe().expect("the tests' own program"))
        .args(["--exact", test, "--nocapture"])
        .output()
        .expect("the tests start");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("1 passed"), "{stdout}");
    let others = stdout
        .lines()
        .filter(|line| !line.is_empty() && *line != "running 1 test" && !line.starts_with("test "));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&str>::new());
}
