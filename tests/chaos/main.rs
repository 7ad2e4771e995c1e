//! Chaos: an independent oracle asks three workers for builds while everything around and inside them
//! breaks at random, and counts afterwards. `make chaos RUNS=500 SEED=1` repeats a run: the same
//! requests and the same faults in the same order, only the times differ.
//!
//! | file | what it does |
//! |---|---|
//! | `requests.rs` | what is asked for, and how it has to end |
//! | `faults.rs` | what goes wrong |
//! | `gate.rs` | a way to a service that can be barred |
//! | `workers.rs` | processes that are started again whenever they end |
//! | `world.rs` | the deployment: workers, gates, services |
//! | `post.rs` | the oracle's own way to the broker |
//! | `oracle.rs` | judges what was told by the contract alone |
//! | `report.rs` | the figures, and the evidence of what was wrong |
//!
//! `RUNS` requests (40), two faults for each five; `SEED` (1); `CHAOS_RESTARTS=1` restarts and kills
//! RabbitMQ and the engine for real, which disturbs all who use them. Not among the faults: a full
//! disk, which cannot be had for one run alone.

#![allow(unreachable_pub, reason = "a test's modules are for the test")]

mod dice;
mod faults;
mod gate;
mod oracle;
mod post;
mod report;
mod requests;
#[path = "../support/mod.rs"]
mod support;
mod workers;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use serde_json::{Value, json};

use self::dice::Dice;
use self::faults::{Done, Fault};
use self::oracle::{Oracle, Violation};
use self::post::Post;
use self::report::Report;
use self::requests::{Repositories, Request, Sort};
use self::support::broker::Broker;
use self::support::{engine, setting, unique, until};
use self::world::{PATIENCE, World, lock};

/// Requests that may be under way at once.
const UNDER_WAY: usize = 24;
/// Faults that go on at once.
const LANES: usize = 2;
/// Requests without an outcome count as lost when nothing was told for so long.
const SILENCE: Duration = Duration::from_secs(120);

#[test]
fn every_confirmed_request_ends_in_exactly_one_outcome_whatever_breaks() {
    // The short run of every day asks the same each time; who looks for news gives a SEED.
    let seed = setting("SEED", "1").parse().expect("SEED is a number");
    let runs = setting("RUNS", "40").parse().expect("RUNS is a number");
    eprintln!("chaos: SEED={seed} RUNS={runs}");
    Run::new(seed, runs, setting("CHAOS_RESTARTS", "0") == "1").run();
}

/// One run.
struct Run {
    seed: u64,
    requests: Vec<Request>,
    faults: Vec<Fault>,
    repositories: Repositories,
    world: World,
    post: Post,
    oracle: Oracle,
    begun: Instant,
    progress: Progress,
}

/// How far requests and faults have come: each waits for the other to keep in step.
#[derive(Default)]
struct Progress {
    published: AtomicUsize,
    happened: AtomicUsize,
    given_up: AtomicBool,
    log: Mutex<Events>,
}

#[derive(Default)]
struct Events {
    faults: BTreeMap<String, usize>,
    in_vain: usize,
    wrong: Vec<Violation>,
    file: Option<fs::File>,
}

