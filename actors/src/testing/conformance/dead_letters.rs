//! What every store of dead letters does, whatever it is made of.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::timeout;

use super::broker::{body, consume, next};
use crate::dead_letter::DeadLetter;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::history::History;
use crate::ports::{
    Broker, DeadLetterReading, DeadLetterStore, DeadLetters, DeadLettersError, KeptLetter, Message,
    Queue,
};

/// Letters that nobody else reads, and what a scenario needs to happen to them.
pub trait World: Sync {
    /// Keeps letters, for longer than any scenario takes.
    fn letters(&self) -> &dyn DeadLetters;

    fn store(&self) -> &dyn DeadLetterStore;

    /// The broker that redriven requests go to.
    fn broker(&self) -> &dyn Broker;

    /// Deletes the build queue behind everybody's back.
    fn delete_build_queue(&self) -> impl Future<Output = ()> + Send;
}

/// Makes a test of each promise of a store of dead letters.
#[macro_export]
macro_rules! dead_letters_conformance {
    ($world:expr) => {
        $crate::conformance! {
            dead_letters, $world,
            a_letter_is_read_as_it_was_kept_oldest_first,
            a_reading_that_is_closed_or_dropped_changes_nothing,
            what_is_removed_is_gone_and_the_others_stay_in_their_order,
            a_reading_has_what_was_there_when_it_began,
            one_reading_at_a_time,
            a_redriven_letter_becomes_a_request_and_is_gone,
            a_letter_stays_where_its_request_finds_no_queue,
        }
    };
}

/// How long anything may take that comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for what must not come to have come.
const QUIET: Duration = Duration::from_millis(250);

fn letter(id: &str) -> DeadLetter {
    let fault = Fault::new(StageName::Builder, Reason::Crashed, format!("The story of {id}."));
    let history = History::new(OffsetDateTime::UNIX_EPOCH);
    DeadLetter::new(id, br#"{"userID": "u", "repo": "o/n"}"#, &history, &fault)
}

async fn keep(world: &impl World, ids: &[&str]) {
    for id in ids {
        world.letters().keep(&letter(id)).await.expect("kept");
    }
}

async fn begin(world: &impl World) -> Box<dyn DeadLetterReading> {
    let reading = timeout(PATIENCE, world.store().read());
    reading.await.expect("in time").expect("the letters can be read")
}

async fn all(reading: &mut dyn DeadLetterReading) -> Vec<KeptLetter> {
    let mut letters = Vec::new();
    while let Some(batch) = reading.next().await.expect("read") {
        letters.extend(batch);
    }
    letters
}

fn ids(letters: &[KeptLetter]) -> Vec<&str> {
    letters.iter().filter_map(|letter| letter.message_id.as_deref()).collect()
}

/// The letters' ids, in a reading of its own.
async fn assert_left(world: &impl World, expected: &[&str]) {
    let mut reading = begin(world).await;
    let letters = all(&mut *reading).await;
    assert_eq!(ids(&letters), expected);
    reading.close().await.expect("closed");
}

pub async fn a_letter_is_read_as_it_was_kept_oldest_first(world: &impl World) {
    let letters = ["one", "two", "three"].map(letter);
    for letter in &letters {
        world.letters().keep(letter).await.expect("kept");
    }
    let mut reading = begin(world).await;
    assert_eq!(reading.warning(), None);
    let read = all(&mut *reading).await;
    assert_eq!(ids(&read), ["one", "two", "three"]);
    let bodies: Vec<_> = read.into_iter().map(|kept| kept.body).collect();
    assert_eq!(bodies, letters.map(|letter| letter.to_json()));
    reading.close().await.expect("closed");
}

pub async fn a_reading_that_is_closed_or_dropped_changes_nothing(world: &impl World) {
    let kept = ["one", "two", "three", "four", "five"];
    keep(world, &kept).await;
    assert_left(world, &kept).await;
    let mut dropped = begin(world).await;
    assert!(dropped.next().await.expect("read").is_some());
    drop(dropped);
    assert_left(world, &kept).await;
}

pub async fn what_is_removed_is_gone_and_the_others_stay_in_their_order(world: &impl World) {
    keep(world, &["one", "two", "three", "four"]).await;
    let mut reading = begin(world).await;
    let letters = all(&mut *reading).await;
    reading.remove(&[letters[0].tag, letters[2].tag]).await.expect("removed");
    reading.close().await.expect("closed");
    assert_left(world, &["two", "four"]).await;
}

pub async fn a_reading_has_what_was_there_when_it_began(world: &impl World) {
    keep(world, &["one"]).await;
    let mut reading = begin(world).await;
    keep(world, &["late"]).await;
    assert_eq!(ids(&all(&mut *reading).await), ["one"]);
    reading.close().await.expect("closed");
    assert_left(world, &["one", "late"]).await;
}

pub async fn one_reading_at_a_time(world: &impl World) {
    keep(world, &["one"]).await;
    let first = begin(world).await;
    let busy = timeout(PATIENCE, world.store().read()).await.expect("it answers in time").err();
    assert!(matches!(busy, Some(DeadLettersError::Busy(_))), "{busy:?}");
    let (second, ()) = tokio::join!(begin(world), async {
        tokio::time::sleep(QUIET).await;
        first.close().await.expect("closed");
    });
    second.close().await.expect("closed");
}

pub async fn a_redriven_letter_becomes_a_request_and_is_gone(world: &impl World) {
    keep(world, &["one", "other", "one"]).await;
    let mut reading = begin(world).await;
    let letters = all(&mut *reading).await;
    let request = Message {
        body: b"again".to_vec(),
        message_id: Some("anew".to_owned()),
        ..Message::default()
    };
    let tags = [letters[0].tag, letters[2].tag];
    reading.redrive(request.clone(), &tags).await.expect("redriven");
    let mut builds = consume(world.broker(), Queue::Build, 1).await;
    let delivery = next(&mut builds).await;
    assert_eq!((body(&delivery), &delivery.message), ("again", &request));
    reading.close().await.expect("closed");
    assert_left(world, &["other"]).await;
}

pub async fn a_letter_stays_where_its_request_finds_no_queue(world: &impl World) {
    keep(world, &["one"]).await;
    world.delete_build_queue().await;
    let mut reading = begin(world).await;
    let letters = all(&mut *reading).await;
    let refused = reading.redrive(Message::default(), &[letters[0].tag]).await;
    assert!(matches!(refused, Err(DeadLettersError::Unavailable(_))), "{refused:?}");
    drop(reading);
    assert_left(world, &["one"]).await;
}
