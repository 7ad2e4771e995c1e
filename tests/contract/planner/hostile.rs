//! Sources that were made to hurt: each hurts only its own build.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use image_builder::planner::{PlannerSettings, SourcePlanner};
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::{BuilderKind, PlanRequest};

use super::world::{Source, plan, real, refusal, settings, source_of_fixture, try_plan};

const SECRET: &str = "text that only the worker may read";

fn nixpacks() -> PlanRequest {
    PlanRequest { builder: Some(BuilderKind::Nixpacks), ..PlanRequest::default() }
}

fn with_env(name: &str, value: &str) -> PlanRequest {
    PlanRequest { envs: [(name.to_owned(), value.to_owned())].into(), ..nixpacks() }
}

fn limited(limits: Limits) -> SourcePlanner {
    SourcePlanner::new(PlannerSettings { limits, ..settings() })
}

/// All text of nixpacks' files below the source's root.
fn generated(source: &Source) -> String {
    let mut text = String::new();
    let mut directories = vec![source.tree().join(".nixpacks")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("nixpacks' files") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => directories.push(path),
                false => text += &fs::read_to_string(path).expect("a file of text"),
            }
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_a_file_of_the_worker_is_not_read_and_stays_in_the_source() {
    let source = source_of_fixture("static");
    let outside = source.outside().join("outside");
    fs::write(&outside, SECRET).expect("a file of the worker");
    // nixpacks would copy both into the image.
    source.link("mime.types", &outside);
    source.link("Staticfile.auth", "../../outside");
    source.link("dangling", "nowhere");
    let plan = plan(&real(), &source, nixpacks()).await;
    assert!(!generated(&source).contains(SECRET));
    assert!(!format!("{plan:?}").contains(SECRET));
    for (link, target) in [
        ("mime.types", outside.as_path()),
        ("Staticfile.auth", "../../outside".as_ref()),
        ("dangling", "nowhere".as_ref()),
    ] {
        assert_eq!(fs::read_link(source.tree().join(link)).expect(link), target);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_inside_the_source_is_read() {
    let source = source_of_fixture("static");
    source.write("etc/types", "types { text/x-own own; }");
    source.link("mime.types", "etc/types");
    plan(&real(), &source, nixpacks()).await;
    assert!(generated(&source).contains("text/x-own"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_only_directory_that_is_a_link_out_is_not_followed() {
    let source = Source::of(&[]);
    let away = source.outside().join("away");
    fs::create_dir(&away).expect("a directory of the worker");
    fs::write(away.join("main.py"), "print('hello')\n").expect("a file of the worker");
    source.link("app", &away);
    let fault = refusal(&real(), &source, nixpacks()).await;
    assert_eq!(fault.reason, Reason::NoBuildPlan);
    assert!(fault.message.contains("`app` (a link"), "{fault}");
    assert!(!away.join(".nixpacks").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nixpacks_own_directory_is_never_written_through() {
    // The directory itself is a link, and then the files in it.
    let source = source_of_fixture("node");
    let away = source.outside().join("away");
    fs::create_dir(&away).expect("a directory of the worker");
    source.link(".nixpacks", &away);
    plan(&real(), &source, nixpacks()).await;
    assert_eq!(fs::read_dir(&away).expect("still there").count(), 0);
    assert!(source.read(".nixpacks/Dockerfile").starts_with("FROM "));

    let source = source_of_fixture("static");
    let outside = source.outside().join("outside");
    fs::write(&outside, SECRET).expect("a file of the worker");
    source.write(".nixpacks/old", "");
    source.link(".nixpacks/Dockerfile", &outside);
    source.link(".nixpacks/assets", source.outside());
    plan(&real(), &source, nixpacks()).await;
    assert_eq!(fs::read_to_string(&outside).expect("still there"), SECRET);
    assert!(!source.outside().join("nginx.conf").exists());
    assert!(source.read(".nixpacks/Dockerfile").starts_with("FROM "));

    // Nor into the source's own files.
    let source = source_of_fixture("static");
    source.write(".nixpacks/old", "");
    source.link(".nixpacks/Dockerfile", "../index.html");
    let page = source.read("index.html");
    plan(&real(), &source, nixpacks()).await;
    assert_eq!(source.read("index.html"), page);
    assert!(!source.tree().join(".nixpacks/old").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_only_into_nixpacks_own_directory() {
    let archive = "x/../../../../planted";
    for config in [
        "[staticAssets]\n\"../../../planted\" = \"x\"\n[start]\ncmd = \"x\"\n".to_owned(),
        "[staticAssets]\n\"/tmp/planted-by-a-test\" = \"x\"\n[start]\ncmd = \"x\"\n".to_owned(),
        format!("[phases.setup]\nnixPkgs = [\"jq\"]\nnixpkgsArchive = \"{archive}\"\n"),
    ] {
        let source = source_of_fixture("python");
        source.write("nixpacks.toml", &config);
        source.write(".nixpacks/nixpkgs-x/file", "");
        let fault = refusal(&real(), &source, nixpacks()).await;
        assert_eq!(fault.reason, Reason::InvalidPlan, "{config}");
        assert!(fault.message.contains("planted"), "{fault}");
        assert!(!source.outside().join("planted").exists(), "{config}");
        assert!(!std::path::Path::new("/tmp/planted-by-a-test").exists(), "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_file_outside_of_the_context_is_refused() {
    let source = source_of_fixture("python");
    fs::write(source.outside().join("outside.toml"), "[start]\ncmd = \"x\"\n").expect("a file");
    source.link("linked.toml", source.outside().join("outside.toml"));
    for path in ["../../outside.toml", "/../../outside.toml", "linked.toml", "missing.toml"] {
        let by_field = PlanRequest { nixpacks_path: Some(path.to_owned()), ..nixpacks() };
        for wish in [by_field, with_env("NIXPACKS_CONFIG_FILE", path)] {
            let fault = refusal(&real(), &source, wish).await;
            assert_eq!(fault.reason, Reason::InvalidPlan, "{path}");
            assert!(fault.message.contains(&format!("`{path}`")), "{fault}");
        }
    }
    // An absolute path is one below the root directory, for nixpacks too.
    let outside = source.outside().join("outside.toml").display().to_string();
    let fault = refusal(&real(), &source, with_env("NIXPACKS_CONFIG_FILE", &outside)).await;
    assert_eq!(fault.reason, Reason::InvalidPlan);
}

#[tokio::test(flavor = "multi_thread")]
async fn brackets_that_overflow_the_stack_end_only_nixpacks() {
    let source = source_of_fixture("python");
    let deep = 200_000;
    source.write("nixpacks.toml", format!("x = {}{}\n", "[".repeat(deep), "]".repeat(deep)));
    let fault = refusal(&real(), &source, nixpacks()).await;
    assert_eq!(fault.reason, Reason::InvalidPlan);
    assert!(fault.message.contains("nixpacks broke off"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_end_does_not_fill_the_memory() {
    let source = source_of_fixture("node");
    // A `tsconfig.json` may name any path, and nixpacks opens it; what it cannot read it passes over.
    source.write("tsconfig.json", r#"{"extends": "/dev/zero"}"#);
    let planner = limited(Limits { planner_memory_bytes: 256 << 20, ..Limits::default() });
    let plan = plan(&planner, &source, nixpacks()).await;
    assert_eq!(plan.build_args["NIXPACKS_METADATA"], "node");
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_without_end_cost_bounded_time() {
    let source = Source::of(&[]);
    let mut deepest = source.tree().to_owned();
    for _ in 0..1500 {
        deepest.push("a");
    }
    fs::create_dir_all(deepest).expect("a deep directory");
    let planner = limited(Limits { planner_cpu_time: Duration::from_secs(1), ..Limits::default() });
    let fault = refusal(&planner, &source, nixpacks()).await;
    assert_eq!(fault.reason, Reason::InvalidPlan);
    assert!(fault.message.contains("more than 1 s of processor time"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_file_is_not_read() {
    let source = Source::of(&[("server.js", "")]);
    let path = source.tree().join("package.json");
    File::create(&path).and_then(|file| file.set_len(3 << 30)).expect("a file with a hole");
    let fault = refusal(&real(), &source, nixpacks()).await;
    assert_eq!(fault.reason, Reason::NoBuildPlan);
    assert!(fault.message.contains("`package.json` (too long)"), "{fault}");
    assert_eq!(path.metadata().expect("put back").len(), 3 << 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_file_over_the_limit_is_too_large() {
    let source = source_of_fixture("python");
    source.write("nixpacks.toml", "#".repeat((1 << 20) + 1));
    let fault = refusal(&real(), &source, nixpacks()).await;
    assert_eq!(fault.reason, Reason::TooLarge);
    assert!(fault.message.contains("`nixpacks.toml`"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_is_not_waited_for() {
    let source = Source::of(&[("main.py", "print('hello')\n")]);
    let made = Command::new("mkfifo").arg(source.tree().join("package.json")).status();
    assert!(made.expect("mkfifo starts").success());
    let plan = plan(&real(), &source, nixpacks()).await;
    assert_eq!(plan.build_args["NIXPACKS_METADATA"], "python");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_variable_is_not_filled_from_the_workers_environment() {
    let source = source_of_fixture("python");
    let path = std::env::var("PATH").expect("the tests have a PATH");
    let plan = plan(&real(), &source, with_env("PATH", "")).await;
    assert_eq!(plan.build_args["PATH"], "");
    assert!(!generated(&source).contains(&path));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_nixpacks_cannot_read_are_named() {
    for (path, text) in [
        ("nixpacks.toml", "[phases\n"),
        ("nixpacks.json", "{\"phases\": 1}"),
        ("Procfile", "web: [\n"),
    ] {
        let source = source_of_fixture("python");
        source.write(path, text);
        let fault = refusal(&real(), &source, nixpacks()).await;
        assert_eq!(fault.reason, Reason::InvalidPlan, "{path}");
        assert!(fault.message.contains(path), "{path} is not in: {fault}");
    }
    let source = source_of_fixture("python");
    source.write("nixpacks.toml", "[variables]\n\"A B\" = \"x\"\n");
    let fault = refusal(&real(), &source, nixpacks()).await;
    assert_eq!(fault.reason, Reason::InvalidPlan);
    assert!(fault.message.contains("`A B`"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nixpacks_ends_when_nobody_waits_for_it() {
    let source = source_of_fixture("python");
    let fifo = source.outside().join("alive");
    let program = source.outside().join("nixpacks-that-hangs");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo starts").success());
    // It holds the pipe open for as long as it lives, and says so.
    let script =
        format!("#!/bin/sh\nexec 3>'{}'\necho alive >&3\nexec /bin/sleep 40\n", fifo.display());
    fs::write(&program, script).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("that can be run");

    let planner = SourcePlanner::new(PlannerSettings { program, ..settings() });
    let planning = tokio::spawn(async move { try_plan(&planner, &source, nixpacks()).await });
    let (alive, mut first) = tokio::task::spawn_blocking(move || {
        let mut alive = File::open(fifo).expect("the program opens it too");
        let mut first = [0; 6];
        alive.read_exact(&mut first).expect("the program says that it is alive");
        (alive, first)
    })
    .await
    .expect("read");
    assert_eq!(&mut first, b"alive\n");

    planning.abort();
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = String::new();
        (&alive).read_to_string(&mut rest).map(|_| rest)
    });
    let ended = tokio::time::timeout(Duration::from_secs(20), rest).await;
    let rest = ended.expect("the program is still alive").expect("read").expect("its end");
    assert_eq!(rest, "");
}
