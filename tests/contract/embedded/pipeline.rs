//! The six actors on the queue in a file, killed again and again: every request that was confirmed is told, once or
//! with the same words.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use actix_rt::System;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream;
use image_builder_actors::delivery::seal::Seal;
use image_builder_actors::model::notification::{Notification, notified_build};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::shutdown::Shutdown;
use image_builder_actors::pipeline::{self, Pipeline, Ports};
use image_builder_actors::ports::{Broker, Message, Notifier, NotifyError, Queue};
use image_builder_actors::telemetry::delivery_span::Observer;
use image_builder_actors::testing::builder::FakeBuilder;
use image_builder_actors::testing::credentials::FakeCredentials;
use image_builder_actors::testing::planner::FakePlanner;
use image_builder_actors::testing::probe::FakeProbe;
use image_builder_actors::testing::registry::FakeRegistry;
use image_builder_actors::testing::source::FakeSource;
use image_builder_actors::testing::world;
use serde_json::json;

use super::open;

/// Requests, unless `REQUESTS` says how many.
const REQUESTS: usize = 200;

/// Runs that are killed: fewer than a broker delivers a build in vain.
const KILLS: usize = 12;

/// Name the file and the first request to the child, and how many there are.
const FILE: &str = "TEST_QUEUE_FILE";
const FIRST: &str = "TEST_FIRST_REQUEST";
const COUNT: &str = "REQUESTS";

/// What the child has told.
#[derive(Default)]
struct Told {
    /// Requests whose publish was confirmed.
    put: BTreeSet<usize>,
    /// What a build's receiver heard: the notification's id and type, and how often.
    heard: BTreeMap<usize, BTreeMap<String, usize>>,
}

impl Told {
    fn hear(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let what = words.next();
        let Some(number) = words.next().and_then(|number| number.parse().ok()) else { return };
        match (what, words.next()) {
            (Some("put"), _) => {
                self.put.insert(number);
            }
            (Some("told"), Some(words)) => {
                *self.heard.entry(number).or_default().entry(words.to_owned()).or_default() += 1;
            }
            _ => {}
        }
    }

    /// The first request that is not known to be confirmed.
    fn first_left(&self) -> usize {
        (0..).find(|number| !self.put.contains(number)).expect("there is always a next number")
    }
}

fn count() -> usize {
    std::env::var(COUNT).map_or(REQUESTS, |count| count.parse().expect("a number"))
}

#[test]
fn every_request_is_told_however_often_the_worker_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("queue.db");
    let (count, mut told) = (count(), Told::default());
    for _ in 0..KILLS {
        // Random for this purpose: on average the kills are over when half the requests are told.
        let random = u16::from_be_bytes([0, uuid::Uuid::new_v4().as_bytes()[0]]);
        let most = 1 + count * usize::from(random) / 256 / KILLS;
        run(&file, &mut told, |_, heard| heard == most);
    }
    run(&file, &mut told, |told, _| told.put.len() == count && told.heard.len() == count);
    let repeated = told.heard.values().filter(|heard| heard.values().sum::<usize>() > 1).count();
    let contradictory: Vec<_> = told.heard.values().filter(|heard| heard.len() > 1).collect();
    assert!(contradictory.is_empty(), "{contradictory:?}");
    eprintln!("{count} requests, {KILLS} kills: {repeated} told more than once, with the same id");
}

/// Runs the child until it has told enough, so many notifications in this run, and kills it.
fn run(file: &Path, told: &mut Told, is_enough: impl Fn(&Told, usize) -> bool) {
    let mut child = start(file, told.first_left());
    let output = child.stdout.take().expect("it is piped");
    let lines = BufReader::new(output).lines().map(|line| line.expect("it is text"));
    let (mut heard, mut is_killed) = (0, false);
    for line in lines {
        told.hear(&line);
        heard += usize::from(line.starts_with("told "));
        if !is_killed && is_enough(told, heard) {
            child.kill().expect("it can be killed");
            is_killed = true;
        }
    }
    child.wait().expect("it is over");
    assert!(is_killed, "it ended by itself");
}

fn start(file: &Path, first: usize) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "embedded::pipeline::child", "--ignored", "--nocapture"])
        .env(FILE, file)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

/// Tells the parent what it is notified of.
struct Teller;

impl Notifier for Teller {
    fn notify<'a>(
        &'a self,
        notification: &'a Notification,
    ) -> BoxFuture<'a, Result<(), NotifyError>> {
        Box::pin(async move {
            let build = notified_build(&notification.body).expect("it is a build's");
            let number = build.build_id.trim_start_matches("build-");
            say(&format!("told {number} {} {}", notification.id, notification.kind.as_str()));
            Ok(())
        })
    }
}

/// Tells the parent, in one write that a kill leaves whole.
fn say(line: &str) {
    let line = format!("{line}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).expect("the parent listens");
}

/// What is killed: a worker that is sent requests by itself.
#[test]
#[ignore = "it is what the test above runs"]
fn child() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let first: usize = std::env::var(FIRST).expect("set").parse().expect("a number");
    let system = System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime")
    });
    system.block_on(work(PathBuf::from(file), first));
}

async fn work(file: PathBuf, first: usize) {
    let broker = open(file).await;
    let workspaces = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::default();
    let ports = Ports {
        broker: Arc::new(broker.clone()),
        ledger: broker.outcome_ledger(),
        dead_letters: Arc::new(broker.clone()),
        forge: Arc::new(FakeSource::default()),
        credentials: Arc::new(FakeCredentials::default()),
        planner: Arc::new(FakePlanner::default()),
        engine: Arc::new(FakeBuilder::pushing_to(registry.clone())),
        registry: Arc::new(registry),
        managers: Arc::new(Teller),
        probe: Arc::new(FakeProbe::default()),
        registry_name: "registry.test".to_owned(),
        seal: Seal::new(Secret::new("key")),
        workspaces: workspaces.path().to_owned(),
    };
    let (settings, health, shutdown) = (world::settings(), pipeline::health(), Shutdown::default());
    let _pipeline = Pipeline::start(ports, settings, &health, Observer::default(), shutdown);
    stream::iter(first..count())
        .for_each_concurrent(32, |number| {
            let broker = &broker;
            async move {
                let request = json!({
                    "uuid": format!("build-{number}"),
                    "userID": format!("u{}", number % 5),
                    "repo": "owner/name",
                    "applicationID": format!("app-{number}"),
                });
                let message =
                    Message { body: request.to_string().into_bytes(), ..Message::default() };
                broker.publish(Queue::Build, message, Duration::ZERO).await.expect("taken");
                say(&format!("put {number}"));
            }
        })
        .await;
    std::future::pending::<()>().await;
}
