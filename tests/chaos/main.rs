//! Chaos: an independent oracle asks three workers for builds while everything around and inside them
//! breaks at random, and counts afterwards. `make chaos RUNS=500 SEED=1` repeats a run: the same
//! requests and the same faults in the same order, only the times differ.
//!
//! | file | what it does |
//! |---|---|
//! | `requests.rs` | what is asked for, and how it has to end |
//! | `faults.rs` | what goes wrong |
//! | `gate.rs` | a way to a service that can be barred |
//! | `disk.rs` | a worker's small disk, which can be filled |
//! | `workers.rs`, `keeper.rs` | processes that are started again whenever they end |
//! | `world.rs` | the deployment: workers, gates, services |
//! | `brokers/` | the broker under test, and the oracle's own way to it |
//! | `progress.rs` | how far requests and faults have come |
//! | `collect.rs`, `evidence.rs`, `journal.rs` | what is there afterwards |
//! | `oracle/` | judges that by the promises alone |
//! | `report.rs` | the figures, and the evidence of what was wrong |
//!
//! `RUNS` requests (30), two faults for each five; `SEED` (10). The deployment has a broker and an engine
//! of its own, which are restarted and killed for real; `CHAOS_RESTARTS=0` leaves that out. It needs root.

#![allow(unreachable_pub, reason = "a test's modules are for the test")]

mod brokers;
mod collect;
mod dice;
mod disk;
mod evidence;
mod faults;
mod gate;
mod journal;
mod keeper;
mod oracle;
mod oracle_tests;
mod progress;
mod report;
mod requests;
#[path = "../support/mod.rs"]
mod support;
mod workers;
mod world;

use std::fs;
use std::time::{Duration, Instant};

use self::dice::Dice;
use self::evidence::{Evidence, Left};
use self::faults::Fault;
use self::oracle::Oracle;
use self::progress::Progress;
use self::report::Report;
use self::requests::{Repositories, Request, Sort};
use self::support::{setting, unique};
use self::world::{PATIENCE, World, lock};

/// Requests that may be under way at once.
const UNDER_WAY: usize = 60;
/// Requests that are made when nothing is broken any longer.
const FRESH: usize = 3;
/// Faults that go on at once.
const LANES: usize = 2;
/// Requests without an outcome count as lost when nothing was told for so long.
const SILENCE: Duration = Duration::from_secs(120);

#[test]
fn every_confirmed_request_ends_in_exactly_one_outcome_whatever_breaks() {
    // The short run of every day asks the same each time; who looks for news gives a SEED.
    let seed = setting("SEED", "10").parse().expect("SEED is a number");
    let runs = setting("RUNS", "30").parse().expect("RUNS is a number");
    eprintln!("chaos: SEED={seed} RUNS={runs}");
    Run::new(seed, runs, setting("CHAOS_RESTARTS", "1") == "1").run();
}

/// One run.
struct Run {
    seed: u64,
    requests: Vec<Request>,
    faults: Vec<Fault>,
    repositories: Repositories,
    world: World,
    oracle: Oracle,
    begun: Instant,
    progress: Progress,
}

impl Run {
    fn new(seed: u64, count: usize, restarts: bool) -> Self {
        let logs = report::directory();
        let _ = fs::remove_dir_all(&logs);
        fs::create_dir_all(&logs).expect("the target directory can be written");
        let run = unique("chaos");
        let repositories = Repositories::create(&run);
        let progress = Progress::noted_in(&logs.join("faults.log"));
        let world = World::start(&run, &logs);
        Self {
            seed,
            requests: repositories.requests(&run, seed, count),
            // Some will have nothing to strike.
            faults: faults::faults(seed, count * 9 / 20, restarts),
            world,
            repositories,
            oracle: Oracle::default(),
            begun: Instant::now(),
            progress,
        }
    }

    fn run(mut self) {
        self.world.broker.until_ready();
        self.disturb();
        self.until_notified();
        let waiting = self.until_quiet();
        self.ask_for_fresh_ones();
        let left = self.leavings();
        for site in &self.world.workers {
            lock(&site.worker).stop(PATIENCE);
        }
        let evidence = Evidence::collect(&self.world, left, waiting);
        self.finish(evidence);
    }

    // ---- requests and faults -------------------------------------------------------------------

    /// Publishes all requests while all faults happen.
    fn disturb(&mut self) {
        let requests = std::mem::take(&mut self.requests);
        let (all, faults) = (requests.len(), std::mem::take(&mut self.faults));
        let (world, progress, seed) = (&self.world, &self.progress, self.seed);
        let oracle = &mut self.oracle;
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
                publish(world, oracle, request);
                progress.published();
            }
        });
    }

    // ---- afterwards ----------------------------------------------------------------------------

    /// Waits until every request has its outcome, or nothing more is told.
    fn until_notified(&self) {
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

    /// Waits until the queues are empty and nothing is unacked; returns what they have in the end.
    fn until_quiet(&self) -> Vec<(String, u64)> {
        // The broker's figures are up to five seconds old.
        const LAG: Duration = Duration::from_secs(6);
        let deadline = Instant::now() + PATIENCE;
        let mut empty_since = None;
        loop {
            let waiting = self.world.broker.waiting().unwrap_or_else(|error| vec![(error, 1)]);
            if !oracle::judge_waiting(&waiting).is_empty() {
                empty_since = None;
            } else if empty_since.get_or_insert_with(Instant::now).elapsed() > LAG {
                return waiting;
            }
            if Instant::now() > deadline {
                return waiting;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Has a few builds made that have to end as if nothing had happened.
    fn ask_for_fresh_ones(&mut self) {
        for number in 0..FRESH {
            let request = self.repositories.fresh(&self.world.run, number);
            publish(&self.world, &mut self.oracle, request);
        }
        self.until_notified();
    }

    /// What builds have left behind; they are given a while to be gone.
    fn leavings(&self) -> Left {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = Left::collect(&self.world);
            let clean = oracle::judge_left(&self.world.run, &left).is_empty();
            if clean || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn finish(self, mut evidence: Evidence) {
        let events = self.progress.events();
        evidence.failed_faults = events.failed;
        let workers = self.world.workers.iter().map(|site| lock(&site.worker).generations());
        let report = Report {
            seed: self.seed,
            duration: self.begun.elapsed(),
            faults: events.faults,
            in_vain: events.in_vain,
            processes: workers.sum(),
            count: self.oracle.judge(&evidence),
        };
        report.print(&self.oracle);
        let file = report::keep_evidence(&report.count, &evidence);
        let violations = &report.count.violations;
        for violation in violations {
            let id = violation.build_id.as_deref().unwrap_or("-");
            eprintln!("VIOLATION {:?} {id}: {}", violation.finding, violation.text);
        }
        assert!(
            violations.is_empty(),
            "{} violations with SEED={}; the evidence is in {}",
            violations.len(),
            self.seed,
            file.display()
        );
    }
}

fn publish(world: &World, oracle: &mut Oracle, request: Request) {
    oracle.ask(request.clone());
    // The workers are back when this is dropped.
    let _alone = (request.sort == Sort::CancelledUnheard).then(|| world.broker.cut_off());
    let taken: Vec<_> = (0..request.copies).map(|_| world.broker.publish(&request)).collect();
    oracle.taken(&taken);
    if let (true, Some(build_id)) = (request.sort.is_cancelled(), &request.build_id) {
        world.broker.cancel(&request.user, build_id);
    }
}
