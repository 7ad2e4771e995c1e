//! What a person at a terminal has: `build`, `plan` and `doctor`, on a real engine, registry and git server.

#[path = "../support/mod.rs"]
mod support;

mod building;
mod doctor;
mod planning;
mod terminal;

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use support::engine::BASE;
use support::setting;
use support::worker::{BINARY, Ended, Settings};

/// The settings that name the services of the tests.
fn settings() -> Settings {
    let git = support::git_server::server_url();
    let settings = [
        ("DOCKER_HOST", setting("DOCKER_HOST", "unix:///var/run/docker.sock")),
        ("REGISTRY_URL", setting("REGISTRY_URL", "localhost:5000")),
        ("TENANCY", setting("TENANCY", "trusted")),
        ("GITHUB_URL", git.clone()),
        ("GITHUB_API_URL", git),
    ];
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    for (path, text) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("it is in the folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    folder
}

/// A Dockerfile of one step; `text` makes it one of its own.
fn dockerfile(step: &str) -> String {
    format!("FROM {BASE}\n{step}\n")
}

/// The program in this folder, with these settings alone.
fn program(arguments: &[&str], folder: &Path, settings: &Settings) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder.join(".home"))
        .envs(settings);
    command
}

/// Runs the program to its end.
fn run(arguments: &[&str], folder: &Path, settings: &Settings) -> Ended {
    program(arguments, folder, settings).output().expect("the program starts").into()
}

/// What Docker's own client says.
fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker is there");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Removes an image when the test is over.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["rmi", "-f", &self.0]);
    }
}
