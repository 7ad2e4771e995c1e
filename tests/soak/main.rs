//! A soak: thousands of small jobs in waves, with idle stretches between, on the real services and
//! one worker process. In the end it holds what it held after the first wave, and no more memory than
//! after half of them: no memory, descriptor, thread, connection, file, container, image, process or
//! message has leaked, and every request had exactly one outcome.
//!
//! | file | what it does |
//! |---|---|
//! | `requests.rs` | what is asked for, and how it has to end |
//! | `sample.rs` | what the worker holds at a moment |
//! | `verdict.rs` | judges the last sample by the earlier ones |
//! | `images.rs` | the images that are left on the engine |
//! | `report.rs` | the table |
//!
//! `SOAK_JOBS` requests (60) over at least `SOAK_MINUTES` (1). `SOAK_CACHE_BUDGET` is the worker's
//! `CACHE_BUDGET`: with a small one the worker prunes the engine meanwhile, others' build cache included.

#![allow(unreachable_pub, reason = "a test's modules are for the test")]

#[path = "../chaos/dice.rs"]
#[allow(dead_code, reason = "the chaos run throws more")]
mod dice;
#[path = "../chaos/evidence.rs"]
#[allow(dead_code, reason = "the chaos run has more to judge")]
mod evidence;
mod images;
#[path = "../chaos/journal.rs"]
#[allow(dead_code, reason = "the chaos run looks for what a repetition came of")]
mod journal;
#[path = "../chaos/oracle/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the chaos run counts what breaks")]
mod oracle;
mod report;
mod requests;
mod sample;
#[path = "../support/mod.rs"]
mod support;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::evidence::{Evidence, build_of_letter};
use self::oracle::Oracle;
use self::report::Report;
use self::requests::{Repositories, Request, SECRET, Sort};
use self::sample::{Place, Sample};
use self::support::broker::Fetched;
use self::support::git_server::GOOD_TOKEN;
use self::support::managers::Notification;
use self::support::worker::Worker;
use self::support::world::World;
use self::support::{broker, registry, setting, until};

/// Requests that are published at once; two such bursts are under way at a time.
const BURST: usize = 20;
/// Samples at the end of an idle stretch.
const SAMPLES: usize = 3;
/// Pause between them.
const BETWEEN_SAMPLES: Duration = Duration::from_secs(2);
/// After so long without work all connections that were kept for the next job are closed: those that
/// were idle for 90 s are looked for every 90 s.
const KEPT_OPEN: Duration = Duration::from_secs(190);
/// What is remembered of a request for a while, in KiB: who has claimed its outcome, when its files were built, which
/// steps it had. All of that is bounded, beyond the requests of a soak.
const REMEMBERED: u64 = 1;
/// A request of which nobody is told for so long is lost.
const LOST: Duration = Duration::from_secs(10 * 60);
/// A body that nobody can make sense of.
const GARBAGE: &[u8] = b"{\"userID\": ";

#[test]
fn after_thousands_of_jobs_the_worker_holds_what_it_held_after_the_first() {
    let jobs = setting("SOAK_JOBS", "60").parse().expect("SOAK_JOBS is a number");
    let minutes = setting("SOAK_MINUTES", "1").parse().expect("SOAK_MINUTES is a number");
    Run::new(jobs, minutes).run();
}

/// A worker whose connections the broker lists, which takes it a while.
fn worker(world: &World) -> Worker {
    let worker = world.worker();
    until("the broker lists the worker's connections", || {
        let (connections, channels) = broker::connections_and_channels_of(worker.pid());
        (connections == 4 && channels > 0).then_some(())
    });
    worker
}

/// One run.
struct Run {
    // Dropped in this order: the worker has to be gone before its queues and files are.
    worker: Worker,
    world: World,
    home: TempDir,
    repositories: Repositories,
    oracle: Oracle,
    begun: Instant,
    jobs: usize,
    waves: u32,
    /// From the beginning of one wave to that of the next.
    pace: Duration,
    /// How much memory may grow in the second half.
    growth: f64,
    garbage: usize,
    samples: Vec<(Duration, usize, Sample)>,
}

