//! What is claimed, notified and dropped.

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
fn what_a_claim_comes_to_is_the_table() {
    use Verdict::{Drop, Notify, PassOn};
    let claimants = [Claimant::Holder, Claimant::Later, Claimant::Other];
    let table = [
        (Holder::InHand, [Notify, Notify, Drop]),
        (Holder::PassedOn, [PassOn, Notify, Drop]),
        (Holder::Notified, [Drop, Drop, Drop]),
    ];
    for (holder, verdicts) in table {
        assert_eq!(claimants.map(|claimant| holder.claimed_by(claimant)), verdicts, "{holder:?}");
    }
    let records = [Recorded::Notified, Recorded::PassedOn];
    let table = [
        (Holder::InHand, [Holder::Notified, Holder::PassedOn]),
        (Holder::PassedOn, [Holder::Notified, Holder::PassedOn]),
        (Holder::Notified, [Holder::Notified, Holder::Notified]),
    ];
    for (holder, then) in table {
        assert_eq!(records.map(|recorded| holder.became(recorded)), then, "{holder:?}");
    }
}

#[test]
fn the_first_copy_that_is_claimed_is_notified_and_no_other_of_its_publication() {
    let mut claims = Claims::default();
    let (one, two) = (first("one", Some(5)), first("two", Some(5)));
    assert!(!claims.is_claimed(REQ, Some(at(5)), at(10)));
    assert_eq!(claims.claim(&one, at(10)), Verdict::Notify);
    assert!(claims.is_claimed(REQ, Some(at(5)), at(10)));
    assert_eq!(claims.claim(&two, at(10)), Verdict::Drop);
    claims.record(REQ, "one", Recorded::Notified);
    assert_eq!(claims.claim(&two, at(10)), Verdict::Drop);
    let other = OutcomeCopy { request: "another".to_owned(), ..two };
    assert_eq!(claims.claim(&other, at(10)), Verdict::Notify);
}

#[test]
fn a_copy_that_comes_again_is_notified_unless_it_was() {
    let mut claims = Claims::default();
    let one = first("one", Some(5));
    assert_eq!(claims.claim(&one, at(10)), Verdict::Notify);
    claims.record(REQ, "another", Recorded::Notified);
    assert_eq!(claims.claim(&one, at(10)), Verdict::Notify);
    claims.record(REQ, "one", Recorded::Notified);
    assert_eq!(claims.claim(&one, at(10)), Verdict::Drop);
    claims.record(REQ, "one", Recorded::PassedOn);
    assert_eq!(claims.claim(&one, at(10)), Verdict::Drop);
}

#[test]
fn one_copy_of_the_next_generation_is_notified_in_place_of_the_one_before() {
    let mut claims = Claims::default();
    let zero = first("zero", None);
    let [one, twin, two, three] = [("one", 1), ("twin", 1), ("two", 2), ("three", 3)]
        .map(|(copy, generation)| later(&zero, copy, generation));
    assert_eq!(claims.claim(&zero, at(10)), Verdict::Notify);
    claims.record(REQ, "zero", Recorded::PassedOn);
    assert_eq!(claims.claim(&zero, at(10)), Verdict::PassOn, "nobody knows whether it was");
    assert_eq!(claims.claim(&one, at(11)), Verdict::Notify);
    assert_eq!(claims.claim(&twin, at(11)), Verdict::Drop);
    assert_eq!(claims.claim(&zero, at(11)), Verdict::Drop, "it was");
    assert_eq!(claims.claim(&two, at(12)), Verdict::Notify, "the ledger has lost a record");
    claims.record(REQ, "two", Recorded::Notified);
    assert_eq!(claims.claim(&three, at(12)), Verdict::Drop);
}

#[test]
fn a_request_that_is_published_anew_is_notified_anew_whatever_the_clocks_say() {
    let mut claims = Claims::default();
    assert_eq!(claims.claim(&first("one", Some(50)), at(10)), Verdict::Notify);
    claims.record(REQ, "one", Recorded::Notified);
    assert!(!claims.is_claimed(REQ, Some(at(20)), at(60)));
    assert_eq!(claims.claim(&first("anew", Some(20)), at(11)), Verdict::Notify);
    for repeated in [first("repeated", Some(50)), first("again", Some(20))] {
        assert_eq!(claims.claim(&repeated, at(60)), Verdict::Drop);
    }
}

#[test]
fn a_request_whose_beginning_nobody_knows_repeats_what_was_claimed_lately() {
    let mut claims = Claims::default();
    assert_eq!(claims.claim(&first("one", Some(5)), at(10)), Verdict::Notify);
    let hour = DOUBT.as_secs() as i64;
    assert!(claims.is_claimed(REQ, None, at(9 + hour)));
    assert!(!claims.is_claimed(REQ, None, at(10 + hour)));
    assert_eq!(claims.claim(&first("two", None), at(9 + hour)), Verdict::Drop);
    assert_eq!(claims.claim(&first("two", None), at(10 + hour)), Verdict::Notify);
    // And the other way round.
    assert_eq!(claims.claim(&first("three", Some(7)), at(11 + hour)), Verdict::Drop);
    assert_eq!(claims.claim(&first("four", Some(11 + hour)), at(12 + hour)), Verdict::Notify);
}

