//! The worker's life: it starts before its broker, serves its endpoints, drains, and hands back.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::slow::Slow;
use crate::support::worker::{BINARY, Settings, Worker, command, run};
use crate::support::world::{World, dockerfile, repository};
use crate::support::{Door, PATIENCE, broker, runtime, unique, until};

#[test]
fn the_first_sigterm_finishes_what_is_in_hand_and_tells_of_it() {
    let world = World::new();
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);

    worker.terminate();
    worker.wait_for_line("draining");
    slow.let_go();
    assert_eq!(worker.wait(), 0);
    let (told, _) = world.finish(&[]);
    let [told] = &told[..] else { panic!("one outcome: {told:?}") };
    assert_eq!(told.clone().ready().build_id(), slow.build_id);
    assert_eq!(told.data()["attempts"], 1);
}

#[test]
fn what_cannot_be_finished_in_time_is_handed_back_uncounted() {
    let world = World::new().with("DRAIN_TIMEOUT", "500ms");
    let first = world.worker();
    let slow = Slow::begin(&world, &first);
    let commit = slow.repo.git(&["rev-parse", "HEAD"]);
    first.stop();
    assert!(world.managers.of(&slow.build_id).is_empty());

    // The commit is pinned: what is pushed meanwhile is not built.
    slow.repo.commit(&[("more", "than before")]);
    let second = world.worker();
    slow.wait_until_begun(&second);
    slow.let_go();
    let told = world.outcome(&slow.build_id).ready().after(1);
    assert_eq!(told.text("/commit"), commit);
    let (told, _) = world.finish(&[&second]);
    assert_eq!(told.len(), 1);
}

#[test]
fn a_second_sigterm_leaves_at_once_and_nothing_is_lost() {
    let world = World::new();
    let first = world.worker();
    let slow = Slow::begin(&world, &first);

    first.terminate();
    first.wait_for_line("draining");
    first.terminate();
    assert_eq!(first.wait(), 75);
    slow.let_go();
    let second = world.worker();
    world.outcome(&slow.build_id).ready();
    let (told, _) = world.finish(&[&second]);
    assert_eq!(told.len(), 1);
}

#[test]
fn a_killed_workers_build_is_done_by_the_next_one() {
    let world = World::new();
    let first = world.worker();
    let slow = Slow::begin(&world, &first);

    first.kill();
    assert_eq!(first.wait(), -1);
    slow.let_go();
    let second = world.worker();
    world.outcome(&slow.build_id).ready();
    let (told, _) = world.finish(&[&second]);
    assert_eq!(told.len(), 1);
}

#[test]
fn a_connection_that_is_closed_in_the_middle_of_a_job_costs_no_outcome() {
    let world = World::new();
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);

    // One that consumes, one that publishes, and one each that reads the outcome ledger and what was cancelled.
    let connections = until("the broker lists all connections", || {
        Some(broker::connections_of(worker.pid())).filter(|connections| connections.len() == 4)
    });
    broker::close_connections(&connections);
    worker.wait_for_line("lost the broker");
    slow.let_go();
    world.outcome(&slow.build_id).ready();
    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert!(told.iter().all(|told| told.kind() == "image.ready"), "{told:?}");
    assert!(told.iter().all(|told| told.webhook_id == told.own_id()));
    assert!(letters.is_empty(), "{letters:?}");
}

#[test]
fn a_worker_waits_for_its_broker_and_says_so() {
    let door = Door::closed();
    let uri = broker::uri();
    let (login, rest) = uri.split_once('@').expect("the address has a login");
    let (address, vhost) = rest.split_once('/').unwrap_or((rest, "%2f"));
    let world =
        World::new().with("RABBITMQ_URI", &format!("{login}@127.0.0.1:{}/{vhost}", door.port));
    let worker = Worker::spawn(&world.settings());
    worker.wait_for_line("\"starting\"");
    let (status, report) = worker.get("/readyz");
    assert_eq!(status, 503, "{report}");
    assert_eq!(worker.get("/livez").0, 200);

    door.open(address);
    worker.wait_for_line("at work");
    let repo = repository("patient", &[("Dockerfile", &dockerfile("RUN true"))]);
    world.build(&world.request(&repo)).ready();
    until("it is ready", || (worker.get("/readyz").0 == 200).then_some(()));
    world.finish(&[&worker]);
}

