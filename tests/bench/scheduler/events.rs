//! What workers did and when, as their logs tell it.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::worker::Worker;

/// A builder was given something to do, or is done with it.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) at: OffsetDateTime,
    pub(crate) taken: bool,
    pub(crate) build_id: String,
}

/// All events of a worker so far, in their order.
pub(crate) fn of(worker: &Worker) -> Vec<Event> {
    let lines = worker.lines();
    let mut events: Vec<Event> = lines.iter().filter_map(|line| read(line)).collect();
    events.sort_by_key(|event| event.at);
    events
}

fn read(line: &str) -> Option<Event> {
    let line: Value = serde_json::from_str(line).ok()?;
    let taken = match line["message"].as_str()? {
        "job accepted" => true,
        "image built" => false,
        _ => return None,
    };
    let at = OffsetDateTime::parse(line["timestamp"].as_str()?, &Rfc3339).ok()?;
    Some(Event { at, taken, build_id: line["build_id"].as_str()?.to_owned() })
}

/// How long a worker had builders that were free, until `end`.
#[derive(Debug, Default)]
pub(crate) struct Free {
    pub(crate) builds: usize,
    /// Seconds in which at least one builder was free, and the longest of those stretches.
    pub(crate) one: f64,
    pub(crate) longest: f64,
    /// Seconds in which all were.
    pub(crate) all: f64,
}

/// Looks at a worker of so many builders, between these times.
pub(crate) fn free(
    events: &[Event],
    builders: i32,
    begin: OffsetDateTime,
    end: OffsetDateTime,
) -> Free {
    let mut free = Free { builds: events.iter().filter(|it| it.taken).count(), ..Free::default() };
    let (mut busy, mut last, mut stretch) = (0, begin, 0.0);
    let changes = events.iter().map(|event| (event.at, if event.taken { 1 } else { -1 }));
    for (at, change) in changes.chain([(end, 0)]) {
        let at = at.clamp(begin, end);
        let seconds = (at - last).as_seconds_f64();
        if busy < builders {
            free.one += seconds;
            stretch += seconds;
        } else {
            stretch = 0.0;
        }
        if busy == 0 {
            free.all += seconds;
        }
        free.longest = stretch.max(free.longest);
        (busy, last) = (busy + change, at);
    }
    free
}
