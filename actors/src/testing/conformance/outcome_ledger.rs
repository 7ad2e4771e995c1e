//! What every outcome ledger does, whatever it is made of.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use time::OffsetDateTime;

use crate::ports::{OutcomeCopy, OutcomeLedger, Recorded, Verdict};

/// A ledger that nobody else uses, and what a scenario needs to happen to it.
pub trait World: Sync {
    /// The ledger of one more worker.
    fn worker(&self) -> Arc<dyn OutcomeLedger>;

    /// Ends the connections that ledgers are read on.
    fn lose_connections(&self) -> impl Future<Output = ()> + Send;
}

/// Makes a test of each promise of an outcome ledger.
#[macro_export]
macro_rules! outcome_ledger_conformance {
    ($world:expr) => {
        $crate::conformance! {
            outcome_ledger, $world,
            one_of_many_workers_is_to_notify,
            a_copy_whose_notifier_died_is_sent_again_until_that_is_recorded,
            what_is_passed_on_is_sent_in_its_next_generation,
            a_worker_that_lost_its_connection_or_begins_knows_what_was_notified,
            when_a_request_was_first_in_hand_is_known_to_all_workers,
            workers_that_claim_much_at_once_agree,
        }
    };
}

/// How long anything may take that comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause before what has no event is looked at again.
const LOOK: Duration = Duration::from_millis(20);

fn first(request: &str) -> OutcomeCopy {
    OutcomeCopy::first(request.to_owned(), None)
}

pub async fn one_of_many_workers_is_to_notify(world: &impl World) {
    let claims = (0..8).map(|_| async {
        let worker = world.worker();
        worker.claim(&first("request")).await
    });
    let verdicts = join_all(claims).await;
    let notify = verdicts.iter().filter(|verdict| **verdict == Ok(Verdict::Notify)).count();
    let drop = verdicts.iter().filter(|verdict| **verdict == Ok(Verdict::Drop)).count();
    assert_eq!((notify, drop), (1, 7), "{verdicts:?}");
    assert_eq!(world.worker().claim(&first("another")).await, Ok(Verdict::Notify));
}

pub async fn a_copy_whose_notifier_died_is_sent_again_until_that_is_recorded(world: &impl World) {
    let [one, two] = [world.worker(), world.worker()];
    let copy = first("request");
    assert_eq!(one.claim(&copy).await, Ok(Verdict::Notify));
    assert_eq!(two.claim(&copy).await, Ok(Verdict::Notify));
    two.record(&copy, Recorded::Notified).await.expect("recorded");
    assert_eq!(one.claim(&copy).await, Ok(Verdict::Drop));
}

pub async fn what_is_passed_on_is_sent_in_its_next_generation(world: &impl World) {
    let [one, two] = [world.worker(), world.worker()];
    let copy = first("request");
    assert_eq!(one.claim(&copy).await, Ok(Verdict::Notify));
    one.record(&copy, Recorded::PassedOn).await.expect("recorded");
    assert_eq!(two.claim(&copy).await, Ok(Verdict::PassOn));
    let [next, twin] = [copy.next_generation(), copy.next_generation()];
    assert_eq!(two.claim(&next).await, Ok(Verdict::Notify));
    assert_eq!(one.claim(&twin).await, Ok(Verdict::Drop));
    assert_eq!(one.claim(&copy).await, Ok(Verdict::Drop));
}

pub async fn a_worker_that_lost_its_connection_or_begins_knows_what_was_notified(
    world: &impl World,
) {
    let one = world.worker();
    let (copy, other) = (first("request"), first("request"));
    assert_eq!(one.claim(&copy).await, Ok(Verdict::Notify));
    one.record(&copy, Recorded::Notified).await.expect("recorded");
    world.lose_connections().await;
    assert_eq!(one.claim(&copy).await, Ok(Verdict::Drop));
    let late = world.worker();
    assert_eq!(late.claim(&other).await, Ok(Verdict::Drop));
    assert!(late.is_claimed("request", None).await);
    assert!(!late.is_claimed("another", None).await);
}

pub async fn when_a_request_was_first_in_hand_is_known_to_all_workers(world: &impl World) {
    let [one, two] = [world.worker(), world.worker()];
    assert_eq!(two.begun("request").await, Ok(None));
    let since = OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time");
    one.begin("request".to_owned(), since);
    let known = async {
        while two.begun("request").await != Ok(Some(since)) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("it is known");
    assert_eq!(two.begun("another").await, Ok(None));
    // Its outcome is of that beginning, and another is not.
    let copy = OutcomeCopy::first("request".to_owned(), Some(since));
    assert_eq!(one.claim(&copy).await, Ok(Verdict::Notify));
    assert!(one.is_claimed("request", Some(since)).await);
    assert!(!one.is_claimed("request", Some(since + LOOK)).await);
    assert_eq!(two.begun("request").await, Ok(None));
}

pub async fn workers_that_claim_much_at_once_agree(world: &impl World) {
    const REQUESTS: usize = 800;
    let workers = [world.worker(), world.worker()];
    let claims = (0..REQUESTS).map(|number| {
        let request = number.to_string();
        let workers = &workers;
        async move {
            let copies = [first(&request), first(&request)];
            let [one, two] = [workers[0].claim(&copies[0]), workers[1].claim(&copies[1])];
            let verdicts = tokio::join!(one, two);
            match verdicts {
                (Ok(Verdict::Notify), Ok(Verdict::Drop)) => copies[0].clone(),
                (Ok(Verdict::Drop), Ok(Verdict::Notify)) => copies[1].clone(),
                _ => panic!("{request}: {verdicts:?}"),
            }
        }
    });
    let holders = join_all(claims).await;
    let late = world.worker();
    for holder in &holders[..3] {
        assert_eq!(late.claim(&first(&holder.request)).await, Ok(Verdict::Drop));
        assert_eq!(late.claim(holder).await, Ok(Verdict::Notify));
    }
    let known = join_all(holders.iter().map(|holder| late.is_claimed(&holder.request, None))).await;
    assert_eq!(known.into_iter().filter(|known| *known).count(), REQUESTS);
}
