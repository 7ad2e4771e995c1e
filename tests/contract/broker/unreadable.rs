//! Messages whose properties no AMQP library can read: RabbitMQ takes them, and hands them on.

use std::time::Duration;

use image_builder_actors::ports::{Broker, Delivery, Message, Queue};
use image_builder_actors::testing::conformance::broker::{body, consume, message, next, publish};
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions};
use lapin::types::FieldTable;

use super::rabbit::{Rabbit, plain_channel, unique};
use super::raw_amqp::{LONGEST_PAYLOAD, Properties, TEXTS, nested_entry, text_entry};
use super::{on_rabbitmq, raw_publisher};

/// Publishes each message with a good one behind it, and returns what comes of each.
async fn delivered(rabbit: &Rabbit, sent: &[Properties]) -> Vec<Delivery> {
    let mut raw = raw_publisher();
    let mut deliveries = consume(&*rabbit.broker, Queue::Build, 10).await;
    let mut got = Vec::new();
    for properties in sent {
        raw.publish(rabbit.name(Queue::Build), properties, b"odd");
        publish(&*rabbit.broker, Queue::Build, message("good")).await;
        let odd = next(&mut deliveries).await;
        assert_eq!(body(&odd), "odd");
        let good = next(&mut deliveries).await;
        assert_eq!((body(&good), good.is_unreadable, good.redeliveries), ("good", false, 0));
        for tag in [odd.tag, good.tag] {
            deliveries.acks.ack(tag).await.expect("the connection is the same");
        }
        got.push(odd);
    }
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn each_property_may_be_in_another_encoding_and_costs_only_its_message() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        // The broker takes only its own users' names for `user_id`, and numbers for `expiration`.
        let of_publishers =
            TEXTS.iter().filter(|(name, _)| !["user_id", "expiration"].contains(name));
        let mut sent: Vec<_> =
            of_publishers.map(|(name, _)| Properties::default().text(name, b"caf\xe9")).collect();
        let key = [&b"\x04caf\xe9"[..], b"V"].concat();
        let nested = [&b"\x01tF\0\0\0\x03"[..], &b"\x01\xe9V"[..]].concat();
        sent.extend([key, nested].map(|entries| Properties::default().headers(&entries)));
        for odd in delivered(rabbit, &sent).await {
            assert!(odd.is_unreadable, "{odd:?}");
            assert_eq!((odd.message, odd.redeliveries), (message("odd"), 0));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_in_another_encoding_costs_only_its_message() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let (connection, channel) = plain_channel().await;
        let exchange = unique("fanout");
        let (queue, options) = (rabbit.name(Queue::Build), ExchangeDeclareOptions::default());
        let none = FieldTable::default();
        channel
            .exchange_declare(exchange.as_str().into(), ExchangeKind::Fanout, options, none.clone())
            .await
            .expect("declared");
        let binding = QueueBindOptions::default();
        channel
            .queue_bind(queue.into(), exchange.as_str().into(), "".into(), binding, none)
            .await
            .expect("bound");
        let mut deliveries = consume(&*rabbit.broker, Queue::Build, 2).await;
        let mut raw = raw_publisher();
        for (key, is_unreadable) in [(&b"caf\xe9"[..], true), ("café".as_bytes(), false)] {
            raw.publish_to(exchange.as_bytes(), key, &Properties::default(), b"job");
            let got = next(&mut deliveries).await;
            assert_eq!((body(&got), got.is_unreadable), ("job", is_unreadable));
        }
        let options = ExchangeDeleteOptions::default();
        channel.exchange_delete(exchange.as_str().into(), options).await.expect("deleted");
        connection.close(200, "done".into()).await.expect("it can be closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_end_or_bottom_are_left_out_and_the_message_is_good() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let room = LONGEST_PAYLOAD - 40;
        let many: Vec<u8> = (0..room / 7)
            .flat_map(|n| [&format!("\x05{n:05}")[..], "V"].concat().into_bytes())
            .collect();
        let sent = [
            nested_entry(b"deep", 20_000),
            text_entry(b"long", &vec![b'x'; room - 20]),
            many,
            text_entry(b"traceparent", &vec![b'x'; room - 20]),
            text_entry(b"x-image-builder-envelope", &vec![b'x'; room - 40]),
        ];
        let sent =
            sent.map(|entries| Properties::default().headers(&entries).text("message_id", b"id"));
        let expected = Message { message_id: Some("id".to_owned()), ..message("odd") };
        for odd in delivered(rabbit, &sent).await {
            assert!(!odd.is_unreadable);
            assert_eq!(odd.message, expected);
        }
    })
    .await;
}

/// Each time, the broker adds a header of its own, for which there is no room.
#[tokio::test(flavor = "multi_thread")]
async fn headers_of_the_longest_size_may_be_delivered_again() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let room = LONGEST_PAYLOAD - 14 - 4 - 15;
        let long = text_entry(b"long-name", &vec![b'x'; room]);
        let properties = Properties::default().headers(&long);
        assert_eq!(properties.bytes().len() + 12, LONGEST_PAYLOAD);
        raw_publisher().publish(rabbit.name(Queue::Build), &properties, b"job");
        let mut deliveries = consume(&*rabbit.broker, Queue::Build, 1).await;
        for again in [false, true, true] {
            let got = next(&mut deliveries).await;
            assert_eq!((body(&got), got.redeliveries > 0), ("job", again));
            assert!(!got.is_unreadable);
            deliveries.acks.nack(got.tag).await.expect("the connection is the same");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_in_another_encoding_is_heard() {
    on_rabbitmq(async |rabbit: &Rabbit| {
        let mut heard = rabbit.broker.cancellations();
        let exchange = rabbit.settings.topology.cancel_exchange();
        let latin_1 = Properties::default().text("app_id", b"caf\xe9");
        let (connection, channel) = plain_channel().await;
        // Nobody says when the queue is bound: told until it is heard.
        let listening = async {
            loop {
                let (exchange, (options, none)) = (exchange.into(), Default::default());
                channel
                    .basic_publish(exchange, "".into(), options, b"before", none)
                    .await
                    .expect("sent");
                let wait = tokio::time::timeout(Duration::from_millis(100), heard.recv());
                if wait.await.is_ok() {
                    return;
                }
            }
        };
        listening.await;
        raw_publisher().publish_to(exchange.as_bytes(), b"\xe9", &latin_1, b"odd");
        let mut next = heard.recv().await;
        while next.as_ref().map(|next| next.body.as_slice()) == Some(b"before") {
            next = heard.recv().await;
        }
        assert_eq!(next.map(|next| next.body), Some(b"odd".to_vec()));
        connection.close(200, "done".into()).await.expect("it can be closed");
    })
    .await;
}
