//! `image-builder build`, without a terminal.

use serde_json::Value;

use crate::support::git_server::GitRepo;
use crate::support::{setting, unique};
use crate::{Image, docker, dockerfile, folder, run, settings};

#[test]
fn a_folder_is_built_without_what_it_ignores_and_gets_its_name() {
    let mark = unique("tools");
    let folder = folder(&[
        ("Dockerfile", &dockerfile(&format!("COPY . /app\nRUN echo {mark} > /mark"))),
        (".dockerignore", "secret.txt\n"),
        ("secret.txt", "s3cr3t"),
        ("kept.txt", "kept"),
    ]);
    let name = Image(format!("{mark}:dev"));
    let ended = run(&["build", ".", "--tag", &name.0], folder.path(), &settings());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains(&format!("name    {}\n", name.0)), "{}", ended.stdout);
    let step = format!("RUN echo {mark} > /mark\n");
    assert!(ended.stderr.contains(&step), "{}", ended.stderr);
    assert!(ended.stderr.contains(" DONE "), "{}", ended.stderr);
    let listed = docker(&["run", "--rm", &name.0, "cat", "/mark", "/app/kept.txt"]);
    assert_eq!(listed, format!("{mark}\nkept"));
    assert_eq!(docker(&["run", "--rm", &name.0, "ls", "/app"]), "Dockerfile\nkept.txt");
    // Its own name is the only one.
    let names = docker(&["image", "inspect", "-f", "{{json .RepoTags}}", &name.0]);
    assert_eq!(names, format!("[\"{}\"]", name.0));

    let again = run(&["build", ".", "--tag", &name.0], folder.path(), &settings());
    assert!(again.stderr.contains(" CACHED\n"), "{}", again.stderr);
    let quiet = run(&["build", ".", "--tag", &name.0, "--quiet"], folder.path(), &settings());
    let id = docker(&["image", "inspect", "-f", "{{.Id}}", &name.0]);
    assert_eq!((quiet.stdout.trim(), quiet.stderr.as_str()), (id.as_str(), ""));
    let fresh = run(&["build", ".", "--tag", &name.0, "--no-cache"], folder.path(), &settings());
    assert!(!fresh.stderr.contains(&format!("{step}CACHED")), "{}", fresh.stderr);
}

#[test]
fn a_folder_without_a_dockerfile_is_built_by_nixpacks_and_left_as_it_is() {
    let app = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/apps/procfile");
    let name = Image(format!("{}:latest", unique("tools")));
    let before = listing(app);
    let folder = folder(&[]);
    let arguments = ["build", app, "--tag", &name.0, "--json"];
    let ended = run(&arguments, folder.path(), &settings());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let result: Value = serde_json::from_str(&ended.stdout).expect("one object");
    assert_eq!((&result["outcome"], &result["builder"]), (&"built".into(), &"nixpacks".into()));
    assert_eq!(result["image"]["names"][0], name.0);
    assert_eq!(listing(app), before);
}

fn listing(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("it is there");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_repository_is_built_from_a_branch_a_tag_or_a_commit_and_pushed() {
    let repo = GitRepo::create("it", "tools");
    let mark = unique("tools");
    let commit = repo.commit(&[("Dockerfile", &dockerfile(&format!("RUN echo {mark}")))]);
    let name = format!("{}/{}", repo.owner, repo.name);
    let folder = folder(&[]);
    for reference in ["", "@main", &format!("@{commit}"), &format!("@{}", &commit[..8])] {
        let source = format!("{name}{reference}");
        let ended = run(&["build", &source, "--push", "--json"], folder.path(), &settings());
        assert_eq!(ended.code, 0, "{source}: {}", ended.stderr);
        let result: Value = serde_json::from_str(&ended.stdout).expect("one object");
        assert_eq!(result["commit"], commit);
        let registry = setting("REGISTRY_URL", "localhost:5000");
        assert_eq!(result["pushed"]["reference"], format!("{registry}/{name}:{commit}"));
        let digest = result["pushed"]["digest"].as_str().expect("a digest");
        let pulled = Image(format!("{registry}/{name}@{digest}"));
        docker(&["pull", "-q", &pulled.0]);
        assert_eq!(
            docker(&["image", "inspect", "-f", "{{.Id}}", &pulled.0]),
            result["image"]["id"].as_str().expect("an id")
        );
    }
    let ended = run(&["build", &format!("{name}@nothing")], folder.path(), &settings());
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("has no branch, tag or commit `nothing`"), "{}", ended.stderr);
}

