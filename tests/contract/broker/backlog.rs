//! The backlog as RabbitMQ keeps it: lanes, the bell, the stream of cancellations.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use image_builder::broker::rabbitmq::queues::Queues;
use image_builder::broker::rabbitmq::topology::{Lane, Role, TopologySettings};
use image_builder_actors::delivery::envelope::Envelope;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::{Broker, Load, Message, Place, Queue};
use image_builder_actors::testing::conformance::broker::{
    backlog, body, consume, enqueue, load, message, next, take,
};
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::rabbit::{PATIENCE, Rabbit, plain_channel, settings, topology_settings, unique, uri};
use super::{on, on_rabbitmq};

fn lane(rabbit: &Rabbit, lane: Lane) -> String {
    rabbit.settings.topology.lane(lane).name
}

/// The bodies of all that is ready in a queue, which is emptied.
async fn drain(queue: &str) -> Vec<String> {
    let (connection, channel) = plain_channel().await;
    let mut bodies = Vec::new();
    let options = BasicGetOptions { no_ack: true };
    while let Some(got) = channel.basic_get(queue.into(), options).await.expect("it is there") {
        bodies.push(String::from_utf8(got.delivery.data).expect("text"));
    }
    connection.close(200, "done".into()).await.expect("it can be closed");
    bodies
}

/// Publishes as a platform would, or whoever was killed half-way.
async fn put(queue: &str, body: &[u8]) {
    let (connection, channel) = plain_channel().await;
    channel.confirm_select(Default::default()).await.expect("confirms");
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let properties = BasicProperties::default();
    let publish = channel.basic_publish("".into(), queue.into(), options, body, properties).await;
    publish.expect("it goes").await.expect("it is taken");
    connection.close(200, "done".into()).await.expect("it can be closed");
}

/// A second worker on the same queues.
async fn another(rabbit: &Rabbit) -> Rabbit {
    Rabbit::start_with(rabbit.settings.clone()).await
}

