//! The queues as data: which there are, with what arguments, and where a publish goes.
//!
//! Nothing here talks to a broker; `rabbitmq` declares what this table says.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::time::Duration;

use image_builder_actors::ports::{DELIVERY_LIMIT, Queue};

/// A delivery limit that is never reached. RabbitMQ 4 gives a quorum queue without one a limit of
/// 20 and drops what passes it; "no limit" is written in ways that 3.10 and 4 do not share.
const NO_DELIVERY_LIMIT: i64 = 1_000_000;

/// The longest time to live that RabbitMQ takes, for a queue as for a message: 2^32 - 1 milliseconds,
/// a little over 49 days.
pub const LONGEST_TTL: Duration = Duration::from_millis(u32::MAX as u64);

/// Longest name of a queue or an exchange in AMQP, in bytes.
const LONGEST_NAME: usize = 255;

/// The most numbered lanes: each is a quorum queue, and is looked into whenever a request is taken.
pub const MOST_LANES: u16 = 64;

/// The names and delays that a deployment chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologySettings {
    pub build_queue: String,
    pub fail_queue: String,
    pub outcome_queue: String,
    pub dead_queue: String,
    /// `None` = no results over AMQP.
    pub result_queue: Option<String>,
    pub cancel_exchange: String,
    /// How many lanes users who have many requests are spread over; from 1 to [`MOST_LANES`].
    pub build_lanes: u16,
    /// The delays of the build queue's ladder, in whole milliseconds; at least one.
    pub build_rungs: Vec<Duration>,
    /// The delays of the outcome queue's ladder, in whole milliseconds; at least one.
    pub outcome_rungs: Vec<Duration>,
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Build,
    Fail,
    Outcome,
    Dead,
    Result,
    /// The outcome ledger: a stream, which every worker reads as a whole.
    Ledger,
    /// A part of the backlog: requests that were read and wait for their turn.
    Lane,
    /// What was cancelled of late: a stream, which every worker reads when it connects.
    Cancellations,
    /// A rung of a ladder: holds what it is given for its delay, then hands it back.
    Rung,
}

impl Role {
    /// What is lost where a queue of this role exists with other arguments than ours; `None` = such
    /// a queue cannot be used at all.
    pub fn if_different(self) -> Option<&'static str> {
        match self {
            Role::Build | Role::Lane => Some(
                "a build that kills its worker again and again may be dropped or come back for ever \
                 instead of being given up, and a full queue may drop builds",
            ),
            Role::Fail => {
                Some("the broker may drop failed builds, whose users then never hear of them")
            }
            Role::Outcome => {
                Some("the broker may drop outcomes, whose receivers then never hear of them")
            }
            Role::Dead => Some("copies of builds that were given up may be lost"),
            Role::Result => Some("results may be lost"),
            Role::Ledger | Role::Cancellations | Role::Rung => None,
        }
    }
}

/// A lane of the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Requests that were worked on before.
    Returned,
    /// Requests of users of whom nothing else waits.
    First,
    /// The next few of each user.
    Few,
    /// What is beyond, spread over users. The first is 1.
    Numbered(u16),
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lane::Returned => f.write_str("returned"),
            Lane::First => f.write_str("first"),
            Lane::Few => f.write_str("few"),
            Lane::Numbered(number) => write!(f, "{number}"),
        }
    }
}

/// The value of a queue's argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    Text(String),
    Number(i64),
}

/// One queue as it is to be declared: durable, neither exclusive nor deleted automatically.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueDeclaration {
    pub name: String,
    pub role: Role,
    pub arguments: Vec<(&'static str, Argument)>,
}

