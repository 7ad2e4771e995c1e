//! What only a real RabbitMQ can show: broken networks, queues that others have declared, refusals.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use image_builder::broker::rabbitmq::topology::TopologySettings;
use image_builder::broker::rabbitmq::{ConnectError, RabbitMq, RabbitSettings};
use image_builder_actors::dead_letter::DeadLetter;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::history::History;
use image_builder_actors::ports::{Broker, BrokerError, DeadLetters, Message, Queue};
use image_builder_actors::testing::conformance::broker::{body, consume, message, next, publish};
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::uri::AMQPUri;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::rabbit::{
    Management, PATIENCE, Rabbit, delete_topology, plain_channel, settings, topology_settings,
    unique, uri,
};
use super::{on, on_rabbitmq};
use crate::proxy::{Network, Proxy};

/// Runs a test on a worker that reaches the broker through a proxy, with a heartbeat every second.
async fn behind_a_proxy(test: impl AsyncFnOnce(&Rabbit, &Proxy)) {
    let (proxy, uri) = proxy(Network::Up).await;
    let rabbit = Rabbit::start_with(settings(&uri, topology_settings())).await;
    on(rabbit, async |rabbit: &Rabbit| test(rabbit, &proxy).await).await;
}

async fn proxy(network: Network) -> (Proxy, String) {
    let mut uri: AMQPUri = uri().parse().expect("RABBITMQ_URI is good");
    let target = format!("{}:{}", uri.authority.host, uri.authority.port);
    let proxy = Proxy::start(&target, network).await.expect("a proxy can listen");
    uri.authority.host = proxy.address.ip().to_string();
    uri.authority.port = proxy.address.port();
    uri.query.heartbeat = Some(1);
    (proxy, uri.to_string())
}

/// Connects, and expects to be told that this will never do.
async fn refused(settings: RabbitSettings) -> ConnectError {
    let connecting = timeout(PATIENCE, RabbitMq::connect(settings));
    match connecting.await.expect("a permanent error is told at once") {
        Ok(_) => panic!("the broker was not to take us"),
        Err(error) => error,
    }
}