#[test]
fn a_worker_that_still_waits_for_its_broker_ends_when_it_is_asked_to() {
    let world = World::new().with("RABBITMQ_URI", "amqp://guest:guest@127.0.0.1:1/%2f");
    let worker = Worker::spawn(&world.settings());
    worker.wait_for_line("\"starting\"");
    worker.stop();
}

#[test]
fn the_endpoints_tell_an_operator_how_the_worker_is() {
    let world = World::new();
    let worker = world.worker();
    assert_eq!(worker.get("/livez").0, 200);
    let report = until("it is ready", || {
        let (status, report) = worker.get("/readyz");
        (status == 200).then_some(report)
    });
    for need in ["broker", "engine", "registry"] {
        assert!(report.contains(need), "{report}");
    }
    assert_eq!(worker.get("/elsewhere").0, 404);
    let (_, metrics) = worker.get("/metrics");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("image_builder_"), "{line}");
        assert!(
            line.rsplit_once(' ').is_some_and(|(_, value)| value.parse::<f64>().is_ok()),
            "{line}"
        );
    }
    for family in ["in_hand", "waiting", "done_total", "restarts_total", "failed_total"] {
        let declared = format!("# TYPE image_builder_actor_{family} ");
        assert!(metrics.contains(&declared), "{family} is there from the start");
    }

    let repo = repository("counted", &[("Dockerfile", &dockerfile("RUN true"))]);
    world.build(&world.request(&repo)).ready();
    // The listener reads a request twice: as it was published, and when its turn has come.
    for (actor, times) in [("listener", 2), ("connector", 1), ("builder", 1), ("pusher", 1)] {
        let done = format!("image_builder_actor_done_total{{actor=\"{actor}\"}}");
        assert_eq!(worker.metric(&done) as u64, times, "{actor}");
    }
    world.finish(&[&worker]);
}

#[test]
fn a_worker_that_drains_is_not_ready_and_says_what_is_in_hand() {
    let world = World::new();
    let worker = world.worker();
    until("it is ready", || (worker.get("/readyz").0 == 200).then_some(()));
    assert_eq!(worker.metric("image_builder_draining") as u64, 0);
    let slow = Slow::begin(&world, &worker);

    worker.terminate();
    let line = worker.wait_for_line("draining");
    assert!(
        line.contains("builder 1") && line.contains("a second signal leaves at once"),
        "{line}"
    );
    let report = until("it is not ready", || {
        let (status, report) = worker.get("/readyz");
        (status == 503).then_some(report)
    });
    assert!(report.contains("\"draining\":true") && report.contains("\"ready\":false"), "{report}");
    assert_eq!(worker.metric("image_builder_draining") as u64, 1);
    let address = Settings::from([("HTTP_ADDR".to_owned(), worker.http())]);
    let asked = run(&["health", "--ready"], &address);
    assert_eq!(asked.code, 69);
    assert!(asked.stderr.contains("is not ready: it drains"), "{}", asked.stderr);
    slow.let_go();
    assert_eq!(worker.wait(), 0);
    let (told, _) = world.finish(&[]);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].clone().ready().build_id(), slow.build_id);
}

#[test]
fn a_hangup_ends_no_worker_that_has_no_terminal() {
    let world = World::new();
    let worker = world.worker();
    let slow = Slow::begin(&world, &worker);
    worker.hang_up();
    worker.wait_for_line("SIGHUP changes nothing");
    slow.let_go();
    world.outcome(&slow.build_id).ready();
    world.finish(&[&worker]);
}

/// A worker whose log is not read unless a test does so.
struct Unread {
    child: Child,
    address: String,
    _directory: TempDir,
}

fn free_address() -> String {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    free.local_addr().expect("it has an address").to_string()
}

impl Unread {
    fn start(world: &World) -> (Self, BufReader<ChildStderr>) {
        let address = free_address();
        let mut settings = world.settings();
        settings.insert("HTTP_ADDR".to_owned(), address.clone());
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut child =
            command(&["serve"], &settings, &directory).spawn().expect("the program starts");
        let log = BufReader::new(child.stderr.take().expect("it is a pipe"));
        let worker = Self { child, address, _directory: directory };
        until("it is ready", || worker.get("/readyz").is_some_and(|at| at.0).then_some(()));
        (worker, log)
    }

