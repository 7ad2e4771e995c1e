//! What the platform does with an image: pull it by digest, run it, look at it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::Instant;

use crate::repositories::succeed;

/// The port that a container is told to listen on, where its image names none.
const PORT: u16 = 8080;
/// How long an application may take until it answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Image {
    /// `repository@digest`.
    pub(crate) pinned: String,
    id: String,
}

pub(crate) struct Container {
    name: String,
    address: SocketAddr,
}

/// Debian's own client where it is there: it speaks to its engine's BuildKit by itself.
fn docker(arguments: &[&str]) -> Command {
    let debian = "/usr/bin/docker";
    let program = if std::path::Path::new(debian).exists() { debian } else { "docker" };
    let mut command = Command::new(program);
    command.env_remove("TOKEN").args(arguments);
    command
}

async fn read(arguments: &[&str]) -> Result<String> {
    let output = succeed(docker(arguments)).await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Image {
    /// Pulls what a notification names, after this machine was made to forget that it has it.
    pub(crate) async fn pull(image: &Value) -> Result<Self> {
        let text = |field: &str| {
            image[field].as_str().with_context(|| format!("the notification has no image.{field}"))
        };
        let (repository, digest) = (text("repository")?, text("digest")?);
        forget(repository).await?;
        let pinned = format!("{repository}@{digest}");
        read(&["pull", "--quiet", &pinned]).await?;
        let id = read(&["image", "inspect", "--format", "{{.Id}}", &pinned]).await?;
        if id != text("imageID")? {
            bail!("{pinned} is image {id}, but the notification says {}", text("imageID")?);
        }
        Ok(Self { pinned, id })
    }

    /// Starts a container of it, with a port on this machine only.
    pub(crate) async fn run(&self, name: &str) -> Result<Container> {
        let ports = "{{range $port, $_ := .Config.ExposedPorts}}{{$port}} {{end}}";
        let exposed = read(&["image", "inspect", "--format", ports, &self.id]).await?;
        let port = exposed
            .split_whitespace()
            .find_map(|port| port.strip_suffix("/tcp")?.parse().ok())
            .unwrap_or(PORT);
        read(&[
            "run",
            "--detach",
            "--name",
            name,
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            &format!("--publish=127.0.0.1::{port}"),
            &format!("--env=PORT={port}"),
            &self.pinned,
        ])
        .await?;
        let addresses = read(&["port", name, &format!("{port}/tcp")]).await;
        let address = match addresses {
            Ok(addresses) => addresses.lines().next().and_then(|line| line.parse().ok()),
            Err(_) => None,
        };
        let Some(address) = address else {
            bail!("the container ended at once: {}", log(name).await);
        };
        Ok(Container { name: name.to_owned(), address })
    }

    /// Removes it from this machine.
    pub(crate) async fn remove(&self) -> Result<()> {
        let repository = self.pinned.split('@').next().unwrap_or(&self.pinned);
        forget(repository).await
    }
}

impl Container {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The page at `/`, as soon as there is one.
    pub(crate) async fn page(&self) -> Result<String> {
        let url = format!("http://{}/", self.address);
        let limit = Instant::now() + ANSWER_LIMIT;
        loop {
            // Until the application listens, the engine's proxy accepts and hangs up.
            let error = match fetch(&url).await {
                Ok(page) => return Ok(page),
                Err(error) => error,
            };
            if Instant::now() > limit {
                let log = log(&self.name).await;
                let seconds = ANSWER_LIMIT.as_secs();
                return Err(error).with_context(|| {
                    format!("no page within {seconds} s; the container said: {log}")
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn fetch(url: &str) -> Result<String> {
    Ok(reqwest::get(url).await?.error_for_status()?.text().await?)
}

async fn log(container: &str) -> String {
    let Ok(output) = docker(&["logs", "--tail", "20", container]).output().await else {
        return "nothing".to_owned();
    };
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&both).trim().to_owned()
}

/// Removes a container, whatever state it is in.
pub(crate) async fn remove(container: &str) -> Result<()> {
    read(&["rm", "--force", "--volumes", container]).await?;
    Ok(())
}

/// Removes all images of a repository from this machine.
async fn forget(repository: &str) -> Result<()> {
    let ids = read(&["image", "ls", "--quiet", "--no-trunc", repository]).await?;
    for id in ids.lines().collect::<std::collections::BTreeSet<_>>() {
        read(&["image", "rm", "--force", id]).await?;
    }
    Ok(())
}