async fn wait_connected(rabbit: &Rabbit, connected: bool) {
    let mut state = rabbit.broker.connected();
    let change = state.wait_for(|state| state.connected() == connected);
    timeout(PATIENCE, change).await.expect("the change comes").expect("the broker lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_whose_connection_is_killed_publishes_on_a_new_one() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        publish(&*rabbit.broker, Queue::Build, message("before")).await;
        rabbit.kill("publisher").await;
        publish(&*rabbit.broker, Queue::Build, message("after")).await;
        wait_connected(rabbit, true).await;
        let mut deliveries = consume(&*rabbit.broker, Queue::Build, 2).await;
        assert_eq!(body(&next(&mut deliveries).await), "before");
        assert_eq!(body(&next(&mut deliveries).await), "after");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_reached_at_the_start_is_waited_for() {
    let (proxy, uri) = proxy(Network::Down).await;
    let settings = settings(&uri, topology_settings());
    let connecting = tokio::spawn(RabbitMq::connect(settings.clone()));
    timeout(PATIENCE, async {
        while proxy.accepted() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it tries again");
    assert!(!connecting.is_finished());
    proxy.set(Network::Up);
    let broker = timeout(PATIENCE, connecting).await.expect("it connects").expect("no panic");
    let broker = broker.expect("the broker takes us");
    assert!(broker.connected().borrow().connected());
    broker.close().await;
    delete_topology(&settings.topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_gets_no_answer_is_given_up_and_its_socket_closed() {
    let (proxy, uri) = proxy(Network::BlackHole).await;
    let settings = RabbitSettings {
        connect_timeout: Duration::from_millis(300),
        ..settings(&uri, topology_settings())
    };
    let connecting = tokio::spawn(RabbitMq::connect(settings));
    timeout(PATIENCE, async {
        while proxy.accepted() < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        proxy.open().wait_for(|open| *open <= 1).await.expect("the proxy lives");
    })
    .await
    .expect("attempts go on, one at a time");
    connecting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_swallows_everything_is_noticed_and_left() {
    behind_a_proxy(async |rabbit: &Rabbit, proxy: &Proxy| {
        publish(&*rabbit.broker, Queue::Build, message("in hand")).await;
        let mut lost = consume(&*rabbit.broker, Queue::Build, 5).await;
        let in_hand = next(&mut lost).await;

        proxy.set(Network::BlackHole);
        let broken = Instant::now();
        let broker = rabbit.broker.clone();
        let late = tokio::spawn(async move {
            broker.publish(Queue::Outcome, message("late"), Duration::ZERO).await
        });
        let end = timeout(PATIENCE, lost.deliveries.recv()).await.expect("the silence is noticed");
        assert!(end.is_none());
        // Twice the heartbeat, and the time it takes to look.
        assert!(broken.elapsed() < Duration::from_secs(5), "{:?}", broken.elapsed());
        assert_eq!(lost.acks.ack(in_hand.tag).await, Err(BrokerError::Stale));
        wait_connected(rabbit, false).await;

        proxy.set(Network::Down);
        proxy.set(Network::Up);
        timeout(PATIENCE, late)
            .await
            .expect("a publish waits for the network")
            .expect("no panic")
            .expect("and then succeeds");
        let mut outcomes = consume(&*rabbit.broker, Queue::Outcome, 5).await;
        assert_eq!(body(&next(&mut outcomes).await), "late");
        let mut anew = consume(&*rabbit.broker, Queue::Build, 5).await;
        assert_eq!(body(&next(&mut anew).await), "in hand");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_while_the_broker_is_away_is_made_when_it_is_back() {
    behind_a_proxy(async |rabbit: &Rabbit, proxy: &Proxy| {
        proxy.set(Network::Down);
        wait_connected(rabbit, false).await;
        let broker = rabbit.broker.clone();
        let waiting = tokio::spawn(async move {
            broker.publish(Queue::Build, message("waited"), Duration::ZERO).await
        });
        let tried = proxy.accepted();
        timeout(PATIENCE, async {
            while proxy.accepted() <= tried {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the worker tries to come back");
        assert!(!waiting.is_finished());
        proxy.set(Network::Up);
        waiting.await.expect("no panic").expect("the broker confirms");
        let mut deliveries = consume(&*rabbit.broker, Queue::Build, 1).await;
        assert_eq!(body(&next(&mut deliveries).await), "waited");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_an_absent_broker_no_longer_than_the_limit() {
    let (proxy, uri) = proxy(Network::Up).await;
    let limit = Duration::from_millis(500);
    let settings = RabbitSettings { publish_timeout: limit, ..settings(&uri, topology_settings()) };
    on(Rabbit::start_with(settings).await, async |rabbit: &Rabbit| {
        proxy.set(Network::Down);
        wait_connected(rabbit, false).await;
        let asked = Instant::now();
        let (published, subscribed) = tokio::join!(
            rabbit.broker.publish(Queue::Build, message("too late"), Duration::ZERO),
            rabbit.broker.consume(Queue::Build, 1),
        );
        assert!(asked.elapsed() >= limit && asked.elapsed() < 4 * limit, "{:?}", asked.elapsed());
        assert!(matches!(published, Err(BrokerError::Unavailable(_))), "{published:?}");
        assert!(matches!(subscribed.err(), Some(BrokerError::Unavailable(_))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_declared_otherwise_before_is_used_as_it_is() {
    let names = topology_settings();
    let (connection, channel) = plain_channel().await;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    for queue in [&names.build_queue, &names.fail_queue, &names.dead_queue] {
        let declared = channel.queue_declare(queue.as_str().into(), durable, FieldTable::default());
        declared.await.expect("a classic queue can be declared");
    }
    connection.close(200, "done".into()).await.expect("it can be closed");
    let rabbit = Rabbit::start_with(settings(&uri(), names)).await;
    on(rabbit, async |rabbit: &Rabbit| {
        publish(&*rabbit.broker, Queue::Build, message("job")).await;
        let mut deliveries = consume(&*rabbit.broker, Queue::Build, 1).await;
        let first = next(&mut deliveries).await;
        deliveries.acks.nack(first.tag).await.expect("it can be nacked");
        // A classic queue does not count, and says at least that it is not the first time.
        assert_eq!(next(&mut deliveries).await.redeliveries, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_queue_that_was_declared_otherwise_is_an_error_that_names_it() {
    let settings = settings(&uri(), topology_settings());
    let rung =
        settings.topology.routing_key(Queue::Build, Duration::from_millis(1)).expect("a rung");
    let (connection, channel) = plain_channel().await;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let declared = channel.queue_declare(rung.as_str().into(), durable, FieldTable::default());
    declared.await.expect("a classic queue can be declared");
    let error = refused(settings.clone()).await;
    assert!(matches!(error, ConnectError::Topology { .. }), "{error}");
    assert!(error.to_string().contains(&rung), "{error}");
    connection.close(200, "done".into()).await.expect("it can be closed");
    delete_topology(&settings.topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_belongs_to_another_connection_is_an_error_that_names_it() {
    let settings = settings(&uri(), topology_settings());
    let outcome = settings.topology.queue(Queue::Outcome).expect("a queue");
    let (connection, channel) = plain_channel().await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let declared = channel.queue_declare(outcome.into(), exclusive, FieldTable::default());
    declared.await.expect("an exclusive queue can be declared");
    let error = refused(settings.clone()).await;
    assert!(matches!(error, ConnectError::Topology { .. }), "{error}");
    assert!(error.to_string().contains(outcome), "{error}");
    connection.close(200, "done".into()).await.expect("it can be closed");
    delete_topology(&settings.topology).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_a_wrong_virtual_host_are_told_at_once_and_without_the_password() {
    let mut address: AMQPUri = uri().parse().expect("RABBITMQ_URI is good");
    let (user, vhost) = (address.authority.userinfo.username.clone(), address.vhost.clone());
    let right =
        std::mem::replace(&mut address.authority.userinfo.password, "h8-canary-4b7d".into());
    let error = refused(settings(&address.to_string(), topology_settings())).await;
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    let text = format!("{error} {error:?}");
    assert!(!text.contains("canary-4b7d") && text.contains(&user), "{text}");

    address.authority.userinfo.password = right;
    for (vhost, says) in [("no-such-vhost", "no-such-vhost"), ("", "/%2f")] {
        address.vhost = vhost.to_owned();
        let error = refused(settings(&address.to_string(), topology_settings())).await;
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }

    address.vhost = vhost;
    let settings = settings(&address.to_string(), topology_settings());
    assert!(!format!("{settings:?}").contains(&address.to_string()));
}

/// Runs a test as a user who was allowed to declare the queues, and then no more.
async fn without_the_right_to_declare(test: impl AsyncFnOnce(&Rabbit)) {
    let management = Management::new();
    let user = unique("user");
    management.put_user(&user, "builder", ".*").await;
    let mut address: AMQPUri = uri().parse().expect("RABBITMQ_URI is good");
    address.authority.userinfo.username = user.clone();
    address.authority.userinfo.password = "builder".to_owned();
    let rabbit = Rabbit::start_with(settings(&address.to_string(), topology_settings())).await;
    management.put_user(&user, "builder", "^$").await;
    on(rabbit, test).await;
    management.delete_user(&user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_a_queue_that_is_gone_for_good_is_refused_by_name() {
    without_the_right_to_declare(async |rabbit: &Rabbit| {
        rabbit.delete_queue(Queue::Outcome).await;
        let refused =
            rabbit.broker.publish(Queue::Outcome, message("outcome"), Duration::ZERO).await;
        let Err(BrokerError::Refused(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains(rabbit.name(Queue::Outcome)), "{text}");
    })
    .await;
}

/// The library hands a returned message to whichever confirm comes next on its channel. A race: with
/// a channel that publishes share, this failed in about one run of five.
#[tokio::test(flavor = "multi_thread")]
async fn returned_messages_are_never_taken_for_others_that_are_published_at_the_same_time() {
    without_the_right_to_declare(async |rabbit: &Rabbit| {
        publish(&*rabbit.broker, Queue::Build, message("so that there is a channel")).await;
        rabbit.delete_queue(Queue::Outcome).await;
        for _ in 0..4 {
            let all = (0..80).map(|n| async move {
                let queue = if n % 2 == 0 { Queue::Build } else { Queue::Outcome };
                (queue, rabbit.broker.publish(queue, message("job"), Duration::ZERO).await)
            });
            for (queue, result) in join_all(all).await {
                match queue {
                    Queue::Build => assert_eq!(result, Ok(())),
                    _ => assert!(matches!(result, Err(BrokerError::Refused(_))), "{result:?}"),
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_told_as_something_that_passes() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let queue = rabbit.name(Queue::Build);
        let policy = Management::new().limit_length(queue, 1).await;
        let filled = async {
            loop {
                if let Err(error) =
                    rabbit.broker.publish(Queue::Build, message("job"), Duration::ZERO).await
                {
                    return error;
                }
            }
        };
        let full = timeout(PATIENCE, filled).await;
        Management::new().delete_policy(&policy).await;
        let Ok(BrokerError::Unavailable(text)) = full else { panic!("{full:?}") };
        assert!(text.contains(queue), "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_ends_its_subscription_and_is_declared_anew() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let mut lost = consume(&*rabbit.broker, Queue::Build, 1).await;
        rabbit.delete_queue(Queue::Build).await;
        let end = timeout(PATIENCE, lost.deliveries.recv()).await.expect("it ends");
        assert!(end.is_none());
        let mut anew = consume(&*rabbit.broker, Queue::Build, 1).await;
        publish(&*rabbit.broker, Queue::Build, message("job")).await;
        assert_eq!(body(&next(&mut anew).await), "job");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_message_is_persistent_and_says_what_it_is() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let fault = Fault::new(StageName::Builder, Reason::Crashed, "It crashed.");
        let history = History::new(OffsetDateTime::now_utc());
        let letter = DeadLetter::new("id", b"{}", &history, &fault);
        let before = OffsetDateTime::now_utc().unix_timestamp() as u64;
        rabbit.broker.keep(&letter).await.expect("it is taken");
        let dead = rabbit.settings.topology.dead_queue().name;
        let (connection, channel) = plain_channel().await;
        let got = channel.basic_get(dead.as_str().into(), BasicGetOptions { no_ack: true }).await;
        let got = got.expect("it can be read").expect("it is there").delivery;
        assert_eq!(*got.properties.delivery_mode(), Some(2));
        assert!(got.properties.timestamp().is_some_and(|sent| sent >= before));
        let text = |field: &Option<lapin::types::ShortString>| {
            field.as_ref().map(ToString::to_string).unwrap_or_default()
        };
        assert_eq!(text(got.properties.content_type()), "application/json");
        assert_eq!(text(got.properties.message_id()), "id");
        assert_eq!(text(got.properties.expiration()), "604800000");
        connection.close(200, "done".into()).await.expect("it can be closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_headers_of_other_publishers_do_no_harm() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let mut headers = FieldTable::default();
        headers.insert("text".into(), AMQPValue::LongString("left out".into()));
        headers.insert("x-image-builder-repeated".into(), AMQPValue::LongString("often".into()));
        headers.insert("x-image-builder-envelope".into(), AMQPValue::LongInt(7));
        headers.insert("bytes".into(), AMQPValue::LongString(LongString::from(vec![0xff, 0xfe])));
        headers.insert("number".into(), AMQPValue::LongInt(7));
        headers.insert("x-delivery-count".into(), AMQPValue::LongString("many".into()));
        headers.insert("x-death".into(), AMQPValue::LongString("no".into()));
        let properties =
            lapin::BasicProperties::default().with_headers(headers).with_timestamp(u64::MAX);
        let queue = rabbit.name(Queue::Build).into();
        let (connection, channel) = plain_channel().await;
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue, options, b"", properties).await.expect("it goes");
        let mut deliveries = consume(&*rabbit.broker, Queue::Build, 1).await;
        let got = next(&mut deliveries).await;
        assert_eq!(got.message, Message::default());
        assert_eq!((got.redeliveries, got.given_up, got.publishing), (0, false, 0));
        connection.close(200, "done".into()).await.expect("it can be closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_may_be_long_and_odd() {
    let mut names = topology_settings();
    names.build_queue = format!("{}/ü#*.  \"'{}", names.build_queue, "x".repeat(120));
    on(Rabbit::start_with(settings(&uri(), names)).await, async |rabbit: &Rabbit| {
        let delay = Duration::from_millis(1);
        let published = rabbit.broker.publish(Queue::Build, message("job"), delay).await;
        published.expect("it is taken");
        let mut deliveries = consume(&*rabbit.broker, Queue::Build, 1).await;
        assert_eq!(body(&next(&mut deliveries).await), "job");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancellations_are_heard_also_after_a_lost_connection() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let mut heard = rabbit.broker.cancellations();
        let (connection, channel) = plain_channel().await;
        let exchange = rabbit.settings.topology.cancel_exchange();
        // Nobody says when the queue is bound: told until it is heard.
        let mut hear = async |body: &str| {
            timeout(PATIENCE, async {
                loop {
                    let (exchange, bytes) = (exchange.into(), body.as_bytes());
                    let (options, none) = Default::default();
                    channel
                        .basic_publish(exchange, "".into(), options, bytes, none)
                        .await
                        .expect("sent");
                    let wait = timeout(Duration::from_millis(100), heard.recv()).await;
                    match wait {
                        Ok(Some(got)) if got.body == bytes => return,
                        Ok(None) => panic!("it was to go on"),
                        _ => {}
                    }
                }
            })
            .await
            .expect("it is heard");
        };
        hear("first").await;
        rabbit.kill("consumer").await;
        hear("second").await;
        connection.close(200, "done".into()).await.expect("it can be closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_close_everything_fails_at_once_and_unsettled_work_is_back() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        publish(&*rabbit.broker, Queue::Build, message("job")).await;
        let mut deliveries = consume(&*rabbit.broker, Queue::Build, 1).await;
        let in_hand = next(&mut deliveries).await;
        rabbit.broker.close().await;
        assert!(!rabbit.broker.connected().borrow().connected());
        assert!(deliveries.deliveries.recv().await.is_none());
        assert_eq!(deliveries.acks.ack(in_hand.tag).await, Err(BrokerError::Stale));
        let asked = Instant::now();
        let published = rabbit.broker.publish(Queue::Build, message("late"), Duration::ZERO).await;
        assert!(matches!(published, Err(BrokerError::Unavailable(_))), "{published:?}");
        let subscribed = rabbit.broker.consume(Queue::Build, 1).await.err();
        assert!(matches!(subscribed, Some(BrokerError::Unavailable(_))), "{subscribed:?}");
        assert!(asked.elapsed() < Duration::from_secs(1));

        let other = Rabbit::start_with(rabbit.settings.clone()).await;
        let mut deliveries = consume(&*other.broker, Queue::Build, 1).await;
        assert_eq!(body(&next(&mut deliveries).await), "job");
        other.broker.close().await;
    })
    .await;
}

/// A user with these rights (configure, write, read), and settings to connect as that user.
async fn as_user(
    names: TopologySettings,
    rights: [&str; 3],
    test: impl AsyncFnOnce(RabbitSettings),
) {
    let (management, user) = (Management::new(), unique("user"));
    management.put_user_with(&user, "builder", rights).await;
    let mut address: AMQPUri = uri().parse().expect("RABBITMQ_URI is good");
    address.authority.userinfo.username = user.clone();
    address.authority.userinfo.password = "builder".to_owned();
    test(settings(&address.to_string(), names)).await;
    management.delete_user(&user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_declare_nothing_works_with_the_queues_that_are_there() {
    let names = topology_settings();
    // Somebody else has declared them.
    let owner = Rabbit::start_with(settings(&uri(), names.clone())).await;
    owner.broker.outcome_ledger();
    let told = names.outcome_queue.replace('.', "\\.");
    let write = "^amq\\.default$";
    let read = format!("^({}|{}|{told}|told\\.{told})$", names.build_queue, names.fail_queue);
    as_user(names, ["^$", write, &read], async |settings: RabbitSettings| {
        let worker = Rabbit::start_with(settings).await;
        for queue in [Queue::Build, Queue::Fail, Queue::Outcome] {
            publish(&*worker.broker, queue, message("job")).await;
            let mut deliveries = consume(&*worker.broker, queue, 1).await;
            let got = next(&mut deliveries).await;
            assert_eq!(body(&got), "job");
            deliveries.acks.ack(got.tag).await.expect("it is in hand");
        }
        assert_eq!(worker.broker.look().await, Ok(()));
        worker.broker.close().await;
    })
    .await;
    owner.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_missing_and_may_not_be_declared_is_an_error_that_says_both() {
    as_user(topology_settings(), ["^$", ".*", ".*"], async |settings: RabbitSettings| {
        let build = settings.topology.queue(Queue::Build).expect("a queue").to_owned();
        let error = refused(settings).await.to_string();
        for part in [&build, "refused", "it is not there"] {
            assert!(error.contains(part), "{error}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_is_not_ready_and_the_queue_is_named() {
    let names = topology_settings();
    let owner = Rabbit::start_with(settings(&uri(), names.clone())).await;
    as_user(names, [".*", ".*", "^amq\\.gen-.*$"], async |settings: RabbitSettings| {
        let worker = Rabbit::start_with(settings).await;
        let lack = worker.broker.look().await.expect_err("nobody has tried yet");
        assert!(lack.contains("not subscribed to yet"), "{lack}");
        let refused = worker.broker.consume(Queue::Build, 1).await.err();
        assert!(matches!(refused, Some(BrokerError::Unavailable(_))), "{refused:?}");
        let lack = worker.broker.look().await.expect_err("it cannot work");
        assert!(lack.contains(worker.name(Queue::Build)) && lack.contains("refused"), "{lack}");
        worker.broker.close().await;
    })
    .await;
    owner.tear_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_write_is_not_ready() {
    let names = topology_settings();
    let owner = Rabbit::start_with(settings(&uri(), names.clone())).await;
    as_user(names, [".*", "^amq\\.gen-.*$", ".*"], async |settings: RabbitSettings| {
        let worker = Rabbit::start_with(settings).await;
        for queue in [Queue::Build, Queue::Fail, Queue::Outcome] {
            consume(&*worker.broker, queue, 1).await;
        }
        let lack = worker.broker.look().await.expect_err("it cannot work");
        assert!(lack.contains("amq.default") || lack.contains("refused"), "{lack}");
        worker.broker.close().await;
    })
    .await;
    owner.tear_down().await;
}
