//! Disks that are nearly full.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use image_builder::engine::docker::disk::DiskGuard;
use image_builder::engine::docker::disk::size::Size;
use image_builder_actors::model::fault::Reason;
use image_builder_actors::model::shutdown::Shutdown;
use image_builder_actors::ports::Probe;
use image_builder_actors::scheduling::capacity::{Capacity, FIRST_LOOK};

use crate::engine::SmallEngine;
use crate::orders::{Guarded, MB, Order, has, prune_for_room};

const PATIENCE: Duration = Duration::from_secs(60);

/// What the worker asks whether there is room again.
pub(crate) struct Disk(pub(crate) DiskGuard);

#[async_trait]
impl Probe for Disk {
    async fn probe(&self, reason: Reason) -> Result<(), String> {
        assert_eq!(reason, Reason::DiskLow);
        self.0.make_room().await
    }
}

/// A worker's capacity, with its guard at work.
fn at_work(worker: &Guarded) -> Capacity {
    let (capacity, shutdown) = (Capacity::default(), Shutdown::default());
    tokio::spawn(worker.guard.clone().run(capacity.clone(), shutdown.clone()));
    let probe = Arc::new(Disk(worker.guard.clone()));
    tokio::spawn(capacity.clone().watch(probe, FIRST_LOOK, shutdown));
    capacity
}

async fn in_time<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event)
        .await
        .unwrap_or_else(|_| panic!("it takes too long: {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn below_the_low_watermark_nothing_is_built_until_pruning_made_room() {
    let small = SmallEngine::start(600).await;
    let worker = Guarded::new(&small, |settings| {
        prune_for_room(settings);
        settings.between_looks = Duration::from_millis(100);
    });
    let old = Order::of_bytes(150 * MB);
    old.build(&*small.engine).await.expect("the build is good");
    let capacity = at_work(&worker);
    // Somebody else fills the disk.
    small.fill_up_to(100 * MB);

    in_time("noticing", capacity.lost()).await;
    in_time("pruning", capacity.found()).await;
    assert!(!has(&small, &old).await);
    assert!(small.room().free > 450 * MB, "{} are free", Size(small.room().free));
    Order::of_bytes(5 * MB).build(&*worker.builder).await.expect("there is room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_others_fill_stops_builds_until_they_leave() {
    let small = SmallEngine::start(400).await;
    let worker = Guarded::new(&small, |settings| {
        settings.low = "100MB".parse().expect("a watermark");
        // More than the disk has: pruning can never get there.
        settings.high = "900MB".parse().expect("a watermark");
        settings.between_looks = Duration::from_millis(100);
    });
    let ballast = small.fill_up_to(50 * MB);

    let order = Order::of_bytes(5 * MB);
    let fault = order.build(&*worker.builder).await.expect_err("there is no room");
    assert_eq!(fault.reason, Reason::DiskLow);
    assert!(fault.message.contains("DISK_LOW_WATERMARK"), "{fault}");
    let capacity = at_work(&worker);
    in_time("noticing", capacity.lost()).await;
    assert!(worker.guard.make_room().await.is_err(), "there is nothing to prune");
    assert_eq!(capacity.lacking().map(|lack| lack.reason), Some(Reason::DiskLow));

    std::fs::remove_file(ballast).expect("removed");
    in_time("resuming", capacity.found()).await;
    order.build(&*worker.builder).await.expect("there is room");
}
