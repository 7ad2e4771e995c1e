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

/// Forgets the images of these build keys.
pub fn forget(keys: &[String]) {
    if keys.is_empty() {
        return;
    }
    let format = "{{.ID}} {{.Tag}}";
    let label = "label=image-builder.build-key";
    let all = run(&["image", "ls", "--no-trunc", "--filter", label, "--format", format]);
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    let all = || all.lines().filter_map(|line| line.split_once(' '));
    let is_ours = |key: &str| keys.iter().any(|known| known == key);
    // A build's image is tagged with its key. What a later build of the key has replaced has no tag,
    // and only its label tells: to look at all images takes long where there are many.
    let nameless: Vec<&str> = all().filter(|(_, tag)| *tag == "<none>").map(|(id, _)| id).collect();
    let mut replaced = String::new();
    if !nameless.is_empty() {
        let format = "{{.Id}} {{index .Config.Labels \"image-builder.build-key\"}}";
        // Others forget theirs meanwhile: what is gone is only missing in the answer.
        let keyed = run(&[&["image", "inspect", "--format", format], &nameless[..]].concat());
        replaced = String::from_utf8_lossy(&keyed.stdout).into_owned();
    }
    let replaced = replaced.lines().filter_map(|line| line.split_once(' '));
    let ours: Vec<&str> =
        all().chain(replaced).filter(|(_, key)| is_ours(key)).map(|(id, _)| id).collect();
    if !ours.is_empty() {
        let _ = run(&[&["image", "rm", "--force"], &ours[..]].concat());
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
