//! Pushes that build: of a hook as GitHub sends it, and of a real `git push` to a forge that sends its own.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::support::git_server::{GOOD_TOKEN, GitRepo, PRIVATE, server_url};
use crate::support::stand_in::{Answer, StandIn};
use crate::support::worker::{Worker, run};
use crate::support::world::{World, dockerfile, full_name};
use crate::support::{PATIENCE, client, free_port, runtime, until};

const SECRET: &str = "canary-4b7d-of-this-hook";

/// The proof that a hook with this body is by whoever knows the secret, as GitHub and Gitea have it.
fn signature(body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any key will do");
    let mac = mac.chain_update(body).finalize().into_bytes();
    mac.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sends the hook of a push as GitHub does it; returns the status and what was answered.
fn send(address: &str, delivery: &str, push: &Value) -> (u16, Value) {
    let body = push.to_string();
    let signature = signature(&body);
    let sent = client()
        .post(format!("http://{address}/v1/hooks/github"))
        .header("content-type", "application/json")
        .header("x-github-event", "push")
        .header("x-github-delivery", delivery)
        .header("x-hub-signature-256", format!("sha256={signature}"))
        .body(body);
    runtime().block_on(async {
        let answer = sent.send().await.expect("the worker answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("the answer has an end");
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
    })
}

fn push(repo: &GitRepo, before: &str, after: &str, message: &str, files: &[&str]) -> Value {
    let commit = json!({
        "id": after, "message": message, "added": [], "removed": [], "modified": files,
    });
    json!({
        "ref": "refs/heads/main", "before": before, "after": after, "created": false, "deleted": false,
        "forced": false, "commits": [commit], "head_commit": commit,
        "repository": {"full_name": full_name(repo), "default_branch": "main"},
    })
}

/// What GitHub is told of a commit: states, in order, with the last one's link.
type Told = Arc<Mutex<Vec<(String, String, String)>>>;

#[test]
fn a_push_builds_and_its_commit_says_so() {
    let told = Told::default();
    let telling = told.clone();
    let api = runtime().block_on(StandIn::start(move |asked| {
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let commit = asked.path.rsplit('/').next().unwrap_or_default().to_owned();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let status = (commit, text("state"), text("target_url"));
        telling.lock().expect("no answer panics").push(status);
        Answer::Text { status: 201, headers: Vec::new(), body: b"{}".to_vec() }
    }));
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file can be written");
        path.display().to_string()
    };
    let repo = GitRepo::create(PRIVATE, "pushed");
    let token = file("token", GOOD_TOKEN);
    let address = format!("127.0.0.1:{}", free_port());
    let world = World::new()
        .with("GITHUB_API_URL", &api.url())
        .with("GITHUB_HOOK_SECRET", SECRET)
        .with("API_TOKEN", "canary-4b7d-nobody-who-sends-hooks-has-it")
        .with("HOOKS_ADDR", &address)
        .with("PUBLIC_URL", "https://builds.example.com/");
    let applications = file(
        "applications.toml",
        &format!(
            "[[application]]\nuserID = \"{}\"\nrepo = \"{}\"\npaths = [\"web/\", \"Dockerfile\"]\n\
             tokenFile = \"{token}\"\n",
            world.user,
            full_name(&repo)
        ),
    );
    let world = world.with("APPLICATIONS_FILE", &applications);
    world.keep_secret(SECRET);
    world.keep_secret("canary-4b7d-nobody-who-sends-hooks-has-it");
    let worker = world.worker();
    let first = repo.commit(&[("Dockerfile", &dockerfile("COPY web /web")), ("web/index", "1")]);

    let started = Instant::now();
    let second = repo.commit(&[("web/index", "2")]);
    let hook = push(&repo, &first, &second, "two", &["web/index"]);
    let (status, answer) = send(&address, "delivery-1", &hook);
    assert_eq!(status, 202, "{answer}");
    let id = answer["builds"][0]["buildID"].as_str().expect("a build").to_owned();
    let ready = world.outcome(&id).ready();
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("from `git push` to the image: {seconds:.1} s");
    assert_eq!(ready.data()["commit"], second);
    assert_eq!(ready.data()["userID"], world.user);

    let states = || -> Vec<_> {
        let told = told.lock().expect("no answer panics");
        told.iter().filter(|(commit, ..)| *commit == second).cloned().collect()
    };
    let shown = until("the commit says that it is built", || {
        let states = states();
        states.last().is_some_and(|(_, state, _)| state == "success").then_some(states)
    });
    let (before, last) = shown.split_at(shown.len() - 1);
    assert!(before.iter().all(|(_, state, _)| state == "pending"), "{shown:?}");
    let link = format!("https://builds.example.com/builds/{id}?user={}", world.user);
    assert_eq!(last[0].2.replace("%2D", "-"), link);

    // The same delivery is the same build, and what is not watched is none.
    let (status, again) = send(&worker.http(), "delivery-1", &hook);
    assert_eq!((status, &again["builds"][0]["buildID"]), (200, &json!(id)));
    assert_eq!(again["builds"][0]["status"], "ready");
    let third = repo.commit(&[("README", "3")]);
    let (status, answer) =
        send(&address, "delivery-2", &push(&repo, &second, &third, "three", &["README"]));
    assert_eq!((status, answer["builds"].as_array().map(Vec::len)), (200, Some(0)), "{answer}");

    // What is bad is told, and the worker goes on by what the file said before.
    std::fs::write(&applications, "[[application]]\nuser = 1\n").expect("it can be written");
    until("/readyz tells of the file", || {
        let (status, report) = worker.get("/readyz");
        assert_eq!(status, 200, "{report}");
        report.contains("applications.toml:2: unknown field").then_some(())
    });
    let (status, _) = send(&address, "delivery-3", &push(&repo, &second, &third, "x", &["web/x"]));
    assert_eq!(status, 202);
    let checked = run(&["config"], &world.settings());
    assert_eq!(checked.code, 78, "{checked:?}");
    assert!(checked.stderr.contains("applications.toml:2: unknown field `user`"), "{checked:?}");
    let (told, _) = world.finish(&[&worker]);
    assert_eq!(told.len(), 2);
    let refused = Worker::spawn(&world.settings());
    assert_eq!(refused.wait(), 78);
    assert!(started.elapsed() < Duration::from_secs(120));
}

/// A stand-in for a Gitea, with the git server behind it: the repository tells it of each push, which it sends on to
/// `worker` as a hook; returns it with what it was told of commits.
fn gitea(repo: &GitRepo, worker: &str) -> (StandIn, Told) {
    let told = Told::default();
    let (telling, hooks, repo) =
        (told.clone(), format!("http://{worker}/v1/hooks/gitea"), full_name(repo));
    let forge = runtime().block_on(StandIn::start(move |asked| {
        let text = String::from_utf8_lossy(&asked.body);
        if let Some(commit) = asked.path.strip_prefix(&format!("/api/v1/repos/{repo}/statuses/")) {
            let body: Value = serde_json::from_str(&text).unwrap_or_default();
            let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
            let status = (commit.to_owned(), text("state"), text("target_url"));
            telling.lock().expect("no answer panics").push(status);
            return Answer::Text { status: 201, headers: Vec::new(), body: b"{}".to_vec() };
        }
        if asked.path != "/-/pushed" {
            return Answer::From(server_url());
        }
        let [before, after, name] =
            text.split_whitespace().collect::<Vec<_>>().try_into().expect("one ref was pushed");
        let commit = json!({
            "id": after, "message": "a commit", "added": [], "removed": [], "modified": ["file"],
        });
        let body = json!({
            "ref": name, "before": before, "after": after, "commits": [commit], "total_commits": 1,
            "head_commit": commit, "repository": {"full_name": repo, "default_branch": "main"},
        })
        .to_string();
        let sent = client()
            .post(&hooks)
            .header("content-type", "application/json")
            .header("x-gitea-event", "push")
            .header("x-gitea-delivery", after)
            .header("x-gitea-signature", signature(&body))
            .body(body);
        Answer::Later(Box::pin(async move {
            let answer = sent.send().await.expect("the worker answers");
            Answer::bytes(answer.bytes().await.expect("the answer has an end"))
        }))
    }));
    (forge, told)
}

#[test]
fn a_git_push_to_a_forge_is_an_image_a_moment_later() {
    let repo = GitRepo::create(PRIVATE, "at-gitea");
    repo.commit(&[("Dockerfile", &dockerfile("COPY file /file")), ("file", "1")]);
    let address = format!("127.0.0.1:{}", free_port());
    let (forge, told) = gitea(&repo, &address);
    repo.after_push(&format!("curl -sS --fail --data-binary @- {}/-/pushed", forge.url()));

    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (applications, token) =
        (directory.path().join("apps.toml"), directory.path().join("token"));
    let world = World::new()
        .with("GITEA_URL", &forge.url())
        .with("GITEA_HOOK_SECRET", SECRET)
        .with("HOOKS_ADDR", &address)
        .with("APPLICATIONS_FILE", &applications.display().to_string());
    world.keep_secret(SECRET);
    let application = format!(
        "[[application]]\nuserID = \"{}\"\nconnector = \"gitea\"\nrepo = \"{}\"\ntokenFile = \"{}\"\n",
        world.user,
        full_name(&repo),
        token.display(),
    );
    std::fs::write(&applications, application).expect("it can be written");
    std::fs::write(&token, GOOD_TOKEN).expect("it can be written");
    let worker = world.worker();

    let started = Instant::now();
    let pushed = repo.commit(&[("file", "2")]);
    let ready =
        world.managers.wait_for("the image", PATIENCE, |told| told.data()["commit"] == pushed);
    let ready = ready.expect("it comes").ready();
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("from `git push` to the image: {seconds:.2} s");
    assert_eq!(ready.data()["connector"], "gitea");
    let states = || -> Vec<String> {
        let told = told.lock().expect("no answer panics");
        told.iter().filter(|(commit, ..)| *commit == pushed).map(|(_, it, _)| it.clone()).collect()
    };
    until("the commit says that it is built", || {
        (states().last().map(String::as_str) == Some("success")).then_some(())
    });
    let (told, _) = world.finish(&[&worker]);
    assert_eq!(told.len(), 1);
}
