//! The demo's own repositories, served by the git server on this machine.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// A repository to be made.
pub(crate) struct Repository {
    /// `owner/name`.
    pub(crate) name: String,
    pub(crate) files: &'static [(&'static str, &'static str)],
}

/// A page from a Dockerfile that installs a package, which draws the page's banner.
pub(crate) const SITE: &[(&str, &str)] = &[
    (
        "Dockerfile",
        r#"FROM node:18-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends figlet \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY . .
RUN figlet "it works" > banner.txt
USER node
CMD ["node", "server.js"]
"#,
    ),
    (
        "server.js",
        r#"const { readFileSync } = require("fs");
const page = readFileSync("banner.txt", "utf8") + "\nbuilt from a Dockerfile, run " + readFileSync("run.txt", "utf8");
require("http").createServer((_, response) => response.end(page)).listen(process.env.PORT || 8080);
"#,
    ),
];

/// The same without a Dockerfile: nixpacks finds out by itself how it is built and started.
pub(crate) const APP: &[(&str, &str)] = &[
    (
        "package.json",
        r#"{
  "name": "app",
  "version": "1.0.0",
  "private": true,
  "engines": { "node": "18" },
  "scripts": { "start": "node server.js" },
  "dependencies": { "ms": "^2.1.3" }
}
"#,
    ),
    (
        "server.js",
        r#"const ms = require("ms");
const run = require("fs").readFileSync("run.txt", "utf8");
const page = () => `built without a Dockerfile, up for ${ms(Math.round(process.uptime() * 1000), { long: true })}, run ${run}`;
require("http").createServer((_, response) => response.end(page())).listen(process.env.PORT || 8080);
"#,
    ),
];

/// A Dockerfile with a step that cannot succeed.
pub(crate) const BROKEN: &[(&str, &str)] = &[(
    "Dockerfile",
    r#"FROM debian:bookworm-slim
COPY run.txt .
RUN echo "compiling the program" && cat /no/such/source.c
"#,
)];

/// Makes the repository on the git server, with one commit of its own for this run.
pub(crate) async fn publish(repository: &Repository, run: &str, work: &Path) -> Result<()> {
    let tree = work.join(repository.name.replace('/', "-"));
    std::fs::create_dir_all(&tree)?;
    for (name, text) in repository.files {
        std::fs::write(tree.join(name), text)?;
    }
    std::fs::write(tree.join("run.txt"), run)?;
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(&tree).args([
            "-c",
            "user.name=Demo",
            "-c",
            "user.email=demo@localhost",
        ]);
        // Neither signing keys nor hooks of the person who watches have a part in this.
        command.args(["-c", "commit.gpgSign=false", "-c", "core.hooksPath=/dev/null"]);
        command.args(arguments);
        command
    };
    succeed(git(&["init", "-q", "-b", "main"])).await?;
    succeed(git(&["add", "--all"])).await?;
    succeed(git(&["commit", "-q", "-m", "The demo's application"])).await?;
    let mut command = Command::new(stack());
    command.arg("repo").arg(&repository.name).arg(&tree);
    succeed(command).await?;
    Ok(())
}

fn stack() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".devcontainer/stack.sh")
}

/// Removes what [`publish`] put on the git server, and the owner with the last repository.
pub(crate) fn remove(repository: &Repository) {
    let Some(root) = std::env::var_os("GIT_SERVER_ROOT") else { return };
    let bare = Path::new(&root).join(format!("{}.git", repository.name));
    let _ = std::fs::remove_dir_all(&bare);
    if let Some(owner) = bare.parent() {
        let _ = std::fs::remove_dir(owner);
    }
}

/// Runs a command to its end, which has to be a good one.
///
/// # Errors
///
/// The command and the end of what it said.
pub(crate) async fn succeed(mut command: Command) -> Result<Output> {
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let first: Vec<_> = command.as_std().get_args().map(|a| a.to_string_lossy()).collect();
    let line = format!("{name} {}", first.join(" "));
    let output = command.output().await.with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}", output.status, said.trim());
    }
    Ok(output)
}