/// Names or delays that no broker would take.
/// The message begins with the variable that the name is from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    #[error("{setting}: the name of the {what} is empty")]
    Empty { setting: &'static str, what: String },
    #[error(
        "{setting}: the name of the {what} is {length} bytes long; RabbitMQ takes {LONGEST_NAME}"
    )]
    TooLong { setting: &'static str, what: String, length: usize },
    #[error(
        "{setting}: the name `{name}` of the {what} begins with `amq.`, which RabbitMQ keeps for itself"
    )]
    Reserved { setting: &'static str, what: String, name: String },
    #[error(
        "{setting}: `{name}` is the name of the {what} and of the {other} ({other_setting}); each \
         queue needs a name of its own"
    )]
    Twice {
        setting: &'static str,
        name: String,
        what: String,
        other: String,
        other_setting: &'static str,
    },
    #[error("BUILD_LANES: {0} lanes cannot be had: at least 1 and at most {MOST_LANES}")]
    Lanes(u16),
    #[error("the retry ladder of the {queue} has no rung")]
    NoRungs { queue: &'static str },
    #[error(
        "a delay of {delay:?} is no rung for the {queue}'s ladder: RabbitMQ counts whole milliseconds, \
         from 1 to {}",
        u32::MAX
    )]
    Rung { queue: &'static str, delay: Duration },
}

/// All queues of one deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    settings: TopologySettings,
    queues: Vec<QueueDeclaration>,
    ledger: QueueDeclaration,
    cancellations: QueueDeclaration,
    bell: String,
}

impl Topology {
    /// Makes the table.
    ///
    /// # Errors
    /// All names and delays that RabbitMQ would not take.
    pub fn new(mut settings: TopologySettings) -> Result<Self, Vec<TopologyError>> {
        let mut errors = Vec::new();
        errors.extend(
            check_name("CANCEL_EXCHANGE", "cancel exchange", &settings.cancel_exchange).err(),
        );
        if !(1..=MOST_LANES).contains(&settings.build_lanes) {
            errors.push(TopologyError::Lanes(settings.build_lanes));
        }
        errors.extend(check_rungs("build queue", &mut settings.build_rungs).err());
        errors.extend(check_rungs("outcome queue", &mut settings.outcome_rungs).err());

        // Each with the variable that its name is from.
        let mut queues = vec![
            ("BUILD_QUEUE", build_queue(&settings.build_queue, &settings.fail_queue)),
            ("FAIL_QUEUE", plain_queue(Role::Fail, &settings.fail_queue)),
            ("OUTCOME_QUEUE", plain_queue(Role::Outcome, &settings.outcome_queue)),
            ("DEAD_QUEUE", plain_queue(Role::Dead, &settings.dead_queue)),
        ];
        queues.push(("OUTCOME_QUEUE", ledger(&settings.outcome_queue)));
        queues.push(("CANCEL_EXCHANGE", cancellations(&settings.cancel_exchange)));
        let results = settings.result_queue.iter();
        queues.extend(results.map(|name| ("RESULT_QUEUE", plain_queue(Role::Result, name))));
        let lanes = lanes(settings.build_lanes.min(MOST_LANES));
        queues.extend(lanes.map(|lane| ("BUILD_QUEUE", lane_queue(lane, &settings))));
        let ladders = [
            ("BUILD_QUEUE", &settings.build_queue, &settings.build_rungs),
            ("OUTCOME_QUEUE", &settings.outcome_queue, &settings.outcome_rungs),
        ];
        for (setting, queue, rungs) in ladders {
            queues.extend(rungs.iter().map(|delay| (setting, rung(queue, *delay))));
        }

        let mut seen = BTreeMap::new();
        for (setting, queue) in &queues {
            errors.extend(check_name(setting, &queue.to_string(), &queue.name).err());
            match seen.entry(&queue.name) {
                Entry::Vacant(free) => {
                    free.insert((setting, queue));
                }
                Entry::Occupied(taken) => {
                    let (other_setting, other) = taken.get();
                    errors.push(TopologyError::Twice {
                        setting,
                        name: queue.name.clone(),
                        what: queue.to_string(),
                        other: other.to_string(),
                        other_setting,
                    });
                }
            }
        }
        let bell = format!("{}.bell", settings.build_queue);
        if bell == settings.cancel_exchange {
            errors.push(TopologyError::Twice {
                setting: "CANCEL_EXCHANGE",
                name: bell.clone(),
                what: "cancel exchange".to_owned(),
                other: "exchange of the bell".to_owned(),
                other_setting: "BUILD_QUEUE",
            });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let is_stream = |role| matches!(role, Role::Ledger | Role::Cancellations);
        let queues = queues.into_iter().map(|(_, queue)| queue);
        let queues = queues.filter(|queue| !is_stream(queue.role)).collect();
        let ledger = ledger(&settings.outcome_queue);
        let cancellations = cancellations(&settings.cancel_exchange);
        Ok(Self { settings, queues, ledger, cancellations, bell })
    }

    /// Every queue, the ladders last.
    pub fn queues(&self) -> &[QueueDeclaration] {
        &self.queues
    }

    /// The fanout exchange that tells every worker what was cancelled.
    pub fn cancel_exchange(&self) -> &str {
        &self.settings.cancel_exchange
    }

    /// The fanout exchange that tells every worker that something was put in the backlog.
    pub fn bell(&self) -> &str {
        &self.bell
    }

    /// The lanes that are filled.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> + use<> {
        lanes(self.settings.build_lanes)
    }