#[test]
fn arguments_variables_and_secrets_reach_the_build_and_no_secret_is_shown() {
    let step = "ARG A B C\nRUN --mount=type=secret,id=npm echo $A-$B-$C-$(cat /run/secrets/npm)";
    let folder = folder(&[("Dockerfile", &dockerfile(step)), ("token", "s3cr3t-value\n")]);
    let mut settings = settings();
    settings.insert("C".to_owned(), "three".to_owned());
    let arguments =
        ["build", ".", "--build-arg", "A=one", "-e", "B=two", "--build-arg", "C", "--secret"];
    let arguments = [&arguments[..], &["npm=token", "--no-cache", "--progress", "json"]].concat();
    let ended = run(&arguments, folder.path(), &settings);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let lines = ended.stderr.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let output = lines.filter(|line: &Value| line["type"] == "output").collect::<Vec<_>>();
    assert_eq!(output[0]["text"], "one-two-three-[secret]");
    assert!(!ended.stderr.contains("s3cr3t"));
}

#[test]
fn a_build_that_fails_says_which_step_and_why_and_exits_1() {
    let step = "RUN echo before; echo oops >&2; exit 3";
    let folder = folder(&[("Dockerfile", &dockerfile(step))]);
    let ended = run(&["build", ".", "--quiet"], folder.path(), &settings());
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    assert!(ended.stderr.contains(" before\n") && ended.stderr.contains(" oops\n"));
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert_eq!(last, format!("image-builder: Step `{step}` failed with exit code 3."));

    let ended = run(&["build", ".", "--json"], folder.path(), &settings());
    let result: Value = serde_json::from_str(&ended.stdout).expect("one object");
    assert_eq!((ended.code, &result["reason"]), (1, &"build_failed".into()));
    assert_eq!((&result["fault"], &result["outcome"]), (&"user".into(), &"failed".into()));
    assert!(result["log"].as_array().expect("lines").contains(&"oops".into()), "{result}");
}

#[test]
fn without_an_engine_it_is_said_what_to_do_and_the_exit_is_69() {
    let folder = folder(&[("Dockerfile", &dockerfile(""))]);
    let mut settings = settings();
    settings.insert("DOCKER_HOST".to_owned(), "unix:///nowhere/docker.sock".to_owned());
    let ended = run(&["build", "."], folder.path(), &settings);
    assert_eq!(ended.code, 69);
    assert!(ended.stderr.contains("out of reach"), "{}", ended.stderr);
    assert!(ended.stderr.contains("Start Docker, or set DOCKER_HOST"), "{}", ended.stderr);
}

#[test]
fn a_command_line_that_is_wrong_exits_64_and_a_bad_setting_78() {
    let folder = folder(&[("Dockerfile", &dockerfile(""))]);
    for (arguments, part) in [
        (&["build", "nowhere"][..], "is not there"),
        (&["build", ".", "--tag", "Not A Name"], "--tag"),
        (&["build", ".", "--push=elsewhere.example/x"], "REGISTRY_URL"),
        (&["build", ".", "--secret", "npm"], "ID=PATH"),
        (&["build", ".", "--build-arg", "UNSET_HERE"], "UNSET_HERE"),
        (&["build", "owner/../name"], "owner/name"),
        (&["build"], "Usage"),
    ] {
        let ended = run(arguments, folder.path(), &settings());
        assert_eq!(ended.code, 64, "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(part), "{arguments:?}: {}", ended.stderr);
    }
    let mut settings = settings();
    settings.insert("REGISTRY_URL".to_owned(), "ftp://x".to_owned());
    let ended = run(&["build", "."], folder.path(), &settings);
    assert_eq!(ended.code, 78);
    assert!(ended.stderr.contains("REGISTRY_URL"), "{}", ended.stderr);
}

#[test]
fn a_private_repository_takes_the_token_of_a_file_and_shows_it_nowhere() {
    use crate::support::git_server::{GOOD_TOKEN, PRIVATE};
    let repo = GitRepo::create(PRIVATE, "tools");
    repo.commit(&[("Dockerfile", &dockerfile("RUN true"))]);
    let name = format!("{}/{}", repo.owner, repo.name);
    let folder = folder(&[("token", GOOD_TOKEN)]);
    let ended = run(&["plan", &name], folder.path(), &settings());
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("--token-file"), "{}", ended.stderr);
    let ended = run(&["plan", &name, "--token-file", "token"], folder.path(), &settings());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!ended.stderr.contains(GOOD_TOKEN) && !ended.stdout.contains(GOOD_TOKEN));
}