#[test]
fn the_last_beginning_is_that_of_a_redelivery_until_it_is_claimed() {
    let mut claims = Claims::default();
    assert_eq!(claims.begun(REQ), None);
    [5, 20, 15].into_iter().for_each(|second| claims.begin(REQ, at(second)));
    assert_eq!(claims.begun(REQ), Some(at(15)), "whatever the clocks say");
    assert!(!claims.is_claimed(REQ, None, at(21)), "there is no outcome");
    claims.claim(&first("one", Some(15)), at(22));
    assert_eq!(claims.begun(REQ), Some(at(20)));
    claims.claim(&first("two", Some(20)), at(22));
    claims.claim(&first("three", Some(5)), at(22));
    assert_eq!(claims.begun(REQ), None);
}

#[test]
fn only_so_much_is_remembered() {
    let mut claims = Claims::default();
    for number in 0..=MOST_REMEMBERED {
        claims.begin(&number.to_string(), at(1));
    }
    assert_eq!((claims.requests.len(), claims.order.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
    assert_eq!((claims.begun("0"), claims.begun("1")), (None, Some(at(1))));
    for number in 0..=MOST_PUBLICATIONS as i64 {
        claims.claim(&first(&number.to_string(), Some(number)), at(1));
    }
    assert!(
        !claims.is_claimed(REQ, Some(at(0)), at(2)) && claims.is_claimed(REQ, Some(at(1)), at(2))
    );
    assert_eq!(claims.requests[&hash(REQ)].claims.len(), MOST_PUBLICATIONS);
}

/// Notifiers at work on the outcomes of one request, any of which may die between any two steps, with a
/// ledger that may be away.
#[derive(Default)]
struct Notifiers {
    claims: Claims,
    /// Copies on the queue or its ladder.
    queue: Vec<OutcomeCopy>,
    /// Copies in hand, with what comes next.
    hands: Vec<(OutcomeCopy, Step)>,
    copies: usize,
    posts: usize,
    /// Deaths between a notification and the record that says so.
    unrecorded: usize,
    /// Whether the ledger may be away.
    ledger_fails: bool,
}

#[derive(Clone, Copy)]
enum Step {
    Claim,
    Post { claimed: bool },
    RecordNotified,
    RecordPassedOn,
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
            self.unrecorded += usize::from(matches!(step, Step::RecordNotified));
            self.queue.push(self.hands.swap_remove(hand).0);
            return;
        }
        let refused = one_in(9, 3);
        let away = self.ledger_fails && one_in(11, 2);
        self.hands[hand].1 = match step {
            Step::Claim if away && refused => Step::Post { claimed: false },
            Step::Claim => match self.claims.claim(&copy, at(10)) {
                // It was written, and not read back.
                _ if away => Step::Post { claimed: false },
                Verdict::Notify => Step::Post { claimed: true },
                Verdict::PassOn => Step::PassOn,
                Verdict::Drop => Step::Ack,
            },
            Step::Post { claimed } if refused => match claimed {
                true => Step::RecordPassedOn,
                false => Step::PassOn,
            },
            Step::Post { claimed } => {
                self.posts += 1;
                if claimed { Step::RecordNotified } else { Step::Ack }
            }
            Step::RecordNotified => {
                if !away {
                    self.claims.record(REQ, &copy.copy, Recorded::Notified);
                }
                Step::Ack
            }
            Step::RecordPassedOn => {
                // Or it was written, and nobody heard of it.
                if !away || one_in(12, 2) {
                    self.claims.record(REQ, &copy.copy, Recorded::PassedOn);
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
fn whatever_dies_when_one_outcome_is_notified_and_none_is_lost() {
    // Numerical Recipes' generator: any will do that is the same each time.
    let mut random = 1u64;
    let mut dice = move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize & 0xff_ffff
    };
    for run in 0..20_000 {
        let ledger_fails = run % 2 == 0;
        let mut all = Notifiers { ledger_fails, ..Notifiers::default() };
        (0..=run % 3).for_each(|outcome| all.publish(outcome));
        let mut steps = 0;
        while !(all.queue.is_empty() && all.hands.is_empty()) {
            all.step(dice());
            steps += 1;
            assert!(steps < 100_000, "run {run} does not end");
        }
        assert!(all.posts >= 1, "run {run}: lost");
        assert!(ledger_fails || all.posts <= 1 + all.unrecorded, "run {run}: {} posts", all.posts);
    }
}

#[test]
fn what_is_known_of_a_request_reads_as_it_was_written() {
    let mut known = RequestClaims::default();
    known.begin(at(5));
    let (one, two) = (first("one", Some(5)), first("two", Some(5)));
    for round in 0..2 {
        assert_eq!(known.begun(), (round == 0).then_some(at(5)));
        let written = serde_json::to_string(&known).expect("it has only string keys");
        known = serde_json::from_str(&written).expect("it is what was written");
        assert_eq!(known.claim(&one, at(10)), Verdict::Notify);
        assert_eq!(known.claim(&two, at(10)), Verdict::Drop);
    }
    known.record("one", Recorded::Notified);
    let written = serde_json::to_string(&known).expect("it has only string keys");
    let mut known: RequestClaims = serde_json::from_str(&written).expect("it is what was written");
    assert_eq!(known.claim(&one, at(10)), Verdict::Drop);
}
