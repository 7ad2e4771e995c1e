//! The real Docker Engine, as a person with its command line uses it.

use std::collections::BTreeSet;
use std::process::{Command, Output};

/// The base image of most builds here: a shell, and what one needs beside it.
pub const BASE: &str = "busybox:1.35";
/// One that has the C library of the programs that are compiled here, and `bash`.
pub const DEBIAN: &str = "debian:bookworm-slim";

/// Runs `docker` and returns what it prints.
#[track_caller]
pub fn docker(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn run(arguments: &[&str]) -> Output {
    Command::new("/usr/bin/docker")
        .args(arguments)
        .output()
        .expect("docker is installed: run .devcontainer/stack.sh install")
}

/// The output of a command in a container of this image.
#[track_caller]
pub fn run_in(image: &str, command: &[&str]) -> String {
    let mut arguments = vec!["run", "--rm", "--network", "none", image];
    arguments.extend(command);
    docker(&arguments)
}

/// A file of an image.
#[track_caller]
pub fn file_in(image: &str, path: &str) -> String {
    run_in(image, &["cat", path])
}

/// All of an image as bytes: its configuration, its history and its layers.
pub fn saved(image: &str) -> Vec<u8> {
    let output = run(&["save", image]);
    assert!(output.status.success(), "docker save {image} works");
    output.stdout
}

/// A label of an image.
pub fn label(image: &str, name: &str) -> String {
    let format = format!("{{{{index .Config.Labels \"{name}\"}}}}");
    docker(&["image", "inspect", "--format", &format, image])
}

/// Removes what workers built for this user, and for those whose names begin with theirs and a dash: where there are
/// many images, to look at them takes the engine long.
pub fn forget(user: &str) {
    let names =
        ["", "-*"].map(|rest| format!("--filter=reference=image-builder.local/{user}{rest}/*"));
    let list = run(&["image", "ls", "--no-trunc", "--quiet", &names[0], &names[1]]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let ids: BTreeSet<&str> = list.lines().collect();
    if !ids.is_empty() {
        let ids: Vec<&str> = ids.into_iter().collect();
        let _ = run(&[&["image", "rm", "--force"], &ids[..]].concat());
    }
}

/// A container that is running; dropping it removes it.
pub struct Container(String);

impl Container {
    /// Starts a container in the machine's own network.
    pub fn start(image: &str, env: &[(&str, &str)]) -> Self {
        let env: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut arguments = vec!["run", "--detach", "--network", "host"];
        for pair in &env {
            arguments.extend(["--env", pair]);
        }
        arguments.push(image);
        Self(docker(&arguments))
    }

    pub fn logs(&self) -> String {
        let output = run(&["logs", &self.0]);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    pub fn is_running(&self) -> bool {
        docker(&["inspect", "--format", "{{.State.Running}}", &self.0]) == "true"
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = run(&["rm", "--force", "--volumes", &self.0]);
    }
}
