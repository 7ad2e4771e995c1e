//! `image-builder plan`.

use serde_json::Value;

use crate::{dockerfile, folder, run, settings};

#[test]
fn a_plan_tells_the_builder_why_and_what_would_be_sent() {
    let text = dockerfile("ARG VERSION\nRUN true");
    let folder = folder(&[
        ("web/Dockerfile", &text),
        ("web/.dockerignore", "big\n"),
        ("web/big", &"x".repeat(100_000)),
        ("web/small", "four"),
        ("npm", "s3cr3t-value"),
    ]);
    let mut settings = settings();
    // No engine is asked.
    settings.insert("DOCKER_HOST".to_owned(), "unix:///nowhere/docker.sock".to_owned());
    let arguments =
        ["plan", ".", "--root", "web", "--build-arg", "VERSION=7", "--secret", "npm=npm"];
    let ended = run(&arguments, folder.path(), &settings);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    for part in [
        "builder     dockerfile, because there is a `Dockerfile`\n",
        "root        web\n",
        "context     3 files, ",
        "images      busybox:1.35\n",
        "arguments   VERSION\n",
        "secrets     npm\n",
        &format!("\n# Dockerfile\n{text}"),
    ] {
        assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
    }
    assert!(!ended.stdout.contains("s3cr3t"), "{}", ended.stdout);
    let ended = run(&[&arguments[..], &["--json"]].concat(), folder.path(), &settings);
    let plan: Value = serde_json::from_str(&ended.stdout).expect("one object");
    let bytes = text.len() + "big\n".len() + "four".len();
    assert_eq!((&plan["context"]["files"], &plan["context"]["bytes"]), (&3.into(), &bytes.into()));
    assert_eq!(plan["dockerfile"]["text"], text);
}

#[test]
fn the_dockerfile_that_nixpacks_makes_is_shown_and_nothing_is_left_behind() {
    let folder = folder(&[("Procfile", "web: ./run\n"), ("package.json", "{\"name\": \"app\"}")]);
    let arguments = ["plan", ".", "--env", "A=s3cr3t", "--json"];
    let ended = run(&arguments, folder.path(), &settings());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let plan: Value = serde_json::from_str(&ended.stdout).expect("one object");
    assert_eq!(
        (&plan["builder"], &plan["because"]),
        (&"nixpacks".into(), &"there is no `Dockerfile`".into())
    );
    let text = plan["dockerfile"]["text"].as_str().expect("a text");
    assert!(text.starts_with("FROM ") && text.contains("./run"), "{text}");
    assert!(!ended.stdout.contains("s3cr3t"), "{}", ended.stdout);
    assert!(!folder.path().join(".nixpacks").exists());
}

#[test]
fn where_nothing_fits_it_is_said_what_was_looked_for() {
    let folder = folder(&[("notes.txt", "")]);
    let ended = run(&["plan", "."], folder.path(), &settings());
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    for part in ["no `Dockerfile`", "node", "python"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    let ended =
        run(&["plan", ".", "--builder", "nixpacks", "--target", "x"], folder.path(), &settings());
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("`--target`"), "{}", ended.stderr);
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    let folder = folder(&[]);
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(&["completions", shell], folder.path(), &settings());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.stdout.contains("no-cache"), "{shell}: {}", ended.stdout);
    }
    let ended = run(&["man", "pages"], folder.path(), &settings());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let page = std::fs::read_to_string(folder.path().join("pages/image-builder-build.1"));
    assert!(page.expect("there is a page").contains("Exit codes"));
}
