//! The demo's parts, in the order in which they are seen.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::Instant;

use crate::Wishes;
use crate::containers::{self, Image};
use crate::managers::{self, Key, Manager, Notice};
use crate::repositories::{self, APP, BROKEN, Repository, SITE};
use crate::requests::{RabbitMq, Requests};
use crate::screen::{Colour, Screen};
use crate::watch::Line;
use crate::worker::{self, Worker};

/// How long builds that succeed may take, package installs on a slow line included.
const BUILD_LIMIT: Duration = Duration::from_secs(15 * 60);
/// How long it may take until a build that fails is given up.
const FAILURE_LIMIT: Duration = Duration::from_secs(3 * 60);
/// Lines of a page, and of a failed build's log, that are shown.
const SHOWN_LINES: usize = 12;

/// A request on its way, and what has been seen of it.
struct Build {
    label: String,
    colour: Colour,
    repo: String,
    expected: &'static str,
    notices: Vec<Notice>,
    retries: usize,
    notified: bool,
}

impl Build {
    fn is_over(&self) -> bool {
        self.notified && !self.notices.is_empty()
    }
}

/// All that the demo has set up, so that it can be cleared away from wherever it ended.
pub(crate) struct Stage<'a> {
    screen: &'a Screen,
    wishes: Wishes,
    run: String,
    directory: PathBuf,
    settings: HashMap<String, String>,
    worker: Option<Worker>,
    requests: Option<Requests>,
    repositories: Vec<Repository>,
    containers: Vec<String>,
    images: Vec<Image>,
    builds: HashMap<String, Build>,
    lines: Option<UnboundedReceiver<Line>>,
    notices: Option<UnboundedReceiver<Result<Notice>>>,
    facts: Vec<String>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(screen: &'a Screen, wishes: Wishes, run: &str, directory: PathBuf) -> Self {
        Self {
            screen,
            wishes,
            run: run.to_owned(),
            directory,
            settings: HashMap::new(),
            worker: None,
            requests: None,
            repositories: Vec::new(),
            containers: Vec::new(),
            images: Vec::new(),
            builds: HashMap::new(),
            lines: None,
            notices: None,
            facts: Vec::new(),
        }
    }

    /// What went as it should.
    pub(crate) fn facts(&self) -> &[String] {
        &self.facts
    }

    pub(crate) async fn play(&mut self) -> Result<()> {
        self.start().await?;
        match self.wishes.repository.clone() {
            Some(repository) => self.build_theirs(repository).await,
            None => {
                self.build_ours().await?;
                self.fail().await
            }
        }
    }

    async fn start(&mut self) -> Result<()> {
        self.screen.heading("A worker, and stand-ins for the platform's two managers");
        let key = Key::new();
        let (told, notices) = mpsc::unbounded_channel();
        self.notices = Some(notices);
        let container = managers::start(Manager::Container, key.clone(), told.clone()).await?;
        let connector = managers::start(Manager::Connector, key.clone(), told).await?;
        for (manager, url) in [(Manager::Container, &container), (Manager::Connector, &connector)] {
            self.say(&format!("{} (stand-in): {url}", manager.name()));
        }
        self.settings = worker::settings(
            &self.run,
            &self.directory,
            [&container, &connector],
            &key.to_setting(),
            self.wishes.rabbitmq,
        )?;
        if self.wishes.repository.is_none() {
            let url = std::env::var("GIT_SERVER_URL").unwrap_or("http://127.0.0.1:3080".to_owned());
            self.settings.insert("GITHUB_URL".to_owned(), url);
        }
        let (sender, lines) = mpsc::unbounded_channel();
        self.lines = Some(lines);
        self.requests = Some(match self.settings.get("RABBITMQ_URI") {
            Some(uri) => Requests::RabbitMq(Box::new(RabbitMq::connect(uri).await?)),
            None => Requests::OverHttp(self.settings["HTTP_ADDR"].clone()),
        });
        let worker = self.worker.insert(Worker::start(&self.directory, &self.settings, sender)?);
        worker.ready().await?;
        let (http, log) = (worker.http().to_owned(), worker.log().display().to_string());
        let queue = self.settings.get("BUILD_QUEUE").map_or("its own", String::as_str);
        self.say(&format!("worker: http://{http}/readyz, queue: {queue}"));
        self.say(&format!("its log: {log}"));
        Ok(())
    }

    /// A repository with a Dockerfile and one without become images, which are run.
    async fn build_ours(&mut self) -> Result<()> {
        self.screen.heading("Two requests: a repository with a Dockerfile, and one without");
        if let Some(image) = &self.wishes.stand_in {
            self.say(&format!(
                "{image} cannot be pulled: a stand-in made from Debian's packages takes its place"
            ));
        }
        self.publish_repository("site", SITE).await?;
        self.publish_repository("app", APP).await?;
        self.request("site", Colour::Cyan, "image.ready").await?;
        self.request("app", Colour::Magenta, "image.ready").await?;
        self.until_over(BUILD_LIMIT).await?;
        self.deploy("site").await?;
        self.deploy("app").await
    }

    /// A build that cannot succeed is retried and given up, and its owner is told.
    async fn fail(&mut self) -> Result<()> {
        self.screen.heading("A request that must fail");
        self.publish_repository("broken", BROKEN).await?;
        self.request("broken", Colour::Blue, "build.failed").await?;
        self.until_over(FAILURE_LIMIT).await?;

        self.screen.heading("What the user is told of it");
        let build = self.build("broken")?;
        let notice = &build.notices[0];
        self.show_notice(notice);
        let data = &notice.body["data"];
        ensure!(notice.to == Manager::Connector, "the wrong manager was told");
        ensure!(data["reason"] == "build_failed", "the reason is {}", data["reason"]);
        ensure!(data["fault"] == "user", "the fault is {}", data["fault"]);
        ensure!(build.retries > 0, "the build was not retried");
        ensure!(data["attempts"] == json!(build.retries + 1), "tries told: {}", data["attempts"]);
        let log = data["log"].as_array().context("the notice has no log")?;
        let names_cause =
            |line: &Value| line.as_str().is_some_and(|l| l.contains("/no/such/source.c"));
        ensure!(log.iter().any(names_cause), "the notice's log does not show what went wrong");
        let build_id = data["buildID"].as_str().unwrap_or_default();
        let whole = Requests::log(&self.settings["HTTP_ADDR"], build_id).await?;
        ensure!(whole.contains("/no/such/source.c"), "the API's log does not show what went wrong");
        self.facts.push(format!(
            "broken: tried {} times, then given up; the connector manager was told why",
            data["attempts"]
        ));
        Ok(())
    }

    /// One repository on GitHub.
    async fn build_theirs(&mut self, repository: String) -> Result<()> {
        self.screen.heading(&format!("A request for {repository}"));
        let label = repository.rsplit('/').next().unwrap_or(&repository).trim_end_matches(".git");
        // Forced, so that there is something to see the second time as well.
        let mut request = json!({ "userID": "demo", "repo": repository, "force": true });
        if let Some(token) = &self.wishes.token {
            request["token"] = json!(token);
        }
        self.send(label, Colour::Cyan, "image.ready", request).await?;
        self.until_over(BUILD_LIMIT).await?;
        self.deploy(label).await
    }

    /// Does what a container manager does with its notification.
    async fn deploy(&mut self, label: &str) -> Result<()> {
        self.screen.heading(&format!("What the container manager is told of {label}"));
        let build = self.build(label)?;
        let notice = &build.notices[0];
        self.show_notice(notice);
        ensure!(notice.to == Manager::Container, "the wrong manager was told");
        let data = notice.body["data"].clone();

        self.screen.heading(&format!("{label}, pulled from the registry and run"));
        let image = Image::pull(&data["image"]).await?;
        self.say(&format!("pulled {}", image.pinned));
        let name = format!("image-builder-demo-{}-{label}", self.run);
        self.containers.push(name.clone());
        let page = match image.run(&name).await {
            Ok(container) => {
                self.say(&format!("runs, answers on http://{}/", container.address()));
                container.page().await
            }
            Err(error) => Err(error),
        };
        self.images.push(image);
        let built = format!(
            "{label}: built with {} in {:.1} s, pushed, pulled by digest",
            data["builder"].as_str().unwrap_or("?"),
            data["seconds"]["total"].as_f64().unwrap_or_default(),
        );
        match page {
            Ok(page) => {
                let lines: Vec<_> = page.lines().take(SHOWN_LINES).collect();
                self.screen.block(Colour::Bold, &lines.join("\n"));
                if self.wishes.repository.is_none() {
                    ensure!(page.contains(&self.run), "the page is not of this run: {page}");
                }
                self.facts.push(format!("{built}, and its page fetched"));
                Ok(())
            }
            // Not every repository holds a web server.
            Err(error) if self.wishes.repository.is_some() => {
                self.say(&format!("{error:#}"));
                self.facts.push(format!("{built}; it serves no page"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn publish_repository(
        &mut self,
        label: &str,
        files: &'static [(&'static str, &'static str)],
    ) -> Result<()> {
        let repository = Repository { name: format!("demo-{}/{label}", self.run), files };
        let work = self.directory.join("sources");
        repositories::publish(&repository, &self.run, &work).await?;
        self.repositories.push(repository);
        Ok(())
    }

    async fn request(&mut self, label: &str, colour: Colour, expected: &'static str) -> Result<()> {
        let repo = format!("demo-{}/{label}", self.run);
        self.send(label, colour, expected, json!({ "userID": "demo", "repo": repo })).await
    }

    async fn send(
        &mut self,
        label: &str,
        colour: Colour,
        expected: &'static str,
        mut request: Value,
    ) -> Result<()> {
        let build_id = format!("demo-{}-{label}", self.run);
        request["uuid"] = json!(build_id);
        let repo = request["repo"].as_str().unwrap_or_default().to_owned();
        let notices = Vec::new();
        let build = Build {
            label: label.to_owned(),
            colour,
            repo,
            expected,
            notices,
            retries: 0,
            notified: false,
        };
        self.builds.insert(build_id, build);
        let requests = self.requests.as_ref().context("no way to the worker")?;
        let queue = self.settings.get("BUILD_QUEUE").map(String::as_str).unwrap_or_default();
        let durable = requests.publish(queue, &request).await?;
        if !request["token"].is_null() {
            request["token"] = json!("…");
        }
        let text = format!("{durable}: {request}");
        self.screen.event(label, colour, "request", Colour::Plain, &text);
        Ok(())
    }

    /// Shows what happens until every request has its notification.
    async fn until_over(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.builds.values().all(Build::is_over) {
            let worker = self.worker.as_mut().context("no worker")?;
            let lines = self.lines.as_mut().context("no log")?;
            let notices = self.notices.as_mut().context("no managers")?;
            tokio::select! {
                // What was logged before a notification went out is shown before it.
                biased;
                Some(line) = lines.recv() => self.see(&line),
                Some(notice) = notices.recv() => self.receive(notice?)?,
                status = worker.ended() => {
                    let status = status?;
                    bail!("the worker ended ({status}); its log: {}", worker.log().display());
                }
                () = tokio::time::sleep_until(deadline) => {
                    let open: Vec<_> =
                        self.builds.values().filter(|b| !b.is_over()).map(|b| b.label.as_str()).collect();
                    bail!("not over after {} s: {}", limit.as_secs(), open.join(", "));
                }
            }
        }
        Ok(())
    }

    fn see(&mut self, line: &Line) {
        let (place, colour, text) = line.show();
        let Some(build) = line.build_id().and_then(|id| self.builds.get_mut(id)) else {
            if line.is_trouble() {
                self.screen.event("worker", Colour::Plain, &place, colour, &text);
            }
            return;
        };
        build.retries += usize::from(line.is_retry());
        build.notified |= line.is_notified();
        self.screen.event(&build.label, build.colour, &place, colour, &text);
    }

    fn receive(&mut self, notice: Notice) -> Result<()> {
        let data = &notice.body["data"];
        let build_id = data["buildID"].as_str().unwrap_or_default();
        let build = self.builds.get_mut(build_id).context("a notification of an unknown build")?;
        let kind = notice.body["type"].as_str().unwrap_or_default();
        if kind != build.expected {
            let message = data["message"].as_str().unwrap_or_default();
            bail!("{} ({}) ended in {kind}: {message}", build.label, build.repo);
        }
        ensure!(!notice.webhook_id.is_empty(), "a notification without a webhook-id");
        let text = format!("the {} got {kind}, and its signature holds", notice.to.name());
        self.screen.event(&build.label, build.colour, "manager", Colour::Green, &text);
        build.notices.push(notice);
        Ok(())
    }

    fn build(&self, label: &str) -> Result<&Build> {
        self.builds.values().find(|build| build.label == label).context("an unknown build")
    }

    fn show_notice(&self, notice: &Notice) {
        self.say(&format!("webhook-id: {}", notice.webhook_id));
        let mut body = notice.body.clone();
        if let Some(Value::Array(log)) = body.pointer_mut("/data/log")
            && log.len() > SHOWN_LINES
        {
            let left_out = log.len() - SHOWN_LINES;
            log.drain(..left_out);
            log.insert(0, json!(format!("… {left_out} lines before")));
        }
        let text = serde_json::to_string_pretty(&body).unwrap_or_default();
        self.screen.block(Colour::Plain, &text);
    }

    fn say(&self, text: &str) {
        self.screen.line(Colour::Plain, text);
    }

    /// Stops the worker and removes everything that the demo made. All of it is tried, and the
    /// first thing that fails is told.
    pub(crate) async fn clear(&mut self) -> Result<()> {
        let mut cleared = Ok(());
        let mut note = |result: Result<()>| {
            if cleared.is_ok() {
                cleared = result;
            }
        };
        if let Some(worker) = &mut self.worker {
            let started = Instant::now();
            let stopped = worker.stop().await.context("stopping the worker");
            if stopped.is_ok() {
                let seconds = started.elapsed().as_secs_f64();
                self.facts.push(format!("worker: drained and ended in {seconds:.1} s"));
            }
            note(stopped);
        }
        while let Some(Ok(notice)) = self.notices.as_mut().and_then(|n| n.try_recv().ok()) {
            let twice =
                self.builds.get(notice.body["data"]["buildID"].as_str().unwrap_or_default());
            if twice.is_some_and(|build| !build.notices.is_empty()) {
                note(Err(anyhow::anyhow!("{} was told twice", notice.webhook_id)));
            }
        }
        for container in &self.containers {
            note(containers::remove(container).await.context("removing a container"));
        }
        for image in &self.images {
            note(image.remove().await.context("removing an image"));
        }
        for repository in &self.repositories {
            repositories::remove(repository);
        }
        if let Some(Requests::RabbitMq(broker)) = &self.requests {
            let removed = match worker::typed(&self.settings) {
                Ok(config) => broker.remove_queues(&config).await,
                Err(error) => Err(error),
            };
            note(removed.context("removing the demo's queues"));
        }
        // The worker's log stays.
        for made in ["data", "sources"] {
            let made = self.directory.join(made);
            if made.exists() {
                note(std::fs::remove_dir_all(made).context("removing the demo's files"));
            }
        }
        cleared
    }
}
