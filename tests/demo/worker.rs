//! The worker: a process of its own, with settings of its own, and its log line by line.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use image_builder::config::Config;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;

use crate::watch::Line;

/// How long the worker may take until it has all that it needs.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to drain; above its own `DRAIN_TIMEOUT`.
const STOP_LIMIT: Duration = Duration::from_secs(45);

pub(crate) struct Worker {
    child: Child,
    http: String,
    log: PathBuf,
}

/// The settings of the demo's worker, as environment variables.
pub(crate) fn settings(
    run: &str,
    directory: &Path,
    manager_urls: [&str; 2],
    secret: &str,
    rabbitmq: bool,
) -> Result<HashMap<String, String>> {
    let inherited = |name: &str, default: &str| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or(default.to_owned())
    };
    let [container_manager, connector_manager] = manager_urls;
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut settings: HashMap<String, String> = [
        ("DATA_DIR", text(directory.join("data"))),
        ("REGISTRY_URL", inherited("REGISTRY_URL", "localhost:5000")),
        ("TENANCY", inherited("TENANCY", "trusted")),
        ("CONTAINER_MANAGER_URL", container_manager.to_owned()),
        ("CONNECTOR_MANAGER_URL", connector_manager.to_owned()),
        ("NOTIFIER_SECRET", secret.to_owned()),
        // Package installs reach the network even where the engine's own network has no way out.
        ("BUILDER_NETWORK", "host".to_owned()),
        ("RETRY_INITIAL_DELAY", "2s".to_owned()),
        ("RETRY_MULTIPLIER", "2".to_owned()),
        ("RETRY_MAX_DELAY", "8s".to_owned()),
        ("DRAIN_TIMEOUT", "20s".to_owned()),
        ("HTTP_ADDR", free_address()?),
        ("LOG_FORMAT", "json".to_owned()),
        ("RUST_LOG", "info".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if rabbitmq {
        let of_broker = [
            ("RABBITMQ_URI", inherited("RABBITMQ_URI", "amqp://guest:guest@localhost:5672/%2f")),
            ("BUILD_QUEUE", format!("demo.{run}.build")),
            ("FAIL_QUEUE", format!("demo.{run}.fail")),
            ("OUTCOME_QUEUE", format!("demo.{run}.outcome")),
            ("DEAD_QUEUE", format!("demo.{run}.dead")),
            ("CANCEL_EXCHANGE", format!("demo.{run}.cancel")),
        ];
        settings.extend(of_broker.map(|(name, value)| (name.to_owned(), value)));
    }
    if let Ok(host) = std::env::var("DOCKER_HOST") {
        settings.insert("DOCKER_HOST".to_owned(), host);
    }
    Ok(settings)
}

/// An address that nothing listens on at the moment.
fn free_address() -> Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("a free port")?;
    Ok(listener.local_addr()?.to_string())
}

impl Worker {
    /// Starts the process. Its log goes to `lines`, and to a file that stays.
    pub(crate) fn start(
        directory: &Path,
        settings: &HashMap<String, String>,
        lines: UnboundedSender<Line>,
    ) -> Result<Self> {
        let program = program()?;
        let log = directory.join("worker.log");
        let mut file = std::fs::File::create(&log)?;
        let mut child = Command::new(&program)
            .arg("serve")
            // Away from config/.env: these settings are all that it has.
            .current_dir(directory)
            .env_remove("REPO")
            .env_remove("TOKEN")
            .envs(settings)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the demo, which then lets the worker drain.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stderr.take().context("the worker's log")?;
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Ok(Some(line)) = output.next_line().await {
                let _ = writeln!(file, "{line}");
                let _ = lines.send(Line::read(&line));
            }
        });
        let http = settings.get("HTTP_ADDR").cloned().unwrap_or_default();
        Ok(Self { child, http, log })
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    pub(crate) fn http(&self) -> &str {
        &self.http
    }

    /// Waits until broker, engine and registry answer the worker.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let url = format!("http://{}/readyz", self.http);
        let waiting = async {
            loop {
                if is_ready(&url).await.unwrap_or(false) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = waiting => Ok(()),
            ended = self.child.wait() => bail!("the worker ended at once: {}", ended?),
            () = tokio::time::sleep(READY_LIMIT) => {
                let report = reqwest::get(&url).await?.text().await?;
                bail!("the worker is not ready after {} s: {report}", READY_LIMIT.as_secs())
            }
        }
    }

    /// Comes back when the worker has ended, which it should not do by itself.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Lets the worker drain; it has to end well.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        // None where it has been waited for already: then the number may be another process's.
        let Some(number) = self.child.id() else { return Ok(()) };
        let pid = Pid::from_raw(i32::try_from(number)?).context("the worker's process id")?;
        kill_process(pid, Signal::TERM).context("cannot signal the worker")?;
        match tokio::time::timeout(STOP_LIMIT, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                ensure!(status.success(), "the worker drained badly ({status})");
                Ok(())
            }
            Err(_) => {
                self.child.kill().await?;
                bail!("the worker did not drain within {} s and was killed", STOP_LIMIT.as_secs())
            }
        }
    }
}

/// Whether the worker has all that it needs; the broker's need is added once it has been reached.
async fn is_ready(url: &str) -> Result<bool> {
    let report: Value = reqwest::get(url).await?.json().await?;
    let needs = report["needs"].as_array().context("no needs")?;
    Ok(report["ready"] == true && needs.iter().any(|need| need["name"] == "broker"))
}

/// The worker's binary, which is made beside the examples.
fn program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own
        .parent()
        .and_then(Path::parent)
        .context("the target directory")?
        .join(format!("image-builder{}", std::env::consts::EXE_SUFFIX));
    ensure!(program.exists(), "{} is missing: run `make demo`", program.display());
    Ok(program)
}

/// The same settings, as the worker reads them.
pub(crate) fn typed(settings: &HashMap<String, String>) -> Result<Config> {
    Config::read(settings.clone()).context("the demo's own settings")
}
