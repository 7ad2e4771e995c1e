//! What is claimed, told and dropped.

use std::collections::BTreeSet;

use super::known::{DOUBT, MOST_PUBLICATIONS, MOST_REMEMBERED, hash};
use super::*;

const REQ: &str = "r";

fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(second).expect("a time")
}

/// The first copy of an outcome of a request that was first in hand at this second.
fn first(outcome: &str, since: Option<i64>) -> OutcomeCopy {
    let (request, outcome, since) = (REQ.to_owned(), outcome.to_owned(), since.map(at));
    OutcomeCopy { request, copy: outcome.clone(), outcome, generation: 0, since }
}

/// A copy of a later generation.
fn later(first: &OutcomeCopy, copy: &str, generation: u64) -> OutcomeCopy {
    OutcomeCopy { copy: copy.to_owned(), generation, ..first.clone() }
}

#[test]
fn the_first_copy_that_is_claimed_is_told_and_no_other_of_its_publication() {
    let mut known = Known::default();
    let (one, two) = (first("one", Some(5)), first("two", Some(5)));
    assert!(!known.knows(REQ, Some(at(5)), at(10)));
    assert_eq!(known.claim(&one, at(10)), Verdict::Tell);
    assert!(known.knows(REQ, Some(at(5)), at(10)));
    assert_eq!(known.claim(&two, at(10)), Verdict::Drop);
    known.became(REQ, "one", Held::Told);
    assert_eq!(known.claim(&two, at(10)), Verdict::Drop);
    let other = OutcomeCopy { request: "another".to_owned(), ..two };
    assert_eq!(known.claim(&other, at(10)), Verdict::Tell);
}

#[test]
fn a_copy_that_comes_again_is_told_unless_it_was() {
    let mut known = Known::default();
    let one = first("one", Some(5));
    assert_eq!(known.claim(&one, at(10)), Verdict::Tell);
    known.became(REQ, "another", Held::Told);
    assert_eq!(known.claim(&one, at(10)), Verdict::Tell);
    known.became(REQ, "one", Held::Told);
    assert_eq!(known.claim(&one, at(10)), Verdict::Drop);
    known.became(REQ, "one", Held::PassedOn);
    assert_eq!(known.claim(&one, at(10)), Verdict::Drop);
}

#[test]
fn one_copy_of_the_next_generation_is_told_in_place_of_the_one_before() {
    let mut known = Known::default();
    let zero = first("zero", None);
    let [one, twin, two, three] = [("one", 1), ("twin", 1), ("two", 2), ("three", 3)]
        .map(|(copy, generation)| later(&zero, copy, generation));
    assert_eq!(known.claim(&zero, at(10)), Verdict::Tell);
    known.became(REQ, "zero", Held::PassedOn);
    assert_eq!(known.claim(&zero, at(10)), Verdict::PassOn, "nobody knows whether it was");
    assert_eq!(known.claim(&one, at(11)), Verdict::Tell);
    assert_eq!(known.claim(&twin, at(11)), Verdict::Drop);
    assert_eq!(known.claim(&zero, at(11)), Verdict::Drop, "it was");
    assert_eq!(known.claim(&two, at(12)), Verdict::Tell, "the log has lost a line");
    known.became(REQ, "two", Held::Told);
    assert_eq!(known.claim(&three, at(12)), Verdict::Drop);
}

#[test]
fn a_request_that_is_published_anew_is_told_anew_whatever_the_clocks_say() {
    let mut known = Known::default();
    assert_eq!(known.claim(&first("one", Some(50)), at(10)), Verdict::Tell);
    known.became(REQ, "one", Held::Told);
    assert!(!known.knows(REQ, Some(at(20)), at(60)));
    assert_eq!(known.claim(&first("anew", Some(20)), at(11)), Verdict::Tell);
    for repeated in [first("repeated", Some(50)), first("again", Some(20))] {
        assert_eq!(known.claim(&repeated, at(60)), Verdict::Drop);
    }
}