fn numbers(count: usize) -> BTreeSet<String> {
    (0..count).map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_fills_the_numbered_lanes_evenly_and_its_first_requests_wait_elsewhere() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        for number in 0..60 {
            enqueue(&*rabbit.broker, "flood", &number.to_string()).await;
        }
        enqueue(&*rabbit.broker, "single", "s").await;
        assert_eq!(drain(&lane(rabbit, Lane::First)).await, ["0", "s"]);
        // What is long ago counts less.
        let few = drain(&lane(rabbit, Lane::Few)).await.len();
        assert!((15..=25).contains(&few), "{few}");
        let one = drain(&lane(rabbit, Lane::Numbered(1))).await.len();
        let two = drain(&lane(rabbit, Lane::Numbered(2))).await.len();
        assert_eq!(one + two, 59 - few);
        assert!(one.abs_diff(two) <= 4, "{one} and {two}");
        assert_eq!(drain(&lane(rabbit, Lane::Returned)).await.len(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_user_whom_another_worker_took_for_a_new_one_is_not_served_first() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let other = another(rabbit).await;
        enqueue(&*other.broker, "busy", "b").await;
        enqueue(&*other.broker, "idle", "i").await;
        let mut backlog = backlog(&*rabbit.broker).await;
        let busy = load(&[("busy", 1)]);
        assert_eq!(take(&mut backlog, &busy).await.user_id, "idle");
        assert_eq!(take(&mut backlog, &busy).await.user_id, "busy");
        other.broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_several_workers_took_for_the_first_one_of_a_flood_lets_a_single_request_pass() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let other = another(rabbit).await;
        for number in 0..30 {
            enqueue(&*rabbit.broker, "flood", &number.to_string()).await;
            enqueue(&*other.broker, "flood", &number.to_string()).await;
        }
        let mut backlog = backlog(&*rabbit.broker).await;
        assert_eq!(take(&mut backlog, &load(&[])).await.user_id, "flood");
        enqueue(&*other.broker, "single", "s").await;
        assert_eq!(take(&mut backlog, &load(&[])).await.user_id, "single");
        assert_eq!(take(&mut backlog, &load(&[])).await.user_id, "flood");
        other.broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_beside_a_stream_of_single_requests_has_a_turn() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let mut backlog = backlog(&*rabbit.broker).await;
        for number in 0..3 {
            enqueue(&*rabbit.broker, "few", &number.to_string()).await;
        }
        let mut left = 3;
        for number in 0..100 {
            enqueue(&*rabbit.broker, &format!("single-{number}"), "s").await;
            left -= usize::from(take(&mut backlog, &load(&[])).await.user_id == "few");
        }
        assert_eq!(left, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_never_get_the_same_request() {
    const REQUESTS: usize = 200;
    on_rabbitmq(async |rabbit: &Rabbit| {
        let other = another(rabbit).await;
        for number in 0..REQUESTS {
            enqueue(&*rabbit.broker, &format!("u{}", number % 7), &number.to_string()).await;
        }
        let all = async |broker: &dyn Broker| {
            let mut backlog = backlog(broker).await;
            let mut taken = Vec::new();
            while let Some(turn) = backlog.taker.take(&load(&[])).await.expect("it is open") {
                taken.push(body(&turn.delivery).to_owned());
                backlog.acks.ack(turn.delivery.tag).await.expect("it can be acked");
            }
            taken
        };
        let (one, two) = tokio::join!(all(&*rabbit.broker), all(&*other.broker));
        assert!(!one.is_empty() && !two.is_empty());
        assert_eq!(one.len() + two.len(), REQUESTS);
        assert_eq!(one.into_iter().chain(two).collect::<BTreeSet<_>>(), numbers(REQUESTS));
        other.broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_from_when_there_were_more_are_emptied_counted_and_not_filled() {
    let many = TopologySettings { build_lanes: 5, ..topology_settings() };
    let few = TopologySettings { build_lanes: 1, ..many.clone() };
    on(Rabbit::start_with(settings(&uri(), many)).await, async |before: &Rabbit| {
        for number in 1..=5 {
            put(&lane(before, Lane::Numbered(number)), number.to_string().as_bytes()).await;
        }
        let after = Rabbit::start_with(settings(&uri(), few)).await;
        let mut backlog = backlog(&*after.broker).await;
        assert_eq!(after.broker.waiting().await, Ok(5));
        let mut came = BTreeSet::new();
        for _ in 0..5 {
            let turn = take(&mut backlog, &load(&[])).await;
            assert_eq!(turn.user_id, "", "nobody has written whose it is");
            came.insert(body(&turn.delivery).to_owned());
            backlog.acks.ack(turn.delivery.tag).await.expect("it can be acked");
        }
        assert_eq!(came, ["1", "2", "3", "4", "5"].map(str::to_owned).into());
        for number in 0..40 {
            enqueue(&*after.broker, "flood", &number.to_string()).await;
        }
        for number in 2..=5 {
            assert_eq!(drain(&lane(before, Lane::Numbered(number))).await.len(), 0);
        }
        after.broker.close().await;
    })
    .await;
}

/// A worker that is asked to end may be opening its backlog, which asks for lanes of which most are not there: what else
/// is in hand on the connection stays there.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_gives_up_opening_the_backlog_keeps_the_connection() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        put(rabbit.settings.topology.queue(Queue::Build).expect("there is one"), b"in hand").await;
        let mut builds = consume(&*rabbit.broker, Queue::Build, 1).await;
        let in_hand = next(&mut builds).await;
        for millis in 0..60 {
            let _ = timeout(Duration::from_millis(millis), rabbit.broker.backlog()).await;
        }
        drop(backlog(&*rabbit.broker).await);
        assert!(builds.acks.holds(in_hand.tag), "the broker has not taken it back");
        builds.acks.ack(in_hand.tag).await.expect("it is acked");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_filled_no_more_can_be_deleted_whatever_is_in_hand_and_in_the_others() {
    let many = TopologySettings { build_lanes: 5, ..topology_settings() };
    let few = TopologySettings { build_lanes: 1, ..many.clone() };
    on(Rabbit::start_with(settings(&uri(), many)).await, async |before: &Rabbit| {
        let delete = async |number| {
            let (connection, channel) = plain_channel().await;
            let name = lane(before, Lane::Numbered(number));
            channel.queue_delete(name.as_str().into(), Default::default()).await.expect("deleted");
            connection.close(200, "done".into()).await.expect("it can be closed");
        };
        put(&lane(before, Lane::Numbered(4)), b"job").await;
        delete(2).await;
        let after = Rabbit::start_with(settings(&uri(), few)).await;
        let mut backlog = backlog(&*after.broker).await;
        assert_eq!(after.broker.waiting().await, Ok(1));
        let turn = take(&mut backlog, &load(&[])).await;
        assert_eq!(body(&turn.delivery), "job");
        delete(5).await;
        assert!(matches!(backlog.taker.take(&load(&[])).await, Ok(None)));
        assert!(backlog.acks.holds(turn.delivery.tag));
        backlog.acks.ack(turn.delivery.tag).await.expect("it can be acked");
        assert_eq!(after.broker.waiting().await, Ok(0));
        after.broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_have_more_again_waits_for_nobody_who_may_not() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        for user in ["x", "z"] {
            for number in ["1", "2"] {
                enqueue(&*rabbit.broker, user, number).await;
            }
        }
        let mut backlog = backlog(&*rabbit.broker).await;
        let mut in_hand = Vec::new();
        for _ in 0..2 {
            let of = [
                ("x", in_hand.contains(&"x".to_owned()).into()),
                ("z", in_hand.contains(&"z".to_owned()).into()),
            ];
            in_hand.push(take(&mut backlog, &load(&of)).await.user_id);
        }
        assert_eq!(in_hand.iter().cloned().collect::<BTreeSet<_>>().len(), 2, "{in_hand:?}");
        let full = Load { most_per_user: 1, ..load(&[("x", 1), ("z", 1)]) };
        for _ in 0..5 {
            assert!(backlog.taker.take(&full).await.expect("it is open").is_none());
        }
        for user in ["x", "z"] {
            let other = if user == "x" { "z" } else { "x" };
            let free = Load { most_per_user: 1, ..load(&[(other, 1)]) };
            let turn = backlog.taker.take(&free).await.expect("it is open").expect("its turn");
            assert_eq!(turn.user_id, user);
        }
    })
    .await;
}

/// What is wanted only if it is at hand is the first request of a user; nobody's flood is turned over for one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_at_hand_is_not_searched_for_in_a_flood() {
    const FLOOD: usize = 100;
    on_rabbitmq(async |rabbit: &Rabbit| {
        for number in 0..FLOOD {
            enqueue(&*rabbit.broker, "flood", &number.to_string()).await;
        }
        let mut backlog = backlog(&*rabbit.broker).await;
        drop(take(&mut backlog, &load(&[])).await);
        let newcomers = Load { most_per_user: 1, at_hand: true, ..load(&[("flood", 1)]) };
        for _ in 0..10 {
            let found = backlog.taker.take(&newcomers).await.expect("the broker answers");
            assert!(found.is_none(), "the flood has one in hand");
        }
        enqueue(&*rabbit.broker, "new", "n").await;
        assert_eq!(take(&mut backlog, &newcomers).await.user_id, "new");
        let mut moved = 0;
        for _ in 1..FLOOD {
            let turn = take(&mut backlog, &load(&[])).await;
            moved += usize::from(Envelope::decode(&turn.delivery.message).hops > 0);
        }
        let lanes = rabbit.settings.topology.lanes().count();
        assert!(moved <= lanes, "{moved} of {FLOOD} in {lanes} lanes");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_passed_over_keeps_what_is_known_of_it() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let envelope = Envelope { redeliveries: 2, ..Envelope::default() };
        let sent = Message {
            message_id: Some("id".to_owned()),
            timestamp: Some(OffsetDateTime::UNIX_EPOCH),
            envelope: Some(envelope.encode()),
            ..message("job")
        };
        let long = "u".repeat(200);
        let place = Place { user_id: long.clone(), returned: false };
        rabbit.broker.enqueue(sent.clone(), place).await.expect("it is taken");
        let mut backlog = backlog(&*rabbit.broker).await;
        // A worker that had it was killed: it was delivered once.
        let turn = take(&mut backlog, &load(&[])).await;
        backlog.acks.nack(turn.delivery.tag).await.expect("it can be nacked");
        let full = Load { most_per_user: 1, ..load(&[(&long, 1)]) };
        let passed_over = async {
            while backlog.taker.take(&full).await.expect("it is open").is_none() {
                let first = lane(rabbit, Lane::First);
                let (connection, channel) = plain_channel().await;
                let options = BasicGetOptions::default();
                let got = channel.basic_get(first.as_str().into(), options).await.expect("there");
                connection.close(200, "done".into()).await.expect("it can be closed");
                if got.is_some() {
                    return;
                }
            }
            panic!("whoever has all that is allowed gets nothing");
        };
        timeout(PATIENCE, passed_over).await.expect("it is passed over");
        let turn = take(&mut backlog, &load(&[(&long, 0)])).await;
        assert_eq!(turn.user_id, long);
        let delivery = turn.delivery;
        let envelope = Envelope::decode(&delivery.message);
        assert!(envelope.redeliveries_of(&delivery) >= 3, "{envelope:?} {delivery:?}");
        assert_eq!(Message { envelope: sent.envelope.clone(), ..delivery.message }, sent);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_had_is_found_by_one_that_waits_though_nobody_rings() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let other = another(rabbit).await;
        enqueue(&*rabbit.broker, "u", "job").await;
        let mut theirs = backlog(&*other.broker).await;
        take(&mut theirs, &load(&[])).await;
        let mut ours = backlog(&*rabbit.broker).await;
        let settled = async { while ours.taker.take(&load(&[])).await.expect("open").is_some() {} };
        settled.await;
        let waiting = tokio::spawn(async move { take(&mut ours, &load(&[])).await });
        other.broker.close().await;
        let turn = waiting.await.expect("it finds it");
        assert_eq!((body(&turn.delivery), turn.delivery.redeliveries), ("job", 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_was_deleted_is_declared_anew() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let mut lost = backlog(&*rabbit.broker).await;
        let (connection, channel) = plain_channel().await;
        let name = lane(rabbit, Lane::First);
        channel.queue_delete(name.as_str().into(), Default::default()).await.expect("deleted");
        connection.close(200, "done".into()).await.expect("it can be closed");
        assert!(lost.taker.take(&load(&[])).await.is_err());
        timeout(PATIENCE, lost.acks.ended()).await.expect("it ends");
        enqueue(&*rabbit.broker, "u", "job").await;
        let mut anew = backlog(&*rabbit.broker).await;
        assert_eq!(body(&take(&mut anew, &load(&[])).await.delivery), "job");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_connection_ends_the_backlog_and_what_was_in_hand_comes_again() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        enqueue(&*rabbit.broker, "u", "job").await;
        let mut lost = backlog(&*rabbit.broker).await;
        let turn = take(&mut lost, &load(&[])).await;
        rabbit.kill("consumer").await;
        timeout(PATIENCE, lost.acks.ended()).await.expect("it ends");
        assert!(!lost.acks.holds(turn.delivery.tag));
        assert!(lost.taker.take(&load(&[])).await.is_err());
        let mut anew = backlog(&*rabbit.broker).await;
        assert_eq!(take(&mut anew, &load(&[])).await.delivery.redeliveries, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_are_moved_into_the_build_queue_and_a_move_that_is_killed_loses_nothing() {
    const REQUESTS: usize = 300;
    on_rabbitmq(async |rabbit: &Rabbit| {
        stream::iter(0..REQUESTS)
            .for_each_concurrent(64, async |number| {
                enqueue(&*rabbit.broker, &format!("u{}", number % 3), &number.to_string()).await;
            })
            .await;
        let queues = Queues::new(rabbit.settings.clone());
        let build = rabbit.name(Queue::Build).to_owned();
        let killed = tokio::spawn(async move { queues.empty_lanes().await });
        // As soon as some are there.
        let (connection, channel) = plain_channel().await;
        let begun = async {
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            loop {
                let asked =
                    channel.queue_declare(build.as_str().into(), options, FieldTable::default());
                if asked.await.expect("it is there").message_count() > 0 {
                    return;
                }
            }
        };
        timeout(PATIENCE, begun).await.expect("it begins");
        killed.abort();
        connection.close(200, "done".into()).await.expect("it can be closed");

        let queues = Queues::new(rabbit.settings.clone());
        let emptied = async {
            loop {
                queues.empty_lanes().await.expect("they can be emptied");
                let seen = queues.look().await.expect("they can be counted");
                let lanes = seen.iter().filter(|queue| queue.role == Role::Lane);
                if lanes.filter_map(|lane| lane.counts).all(|counts| counts.ready == 0) {
                    return;
                }
            }
        };
        timeout(PATIENCE, emptied).await.expect("they are emptied");
        let moved = drain(rabbit.name(Queue::Build)).await;
        assert_eq!(moved.into_iter().collect::<BTreeSet<_>>(), numbers(REQUESTS));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_moved_keeps_its_id_its_time_and_its_envelope() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let sent = Message {
            message_id: Some("id".to_owned()),
            timestamp: Some(OffsetDateTime::UNIX_EPOCH),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
            envelope: Some(Envelope { redeliveries: 1, ..Envelope::default() }.encode()),
            ..message("job")
        };
        let place = Place { user_id: "u".to_owned(), returned: true };
        rabbit.broker.enqueue(sent.clone(), place).await.expect("it is taken");
        let queues = Queues::new(rabbit.settings.clone());
        assert_eq!(queues.empty_lanes().await.expect("they can be emptied"), 1);
        let mut builds = consume(&*rabbit.broker, Queue::Build, 1).await;
        let delivery = next(&mut builds).await;
        assert_eq!(Envelope::decode(&delivery.message).redeliveries, 1);
        assert_eq!(Message { envelope: sent.envelope.clone(), ..delivery.message }, sent);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_while_no_worker_is_there_is_heard_by_the_next() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        rabbit.broker.close().await;
        let sent = OffsetDateTime::now_utc();
        let (connection, channel) = plain_channel().await;
        let exchange = rabbit.settings.topology.cancel_exchange();
        let (options, none): (_, BasicProperties) = Default::default();
        let publish = channel.basic_publish(exchange.into(), "".into(), options, b"stop", none);
        publish.await.expect("sent");
        connection.close(200, "done".into()).await.expect("it can be closed");
        let next = another(rabbit).await;
        let mut heard = next.broker.cancellations();
        let heard = timeout(PATIENCE, heard.recv()).await.expect("in time").expect("it is heard");
        assert_eq!(heard.body, b"stop");
        assert!(heard.at >= sent, "it is not taken for an older one");
        next.broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_one_queue_does_not_take_is_sent_until_all_have_it() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        // Takes nothing and is soon gone, as the queue of a worker that was just killed.
        let going = unique("going");
        let arguments = [
            ("x-max-length", AMQPValue::LongInt(0)),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
            ("x-expires", AMQPValue::LongInt(500)),
        ];
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert(name.into(), value);
        }
        let (connection, channel) = plain_channel().await;
        let declared = channel.queue_declare(going.as_str().into(), Default::default(), table);
        declared.await.expect("it can be declared");
        let exchange = rabbit.settings.topology.cancel_exchange();
        let (binding, none) = Default::default();
        let bound = channel.queue_bind(going.into(), exchange.into(), "".into(), binding, none);
        bound.await.expect("it can be bound");

        let build = BuildIdentity { user_id: Some("u".to_owned()), build_id: unique("build") };
        rabbit.broker.cancel(&build).await.expect("all others have it");
        let mut heard = rabbit.broker.cancellations();
        let heard = timeout(PATIENCE, heard.recv()).await.expect("in time").expect("it is heard");
        assert!(String::from_utf8_lossy(&heard.body).contains(&build.build_id), "{heard:?}");
        connection.close(200, "done".into()).await.expect("it can be closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_was_heard_is_not_taken_for_a_newer_one_later() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let mut live = rabbit.broker.cancellations();
        let (connection, channel) = plain_channel().await;
        let exchange = rabbit.settings.topology.cancel_exchange();
        let (options, none): (BasicPublishOptions, BasicProperties) = Default::default();
        let told = async {
            loop {
                let publish = channel.basic_publish(
                    exchange.into(),
                    "".into(),
                    options,
                    b"stop",
                    none.clone(),
                );
                publish.await.expect("sent");
                if timeout(Duration::from_millis(100), live.recv()).await.is_ok() {
                    return OffsetDateTime::now_utc();
                }
            }
        };
        let told: OffsetDateTime = timeout(PATIENCE, told).await.expect("it is heard");
        connection.close(200, "done".into()).await.expect("it can be closed");
        // The mark behind it comes within seconds.
        let read_back = async {
            loop {
                let next = another(rabbit).await;
                let mut heard = next.broker.cancellations();
                let heard = heard.recv().await.expect("it is heard");
                next.broker.close().await;
                if heard.at < told + Duration::from_secs(4)
                    && OffsetDateTime::now_utc() > told + Duration::from_secs(5)
                {
                    return;
                }
            }
        };
        timeout(PATIENCE, read_back).await.expect("it is as old as it was");
    })
    .await;
}

/// One after another they enter at some hundred a second at most. The bound tells that from a slow machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_enters_the_lanes_side_by_side() {
    const BURST: usize = 4_000;
    on_rabbitmq(async |rabbit: &Rabbit| {
        let begun = Instant::now();
        stream::iter(0..BURST)
            .for_each_concurrent(400, async |number| {
                enqueue(&*rabbit.broker, &format!("u{}", number % 50), &number.to_string()).await;
            })
            .await;
        let rate = BURST as f64 / begun.elapsed().as_secs_f64();
        assert!(rate > 600.0, "{rate:.0} requests a second");
    })
    .await;
}
