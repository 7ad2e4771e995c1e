//! Disks that are full, and files that somebody else has locked.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use image_builder::broker::sqlite::{SqliteBroker, SqliteSettings};
use image_builder_actors::ports::{Broker, BrokerError, Queue};
use image_builder_actors::testing::conformance::broker::{
    backlog, body, consume, enqueue, load, message, next, publish, take,
};
use tempfile::TempDir;
use tokio::time::timeout;

use super::{Embedded, PATIENCE, open, raw, settings};

/// A disk of a few megabytes.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let disk = Self(tempfile::tempdir().expect("a directory"));
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
            .arg(disk.path())
            .status();
        assert!(mounted.expect("there is a mount").success(), "this test needs root");
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a queue may be open there yet.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_work_goes_on_when_there_is_room_again() {
    let disk = SmallDisk::mount();
    let broker = open(disk.path().join("queue.db")).await;
    publish(&broker, Queue::Outcome, message("before")).await;
    enqueue(&broker, "u", "request").await;
    let mut requests = backlog(&broker).await;
    let turn = take(&mut requests, &load(&[])).await;
    let ballast = disk.path().join("ballast");
    // The write ends with the room; the file has what there was.
    let _ = std::fs::write(&ballast, vec![0; 8 << 20]);

    let big = || message(&"x".repeat(200_000));
    let refused = timeout(PATIENCE, async {
        loop {
            if let Err(error) = broker.publish(Queue::Build, big(), Duration::ZERO).await {
                return error;
            }
        }
    });
    let refused = refused.await.expect("it fills up");
    assert!(matches!(refused, BrokerError::Unavailable(_)), "{refused:?}");
    // What is done meanwhile is waited for, and lost by nobody.
    let acks = requests.acks.clone();
    let acking = tokio::spawn(async move { acks.ack(turn.delivery.tag).await });
    // Long enough for it to be tried in vain.
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::remove_file(&ballast).expect("removed");

    timeout(PATIENCE, acking).await.expect("in time").expect("no panic").expect("it is acked");
    timeout(PATIENCE, async {
        while broker.publish(Queue::Outcome, message("after"), Duration::ZERO).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it goes on");
    assert_eq!(broker.look().await, Ok(()));
    let mut outcomes = consume(&broker, Queue::Outcome, 2).await;
    for expected in ["before", "after"] {
        assert_eq!(body(&next(&mut outcomes).await), expected);
    }
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_hand_while_the_disk_is_full_for_longer_than_a_lease_comes_again() {
    let disk = SmallDisk::mount();
    let path = disk.path().join("queue.db");
    let lease = Duration::from_secs(1);
    let settings = SqliteSettings { lease, ..settings(path) };
    let broker = SqliteBroker::open(settings).await.expect("opened");
    publish(&broker, Queue::Build, message("build")).await;
    let mut builds = consume(&broker, Queue::Build, 1).await;
    let build = next(&mut builds).await;
    let path = disk.path().join("ballast");
    let mut ballast = File::create(&path).expect("made");
    timeout(PATIENCE, async {
        // What is given back to the disk is taken again.
        while timeout(Duration::from_millis(10), builds.acks.ended()).await.is_err() {
            let _ = ballast.write_all(&[0; 1 << 20]);
        }
    })
    .await
    .expect("the lease runs out");
    assert!(!builds.acks.holds(build.tag));
    assert_eq!(builds.acks.ack(build.tag).await, Err(BrokerError::Stale));
    assert_eq!(builds.deliveries.recv().await, None);
    assert!(broker.look().await.is_err(), "it is told");

    drop(ballast);
    std::fs::remove_file(path).expect("removed");
    let anew = async {
        loop {
            match broker.consume(Queue::Build, 1).await {
                Ok(anew) => return anew,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let mut anew = timeout(PATIENCE, anew).await.expect("it goes on");
    let again = next(&mut anew).await;
    assert_eq!((body(&again), again.redeliveries), ("build", 1));
    // A late heartbeat has revived nothing.
    assert_eq!(builds.acks.ack(build.tag).await, Err(BrokerError::Stale));
    anew.acks.ack(again.tag).await.expect("acked");
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_else_has_locked_is_told_and_then_written() {
    let world = Embedded::start().await;
    let mut other = raw(&world.path()).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.expect("locked");
    let refused = world.broker.publish(Queue::Build, message("refused"), Duration::ZERO).await;
    assert!(matches!(refused, Err(BrokerError::Unavailable(_))), "{refused:?}");
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("let go");
    timeout(PATIENCE, async {
        while world.broker.look().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it is mended");
    publish(&world.broker, Queue::Build, message("taken")).await;
    let mut builds = consume(&world.broker, Queue::Build, 1).await;
    assert_eq!(body(&next(&mut builds).await), "taken");
}
