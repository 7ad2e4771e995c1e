//! What the number of lanes costs: memory of the broker, and the time that it takes to put a request in
//! the backlog, to take it out, and to find that nothing waits.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use image_builder::broker::rabbitmq::topology::TopologySettings;
use image_builder_actors::ports::{Broker, Load, Message, Place};

use crate::rabbit::{Rabbit, settings, topology_settings};
use crate::support::broker::{BrokerAt, uri};
use crate::support::runtime;
use crate::{median, number};

/// Looks into the empty backlog.
const LOOKS: usize = 20;

/// The broker renews its figures every five seconds, and has none of a new queue before.
const FIGURES: Duration = Duration::from_secs(11);

pub(crate) fn run() {
    let count = number("FLOOD", "10000").div_ceil(5);
    println!("{count} requests of 50 users in the backlog, by BUILD_LANES\n");
    println!(
        "{:<12} {:>12} {:>12} {:>14} {:>12} {:>14}",
        "", "in a second", "taken, ms", "worst of 20, ms", "empty, ms", "broker, MB"
    );
    for lanes in [1, 4, 16] {
        runtime().block_on(with_lanes(lanes, count));
    }
}

async fn with_lanes(lanes: u16, count: usize) {
    let topology = TopologySettings { build_lanes: lanes, ..topology_settings() };
    let prefix = format!("{}.lane.", topology.build_queue);
    let rabbit = Rabbit::start_with(settings(&uri(), topology)).await;
    let begun = Instant::now();
    let put = stream::iter(0..count).map(|n| {
        let message = Message { body: b"a request".to_vec(), ..Message::default() };
        let place = Place { user_id: format!("user {}", n % 50), returned: false };
        rabbit.broker.enqueue(message, place)
    });
    put.buffer_unordered(256).for_each(async |put| put.expect("it is put in the backlog")).await;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    tokio::time::sleep(FIGURES).await;
    let memory = tokio::task::block_in_place(|| {
        // It asks on the runtime of its own accord.
        std::thread::spawn(move || BrokerAt::shared().memory_of_queues(&prefix)).join()
    });
    let memory = memory.expect("the broker tells it") as f64 / 1e6;
    let mut backlog = rabbit.broker.backlog().await.expect("it can be opened");
    let load = Load { builds: HashMap::new(), most_per_user: 2, at_hand: false };
    let (mut taking, mut looking) = (Vec::new(), Vec::new());
    while looking.len() < LOOKS {
        let begun = Instant::now();
        let turn = backlog.taker.take(&load).await.expect("the broker answers");
        let millis = begun.elapsed().as_secs_f64() * 1e3;
        match turn {
            Some(turn) => {
                taking.push(millis);
                backlog.acks.ack(turn.delivery.tag).await.expect("it can be acked");
            }
            None => looking.push(millis),
        }
    }
    assert_eq!(taking.len(), count, "what was put in is taken out");
    taking.sort_by(f64::total_cmp);
    let slow = taking[taking.len() * 19 / 20];
    println!(
        "{lanes:<12} {rate:>12.0} {:>12.2} {slow:>14.2} {:>12.2} {memory:>14.1}",
        median(&taking),
        median(&looking)
    );
    drop(backlog);
    rabbit.tear_down().await;
}
