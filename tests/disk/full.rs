//! Disks that are nearly full.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
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

impl Probe for Disk {
    fn look(&self, reason: Reason) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            assert_eq!(reason, Reason::DiskLow);
            self.0.look().await
        })
    }

    fn probe(&self, reason: Reason) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            assert_eq!(reason, Reason::DiskLow);
            self.0.make_room().await
        })
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
    // Engines with containerd's store have the image up to four times: as it was sent, built, packed and unpacked.
    let small = SmallEngine::start(1200).await;
    let worker = Guarded::new(&small, |settings| {
        prune_for_room(settings);
        settings.between_looks = Duration::from_millis(100);
    });
    let old = Order::of_bytes(200 * MB);
    old.build(&*small.engine).await.expect("the build is good");
    small.has_let_go().await;
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

/// A build of one file with more extended attributes than the engine's file system takes: COPY and ADD
/// fail with "no space left on device" on any disk.
fn with_too_many_attributes() -> Order {
    let order = Order::new("FROM scratch\nADD files.tar /\n", 1);
    let mut archive = tar::Builder::new(Vec::new());
    let large = vec![b'x'; 5000];
    archive
        .append_pax_extensions([("SCHILY.xattr.user.large", large.as_slice())])
        .expect("written to memory");
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    archive.append_data(&mut header, "file", &b"x"[..]).expect("written to memory");
    let archive = archive.into_inner().expect("written to memory");
    std::fs::write(order.order.plan.context.join("files.tar"), archive).expect("written");
    order
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_says_its_disk_is_full_and_has_room_pauses_and_prunes_nothing() {
    let small = SmallEngine::start(400).await;
    let worker = Guarded::new(&small, |settings| settings.budget = Size(10_000 * MB));
    let old = Order::of_bytes(5 * MB);
    old.build(&*worker.builder).await.expect("there is room");
    let hostile = with_too_many_attributes();
    let claim = hostile.build(&*small.engine).await.expect_err("it has no space for that");
    assert_eq!(claim.reason, Reason::DiskLow, "so says the engine: {claim}");

    let fault = hostile.build(&*worker.builder).await.expect_err("it has no space for that");
    assert_eq!(fault.reason, Reason::BuildFailed, "{fault}");
    assert!(fault.message.contains("ADD files.tar"), "{fault}");
    assert!(fault.message.contains("although the engine's disk has room"), "{fault}");
    assert_eq!(worker.guard.look().await, Ok(()), "nothing is lacking");
    assert_eq!(worker.guard.make_room().await, Ok(()));
    assert!(has(&small, &old).await, "nothing was pruned for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_an_engine_has_room_is_found_out_without_seeing_its_disk() {
    let small = SmallEngine::start(400).await;
    assert!(small.engine.takes_a_file().await);
    let free = small.room().free;
    let ballast = small.fill_up_to(30 * MB);
    assert!(!small.engine.takes_a_file().await);
    std::fs::remove_file(ballast).expect("removed");
    assert!(small.engine.takes_a_file().await);
    assert!(small.room().free > free - 10 * MB, "what was stored is gone again");
}