impl Run {
    fn new(seed: u64, count: usize, restarts: bool) -> Self {
        let logs = report::directory();
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).expect("the target directory can be written");
        let run = unique("chaos");
        let repositories = Repositories::create(&run);
        let progress = Progress::default();
        lock(&progress.log).file = fs::File::create(logs.join("faults.log")).ok();
        Self {
            seed,
            requests: repositories.requests(&run, seed, count),
            // Some will have nothing to strike.
            faults: faults::faults(seed, count * 9 / 20, restarts),
            world: World::start(&run, &logs),
            repositories,
            post: Post::default(),
            oracle: Oracle::default(),
            begun: Instant::now(),
            progress,
        }
    }

    fn run(mut self) {
        until("the workers have made their queues", || {
            support::broker::queues(&self.world.build_queue).first().map(drop)
        });
        self.disturb();
        let mut violations = Vec::new();
        self.until_told();
        if let Err(text) = self.until_quiet() {
            violations.push(Violation::general(text));
        }
        self.ask_for_fresh_ones();
        violations.extend(self.leftovers());
        violations.extend(self.stop());
        self.finish(violations);
    }

    // ---- requests and faults -------------------------------------------------------------------

    /// Publishes all requests while all faults happen.
    fn disturb(&mut self) {
        let requests = std::mem::take(&mut self.requests);
        let (all, faults) = (requests.len(), std::mem::take(&mut self.faults));
        let (world, progress, seed) = (&self.world, &self.progress, self.seed);
        let (oracle, post) = (&mut self.oracle, &mut self.post);
        std::thread::scope(|scope| {
            for lane in 0..LANES {
                let faults = &faults;
                scope.spawn(move || {
                    let _panic = progress.stop_others_on_panic();
                    let mut dice = Dice::new(seed, &format!("lane {lane}"));
                    for index in (lane..faults.len()).step_by(LANES) {
                        progress.until_published(index * all / faults.len());
                        std::thread::sleep(dice.millis(100, 1000));
                        progress.note(faults[index], faults[index].happen(world));
                    }
                });
            }
            let _panic = progress.stop_others_on_panic();
            for (index, request) in requests.into_iter().enumerate() {
                progress.until_happened((index * faults.len() / all).saturating_sub(2 * LANES));
                // What is lost must not hold up the rest: the oracle finds it in the end.
                let patience = Instant::now() + SILENCE;
                while oracle.open(&world.managers.all()).len() >= UNDER_WAY
                    && Instant::now() < patience
                {
                    std::thread::sleep(Duration::from_millis(300));
                }
                publish(world, oracle, post, request);
                progress.published.fetch_add(1, Ordering::SeqCst);
            }
        });
    }

    // ---- afterwards ----------------------------------------------------------------------------

    /// Waits until every request has its outcome, or nothing more is told.
    fn until_told(&self) {
        let (mut known, mut since) = (0, Instant::now());
        loop {
            let told = self.world.managers.all();
            if self.oracle.open(&told).is_empty() {
                return;
            }
            if told.len() > known {
                (known, since) = (told.len(), Instant::now());
            }
            if since.elapsed() > SILENCE {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until the run's queues are empty and nothing is unacked.
    fn until_quiet(&self) -> Result<(), String> {
        // The broker's figures are up to five seconds old.
        const LAG: Duration = Duration::from_secs(6);
        let deadline = Instant::now() + PATIENCE;
        let mut empty_since = None;
        loop {
            let waiting = self.world.waiting();
            let busy = waiting.as_ref().map_or(true, |all| all.iter().any(|(_, n)| *n > 0));
            if busy {
                empty_since = None;
            } else if empty_since.get_or_insert_with(Instant::now).elapsed() > LAG {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the queues do not get empty: {waiting:?}"));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Has a few builds made that have to end as if nothing had happened.
    fn ask_for_fresh_ones(&mut self) {
        for number in 0..world::WORKERS {
            let request = self.repositories.fresh(&self.world.run, number);
            publish(&self.world, &mut self.oracle, &mut self.post, request);
        }
        self.until_told();
    }

    /// What is left where nothing may be.
    fn leftovers(&self) -> Vec<Violation> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = self.left();
            if left.is_empty() || Instant::now() > deadline {
                return left.into_iter().map(Violation::general).collect();
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for site in &self.world.workers {
            let work = lock(&site.worker).data.join("work");
            for entry in fs::read_dir(&work).into_iter().flatten().flatten() {
                left.push(format!("a workspace is left: {}", entry.path().display()));
            }
        }
        let run = &self.world.run;
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(run.as_str()) {
                left.push(format!("a step still runs: {}", String::from_utf8_lossy(&line)));
            }
        }
        let containers =
            engine::docker(&["ps", "--all", "--no-trunc", "--format", "{{.Image}} {{.Command}}"]);
        let ours = |line: &&str| line.contains(run) || line.contains(&self.world.registry_name);
        left.extend(
            containers.lines().filter(ours).map(|line| format!("a container is left: {line}")),
        );
        left
    }

    /// Drains the workers; returns what is wrong with that, and what is left in the queues.
    fn stop(&mut self) -> Vec<Violation> {
        let mut wrong = Vec::new();
        for site in &self.world.workers {
            let worker = lock(&site.worker);
            wrong.extend(worker.stop(PATIENCE).err());
            wrong.extend(worker.faults());
            let log = fs::read(&worker.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let died = |line: &&str| line.contains("panicked") || line.contains("an actor died");
            wrong.extend(log.lines().filter(died).map(|line| format!("{}: {line}", worker.name)));
        }
        for queue in support::broker::queues(&format!("{}.", self.world.run)) {
            if queue == self.world.dead_queue {
                continue;
            }
            for body in self.post.drain(&queue) {
                wrong.push(format!("left in {queue}: {}", String::from_utf8_lossy(&body)));
            }
        }
        wrong.into_iter().map(Violation::general).collect()
    }

    fn finish(mut self, mut violations: Vec<Violation>) {
        let told = self.world.managers.all();
        let mut count = self.oracle.judge(&told);
        violations.append(&mut count.violations);
        violations.extend(oracle::judge_registry(
            &told,
            &self.world.registry_name,
            &self.world.run,
        ));
        violations.extend(self.judge_letters(&told));
        violations.extend(self.world.managers.faults().into_iter().map(Violation::general));
        let events = std::mem::take(&mut *lock(&self.progress.log));
        violations.extend(events.wrong);
        count.violations = violations;
        let workers: Vec<_> = self.world.workers.iter().map(|site| lock(&site.worker)).collect();
        let report = Report {
            seed: self.seed,
            duration: self.begun.elapsed(),
            faults: events.faults,
            in_vain: events.in_vain,
            processes: workers.iter().map(|worker| worker.generations()).sum(),
            count,
        };
        let logs: Vec<PathBuf> = workers.iter().map(|worker| worker.log.clone()).collect();
        drop(workers);
        report.print(&self.oracle);
        let violations = &report.count.violations;
        let evidence = report::keep_evidence(violations, &told, &logs);
        self.tidy();
        for violation in violations {
            let id = violation.build_id.as_deref().unwrap_or("-");
            eprintln!("VIOLATION {id}: {}", violation.text);
        }
        assert!(
            violations.is_empty(),
            "{} violations with SEED={}; the evidence is in {}",
            violations.len(),
            self.seed,
            evidence.display()
        );
    }

    /// Every build that was given up has a dead letter, and no other has.
    fn judge_letters(&mut self, told: &[support::managers::Told]) -> Vec<Violation> {
        let letters = self.post.drain(&self.world.dead_queue);
        let letters: Vec<Value> =
            letters.iter().filter_map(|body| serde_json::from_slice(body).ok()).collect();
        let buried: Vec<&str> =
            letters.iter().filter_map(|letter| letter["buildID"].as_str()).collect();
        let failed: Vec<&str> = told
            .iter()
            .filter(|told| told.kind() != "image.ready")
            .map(|told| told.build_id())
            .collect();
        let violation = |id: &str, text: &str| Violation {
            build_id: Some(id.to_owned()),
            text: text.to_owned(),
        };
        let missing = failed.iter().filter(|id| !buried.contains(id));
        let missing = missing.map(|id| violation(id, "given up without a dead letter"));
        let odd = buried.iter().filter(|id| !failed.contains(id));
        missing
            .chain(odd.map(|id| violation(id, "has a dead letter and was not given up")))
            .collect()
    }

    /// Removes the run's queues and images.
    fn tidy(&self) {
        Broker::connect().delete(&format!("{}.", self.world.run), &self.world.cancel_exchange);
        for path in self.repositories.paths() {
            for ending in ["", ".git"] {
                let source = format!("{}/{path}{ending}", self.world.forge_url);
                let label = format!("label=org.opencontainers.image.source={source}");
                let images = engine::docker(&["image", "ls", "--quiet", "--filter", &label]);
                engine::forget(&images.lines().map(str::to_owned).collect::<Vec<_>>());
            }
        }
    }
}

fn publish(world: &World, oracle: &mut Oracle, post: &mut Post, request: Request) {
    let body = request.body.to_string();
    let properties = match &request.message_id {
        Some(id) => BasicProperties::default().with_message_id(id.as_str().into()),
        None => BasicProperties::default(),
    };
    let (copies, cancelled) = (request.copies, request.sort == Sort::Cancelled);
    let id = request.build_id.clone();
    oracle.ask(request);
    let taken = (0..copies)
        .map(|_| post.publish("", &world.build_queue, body.as_bytes(), &properties))
        .sum();
    if let Some(asked) = oracle.asked.last_mut() {
        asked.copies = taken;
    }
    if cancelled {
        let body = json!({"buildID": id}).to_string();
        post.publish(&world.cancel_exchange, "", body.as_bytes(), &BasicProperties::default());
    }
}

impl Progress {
    fn until_published(&self, count: usize) {
        self.until(&self.published, count);
    }

    fn until_happened(&self, count: usize) {
        self.until(&self.happened, count);
    }

    fn until(&self, counter: &AtomicUsize, count: usize) {
        while counter.load(Ordering::SeqCst) < count {
            assert!(
                !self.given_up.load(Ordering::SeqCst),
                "another thread of the run has panicked"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop_others_on_panic(&self) -> impl Drop {
        OnPanic(&self.given_up)
    }

    /// Writes down what became of a fault.
    fn note(&self, fault: Fault, done: Done) {
        let mut log = lock(&self.log);
        let outcome = match done {
            Done::Happened => {
                *log.faults.entry(fault.to_string()).or_default() += 1;
                "happened"
            }
            Done::InVain => {
                log.in_vain += 1;
                "struck nothing"
            }
            Done::Wrong(text) => {
                log.wrong.push(Violation::general(format!("{fault}: {text}")));
                "went wrong"
            }
        };
        let now = time::OffsetDateTime::now_utc();
        if let Some(file) = &mut log.file {
            // Only for those who look into a run; the figures do without.
            let _ = writeln!(file, "{now} {outcome}: {fault:?}");
        }
        drop(log);
        self.happened.fetch_add(1, Ordering::SeqCst);
    }
}

/// Tells the other threads of a run that this one has panicked: they would wait for it for ever.
struct OnPanic<'a>(&'a AtomicBool);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}