impl Run {
    fn new(jobs: usize, minutes: u32) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let path = |name: &str| home.path().join(name).display().to_string();
        std::fs::create_dir(path("tmp")).expect("the directory is empty");
        let mut world = World::new().with("DATA_DIR", &path("data")).with("TMPDIR", &path("tmp"));
        let budget = setting("SOAK_CACHE_BUDGET", "");
        if !budget.is_empty() {
            world = world.with("CACHE_BUDGET", &budget);
        }
        world.keep_secret(GOOD_TOKEN);
        world.keep_secret(SECRET);
        let waves = (minutes / 2).clamp(3, 10);
        Self {
            repositories: Repositories::create(&world.user, jobs),
            worker: worker(&world),
            oracle: Oracle::default(),
            begun: Instant::now(),
            jobs,
            waves,
            pace: Duration::from_secs(60) * minutes / waves,
            // A few jobs do not yet warm all up.
            growth: if jobs < 1000 { 0.5 } else { 0.1 },
            garbage: 0,
            samples: Vec::new(),
            home,
            world,
        }
    }

    fn run(mut self) {
        let mut violations: Vec<String> = self.waves().err().into_iter().collect();
        violations.extend(self.settled(&self.warm()));
        let images = images::of(self.repositories.all());
        let restarts = self.worker.restarts();
        if restarts != [0; 6] {
            violations.push(format!("actors died: {restarts:?}"));
        }

        let (told, letters) = self.world.finish(&[&self.worker]);
        let judged = self.judge(told, &letters);
        violations.extend(judged.0);
        violations.extend(self.judge_images(&images));
        Report {
            samples: std::mem::take(&mut self.samples),
            endings: judged.1,
            images: images.len(),
            violations: violations.clone(),
        }
        .publish();
        let told: String =
            violations.iter().map(|violation| format!("error: {violation}\n")).collect();
        assert!(told.is_empty(), "{told}the report is in {}", report::directory().display());
    }

    // ---- jobs ------------------------------------------------------------------------------------

    /// All waves, and the idle stretches after each. An error is a request that nobody is told of.
    fn waves(&mut self) -> Result<(), String> {
        for wave in 0..self.waves {
            let until = |wave| self.jobs * wave as usize / self.waves as usize;
            let (from, to) = (until(wave), until(wave + 1));
            self.wave(from..to)?;
            let next = self.begun + self.pace * (wave + 1);
            let rest = next.saturating_duration_since(Instant::now()).max(self.pace / 3);
            let sample = self.rest(rest);
            eprintln!("soak: {to} of {} jobs, {sample:?}", self.jobs);
            self.samples.push((self.begun.elapsed(), to, sample));
        }
        Ok(())
    }

    /// Publishes these requests, and waits until all are told.
    fn wave(&mut self, numbers: std::ops::Range<usize>) -> Result<(), String> {
        let numbers: Vec<usize> = numbers.collect();
        let mut bursts: Vec<Vec<Request>> = Vec::new();
        for numbers in numbers.chunks(BURST) {
            if let [.., before, last] = &bursts[..] {
                self.cancel(last);
                self.until_notified(before)?;
            }
            bursts.push(numbers.iter().map(|number| self.publish(*number)).collect());
            self.world.publish_raw(GARBAGE, BasicProperties::default());
            self.garbage += 1;
        }
        bursts.iter().try_for_each(|burst| self.until_notified(burst))
    }

    fn publish(&mut self, number: usize) -> Request {
        let request = self.repositories.request(number);
        self.oracle.ask(request.clone());
        self.world.publish_raw(request.body.to_string().as_bytes(), request.properties());
        request
    }

    /// Takes back what of these was meant to be. Some of it builds by now.
    fn cancel(&self, burst: &[Request]) {
        for request in burst.iter().filter(|request| request.sort == Sort::Cancelled) {
            let body = json!({"buildID": request.build_id, "userID": request.user}).to_string();
            self.world.broker.broadcast(&self.world.settings["CANCEL_EXCHANGE"], body.as_bytes());
        }
    }

    fn until_notified(&self, burst: &[Request]) -> Result<(), String> {
        for request in burst {
            let wanted = |told: &Notification| match &request.build_id {
                Some(id) => told.build_id() == id,
                None => told.text("/applicationID") == request.application,
            };
            let what = format!("{:?} of {}", request.sort, request.application);
            self.world.managers.wait_for(&what, LOST, wanted)?;
        }
        Ok(())
    }

    // ---- idle stretches --------------------------------------------------------------------------

    /// Lets the worker idle for so long; returns what it holds at the end.
    fn rest(&self, rest: Duration) -> Sample {
        std::thread::sleep(rest);
        let mut held = self.sample();
        for _ in 1..SAMPLES {
            std::thread::sleep(BETWEEN_SAMPLES);
            held.settle(self.sample());
        }
        held
    }

    /// What a worker holds that is warm: what it held after the first wave, and the memory that it had after half of
    /// them, since caches and pools fill for as long as that.
    fn warm(&self) -> Sample {
        let of = |wave: usize| self.samples.get(wave).map(|(_, _, sample)| sample.clone());
        let (first, half) =
            (of(0).unwrap_or_default(), of(self.samples.len().saturating_sub(1) / 2));
        Sample { memory: half.unwrap_or_default().memory, ..first }
    }

    /// What leaked since. The last stretch is made longer for what takes its time to go.
    fn settled(&mut self, warm: &Sample) -> Vec<String> {
        let Some((at, _, mut last)) = self.samples.pop() else { return Vec::new() };
        let patience = Instant::now() + KEPT_OPEN;
        let remembered = REMEMBERED * (self.jobs / 2) as u64;
        let mut leaks = verdict::leaks(warm, &last, self.growth, remembered);
        while !leaks.is_empty() && Instant::now() < patience {
            std::thread::sleep(BETWEEN_SAMPLES);
            last.settle(self.sample());
            leaks = verdict::leaks(warm, &last, self.growth, remembered);
        }
        self.samples.push((at, self.oracle.asked.len(), last));
        leaks
    }

    fn sample(&self) -> Sample {
        Sample::take(&Place {
            worker: &self.worker,
            home: self.home.path(),
            run: &self.world.user,
            dead_queue: &self.world.settings["DEAD_QUEUE"],
        })
    }

    // ---- afterwards ------------------------------------------------------------------------------

    /// What is wrong with the outcomes, and how many there are of each. Nothing was broken, so that
    /// nothing may have happened twice, and nothing is the service's fault.
    fn judge(
        &self,
        told: Vec<Notification>,
        letters: &[Fetched],
    ) -> (Vec<String>, BTreeMap<String, usize>) {
        let builds: BTreeSet<&str> = told.iter().map(Notification::build_id).collect();
        let letters =
            letters.iter().map(|letter| build_of_letter(&String::from_utf8_lossy(&letter.body)));
        let (letters, unreadable): (Vec<_>, Vec<_>) =
            letters.partition(|(_, id)| builds.contains(id.as_str()));
        let mut evidence = Evidence {
            run: self.world.user.clone(),
            registry_name: registry::open(),
            letters,
            notifications: told,
            ..Evidence::default()
        };
        evidence.ask_registry();
        let count = self.oracle.judge(&evidence);
        let mut violations: Vec<String> =
            count.violations.into_iter().map(|violation| violation.text).collect();
        violations.extend(count.repeats.iter().map(|repeat| format!("told again: {repeat:?}")));
        if count.two_ids > 0 {
            violations.push(format!("{} requests have two ids", count.two_ids));
        }
        if unreadable.len() != self.garbage {
            let (letters, bodies) = (unreadable.len(), self.garbage);
            violations.push(format!("{letters} dead letters of {bodies} unreadable bodies"));
        }
        let of_service =
            evidence.notifications.iter().filter(|told| told.text("/fault") == "service");
        violations.extend(of_service.map(|told| format!("the service failed: {}", told.raw)));
        (violations, count.endings)
    }

    fn judge_images(&self, images: &[images::Image]) -> Vec<String> {
        let told = self.world.managers.all();
        let ids: BTreeSet<&str> = told.iter().map(|told| told.text("/image/imageID")).collect();
        let cancelled: BTreeSet<&str> = told
            .iter()
            .filter(|told| told.kind() == "build.cancelled")
            .map(Notification::build_id)
            .collect();
        let planned: Vec<(String, String)> = self.planned();
        let withdrawn = planned.iter().filter(|(id, _)| cancelled.contains(id.as_str()));
        images::leaks(images, &ids, &withdrawn.map(|(_, key)| key.as_str()).collect())
    }

    /// The build ids that the worker planned, each with its key.
    fn planned(&self) -> Vec<(String, String)> {
        let lines = self.worker.lines();
        let lines = lines.iter().filter(|line| line.contains("\"build planned\""));
        let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
        lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .map(|line| (text(&line, "build_id"), text(&line, "key")))
            .collect()
    }
}
