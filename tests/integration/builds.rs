//! Builds: what a Dockerfile may use, and what is built without one, up to a container that works.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use memchr::memmem;
use serde_json::json;

use crate::support::canary;
use crate::support::engine::{self, Container, file_in};
use crate::support::git_server::GitRepo;
use crate::support::world::{dockerfile, repository, shared, with};
use crate::support::{unique, until};

#[test]
fn a_secret_reaches_its_step_and_nothing_else() {
    let world = shared();
    let secret = canary::secret("a-build-secret");
    world.keep_secret(&secret);
    let step = unique("step");
    let repo = repository(
        "secret",
        &[(
            "Dockerfile",
            &dockerfile(&format!(
                "RUN --mount=type=secret,id=npm,required=true : {step}; \\\n\
                 cat /run/secrets/npm; wc -c < /run/secrets/npm > /length; \\\n\
                 sha256sum < /run/secrets/npm | cut -c1-64 > /hash"
            )),
        )],
    );
    let plan = json!({"buildPlan": {"secrets": {"npm": secret}}});
    let told = world.build(&with(world.request(&repo), plan)).ready();
    let image = told.text("/image/imageID");
    assert_eq!(file_in(image, "/length"), secret.len().to_string(), "the step had all of it");

    let history = engine::docker(&["history", "--no-trunc", image]);
    assert!(history.contains(&step), "{history}");
    assert!(!history.contains(&secret), "{history}");
    // Layers of `docker save` are plain tar files.
    let whole = engine::saved(image);
    let has = |text: &str| memmem::find(&whole, text.as_bytes()).is_some();
    assert!(has(&step), "the image was searched");
    assert!(!has(&secret), "the secret is in the image");
    // The step wrote it on its output: the log has it masked.
    let masked = |line: &String| line.contains(told.build_id()) && line.contains("[secret]");
    assert!(world.worker.lines().iter().any(masked));
}

#[test]
fn a_secret_of_many_lines_is_masked_in_what_is_told_of_a_failed_build() {
    let world = shared();
    let lines = ["first-line", "second-line"].map(canary::secret);
    for line in &lines {
        world.keep_secret(line);
    }
    let steps = "RUN --mount=type=secret,id=key cat /run/secrets/key; echo the end; exit 7";
    let repo = repository("failing-secret", &[("Dockerfile", &dockerfile(steps))]);
    let plan = json!({"buildPlan": {"secrets": {"key": lines.join("\n")}}});
    let told = world.build(&with(world.request(&repo), plan)).failed("build_failed");
    let log = told.data()["log"].to_string();
    assert!(log.contains("[secret]") && log.contains("the end"), "{log}");
    assert!(!log.contains(&lines[0]) && !log.contains(&lines[1]), "{log}");
}

#[test]
fn a_multi_stage_build_uses_cache_mounts_and_stops_at_its_target() {
    let world = shared();
    let base = engine::BASE;
    let cache = unique("cache");
    let repo = GitRepo::create("it", "stages");
    let stages = |round: &str| {
        format!(
            "FROM {base} AS compile\n\
             RUN --mount=type=cache,id={cache},target=/cache \
             cp /cache/seen /seen 2>/dev/null || echo nothing > /seen; echo {round} > /cache/seen\n\
             FROM {base} AS ship\nCOPY --from=compile /seen /seen\n\
             FROM ship AS test\nRUN echo this stage is not wanted; exit 1\n"
        )
    };
    let plan = json!({"buildPlan": {"target": "ship"}});
    repo.commit(&[("Dockerfile", &stages("first"))]);
    let first = world.build(&with(world.request(&repo), plan.clone())).ready();
    assert_eq!(file_in(first.text("/image/imageID"), "/seen"), "nothing");
    repo.commit(&[("Dockerfile", &stages("second"))]);
    let second = world.build(&with(world.request(&repo), plan)).ready();
    assert_eq!(file_in(second.text("/image/imageID"), "/seen"), "first", "the cache was kept");
}

