//! Credentials: wherever one may go on its way through a worker, none is to be seen.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::git_server::{GOOD_TOKEN, GitRepo, PRIVATE};
use crate::support::registry;
use crate::support::unique;
use crate::support::world::{World, dockerfile, with};

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
    let [wrong_token, secret, variable] = ["token", "secret", "variable"].map(unique);
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