    /// Whether it answered 200, and what.
    fn get(&self, path: &str) -> Option<(bool, String)> {
        let url = format!("http://{}{path}", self.address);
        runtime().block_on(async {
            let answer = reqwest::get(url).await.ok()?;
            Some((answer.status().is_success(), answer.text().await.ok()?))
        })
    }

    fn dropped_lines(&self) -> u64 {
        let (_, page) = self.get("/metrics").expect("the worker answers");
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix("image_builder_log_lines_dropped_total "));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("a count: {page}"))
    }

    /// Asks it to end, which it must do well.
    fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child has a pid"), Signal::TERM).expect("the worker is alive");
        let status =
            until("the worker ends", || self.child.try_wait().expect("a child can be waited for"));
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn build_that_says_much(world: &World) {
    // A step that no other build has: one that the engine knows says nothing.
    let dockerfile = dockerfile(&format!("RUN echo {}; seq 1 14000", unique("loud")));
    let repo = repository("loud", &[("Dockerfile", &dockerfile)]);
    world.build(&world.request(&repo)).ready();
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up_and_what_is_lost_is_counted() {
    let world = World::new();
    let (worker, mut log) = Unread::start(&world);
    build_that_says_much(&world);
    let dropped = until("lines were dropped", || Some(worker.dropped_lines()).filter(|n| *n > 0));

    let mut told = 0;
    while told < dropped {
        let mut line = String::new();
        assert!(log.read_line(&mut line).expect("it is text") > 0, "the worker has ended");
        if line.contains("log lines were dropped") {
            let line: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
            told += line["lines"].as_u64().expect("it says how many");
        }
    }

    // Again nobody reads: the worker works, and ends when it is asked to.
    build_that_says_much(&world);
    until("more lines were dropped", || (worker.dropped_lines() > dropped).then_some(()));
    worker.stop();
    drop(log);
    world.finish(&[]);
}

#[test]
fn a_log_whose_reader_is_gone_ends_nothing() {
    let world = World::new();
    let (worker, log) = Unread::start(&world);
    drop(log);
    build_that_says_much(&world);
    assert!(worker.dropped_lines() > 1000);
    worker.stop();
    world.finish(&[]);
}

#[test]
fn a_worker_whose_terminal_goes_away_finishes_what_is_in_hand() {
    let world = World::new();
    let address = free_address();
    let mut settings = world.settings();
    settings.insert("HTTP_ADDR".to_owned(), address.clone());
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let worker = command(&["serve"], &settings, &directory);
    let mut terminal = Command::new("script");
    terminal.args(["-qfc", &format!("exec {BINARY} serve"), "/dev/null"]);
    terminal
        .current_dir(directory.path())
        .env_clear()
        .envs(worker.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut terminal = terminal.spawn().expect("there is a program that makes terminals");
    let screen = BufReader::new(terminal.stdout.take().expect("it is a pipe"));
    let (seen_in, seen) = mpsc::channel();
    // A thread of its own, since reading has no time limit.
    std::thread::spawn(move || {
        screen.lines().map_while(Result::ok).try_for_each(|line| seen_in.send(line))
    });
    let mut lines = Vec::new();
    let mut see = |text: &str| {
        while !lines.last().is_some_and(|line: &String| line.contains(text)) {
            let line = seen.recv_timeout(PATIENCE);
            lines.push(line.unwrap_or_else(|_| panic!("`{text}` is not seen: {lines:#?}")));
        }
    };
    see("at work");
    let step = format!("RUN sleep 4; echo {}", unique("left"));
    let repo = repository("left", &[("Dockerfile", &dockerfile(&step))]);
    let build_id = world.publish(&world.request(&repo));
    see("RUN sleep 4");
    terminal.kill().and_then(|()| terminal.wait()).expect("it can be ended");

    assert_eq!(world.outcome(&build_id).ready().data()["attempts"], 1);
    until("the worker ends", || TcpStream::connect(&address).err());
    world.finish(&[]);
}
