//! Credentials: wherever one may go on its way through a worker, none is to be seen.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::canary;
use crate::support::git_server::{GOOD_TOKEN, GitRepo, PRIVATE};
use crate::support::unique;
use crate::support::world::{World, dockerfile, repository, with};
use crate::support::{engine, registry};

/// Looks at the command lines of all processes, for as long as it lives.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<BTreeSet<String>>,
}

impl Watch {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                let processes = std::fs::read_dir("/proc").expect("there is /proc");
                let lines = processes.flatten().filter_map(|process| {
                    let line = std::fs::read(process.path().join("cmdline")).ok()?;
                    Some(String::from_utf8_lossy(&line).replace('\0', " "))
                });
                seen.extend(lines.filter(|line| !line.is_empty()));
                std::thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        Self { stop, thread }
    }

    fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it only reads")
    }
}

#[test]
fn no_credential_is_in_a_log_a_process_list_a_notification_or_a_dead_letter() {
    let (registry_url, username, password) = registry::guarded();
    let world = World::new()
        .with("REGISTRY_URL", &registry_url)
        .with("REGISTRY_USERNAME", &username)
        .with("REGISTRY_PASSWORD", &password)
        .with("RUST_LOG", "trace");
    let [wrong_token, secret] = ["token", "secret"].map(canary::secret);
    let variable = unique("variable");
    for text in [GOOD_TOKEN, &password, &wrong_token, &secret] {
        world.keep_secret(text);
    }
    let worker = world.worker();
    let watch = Watch::start();

    let repo = GitRepo::create(PRIVATE, "confidential");
    let step = "RUN --mount=type=secret,id=key test -s /run/secrets/key; sleep 1";
    repo.commit(&[("Dockerfile", &dockerfile(step))]);
    let confidential = |token: &str, plan: serde_json::Value| {
        with(world.request(&repo), json!({"token": token, "buildPlan": plan}))
    };
    let plan = json!({"secrets": {"key": secret}, "buildArgs": {"HARMLESS": variable}});
    let good = world.publish(&confidential(GOOD_TOKEN, plan.clone()));
    let bad = world.publish(&confidential(&wrong_token, plan.clone()));
    world.outcome(&good).ready();
    world.outcome(&bad).failed("unauthorized");

    repo.commit(&[(
        "Dockerfile",
        &dockerfile("RUN --mount=type=secret,id=key cat /run/secrets/key; exit 5"),
    )]);
    world.build(&confidential(GOOD_TOKEN, plan)).failed("build_failed");

    let lines = watch.end();
    assert!(lines.iter().any(|line| line.contains("image-builder serve")), "the worker was seen");
    for line in &lines {
        for secret in [&password, &wrong_token, &secret] {
            assert!(!line.contains(secret.as_str()), "{line}");
        }
        // The development services have this one in their own configuration.
        let of_the_worker = line.contains("image-builder") && !line.contains("stack.sh");
        assert!(!of_the_worker || !line.contains(GOOD_TOKEN), "{line}");
    }
    let (_, letters) = world.finish(&[&worker]);
    assert_eq!(letters.len(), 2);
    assert!(letters[0].text.contains(&variable), "a letter has what is no secret: {letters:?}");
}

/// Prints the secret `key` in the forms that programs write, and then fails.
const FORMS: &str = "RUN --mount=type=secret,id=key --mount=type=secret,id=pin \
    s=$(cat /run/secrets/key); \
    echo \"it is $s\"; echo \"$s\" | base64; echo \"user:$s\" | base64 -w0; echo; \
    echo \"xx:$s\" | base64 -w 10; printf %s \"$s\" | od -An -v -tx1 | tr -d ' \\n'; echo; \
    printf %s \"$s\" | od -An -v -tx1 -w1024; echo \"$s\" | tr a-z A-Z; \
    echo \"$s\" | sed 's/\\//%2F/g; s/ /%20/g; s/\\\"/%22/g'; \
    echo \"$s\" | sed 's/\\\"/\\\\\\\"/g'; printf %s \"$s\" | fold -w 9; echo; \
    echo \"$s\" | sed 's/\\(...\\)/\\1\\x1b[1m/g'; \
    echo \"pin=$(cat /run/secrets/pin)\"; echo said; exit 5";

#[test]
fn a_secret_is_in_no_form_in_what_a_build_writes() {
    let world = World::new();
    let worker = world.worker();
    let secret = format!("s3/{} \"q", canary::secret("form"));
    world.keep_secret(&secret);
    let repo =
        repository("forms", &[("Dockerfile", &format!("FROM {}\n{FORMS}\n", engine::DEBIAN))]);
    let plan = json!({"secrets": {"key": secret, "pin": "q7x"}});
    let told = world.build(&with(world.request(&repo), json!({"buildPlan": plan})));
    let told = told.failed("build_failed");
    let log: Vec<_> = told.data()["log"].as_array().expect("lines").clone();
    let said: Vec<_> = log.iter().filter_map(|line| line.as_str()).collect();
    let end = said.iter().rposition(|line| *line == "said").expect("the step ran to its end");
    assert!(said[..end].contains(&"pin=[secret]"), "{said:?}");
    let written =
        &said[said.iter().position(|line| *line == "it is [secret]").expect("first")..end];
    assert!(written.len() >= 11, "{written:?}");
    for line in written {
        assert!(line.contains("[secret]"), "{line}: {written:?}");
    }
    // What is left beside the secret is at most what a neighbour has a part in.
    for piece in [&secret[..9], &secret[9..18], "q7x"] {
        assert!(!said[..end].iter().any(|line| line.contains(piece)), "{piece}: {said:?}");
    }
    world.finish(&[&worker]);
}

#[test]
fn an_image_that_holds_a_secret_is_not_pushed() {
    let world = World::new();
    let worker = world.worker();
    let secret = unique("s3cr3t-in-an-image");
    world.keep_secret(&secret);
    let commits = [
        (
            "RUN --mount=type=secret,id=key cp /run/secrets/key /root/.netrc\nRUN rm /root/.netrc",
            "the file `/root/.netrc`, in the layer of the step `RUN ",
        ),
        ("ARG KEY\nENV KEY=$KEY", "the variable `KEY`"),
    ];
    for (steps, place) in commits {
        let repo = repository("leaking", &[("Dockerfile", &dockerfile(steps))]);
        let plan = json!({"secrets": {"key": secret}, "buildArgs": {"KEY": secret}});
        let application = unique("leaking");
        let request = json!({"buildPlan": plan, "applicationID": application});
        let told = world.build(&with(world.request(&repo), request)).failed("secret_in_image");
        assert_eq!(told.data()["attempts"], 1, "{}", told.raw);
        let message = told.text("/message");
        assert!(message.contains("the request's secret `key`"), "{message}");
        assert!(message.contains(place) || message.contains("its history"), "{message}");
        let commit = repo.git(&["rev-parse", "HEAD"]);
        let repository = format!("{}/{application}", world.user);
        assert_eq!(registry::digest(&repository, &commit), None, "it is not in the registry");
    }
    world.finish(&[&worker]);
}
