//! Builds that fill the disk, beside others that do not.

use std::process::Command;
use std::time::Duration;

use image_builder::engine::docker::disk::DiskSettings;
use image_builder_actors::model::fault::{Fault, Reason};
use image_builder_actors::model::image::BuiltImage;

use crate::engine::SmallEngine;
use crate::killed::{in_time, runs};
use crate::orders::{Guarded, MB, Order, has, prune_for_room, unique};
use crate::support::engine::BASE;

/// Writes for ever, and slowly enough that whoever is to stop it can be kept waiting for some seconds.
const STEADILY: &str = "i=0; while dd if=/dev/zero of=/f$i bs=1M count=8 2>/dev/null; do \
                        i=$((i+1)); sleep 0.2; done; exit 1";
/// Writes until nothing is left, long before anybody looks.
const AT_ONCE: &str = "dd if=/dev/zero of=/f bs=1M";

/// A command of a step that does nothing until it is ended, and fails then.
struct Rest(u32);

impl Rest {
    fn new() -> Self {
        // No two tests rest for the same time.
        Self(100_000 + uuid::Uuid::new_v4().as_fields().0 % 100_000)
    }

    fn is_reached(&self) -> bool {
        runs(&format!("sleep\0{}", self.0))
    }

    fn end(&self) {
        let ended = Command::new("pkill").args(["-f", &format!("^{self}$")]).status();
        assert!(ended.is_ok_and(|status| status.success()), "nobody rests for {self}");
    }
}

impl std::fmt::Display for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sleep {}", self.0)
    }
}

type Build = tokio::task::JoinHandle<Result<BuiltImage, Fault>>;

/// A build with this one step, which has begun. Its shell stays until the end, so that it can be seen.
async fn begun(worker: &Guarded, step: &str) -> Build {
    let mark = unique();
    let order = Order::new(&format!("FROM {BASE}\nRUN : {mark}; ({step}); exit $?\n"), 1);
    let builder = worker.builder.clone();
    let build = tokio::spawn(async move { order.build(&*builder).await });
    in_time("the step runs", async || runs(&mark)).await;
    build
}

/// Builds a step that takes more than any disk of here has, and returns what it ends with.
async fn fills(worker: &Guarded, step: &str) -> Fault {
    begun(worker, step).await.await.expect("no panic").expect_err("no disk has room for that")
}

/// Lets a neighbour that rests end, whose build works whatever became of others.
async fn works(neighbour: Build, rest: &Rest) {
    in_time("the neighbour rests", async || rest.is_reached()).await;
    rest.end();
    neighbour.await.expect("no panic").expect("others filled the disk");
}

fn with_low(low: &str) -> impl FnOnce(&mut DiskSettings) {
    move |settings| {
        prune_for_room(settings);
        settings.low = low.parse().expect("a watermark");
        settings.high = low.parse().expect("a watermark");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fills_the_disk_is_the_one_that_stops() {
    let small = SmallEngine::start(1200).await;
    small.own.load(BASE);
    let worker = Guarded::new(&small, with_low("300MB"));
    let old = Order::of_bytes(5 * MB);
    old.build(&*worker.builder).await.expect("there is room");

    let rest = Rest::new();
    let neighbour = begun(&worker, &format!("{rest} || echo done > /done")).await;
    let fault = fills(&worker, STEADILY).await;
    assert_eq!(fault.reason, Reason::TooLarge, "{fault}");
    assert!(fault.message.contains("it was stopped when it had taken"), "{fault}");
    works(neighbour, &rest).await;
    assert_eq!(worker.guard.look().await, Ok(()), "there is room, and was all the time for others");
    assert!(has(&small, &old).await, "nothing was pruned for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fills_the_disk_of_several_workers_costs_those_that_do_not_have_it_nothing() {
    let small = SmallEngine::start(1200).await;
    small.own.load(BASE);
    let [one, other] = [0, 1].map(|_| Guarded::new(&small, with_low("300MB")));
    let rest = Rest::new();
    let neighbour = begun(&other, &format!("{rest} || echo done > /done")).await;
    let fault = fills(&one, STEADILY).await;
    assert_eq!(fault.reason, Reason::TooLarge, "{fault}");
    works(neighbour, &rest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fills_the_disk_faster_than_anybody_looks_costs_its_neighbour_nothing() {
    let small = SmallEngine::start(700).await;
    small.own.load(BASE);
    let worker = Guarded::new(&small, |_| {});
    let rest = Rest::new();
    // It needs room itself, and ends with an error where there is none.
    let needy = "for n in $(seq 100); do dd if=/dev/zero of=/need bs=1M count=1 || exit 1; sleep 0.05; done";
    let neighbour = begun(&worker, &format!("{needy}; {rest} || rm /need")).await;
    let fault = fills(&worker, AT_ONCE).await;
    assert!(matches!(fault.reason, Reason::DiskLow | Reason::TooLarge), "{fault}");
    works(neighbour, &rest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_answers_for_nothing_that_others_wrote() {
    let small = SmallEngine::start(700).await;
    small.own.load(BASE);
    let worker = Guarded::new(&small, |settings| {
        with_low("100MB")(settings);
        settings.gives_back = Duration::from_secs(1);
    });
    let build = begun(&worker, "sleep 60").await;
    let ballast = small.fill_up_to(50 * MB);
    let fault = build.await.expect("no panic").expect_err("there is no room");
    assert_eq!(fault.reason, Reason::DiskLow, "{fault}");
    assert!(fault.message.contains("waits for room"), "{fault}");
    std::fs::remove_file(ballast).expect("removed");
    let next = Order::new(&format!("FROM {BASE}\nRUN : {}\n", unique()), 1);
    next.build(&*worker.builder).await.expect("there is room again");
}
