//! All that waits, moved to another broker, and nothing lost or changed on the way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use image_builder::broker::rabbitmq::topology::TopologySettings;
use image_builder::broker::rabbitmq::{RabbitMq, RabbitSettings};
use image_builder::broker::sqlite::moving::{MoveError, Moved, move_all};
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::delivery::envelope::{self, Envelope};
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::{
    Broker, BrokerError, Cancellation, DELIVERY_LIMIT, DeadLetters, Delivery, Message, Place, Queue,
};
use image_builder_actors::testing::broker::FakeBroker;
use image_builder_actors::testing::conformance::broker::World as _;
use image_builder_actors::testing::conformance::broker::{
    backlog, body, consume, enqueue, load, message, next, publish, take,
};
use image_builder_actors::testing::dead_letters::FakeDeadLetters;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{Embedded, PATIENCE};
use crate::broker::rabbit::{self, Rabbit};

pub(super) fn letter(id: &str) -> DeadLetter {
    let fault = Fault::new(StageName::Builder, Reason::Crashed, format!("The story of {id}."));
    let history = History::new(OffsetDateTime::UNIX_EPOCH);
    DeadLetter::new(id, br#"{"userID": "u", "repo": "o/n"}"#, &history, &fault)
}

fn named(id: &str) -> Message {
    Message { message_id: Some(id.to_owned()), ..message(id) }
}

/// Another broker, and its dead letters.
struct Target {
    broker: FakeBroker,
    letters: FakeDeadLetters,
}

impl Target {
    fn new() -> Self {
        let broker = FakeBroker::default();
        Self { letters: FakeDeadLetters::new(broker.clone()), broker }
    }

    async fn take_all(&self, path: &Path) -> Result<Moved, MoveError> {
        move_all(path, &self.broker, &self.letters, |_| {}).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_moved_as_it_was() {
    let world = Embedded::start().await;
    let from = &world.broker;
    let sent = Message {
        timestamp: Some(OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time")),
        traceparent: Some("00-abc-def-01".to_owned()),
        envelope: Some(Envelope { hops: 3, ..Envelope::default() }.encode()),
        ..named("build")
    };
    publish(from, Queue::Build, sent.clone()).await;
    publish(from, Queue::Fail, named("failure")).await;
    publish(from, Queue::Outcome, named("outcome")).await;
    publish(from, Queue::Result, named("result")).await;
    let long = Duration::from_secs(600);
    from.publish(Queue::Outcome, named("later"), long).await.expect("taken");
    let place = |returned| Place { user_id: "u".to_owned(), returned };
    from.enqueue(named("second"), place(false)).await.expect("taken");
    from.enqueue(named("first"), place(true)).await.expect("taken");
    let dead = letter("dead");
    from.keep(&dead).await.expect("kept");
    let stop = BuildIdentity::new(Some("u"), "b");
    from.cancel(&stop).await.expect("sent");
    from.close().await;

    let to = Target::new();
    let moved = to.take_all(&world.path()).await.expect("moved");
    assert_eq!(moved, Moved { messages: 7, dead_letters: 1, cancellations: 1, unreadable: 0 });
    assert_eq!(to.broker.messages(Queue::Build), [sent]);
    assert_eq!(to.broker.messages(Queue::Fail), [named("failure")]);
    assert_eq!(to.broker.messages(Queue::Outcome), [named("outcome")]);
    assert_eq!(to.broker.messages(Queue::Result), [named("result")]);
    let delays = to.broker.delays();
    assert!(matches!(delays[..], [left] if left <= long && left + PATIENCE > long), "{delays:?}");
    let mut requests = backlog(&to.broker).await;
    for expected in ["first", "second"] {
        assert_eq!(body(&take(&mut requests, &load(&[])).await.delivery), expected);
    }
    assert_eq!(to.letters.letters(), [dead.to_json()]);
    let heard = timeout(PATIENCE, to.broker.cancellations().recv()).await.expect("in time");
    assert_eq!(heard.expect("kept").body, Cancellation::body_of(&stop));
    let again = to.take_all(&world.path()).await.expect("there is nothing more");
    assert_eq!(again, Moved::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_ends_half_way_loses_nothing_and_is_gone_on_with() {
    let world = Embedded::start().await;
    for number in 0..10 {
        publish(&world.broker, Queue::Build, named(&number.to_string())).await;
    }
    // Without any id: moved twice it must not be two builds.
    let request = br#"{"userID": "u", "repo": "o/n"}"#;
    let nameless = Message { body: request.to_vec(), ..Message::default() };
    publish(&world.broker, Queue::Build, nameless).await;
    world.broker.close().await;

    let to = Target::new();
    let error = BrokerError::Unavailable("the test says so".to_owned());
    let mut rounds = 0;
    loop {
        rounds += 1;
        // It takes three, and of the next one it says that it did not take it.
        let gates: Vec<_> = (0..3).map(|_| to.broker.publishes(Queue::Build).wait()).collect();
        gates.iter().for_each(|gate| gate.open());
        to.broker.publishes(Queue::Build).fail(1, error.clone());
        match to.take_all(&world.path()).await {
            Ok(_) => break,
            Err(failed) => assert!(matches!(failed, MoveError::NotTaken(_)), "{failed}"),
        }
    }
    assert!(rounds > 2);
    let moved = to.broker.messages(Queue::Build);
    assert_eq!(moved.len(), 11);
    assert!(moved.iter().all(|message| envelope::identity(message).is_some()));
    assert!(Envelope::decode(&moved[10]).given_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_the_same_however_often_it_is_moved() {
    let world = Embedded::start().await;
    let nameless = Message { body: b"{}".to_vec(), ..Message::default() };
    publish(&world.broker, Queue::Build, nameless).await;
    enqueue(&world.broker, "u", "in hand").await;
    let mut requests = backlog(&world.broker).await;
    take(&mut requests, &load(&[])).await;
    world.broker.close().await;

    // Killed after the other broker has confirmed, and before it is removed here: the file is as before.
    let killed = world.directory.path().join("killed.db");
    let first = Target::new();
    let error = BrokerError::Unavailable("the test says so".to_owned());
    first.broker.publishes(Queue::Build).fail(1, error);
    first.take_all(&world.path()).await.expect_err("it was not taken");
    std::fs::copy(world.path(), &killed).expect("copied");
    assert!(!world.path().with_extension("db-wal").exists(), "that was all of it");
    first.take_all(&world.path()).await.expect("moved");
    let second = Target::new();
    second.take_all(&killed).await.expect("moved again");
    assert_eq!(first.broker.messages(Queue::Build), second.broker.messages(Queue::Build));
    assert_eq!(first.broker.backlog(), second.broker.backlog());
    // What was in hand is known to have been.
    let requests = first.broker.backlog();
    assert_eq!(requests.iter().map(|it| Envelope::decode(it).redeliveries).sum::<u64>(), 1);
}

/// Names the file, and the queues that are moved to, to the child.
const FILE: &str = "TEST_QUEUE_FILE";
const QUEUES: &str = "TEST_QUEUES";

/// Settings for these queues of RabbitMQ.
fn rabbit_settings(name: &str) -> RabbitSettings {
    let topology = TopologySettings {
        build_queue: format!("{name}.build"),
        fail_queue: format!("{name}.fail"),
        outcome_queue: format!("{name}.outcome"),
        dead_queue: format!("{name}.dead"),
        result_queue: None,
        cancel_exchange: format!("{name}.cancel"),
        ..rabbit::topology_settings()
    };
    rabbit::settings(&rabbit::uri(), topology)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_rabbitmq_that_is_killed_again_and_again_carries_all_over() {
    const MESSAGES: usize = 300;
    let world = Embedded::start().await;
    for number in 0..MESSAGES / 3 {
        publish(&world.broker, Queue::Build, named(&format!("b{number}"))).await;
        publish(&world.broker, Queue::Outcome, named(&format!("o{number}"))).await;
        let place = Place { user_id: format!("u{}", number % 7), returned: number % 2 == 0 };
        world.broker.enqueue(named(&format!("r{number}")), place).await.expect("taken");
    }
    world.broker.close().await;
    let name = rabbit::unique("move");
    // The queues are there, as where a worker has run.
    let rabbit = Rabbit::start_with(rabbit_settings(&name)).await;
    let mut kills = 0;
    loop {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "embedded::moving::child", "--ignored", "--nocapture"])
            .env(FILE, world.path())
            .env(QUEUES, &name)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let output = child.stdout.take().expect("it is piped");
        let moved = BufReader::new(output)
            .lines()
            .filter(|line| line.as_ref().expect("it is text").starts_with("moved"));
        // From 16 to 79 of them, and as many microseconds on top.
        let most = 16 + usize::from(uuid::Uuid::new_v4().as_bytes()[0] % 64);
        let came = tokio::task::block_in_place(|| moved.take(most).count());
        if came < most {
            assert!(child.wait().expect("it ends").success());
            break;
        }
        tokio::time::sleep(Duration::from_micros(most as u64 * 20)).await;
        child.kill().expect("it can be killed");
        child.wait().expect("it is over");
        kills += 1;
    }
    assert!(kills >= 3, "{kills}");

    // Each of them once at least, as it was.
    let mut came = BTreeMap::new();
    let mut comes = |delivery: Delivery| {
        // A lane's reader may have passed it on, which its envelope then says.
        let message = Message { envelope: None, ..delivery.message };
        assert_eq!(message, named(message.message_id.as_deref().expect("it has one")));
        *came.entry(message.message_id).or_insert(0) += 1;
        came.len()
    };
    let mut builds = consume(&*rabbit.broker, Queue::Build, 1_000).await;
    while comes(next(&mut builds).await) < MESSAGES / 3 {}
    let mut outcomes = consume(&*rabbit.broker, Queue::Outcome, 1_000).await;
    while comes(next(&mut outcomes).await) < 2 * MESSAGES / 3 {}
    let mut requests = backlog(&*rabbit.broker).await;
    while comes(take(&mut requests, &load(&[])).await.delivery) < MESSAGES {}
    let doubled = came.values().filter(|times| **times > 1).count();
    assert!(doubled <= kills, "{doubled} of {kills} kills");
    rabbit.tear_down().await;
}

/// What is killed: moves the file's messages to RabbitMQ, and tells of each.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is what the test above runs"]
async fn child() {
    let (Some(file), Ok(name)) = (std::env::var_os(FILE), std::env::var(QUEUES)) else { return };
    let rabbit = RabbitMq::connect(rabbit_settings(&name)).await.expect("connected");
    let tell = |moved: &Moved| {
        let line = format!("moved {}\n", moved.messages);
        // Whoever listened may have heard enough.
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    };
    move_all(Path::new(&file), &rabbit, &rabbit, tell).await.expect("moved");
    rabbit.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_goes_on_as_crashed_and_what_cannot_be_read_is_left() {
    let world = Embedded::start().await;
    publish(&world.broker, Queue::Build, named("killer")).await;
    let mut builds = consume(&world.broker, Queue::Build, 1).await;
    for _ in 0..=DELIVERY_LIMIT {
        let delivery = next(&mut builds).await;
        builds.acks.nack(delivery.tag).await.expect("given back");
    }
    world.publish_unreadable(Queue::Outcome, b"unreadable").await;
    world.broker.close().await;
    let to = Target::new();
    let moved = to.take_all(&world.path()).await.expect("moved");
    assert_eq!(moved, Moved { messages: 1, unreadable: 1, ..Moved::default() });
    let failures = to.broker.messages(Queue::Fail);
    let history = Envelope::decode(&failures[0]).history.expect("it has one");
    assert_eq!(history.attempts.iter().map(|it| it.reason).collect::<Vec<_>>(), [Reason::Crashed]);
    let again = to.take_all(&world.path()).await.expect("it can be read");
    assert_eq!(again, Moved { unreadable: 1, ..Moved::default() });
}
