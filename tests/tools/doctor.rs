//! `image-builder doctor`, where all is well and where it is not.

use std::fs::File;

use serde_json::Value;

use crate::support::engine::DEBIAN;
use crate::support::setting;
use crate::support::worker::Settings;
use crate::{folder, run, settings};

fn with(settings: Settings, more: &[(&str, &str)]) -> Settings {
    let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    settings.into_iter().chain(more).collect()
}

/// The findings as `check status`, with their texts.
fn findings(stdout: &str) -> Vec<(String, String)> {
    let told: Value = serde_json::from_str(stdout).expect("one object");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = told["checks"].as_array().expect("a list");
    let finding = |it: &Value| {
        let what = format!("{} {}", text(&it["check"]), text(&it["status"]));
        (what, format!("{} {}", text(&it["detail"]), text(&it["remedy"])))
    };
    checks.iter().map(finding).collect()
}

#[test]
fn where_all_is_well_it_says_so() {
    let uri = setting("RABBITMQ_URI", "amqp://guest:guest@localhost:5672/%2f");
    // A step reaches the tests' git server on the network of the engine's machine.
    let settings = with(settings(), &[("RABBITMQ_URI", &uri), ("BUILDER_NETWORK", "host")]);
    let folder = folder(&[]);
    let ended = run(&["doctor", "--image", DEBIAN, "--json"], folder.path(), &settings);
    let found = findings(&ended.stdout);
    assert_eq!(ended.code, 0, "{found:#?}");
    // All that is warned of is what the tests' engine and git server ask for.
    for (what, text) in found.iter().filter(|(what, _)| what.starts_with("settings ")) {
        let known = ["TENANCY: ", "BUILDER_NETWORK: "];
        let is_known = known.iter().any(|name| text.starts_with(name));
        assert!(what == "settings ok" || (what == "settings warn" && is_known), "{found:#?}");
    }
    for check in [
        "data", "disk", "clock", "engine", "registry", "broker", "history", "forge", "push",
        "build", "step dns",
    ] {
        let good = format!("{check} ok");
        assert!(found.iter().any(|(what, _)| *what == good), "{check}: {found:#?}");
    }
    assert!(found.iter().any(|(what, _)| what == "manager skip"));
    assert!(!folder.path().join("data").exists(), "it only looks");
}

#[test]
fn what_is_missing_is_said_with_its_remedy() {
    let away = [
        ("DOCKER_HOST", "unix:///nowhere/docker.sock"),
        ("REGISTRY_URL", "127.0.0.1:1"),
        ("RABBITMQ_URI", "amqp://guest:pa55word@127.0.0.1:1/%2f"),
        ("DATABASE_URL", "postgres://builder:pa55word@127.0.0.1:1/builds"),
        ("GITHUB_URL", "http://127.0.0.1:1"),
        ("GITHUB_API_URL", "http://127.0.0.1:1"),
        ("CONTAINER_MANAGER_URL", "http://127.0.0.1:1/ready"),
        ("DATA_DIR", "/proc/data"),
    ];
    let folder = folder(&[]);
    let ended = run(&["doctor"], folder.path(), &with(settings(), &away));
    assert_eq!(ended.code, 69, "{}", ended.stdout);
    let line = |begin: &str| {
        let found = ended.stdout.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("`{begin}`: {}", ended.stdout))
    };
    for (begin, remedy) in [
        ("FAIL  data ", "Set DATA_DIR"),
        ("FAIL  engine ", "Start Docker, or set DOCKER_HOST"),
        ("FAIL  registry ", "Start the registry, or set REGISTRY_URL"),
        ("FAIL  broker ", "check RABBITMQ_URI"),
        ("FAIL  history ", "check DATABASE_URL"),
        ("FAIL  forge ", "GITHUB_URL"),
        ("FAIL  manager ", "correct CONTAINER_MANAGER_URL"),
        ("SKIP  clock ", "neither"),
        ("SKIP  push ", "no engine"),
        ("SKIP  build ", "no engine"),
    ] {
        assert!(line(begin).contains(remedy), "{}", line(begin));
    }
    assert!(!ended.stdout.contains("pa55word"), "{}", ended.stdout);
}

#[test]
fn bad_settings_are_findings_and_a_running_worker_is_seen() {
    let folder = folder(&[]);
    let bad = with(settings(), &[("REGISTRY_URL", "ftp://x"), ("BUILD_LANES", "no")]);
    let bad = with(bad, &[("APPLICATIONS_FILE", "/nowhere.toml")]);
    let ended = run(&["doctor"], folder.path(), &bad);
    assert_eq!(ended.code, 69);
    assert!(ended.stdout.contains("FAIL  settings     REGISTRY_URL: "), "{}", ended.stdout);
    assert!(ended.stdout.contains("FAIL  settings     BUILD_LANES: "), "{}", ended.stdout);
    let line = "FAIL  settings     APPLICATIONS_FILE: /nowhere.toml cannot be read";
    assert!(ended.stdout.contains(line), "{}", ended.stdout);

    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("made");
    let lock = File::create(data.join("lock")).expect("made");
    lock.try_lock().expect("nobody has it");
    let away = [("DOCKER_HOST", "unix:///nowhere/docker.sock")];
    let ended = run(&["doctor"], folder.path(), &with(settings(), &away));
    assert!(ended.stdout.contains("data is in use by "), "{}", ended.stdout);
}

#[test]
fn a_registry_that_wants_a_password_is_tried_with_it() {
    let settings = with(
        settings(),
        &[
            ("REGISTRY_URL", &setting("AUTH_REGISTRY_URL", "localhost:5001")),
            ("REGISTRY_USERNAME", &setting("AUTH_REGISTRY_USERNAME", "builder")),
            ("REGISTRY_PASSWORD", &setting("AUTH_REGISTRY_PASSWORD", "builder-secret")),
        ],
    );
    let folder = folder(&[]);
    let ended = run(&["doctor", "--json"], folder.path(), &settings);
    let found = findings(&ended.stdout);
    for good in ["registry ok", "push ok"] {
        assert!(found.iter().any(|(what, _)| what == good), "{good}: {found:#?}");
    }
    let settings = with(settings, &[("REGISTRY_PASSWORD", "wrong-password")]);
    let ended = run(&["doctor", "--json"], folder.path(), &settings);
    let found = findings(&ended.stdout);
    let (_, text) = found.iter().find(|(what, _)| what == "registry fail").expect("it is refused");
    assert_eq!(text.matches("REGISTRY_PASSWORD").count(), 1, "{text}");
    assert!(!ended.stdout.contains("wrong-password"), "{}", ended.stdout);
}
