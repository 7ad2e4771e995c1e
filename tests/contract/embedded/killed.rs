//! Whatever was confirmed is there, at whichever instruction its process was killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use image_builder::broker::sqlite::SqliteBroker;
use image_builder_actors::ports::{Broker, Queue};
use image_builder_actors::testing::conformance::broker::{
    backlog, body, consume, enqueue, load, message, publish,
};
use tokio::time::timeout;

use super::{PATIENCE, open};

/// How often the child is killed: fewer times than a broker gives a build up.
const KILLS: usize = 15;

/// Names the file to the child.
const FILE: &str = "TEST_QUEUE_FILE";

/// What the child has told of its messages.
#[derive(Default)]
struct Told {
    put: BTreeSet<String>,
    /// Acks that were begun, and that were confirmed.
    begun: BTreeSet<String>,
    done: BTreeSet<String>,
}

impl Told {
    fn hear(&mut self, line: &str) {
        let Some((what, name)) = line.split_once(' ') else { return };
        let name = name.to_owned();
        match what {
            "put" => self.put.insert(name),
            "begun" => self.begun.insert(name),
            "done" => self.done.insert(name),
            _ => false,
        };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_and_not_acked_is_there_however_often_the_process_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("queue.db");
    let mut told = Told::default();
    for _ in 0..KILLS {
        let (file, mut heard) = (path.clone(), std::mem::take(&mut told));
        told = tokio::task::spawn_blocking(move || {
            run_and_kill(&file, &mut heard);
            heard
        })
        .await
        .expect("no panic");
    }
    assert!(told.put.len() > KILLS * 4, "it got to work: {}", told.put.len());
    assert!(told.done.len() > KILLS, "it got to acks: {}", told.done.len());

    let left = left(&open(path).await).await;
    let lost: Vec<_> =
        told.put.difference(&told.begun).filter(|name| !left.contains(*name)).collect();
    assert!(lost.is_empty(), "confirmed, not acked and not there: {lost:?}");
    let again: Vec<_> = told.done.intersection(&left).collect();
    assert!(again.is_empty(), "acked and there: {again:?}");
}

/// Runs the child, listens for a random while, kills it, and hears the rest of what it told.
fn run_and_kill(file: &Path, told: &mut Told) {
    let mut child = start(file);
    let output = child.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(output).lines().map(|line| line.expect("it is text"));
    // Random for this purpose: from 1 to 256 lines after the first.
    let lines_until = 1 + usize::from(uuid::Uuid::new_v4().as_bytes()[0]);
    lines.by_ref().skip_while(|line| !line.starts_with("put")).take(lines_until).for_each(|line| {
        told.hear(&line);
    });
    // And from 0 to 5 ms after that, so that it is not always in the same state.
    let micros = u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * 20;
    std::thread::sleep(Duration::from_micros(micros));
    child.kill().expect("it can be killed");
    child.wait().expect("it is over");
    lines.for_each(|line| told.hear(&line));
}

fn start(file: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "embedded::killed::child", "--ignored", "--nocapture"])
        .env(FILE, file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

/// All that is in the build queue and in the backlog.
async fn left(broker: &SqliteBroker) -> BTreeSet<String> {
    let waiting = usize::try_from(broker.waiting().await.expect("it is counted")).expect("a few");
    let mut builds = consume(broker, Queue::Build, u16::MAX).await;
    let mut requests = backlog(broker).await;
    let mut left = BTreeSet::new();
    while let Some(turn) = requests.taker.take(&load(&[])).await.expect("it can be read") {
        left.insert(body(&turn.delivery).to_owned());
    }
    while left.len() < waiting {
        let next = timeout(PATIENCE, builds.deliveries.recv()).await.expect("what waits comes");
        left.insert(body(&next.expect("it goes on")).to_owned());
    }
    left
}

/// What is killed: puts messages in the file and takes half of them out again, until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it is what the test above runs"]
async fn child() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let broker = open(PathBuf::from(file)).await;
    let run = uuid::Uuid::new_v4().simple().to_string();
    let number = Arc::new(AtomicU64::new(0));
    for putter in 0..4 {
        let (broker, run, number) = (broker.clone(), run.clone(), number.clone());
        tokio::spawn(async move {
            loop {
                let name = format!("{run}-{}", number.fetch_add(1, Ordering::Relaxed));
                match putter % 2 {
                    0 => publish(&broker, Queue::Build, message(&name)).await,
                    _ => enqueue(&broker, &format!("u{putter}"), &name).await,
                }
                say("put", &name);
            }
        });
    }
    let mut builds = consume(&broker, Queue::Build, 4).await;
    let mut requests = backlog(&broker).await;
    let mut is_acked = false;
    loop {
        is_acked = !is_acked;
        let build = builds.deliveries.recv().await.expect("it goes on");
        settle(&*builds.acks, &build, is_acked).await;
        if let Some(turn) = requests.taker.take(&load(&[])).await.expect("it goes on") {
            settle(&*requests.acks, &turn.delivery, is_acked).await;
        }
    }
}

async fn settle(
    acks: &dyn image_builder_actors::ports::Acknowledger,
    delivery: &image_builder_actors::ports::Delivery,
    is_acked: bool,
) {
    // What comes for the first time is given back at times, and then acked: nothing is given up.
    if !is_acked && delivery.redeliveries == 0 {
        return acks.nack(delivery.tag).await.expect("it can be given back");
    }
    let name = body(delivery);
    say("begun", name);
    acks.ack(delivery.tag).await.expect("it can be acked");
    say("done", name);
}

/// Tells the parent, in one write that a kill leaves whole.
fn say(what: &str, name: &str) {
    let line = format!("{what} {name}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).expect("the parent listens");
}