#[test]
fn a_request_whose_beginning_nobody_knows_repeats_what_was_claimed_lately() {
    let mut known = Known::default();
    assert_eq!(known.claim(&first("one", Some(5)), at(10)), Verdict::Tell);
    let hour = DOUBT.as_secs() as i64;
    assert!(known.knows(REQ, None, at(9 + hour)));
    assert!(!known.knows(REQ, None, at(10 + hour)));
    assert_eq!(known.claim(&first("two", None), at(9 + hour)), Verdict::Drop);
    assert_eq!(known.claim(&first("two", None), at(10 + hour)), Verdict::Tell);
    // And the other way round.
    assert_eq!(known.claim(&first("three", Some(7)), at(11 + hour)), Verdict::Drop);
    assert_eq!(known.claim(&first("four", Some(11 + hour)), at(12 + hour)), Verdict::Tell);
}

#[test]
fn the_last_beginning_is_that_of_a_redelivery_until_it_is_claimed() {
    let mut known = Known::default();
    assert_eq!(known.begun(REQ), None);
    [5, 20, 15].into_iter().for_each(|second| known.begins(REQ, at(second)));
    assert_eq!(known.begun(REQ), Some(at(15)), "whatever the clocks say");
    assert!(!known.knows(REQ, None, at(21)), "there is no outcome");
    known.claim(&first("one", Some(15)), at(22));
    assert_eq!(known.begun(REQ), Some(at(20)));
    known.claim(&first("two", Some(20)), at(22));
    known.claim(&first("three", Some(5)), at(22));
    assert_eq!(known.begun(REQ), None);
}

