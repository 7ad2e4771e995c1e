//! The real Docker Engine, as a person with its command line uses it.

use std::process::{Command, Output};

/// The base image of most builds here.
pub const BASE: &str = "debian:bookworm-slim";

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

/// Forgets images; those that are gone already or in use do no harm.
pub fn forget(images: &[String]) {
    if images.is_empty() {
        return;
    }
    let mut arguments = vec!["image", "rm", "--force"];
    arguments.extend(images.iter().map(String::as_str));
    let _ = run(&arguments);
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