#[test]
fn build_arguments_and_another_dockerfile_are_honoured() {
    let world = shared();
    let repo = repository(
        "arguments",
        &[
            ("Dockerfile", "FROM scratch\nthis is no step\n"),
            ("build/Containerfile", &dockerfile("ARG COLOUR=none\nRUN echo $COLOUR > /colour")),
        ],
    );
    let plan = json!({"buildPlan": {
        "builder": "docker", "dockerfilePath": "build/Containerfile", "buildArgs": {"COLOUR": "blue"},
    }});
    let told = world.build(&with(world.request(&repo), plan)).ready();
    assert_eq!(file_in(told.text("/image/imageID"), "/colour"), "blue");
}

#[test]
fn submodules_are_fetched() {
    let world = shared();
    let library = GitRepo::create("it", "library");
    let commit = library.commit(&[("lib.txt", "from the submodule")]);
    let repo = GitRepo::create("it", "with-submodule");
    repo.add_submodule("vendor/library", &format!("../{}.git", library.name), &commit);
    repo.commit(&[("Dockerfile", &dockerfile("COPY vendor/library/lib.txt /lib.txt"))]);
    let told = world.build(&world.request(&repo)).ready();
    assert_eq!(file_in(told.text("/image/imageID"), "/lib.txt"), "from the submodule");
}

#[test]
fn a_large_file_that_the_forge_does_not_have_is_named() {
    let world = shared();
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 123456\n",
        "ab".repeat(32)
    );
    let repo = repository(
        "lfs",
        &[
            (".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n"),
            ("models/big.bin", &pointer),
            ("Dockerfile", &dockerfile("COPY models /models")),
        ],
    );
    let told = world.build(&world.request(&repo));
    assert_eq!(told.kind(), "build.failed", "{}", told.raw);
    assert_eq!(told.text("/stage"), "connector", "{}", told.raw);
    assert_eq!(told.text("/fault"), "user", "{}", told.raw);
    assert_eq!(told.data()["attempts"], 1, "{}", told.raw);
    let message = told.text("/message");
    assert!(message.contains("LFS") && message.contains("`models/big.bin`"), "{message}");
}

#[test]
fn a_node_application_without_a_dockerfile_becomes_a_container_that_answers() {
    let repo = repository(
        "node-app",
        &[
            (
                "package.json",
                r#"{"name": "app", "version": "1.0.0", "scripts": {"start": "node server.js"}}"#,
            ),
            (
                "server.js",
                "require('http').createServer((_, answer) => answer.end('node says ' + process.env.WORD))\
                 .listen(process.env.PORT, '127.0.0.1');",
            ),
        ],
    );
    answers(&repo, "node says hello");
}

#[test]
fn a_python_application_without_a_dockerfile_becomes_a_container_that_answers() {
    let repo = repository(
        "python-app",
        &[(
            "main.py",
            r#"import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(("python says " + os.environ["WORD"]).encode())

HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#,
        )],
    );
    answers(&repo, "python says hello");
}

/// Builds it with nixpacks, runs the image, and asks it.
#[track_caller]
fn answers(repo: &GitRepo, expected: &str) {
    let world = shared();
    let plan = json!({"buildPlan": {"envs": [{"key": "WORD", "value": "hello"}]}});
    let told = world.build(&with(world.request(repo), plan)).ready();
    assert_eq!(told.text("/builder"), "nixpacks");

    let port = free_port();
    let port_text = port.to_string();
    let container = Container::start(told.text("/image/imageID"), &[("PORT", &port_text)]);
    let answer = until("the container answers", || {
        assert!(container.is_running(), "the container ended: {}", container.logs());
        get(port)
    });
    assert!(answer.contains(expected), "{answer}");
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a local port is free");
    listener.local_addr().expect("the port is known").port()
}

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