#[test]
fn only_so_much_is_remembered() {
    let mut known = Known::default();
    for number in 0..=MOST_REMEMBERED {
        known.begins(&number.to_string(), at(1));
    }
    assert_eq!((known.requests.len(), known.order.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
    assert_eq!((known.begun("0"), known.begun("1")), (None, Some(at(1))));
    for number in 0..=MOST_PUBLICATIONS as i64 {
        known.claim(&first(&number.to_string(), Some(number)), at(1));
    }
    assert!(!known.knows(REQ, Some(at(0)), at(2)) && known.knows(REQ, Some(at(1)), at(2)));
    assert_eq!(known.requests[&hash(REQ)].holders.len(), MOST_PUBLICATIONS);
}

/// Notifiers at work on the outcomes of one request, any of which may die between any two steps, with a log
/// that may be away.
#[derive(Default)]
struct Notifiers {
    known: Known,
    /// Copies on the queue or its ladder.
    queue: Vec<OutcomeCopy>,
    /// Copies in hand, with what comes next.
    hands: Vec<(OutcomeCopy, Step)>,
    copies: usize,
    posts: usize,
    /// Deaths between a notification and the line that says so.
    untold: usize,
    /// Whether the log may be away.
    log_fails: bool,
}

#[derive(Clone, Copy)]
enum Step {
    Claim,
    Post { claimed: bool },
    WriteTold,
    WritePassedOn,
    PassOn,
    Ack,
}

impl Notifiers {
    fn publish(&mut self, outcome: usize) {
        self.queue.push(first(&format!("outcome {outcome}"), Some(5)));
    }

    /// One step of one notifier; `dice` are some random bits.
    fn step(&mut self, dice: usize) {
        let one_in = |bit: u32, n: usize| (dice >> bit).is_multiple_of(n);
        let takes = self.hands.is_empty() || dice.is_multiple_of(3);
        if takes && !self.queue.is_empty() {
            let copy = self.queue.remove(dice / 8 % self.queue.len());
            return self.hands.push((copy, Step::Claim));
        }
        if self.hands.is_empty() {
            return;
        }
        let hand = dice / 8 % self.hands.len();
        let (copy, step) = self.hands[hand].clone();
        if one_in(6, 8) {
            self.untold += usize::from(matches!(step, Step::WriteTold));
            self.queue.push(self.hands.swap_remove(hand).0);
            return;
        }
        let refused = one_in(9, 3);
        let away = self.log_fails && one_in(11, 2);
        self.hands[hand].1 = match step {
            Step::Claim if away && refused => Step::Post { claimed: false },
            Step::Claim => match self.known.claim(&copy, at(10)) {
                // It was written, and not read back.
                _ if away => Step::Post { claimed: false },
                Verdict::Tell => Step::Post { claimed: true },
                Verdict::PassOn => Step::PassOn,
                Verdict::Drop => Step::Ack,
            },
            Step::Post { claimed } if refused => match claimed {
                true => Step::WritePassedOn,
                false => Step::PassOn,
            },
            Step::Post { claimed } => {
                self.posts += 1;
                if claimed { Step::WriteTold } else { Step::Ack }
            }
            Step::WriteTold => {
                if !away {
                    self.known.became(REQ, &copy.copy, Held::Told);
                }
                Step::Ack
            }
            Step::WritePassedOn => {
                // Or it was written, and nobody heard of it.
                if !away || one_in(12, 2) {
                    self.known.became(REQ, &copy.copy, Held::PassedOn);
                }
                Step::PassOn
            }
            Step::PassOn => {
                self.copies += 1;
                let name = format!("copy {}", self.copies);
                self.queue.push(later(&copy, &name, copy.generation + 1));
                Step::Ack
            }
            Step::Ack => {
                self.hands.swap_remove(hand);
                return;
            }
        };
    }
}

#[test]
fn whatever_dies_when_one_outcome_is_told_and_none_is_lost() {
    // Numerical Recipes' generator: any will do that is the same each time.
    let mut random = 1u64;
    let mut dice = move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize & 0xff_ffff
    };
    for run in 0..20_000 {
        let log_fails = run % 2 == 0;
        let mut all = Notifiers { log_fails, ..Notifiers::default() };
        (0..=run % 3).for_each(|outcome| all.publish(outcome));
        let mut steps = 0;
        while !(all.queue.is_empty() && all.hands.is_empty()) {
            all.step(dice());
            steps += 1;
            assert!(steps < 100_000, "run {run} does not end");
        }
        assert!(all.posts >= 1, "run {run}: lost");
        assert!(log_fails || all.posts <= 1 + all.untold, "run {run}: {} posts", all.posts);
    }
}

#[test]
fn a_message_says_which_copy_it_is() {
    let mut message = Message { message_id: Some("b.image.ready".into()), ..Message::default() };
    let unnamed = OutcomeCopy::of("b", &message);
    assert_eq!((unnamed.copy.as_str(), unnamed.since), ("b.image.ready", None));
    stamp(&mut message, REQ.to_owned(), Some(at(5)));
    let copy = OutcomeCopy::of("b", &message);
    assert_eq!((copy.request.as_str(), copy.since, copy.generation), (REQ, Some(at(5)), 0));
    assert_eq!(copy, OutcomeCopy::of("b", &message.clone()), "whoever reads it");
    let mut twin = message.clone();
    twin.headers.insert(REPEATED.to_owned(), "1".to_owned());
    assert_ne!(OutcomeCopy::of("b", &twin).copy, copy.copy);
    assert_eq!(OutcomeCopy::of("b", &twin).outcome, copy.outcome);
    stand_in(&mut twin);
    let next = OutcomeCopy::of("b", &twin);
    assert_eq!((&next.outcome, next.since, next.generation), (&copy.outcome, copy.since, 1));
    assert!(next.copy != copy.copy && !next.copy.contains('#'));
}

#[test]
fn requests_of_one_id_are_told_from_each_other_by_their_bodies() {
    let parts = [("b", "1"), ("b", "2"), ("b1", ""), ("b1", "2")];
    let names: BTreeSet<String> =
        parts.iter().map(|(id, body)| request(id, body.as_bytes())).collect();
    assert_eq!(names.len(), parts.len());
    assert!(names.contains(&request("b", b"1")));
}

#[test]
fn a_record_reads_as_it_was_written() {
    let copy = later(&first("one", Some(5)), "two", 1);
    let records = [
        Record::Claim { id: "c".into(), at: at(7), copy: copy.clone() },
        Record::Claim { id: "c".into(), at: at(7), copy: OutcomeCopy { since: None, ..copy } },
        Record::PassedOn { request: REQ.into(), copy: "two".into() },
        Record::Begun { request: REQ.into(), at: at(5) },
    ];
    for record in &records {
        let written = record.message().body;
        let read: Record = serde_json::from_slice(&written).expect("it is a record");
        assert_eq!(read.message().body, written);
    }
    assert_eq!(
        String::from_utf8(records[0].message().body).expect("it is JSON"),
        r#"{"step":"claim","id":"c","at":"1970-01-01T00:00:07Z","request":"r","outcome":"one","copy":"two","generation":1,"since":"1970-01-01T00:00:05Z"}"#
    );
}
