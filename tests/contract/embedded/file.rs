//! The file itself: who has it, what is found in it again, and what it is not.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use image_builder::broker::sqlite::queues::waiting_by_queue;
use image_builder::broker::sqlite::{OpenError, SqliteBroker, SqliteSettings};
use image_builder_actors::ports::{
    Broker, BrokerError, DeadLetterStore, DeadLetters, Load, Message, Place, Queue,
};
use image_builder_actors::testing::broker::FakeBroker;
use image_builder_actors::testing::conformance::broker::{
    backlog, body, consume, enqueue, load, message, next, publish, take,
};
use image_builder_actors::testing::draw::Draw;
use memchr::memmem;
use tokio::time::timeout;

use super::{Embedded, PATIENCE, open, settings};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_had_in_hand_comes_back_at_once_and_what_only_waited_is_not_charged() {
    let dead = Embedded::start().await;
    for number in ["0", "1", "2"] {
        publish(&dead.broker, Queue::Build, message(number)).await;
        enqueue(&dead.broker, "u", number).await;
    }
    let mut builds = consume(&dead.broker, Queue::Build, 1).await;
    let mut requests = backlog(&dead.broker).await;
    let build = next(&mut builds).await;
    let turn = take(&mut requests, &load(&[])).await;
    assert_eq!((body(&build), body(&turn.delivery)), ("0", "0"));

    // Nothing of the first one is closed, as after a kill.
    let broker = open(dead.path()).await;
    let mut anew = consume(&broker, Queue::Build, 3).await;
    for (number, redeliveries) in [("0", 1), ("1", 0), ("2", 0)] {
        let delivery = next(&mut anew).await;
        assert_eq!((body(&delivery), delivery.redeliveries), (number, redeliveries));
    }
    let mut taken = backlog(&broker).await;
    for (number, redeliveries) in [("0", 1), ("1", 0), ("2", 0)] {
        let delivery = take(&mut taken, &load(&[])).await.delivery;
        assert_eq!((body(&delivery), delivery.redeliveries), (number, redeliveries));
    }
    // Should the first one live after all, what it had is no longer its own, and no heartbeat makes it so.
    assert_eq!(builds.acks.ack(build.tag).await, Err(BrokerError::Stale));
    timeout(PATIENCE, requests.acks.ended()).await.expect("it learns of it by itself");
    assert_eq!(requests.acks.ack(turn.delivery.tag).await, Err(BrokerError::Stale));
    assert!(requests.taker.take(&load(&[])).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_outlives_the_process_and_is_no_longer_than_it_was() {
    const DELAY: Duration = Duration::from_millis(600);
    let first = Embedded::start().await;
    let asked = Instant::now();
    first.broker.publish(Queue::Build, message("later"), DELAY).await.expect("taken");
    first.broker.publish(Queue::Outcome, message("far"), DELAY).await.expect("taken");
    first.broker.close().await;
    // The clock was set back by an hour in between.
    first.tamper("UPDATE messages SET due = due + 3600000 WHERE queue = 2").await;
    let broker = open(first.path()).await;
    let mut builds = consume(&broker, Queue::Build, 1).await;
    let mut outcomes = consume(&broker, Queue::Outcome, 1).await;
    assert_eq!(body(&next(&mut builds).await), "later");
    assert!(asked.elapsed() >= DELAY, "{:?}", asked.elapsed());
    assert_eq!(body(&next(&mut outcomes).await), "far");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_was_put_in_is_found_again_after_a_close() {
    let first = Embedded::start().await;
    publish(&first.broker, Queue::Fail, message("failure")).await;
    enqueue(&first.broker, "u", "request").await;
    first.broker.send_cancellation(b"stop".to_vec()).await.expect("sent");
    first.broker.close().await;
    let closed = first.broker.publish(Queue::Fail, message("late"), Duration::ZERO).await;
    assert!(matches!(closed, Err(BrokerError::Unavailable(_))), "{closed:?}");
    assert!(first.broker.consume(Queue::Fail, 1).await.is_err());
    assert!(!first.directory.path().join("queue.db-wal").exists(), "it is in one file");

    let broker = open(first.path()).await;
    let counted = waiting_by_queue(&first.path()).await.expect("counted by somebody else");
    assert_eq!(counted, broker.waiting_by_queue().await.expect("counted"));
    let waiting: Vec<_> = counted.iter().map(|counted| (counted.queue, counted.waiting)).collect();
    let expected =
        [("build", 0), ("fail", 1), ("outcome", 0), ("result", 0), ("backlog", 1), ("dead", 0)];
    assert_eq!(waiting, expected);
    let mut failures = consume(&broker, Queue::Fail, 1).await;
    assert_eq!(body(&next(&mut failures).await), "failure");
    let heard = timeout(PATIENCE, broker.cancellations().recv()).await.expect("in time");
    assert_eq!(heard.map(|heard| heard.body).as_deref(), Some(&b"stop"[..]));
    broker.cancellations_read().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_may_read_the_file_and_what_is_settled_is_gone_from_it() {
    let world = Embedded::start().await;
    let secret = "canary-4b7d-that-is-nobody-elses";
    publish(&world.broker, Queue::Build, message(secret)).await;
    let mut builds = consume(&world.broker, Queue::Build, 1).await;
    let build = next(&mut builds).await;
    builds.acks.ack(build.tag).await.expect("acked");
    let files = || std::fs::read_dir(world.directory.path()).expect("it is there");
    for file in files() {
        let file = file.expect("it is there");
        let mode = file.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", file.path());
    }
    let holds = |path: std::path::PathBuf| {
        let bytes = std::fs::read(path).unwrap_or_default();
        memmem::find(&bytes, secret.as_bytes()).is_some()
    };
    let gone = async {
        while files().any(|file| holds(file.expect("it is there").path())) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the log is emptied as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_queue_of_this_program_is_left_as_it_is() {
    let world = Embedded::start().await;
    world.broker.close().await;
    world.tamper("PRAGMA user_version = 4711").await;
    let newer = SqliteBroker::open(settings(world.path())).await.err();
    assert!(matches!(newer, Some(OpenError::Newer { version: 4711, .. })), "{newer:?}");

    let path = world.directory.path().join("other.db");
    std::fs::write(
        &path,
        "this is a text, and a longer one than a database's head would be, by far",
    )
    .expect("written");
    let foreign = SqliteBroker::open(settings(path.clone())).await.err();
    assert!(foreign.is_some());
    assert!(std::fs::read(&path).expect("there").starts_with(b"this is a text"));
    let nowhere = settings(world.directory.path().join("not/there/queue.db"));
    assert!(matches!(SqliteBroker::open(nowhere).await.err(), Some(OpenError::Io { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_result_queue_and_without_dead_letters_nothing_of_them_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings =
        SqliteSettings { dead_ttl: None, ..SqliteSettings::new(directory.path().join("queue.db")) };
    let broker = SqliteBroker::open(settings).await.expect("opened");
    publish(&broker, Queue::Result, message("result")).await;
    broker.keep(&super::moving::letter("one")).await.expect("forgotten");
    let counted = broker.waiting_by_queue().await.expect("counted");
    assert!(counted.iter().all(|counted| counted.waiting == 0), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_whose_time_is_up_is_not_read_and_then_gone() {
    let world = Embedded::start().await;
    world.broker.keep(&super::moving::letter("one")).await.expect("kept");
    world.tamper("UPDATE dead_letters SET kept_until = 1").await;
    let mut reading = DeadLetterStore::read(&world.broker).await.expect("read");
    assert_eq!(reading.next().await, Ok(None));
    let gone = async {
        loop {
            let counted = world.broker.waiting_by_queue().await.expect("counted");
            if counted.iter().all(|counted| counted.waiting == 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("it is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_somebody_deleted_is_told_and_there_again_for_the_next_process() {
    let world = Embedded::start().await;
    assert_eq!(world.broker.look().await, Ok(()));
    world.tamper("DELETE FROM queues WHERE name = 'fail'").await;
    let told = world.broker.look().await.expect_err("it is told");
    assert!(told.contains("`fail`"), "{told}");
    world.broker.close().await;
    let broker = open(world.path()).await;
    assert_eq!(broker.look().await, Ok(()));
    publish(&broker, Queue::Fail, message("failure")).await;
}

/// What SQLite makes of the queries that must not look at all that waits.
#[tokio::test(flavor = "multi_thread")]
async fn whose_turn_it_is_and_what_comes_next_is_found_by_an_index() {
    let world = Embedded::start().await;
    let mut connection = super::raw(&world.path()).await;
    for (query, index) in [
        (
            "SELECT id FROM messages WHERE queue = 0 AND lease IS NULL AND due IS NULL \
             AND user IS NULL ORDER BY id LIMIT 5",
            "INDEX ready",
        ),
        (
            "SELECT id FROM messages WHERE user = 'u' AND user IS NOT NULL AND lease IS NULL \
             ORDER BY returned DESC, id LIMIT 1",
            "INDEX backlog",
        ),
        (
            "SELECT user, turn FROM turns WHERE waiting > 0 ORDER BY turn, since LIMIT 5",
            "INDEX turns_next",
        ),
        ("SELECT id FROM messages WHERE due <= 5 ORDER BY due, id", "INDEX delayed"),
        ("SELECT id FROM messages WHERE lease = 1 AND tag = 1", "INDEX in_hand"),
    ] {
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(&format!("EXPLAIN QUERY PLAN {query}"))
                .fetch_all(&mut connection)
                .await
                .expect("it is explained");
        let plan: Vec<_> = plan.into_iter().map(|(.., step)| step).collect();
        assert!(plan.iter().any(|step| step.contains(index)), "{query}: {plan:?}");
        assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{query}: {plan:?}");
    }
}

/// Random requests of a dozen users, taken under random loads: whose turn it is, is the same as in memory.
#[tokio::test(flavor = "multi_thread")]
async fn turns_are_those_of_the_backlog_in_memory() {
    let (world, in_memory) = (Embedded::start().await, FakeBroker::default());
    let brokers: [&dyn Broker; 2] = [&world.broker, &in_memory];
    let mut backlogs = [backlog(brokers[0]).await, backlog(brokers[1]).await];
    let mut draw = Draw::new(11);
    let mut taken = 0;
    for number in 0..1_500 {
        if draw.below(2) == 0 {
            // Some ask far more often than others.
            let user = format!("u{}", draw.below(12).min(draw.below(12)));
            for broker in brokers {
                enqueue(broker, &user, &number.to_string()).await;
            }
            continue;
        }
        let builds = (0..draw.below(5)).map(|_| (format!("u{}", draw.below(12)), draw.below(3)));
        let load =
            Load { builds: builds.collect(), most_per_user: 1 + draw.below(3), at_hand: false };
        let mut turns = Vec::new();
        for backlog in &mut backlogs {
            let turn = backlog.taker.take(&load).await.expect("it is open");
            if let Some(turn) = &turn {
                backlog.acks.ack(turn.delivery.tag).await.expect("acked");
            }
            turns.push(turn.map(|turn| (turn.user_id, turn.delivery.message)));
        }
        assert_eq!(turns[0], turns[1], "{load:?}");
        taken += usize::from(turns[0].is_some());
    }
    assert!(taken > 300, "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_are_remembered_by_the_next_process() {
    let first = Embedded::start().await;
    for number in 0..3 {
        enqueue(&first.broker, "flood", &number.to_string()).await;
    }
    let mut requests = backlog(&first.broker).await;
    let turn = take(&mut requests, &load(&[])).await;
    requests.acks.ack(turn.delivery.tag).await.expect("acked");
    first.broker.close().await;
    let broker = open(first.path()).await;
    let place = Place { user_id: "single".to_owned(), returned: false };
    broker.enqueue(Message::default(), place).await.expect("taken");
    let mut requests = backlog(&broker).await;
    assert_eq!(take(&mut requests, &load(&[])).await.user_id, "single");
    assert_eq!(take(&mut requests, &load(&[])).await.user_id, "flood");
}