    /// How many numbered lanes are filled.
    pub fn build_lanes(&self) -> u16 {
        self.settings.build_lanes
    }

    /// The queue of a lane, also of one that is not filled any more.
    pub fn lane(&self, lane: Lane) -> QueueDeclaration {
        lane_queue(lane, &self.settings)
    }

    /// The name of a queue; `None` for results where no result queue is set.
    pub fn queue(&self, queue: Queue) -> Option<&str> {
        match queue {
            Queue::Build => Some(&self.settings.build_queue),
            Queue::Fail => Some(&self.settings.fail_queue),
            Queue::Outcome => Some(&self.settings.outcome_queue),
            Queue::Result => self.settings.result_queue.as_deref(),
        }
    }

    /// The queue of the dead letters.
    pub fn dead_queue(&self) -> QueueDeclaration {
        plain_queue(Role::Dead, &self.settings.dead_queue)
    }

    /// The stream of the outcome ledger. It is none of the queues: work can be done without.
    pub fn ledger(&self) -> &QueueDeclaration {
        &self.ledger
    }

    /// The stream of what was cancelled of late. It is none of the queues either.
    pub fn cancellations(&self) -> &QueueDeclaration {
        &self.cancellations
    }

    /// The routing key, on the default exchange, of what is to come to a queue after a delay; `None` for
    /// results where no result queue is set, and for a delay of a queue that has no ladder.
    ///
    /// A delay that is no rung takes the next longer one, or the longest that there is: better a
    /// wait of the wrong length than a message that cannot be sent.
    pub fn routing_key(&self, queue: Queue, delay: Duration) -> Option<String> {
        let name = self.queue(queue)?;
        match queue {
            _ if delay.is_zero() => Some(name.to_owned()),
            Queue::Build => Some(rung_for(name, &self.settings.build_rungs, delay)),
            Queue::Outcome => Some(rung_for(name, &self.settings.outcome_rungs, delay)),
            Queue::Fail | Queue::Result => None,
        }
    }
}

impl fmt::Display for QueueDeclaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Build => f.write_str("build queue"),
            Role::Fail => f.write_str("fail queue"),
            Role::Outcome => f.write_str("outcome queue"),
            Role::Dead => f.write_str("dead queue"),
            Role::Result => f.write_str("result queue"),
            Role::Ledger => f.write_str("outcome ledger"),
            Role::Cancellations => f.write_str("stream of cancellations"),
            Role::Lane => write!(f, "lane `{}`", self.name),
            Role::Rung => write!(f, "delay queue `{}`", self.name),
        }
    }
}

