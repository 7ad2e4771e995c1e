//! What is pruned, and what is not, on a real engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use image_builder::engine::docker::disk::inventory::HeldBytes;
use image_builder::engine::docker::disk::size::Size;

use crate::engine::SmallEngine;
use crate::orders::{Guarded, MB, Order, has};
use crate::support::engine::BASE;

/// Longest wait for the engine to let go of what was removed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is held where nothing has to go.
async fn held_by(small: &SmallEngine) -> HeldBytes {
    let worker = Guarded::new(small, |settings| settings.budget = Size(10_000 * MB));
    worker.guard.tidy().await;
    *worker.guard.held().borrow()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_use_goes_first_and_only_down_to_the_budget() {
    let small = SmallEngine::start(900).await;
    let empty = small.room().free;
    // Built by another worker, which is done with them.
    let orders = [30, 30, 30].map(|megabytes| Order::of_bytes(megabytes * MB));
    for order in &orders {
        order.build(&*small.engine).await.expect("the build is good");
    }
    orders[0].find(&*small.engine).await.expect("it is there");
    small.has_let_go().await;
    let before = small.room().free;
    let all = held_by(&small).await;
    // How often an engine keeps what it was sent, and what it made of it, is its own affair.
    assert!(all.images >= 90 * MB, "{all:?}");
    assert!(all.total().abs_diff(empty - before) < 15 * MB, "{all:?}, {}", Size(empty - before));
    let (image, cache) = (all.images / 3, all.cache / 3);

    let budget = 2 * image + cache + 5 * MB;
    let worker = Guarded::new(&small, |settings| settings.budget = Size(budget));
    worker.guard.tidy().await;
    assert!(has(&small, &orders[0]).await, "the image that was used last is gone");
    assert!(!has(&small, &orders[1]).await, "the image that was used first is still there");
    assert!(has(&small, &orders[2]).await, "more went than had to");
    let held = *worker.guard.held().borrow();
    assert!(held.images.abs_diff(2 * image) < MB, "{held:?}");
    assert!(held.total() <= budget, "{held:?}");
    let freed = small.room().free - before;
    assert!(freed >= image + 2 * cache - 10 * MB, "only {} were freed", Size(freed));

    let again = small.room().free;
    worker.guard.tidy().await;
    assert!(small.room().free.abs_diff(again) < MB, "there was nothing left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_that_is_in_use_or_that_somebody_else_made_or_named() {
    let small = SmallEngine::start(700).await;
    let worker = Guarded::new(&small, |_| {});
    let orders: [Order; 6] = std::array::from_fn(|_| Order::of_bytes(5 * MB));
    let [in_hand, contained, named, replaced, inherited, old] = &orders;
    // A job of this worker has it, and the others are done with.
    let image = in_hand.build(&*worker.builder).await.expect("the build is good");
    for order in [contained, named, replaced, inherited, old] {
        order.build(&*small.engine).await.expect("the build is good");
    }
    let name = async |order: &Order| order.name(&small.engine).await.expect("it is there");
    small.own.docker(&["create", "--name", "it", &name(contained).await, "/data"]);
    small.own.docker(&["tag", &name(named).await, "somebody/elses:1"]);
    // Somebody's own image, on top of one that was made here.
    let theirs = tempfile::tempdir().expect("a directory");
    let dockerfile = format!("FROM {}\nCOPY Dockerfile /mine\n", name(inherited).await);
    std::fs::write(theirs.path().join("Dockerfile"), dockerfile).expect("written");
    small.own.docker(&[
        "build",
        "--tag",
        "somebody/derived:1",
        theirs.path().to_str().expect("text"),
    ]);
    // A forced build leaves an earlier image, which nobody finds any more.
    let first = replaced.find(&*small.engine).await.expect("it is there");
    let mut forced = Order::of_bytes(5 * MB);
    forced.order.key = replaced.key().clone();
    forced.order.labels = replaced.order.labels.clone();
    forced.order.reference = replaced.order.reference.clone();
    let second = forced.build(&*small.engine).await.expect("the build is good");
    assert_eq!(replaced.find(&*small.engine).await, Some(second));
    assert!(small.own.docker(&["images", "-q", "--no-trunc"]).contains(&first.id));

    worker.guard.tidy().await;
    for order in [in_hand, contained, named] {
        assert!(has(&small, order).await);
    }
    let names = small.own.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert!(names.contains("somebody/elses:1") && names.contains("somebody/derived:1"), "{names}");
    for order in [replaced, inherited, old] {
        assert!(!has(&small, order).await, "{names}");
    }
    assert!(!small.own.docker(&["images", "-q", "--no-trunc"]).contains(&first.id), "{names}");

    // One that was found again is in hand as well.
    let found = in_hand.find(&*worker.builder).await.expect("there");
    drop(image);
    worker.guard.tidy().await;
    assert!(has(&small, in_hand).await);
    drop(found);
    worker.guard.tidy().await;
    assert!(!has(&small, in_hand).await, "nobody has it in hand any longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_worker_may_be_about_to_push_stays() {
    let small = SmallEngine::start(400).await;
    let worker = Guarded::new(&small, |settings| settings.young.image = Duration::from_secs(600));
    let order = Order::of_bytes(5 * MB);
    order.build(&*small.engine).await.expect("the build is good");
    worker.guard.tidy().await;
    assert!(has(&small, &order).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_prune_at_once_without_harm() {
    let small = SmallEngine::start(700).await;
    let workers = [0, 1].map(|_| Guarded::new(&small, |s| s.budget = Size(65 * MB)));
    let orders: [Order; 8] = std::array::from_fn(|_| Order::of_bytes(10 * MB));
    for order in &orders {
        order.build(&*small.engine).await.expect("the build is good");
    }
    tokio::join!(workers[0].guard.tidy(), workers[1].guard.tidy());
    // One that met the other may leave more of the cache: those that follow get it down.
    let tidied = async || {
        workers[0].guard.tidy().await;
        *workers[0].guard.held().borrow()
    };
    let kept = tokio::time::timeout(PATIENCE, async {
        while tidied().await.total() > 65 * MB {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(kept.await.is_ok(), "{:?}", tidied().await);
    assert!(!has(&small, &orders[0]).await);
    // Each counts what the other is about to remove, so together they may remove more than one would.
    let next = Order::of_bytes(10 * MB);
    next.build(&*small.engine).await.expect("what is left is whole");
    assert!(has(&small, &next).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_everything_again_and_again_breaks_no_running_build() {
    let small = SmallEngine::start(1200).await;
    small.own.load(BASE);
    let worker = Guarded::new(&small, |settings| settings.young.cache = Duration::from_secs(5));
    let done = Arc::new(AtomicBool::new(false));
    let pruning = tokio::spawn({
        let (guard, done) = (worker.guard.clone(), done.clone());
        async move {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                guard.tidy().await;
                rounds += 1;
            }
            rounds
        }
    });
    for _ in 0..5 {
        // Steps that are shared between builds, come from another stage, and from a cache mount.
        let dockerfile = format!(
            "FROM {BASE} AS one\nCOPY data /data\n\
             RUN --mount=type=cache,target=/c cp /data /c/d && cp /c/d /two\n\
             FROM {BASE}\nRUN sleep 0.3; echo shared > /shared\n\
             COPY --from=one /two /two\nRUN sleep 0.3; cmp /two /two && rm /two\n"
        );
        let orders = [0, 1].map(|_| Order::new(&dockerfile, 3 * MB));
        let (first, second) =
            tokio::join!(orders[0].build(&*worker.builder), orders[1].build(&*worker.builder));
        let _in_hand = [first, second]
            .map(|built| built.unwrap_or_else(|fault| panic!("pruning broke a build: {fault}")));
        for order in &orders {
            assert!(has(&small, order).await, "what a job has in hand was pruned");
        }
    }
    done.store(true, Ordering::Relaxed);
    let rounds = pruning.await.expect("pruning does not panic");
    assert!(rounds > 3, "only {rounds} prunings met the builds");
}