/// A delay as it stands in a queue's name: in the largest unit that divides it.
pub fn delay_name(delay: Duration) -> String {
    const UNITS: [(u128, &str); 4] =
        [(24 * 3_600_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let millis = delay.as_millis();
    UNITS
        .iter()
        .find(|(size, _)| millis >= *size && millis.is_multiple_of(*size))
        .map_or_else(|| format!("{millis}ms"), |(size, unit)| format!("{}{unit}", millis / size))
}

fn lanes(numbered: u16) -> impl Iterator<Item = Lane> + use<> {
    let numbered = (1..=numbered).map(Lane::Numbered);
    [Lane::Returned, Lane::First, Lane::Few].into_iter().chain(numbered)
}

fn lane_queue(lane: Lane, settings: &TopologySettings) -> QueueDeclaration {
    let name = format!("{}.lane.{lane}", settings.build_queue);
    QueueDeclaration { role: Role::Lane, ..build_queue(&name, &settings.fail_queue) }
}

fn build_queue(name: &str, fail_queue: &str) -> QueueDeclaration {
    let mut arguments =
        vec![quorum(), ("x-delivery-limit", Argument::Number(DELIVERY_LIMIT as i64))];
    arguments.extend(dead_letters_to(fail_queue));
    QueueDeclaration { name: name.to_owned(), role: Role::Build, arguments }
}

fn plain_queue(role: Role, name: &str) -> QueueDeclaration {
    let arguments = vec![quorum(), ("x-delivery-limit", Argument::Number(NO_DELIVERY_LIMIT))];
    QueueDeclaration { name: name.to_owned(), role, arguments }
}

/// Kept for a week, and to 16 MB, since every worker reads it all when it starts: a second outcome comes
/// within hours of the first, if ever. Only whole segments are dropped.
fn ledger(outcome_queue: &str) -> QueueDeclaration {
    let arguments = vec![
        ("x-queue-type", Argument::Text("stream".to_owned())),
        ("x-max-age", Argument::Text("7D".to_owned())),
        ("x-max-length-bytes", Argument::Number(16_000_000)),
        ("x-stream-max-segment-size-bytes", Argument::Number(1_000_000)),
    ];
    QueueDeclaration { name: format!("told.{outcome_queue}"), role: Role::Ledger, arguments }
}

/// What is older than a day is not read any more; whole segments are dropped.
fn cancellations(cancel_exchange: &str) -> QueueDeclaration {
    let arguments = vec![
        ("x-queue-type", Argument::Text("stream".to_owned())),
        ("x-max-age", Argument::Text("2D".to_owned())),
        ("x-max-length-bytes", Argument::Number(16_000_000)),
        ("x-stream-max-segment-size-bytes", Argument::Number(1_000_000)),
    ];
    let name = format!("cancelled.{cancel_exchange}");
    QueueDeclaration { name, role: Role::Cancellations, arguments }
}

fn rung(queue: &str, delay: Duration) -> QueueDeclaration {
    let mut arguments =
        vec![quorum(), ("x-message-ttl", Argument::Number(delay.as_millis() as i64))];
    arguments.extend(dead_letters_to(queue));
    QueueDeclaration { name: rung_name(queue, delay), role: Role::Rung, arguments }
}

fn rung_name(queue: &str, delay: Duration) -> String {
    format!("{queue}.retry.{}", delay_name(delay))
}

/// The rung for a delay; `rungs` is sorted and not empty.
fn rung_for(queue: &str, rungs: &[Duration], delay: Duration) -> String {
    let rung = rungs.iter().find(|rung| **rung >= delay).or(rungs.last());
    rung_name(queue, rung.copied().unwrap_or(delay))
}

fn quorum() -> (&'static str, Argument) {
    ("x-queue-type", Argument::Text("quorum".to_owned()))
}

/// At least once: the broker keeps its copy until the other queue has confirmed its own. It does so
/// only for a queue that refuses what it has no room for, rather than dropping from its head.
fn dead_letters_to(queue: &str) -> [(&'static str, Argument); 4] {
    [
        ("x-dead-letter-exchange", Argument::Text(String::new())),
        ("x-dead-letter-routing-key", Argument::Text(queue.to_owned())),
        ("x-dead-letter-strategy", Argument::Text("at-least-once".to_owned())),
        ("x-overflow", Argument::Text("reject-publish".to_owned())),
    ]
}

fn check_name(setting: &'static str, what: &str, name: &str) -> Result<(), TopologyError> {
    let what = what.to_owned();
    if name.is_empty() {
        return Err(TopologyError::Empty { setting, what });
    }
    if name.len() > LONGEST_NAME {
        return Err(TopologyError::TooLong { setting, what, length: name.len() });
    }
    if name.starts_with("amq.") {
        return Err(TopologyError::Reserved { setting, what, name: name.to_owned() });
    }
    Ok(())
}

fn check_rungs(queue: &'static str, rungs: &mut Vec<Duration>) -> Result<(), TopologyError> {
    rungs.sort_unstable();
    rungs.dedup();
    if rungs.is_empty() {
        return Err(TopologyError::NoRungs { queue });
    }
    let good = |delay: &Duration| {
        !delay.is_zero() && *delay <= LONGEST_TTL && delay.subsec_nanos().is_multiple_of(1_000_000)
    };
    match rungs.iter().find(|delay| !good(delay)) {
        Some(delay) => Err(TopologyError::Rung { queue, delay: *delay }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> TopologySettings {
        TopologySettings {
            build_queue: "b".to_owned(),
            fail_queue: "f".to_owned(),
            outcome_queue: "o".to_owned(),
            dead_queue: "d".to_owned(),
            result_queue: None,
            cancel_exchange: "c".to_owned(),
            build_lanes: 2,
            build_rungs: vec![90 * SECOND, 10 * SECOND, 10 * SECOND],
            outcome_rungs: vec![600 * SECOND],
        }
    }

    fn names(topology: &Topology) -> Vec<&str> {
        topology.queues().iter().map(|queue| queue.name.as_str()).collect()
    }

    fn argument<'a>(queue: &'a QueueDeclaration, key: &str) -> Option<&'a Argument> {
        queue.arguments.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    #[test]
    fn a_delay_is_written_in_the_largest_unit_that_divides_it() {
        let written = [
            (Duration::from_millis(200), "200ms"),
            (Duration::from_millis(1_500), "1500ms"),
            (10 * SECOND, "10s"),
            (90 * SECOND, "90s"),
            (600 * SECOND, "10m"),
            (3_600 * SECOND, "1h"),
            (36 * 3_600 * SECOND, "36h"),
            (7 * 24 * 3_600 * SECOND, "7d"),
        ];
        for (delay, name) in written {
            assert_eq!(delay_name(delay), name);
        }
    }

    #[test]
    fn lanes_and_rungs_are_named_for_the_queues_that_they_belong_to() {
        let topology = Topology::new(settings()).expect("good settings");
        assert_eq!(
            names(&topology),
            [
                "b",
                "f",
                "o",
                "d",
                "b.lane.returned",
                "b.lane.first",
                "b.lane.few",
                "b.lane.1",
                "b.lane.2",
                "b.retry.10s",
                "b.retry.90s",
                "o.retry.10m",
            ]
        );
        assert_eq!(topology.ledger().name, "told.o");
        assert_eq!(topology.cancellations().name, "cancelled.c");
        assert_eq!(topology.bell(), "b.bell");
    }

    #[test]
    fn a_rung_keeps_a_message_for_its_delay_and_dead_letters_it_back() {
        let topology = Topology::new(settings()).expect("good settings");
        let rung = &topology.queues()[10];
        assert_eq!(argument(rung, "x-message-ttl"), Some(&Argument::Number(90_000)));
        assert_eq!(
            argument(rung, "x-dead-letter-routing-key"),
            Some(&Argument::Text("b".to_owned()))
        );
    }

    #[test]
    fn only_the_build_queue_and_its_lanes_give_up_and_they_give_up_to_the_fail_queue() {
        let topology =
            Topology::new(TopologySettings { result_queue: Some("r".to_owned()), ..settings() })
                .expect("good settings");
        let queues = topology.queues().iter().filter(|queue| queue.role != Role::Rung);
        for queue in queues {
            let limit = argument(queue, "x-delivery-limit");
            let target = argument(queue, "x-dead-letter-routing-key");
            if matches!(queue.role, Role::Build | Role::Lane) {
                assert_eq!(limit, Some(&Argument::Number(DELIVERY_LIMIT as i64)));
                assert_eq!(target, Some(&Argument::Text("f".to_owned())));
            } else {
                assert_eq!(limit, Some(&Argument::Number(NO_DELIVERY_LIMIT)));
                assert_eq!(target, None);
            }
        }
    }

    #[test]
    fn a_delay_between_two_rungs_takes_the_longer_one_and_one_past_the_last_the_last() {
        let topology = Topology::new(settings()).expect("good settings");
        let key = |delay| topology.routing_key(Queue::Build, delay);
        assert_eq!(key(Duration::ZERO).as_deref(), Some("b"));
        assert_eq!(key(SECOND).as_deref(), Some("b.retry.10s"));
        assert_eq!(key(10 * SECOND).as_deref(), Some("b.retry.10s"));
        assert_eq!(key(11 * SECOND).as_deref(), Some("b.retry.90s"));
        assert_eq!(key(900 * SECOND).as_deref(), Some("b.retry.90s"));
        assert_eq!(topology.routing_key(Queue::Result, Duration::ZERO), None);
        assert_eq!(topology.routing_key(Queue::Fail, SECOND), None);
    }

    #[test]
    fn names_that_no_broker_takes_are_refused() {
        let refused = |change: fn(&mut TopologySettings)| {
            let mut settings = settings();
            change(&mut settings);
            let errors = Topology::new(settings).expect_err("a bad name");
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(
            refused(|s| s.fail_queue.clear()),
            "FAIL_QUEUE: the name of the fail queue is empty"
        );
        assert_eq!(
            refused(|s| s.dead_queue = "é".repeat(128)),
            "DEAD_QUEUE: the name of the dead queue is 256 bytes long; RabbitMQ takes 255"
        );
        assert!(refused(|s| s.build_queue = "b".repeat(250)).contains("260 bytes"));
        let reserved = refused(|s| s.cancel_exchange = "amq.c".to_owned());
        assert!(reserved.starts_with("CANCEL_EXCHANGE: the name `amq.c`"), "{reserved}");
    }

    #[test]
    fn no_lanes_and_too_many_are_refused() {
        for build_lanes in [0, MOST_LANES + 1, u16::MAX] {
            let errors = Topology::new(TopologySettings { build_lanes, ..settings() });
            let errors = errors.expect_err("no such number can be had");
            assert!(errors[0].to_string().starts_with("BUILD_LANES: "), "{errors:?}");
        }
        assert!(Topology::new(TopologySettings { build_lanes: MOST_LANES, ..settings() }).is_ok());
    }

    #[test]
    fn queues_of_one_name_are_refused_with_the_variables_of_both() {
        let clashing = TopologySettings {
            fail_queue: "o.retry.10m".to_owned(),
            dead_queue: "b".to_owned(),
            ..settings()
        };
        let errors = Topology::new(clashing).expect_err("two names are taken twice");
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "DEAD_QUEUE: `b` is the name of the dead queue and of the build queue (BUILD_QUEUE); \
                 each queue needs a name of its own",
                "OUTCOME_QUEUE: `o.retry.10m` is the name of the delay queue `o.retry.10m` and of the \
                 fail queue (FAIL_QUEUE); each queue needs a name of its own",
            ]
        );
    }

    #[test]
    fn delays_that_no_broker_takes_are_refused() {
        let refused = |rungs: Vec<Duration>| {
            Topology::new(TopologySettings { outcome_rungs: rungs, ..settings() }).is_err()
        };
        assert!(refused(vec![]));
        assert!(refused(vec![Duration::ZERO]));
        assert!(refused(vec![Duration::from_micros(1_500)]));
        assert!(refused(vec![LONGEST_TTL + SECOND]));
        assert!(!refused(vec![LONGEST_TTL]));
    }
}
