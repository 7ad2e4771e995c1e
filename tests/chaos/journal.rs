//! What happened to the workers, and when: from the ends of their processes, and from their logs.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::managers::Notification;

/// In no order.
#[derive(Debug, Default)]
pub struct Journal {
    pub entries: Vec<Entry>,
}

#[derive(Debug)]
pub struct Entry {
    pub at: OffsetDateTime,
    pub worker: String,
    pub what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// The process ended, whatever the reason.
    Ended,
    /// A connection to the broker was lost.
    LostBroker,
    /// A notification of this build was given up for the time being.
    CannotNotify(String),
}

impl Journal {
    /// Adds what a worker's log and the ends of its processes tell.
    pub fn add(&mut self, worker: &str, ends: &[OffsetDateTime], log: &str) {
        let entry = |at, what| Entry { at, worker: worker.to_owned(), what };
        self.entries.extend(ends.iter().map(|at| entry(*at, What::Ended)));
        self.entries.extend(log.lines().filter_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let at = OffsetDateTime::parse(line["timestamp"].as_str()?, &Rfc3339).ok()?;
            let message = line["message"].as_str()?;
            if message == "lost the broker" {
                return Some(entry(at, What::LostBroker));
            }
            let not_told = message.starts_with("cannot notify: ");
            let build_id = line["build_id"].as_str().filter(|_| not_told)?;
            Some(entry(at, What::CannotNotify(build_id.to_owned())))
        }));
    }
}

impl Notification {
    /// When its outcome was made.
    pub fn made(&self) -> OffsetDateTime {
        let text = self.body["timestamp"].as_str().unwrap_or_default();
        OffsetDateTime::parse(text, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// The worker that told it: each has addresses of its own for the managers.
    pub fn notified_by(&self) -> &str {
        self.to.split('/').nth(1).unwrap_or_default()
    }
}

#[test]
fn a_log_tells_of_lost_connections_and_of_answers_that_did_not_come() {
    let log = r#"{"timestamp":"2026-01-01T00:00:01.000000Z","message":"at work"}
{"timestamp":"2026-01-01T00:00:01.000000Z","message":"job accepted","build_id":"a"}
{"timestamp":"2026-01-01T00:00:03.000000Z","message":"lost the broker","connection":"x"}
no JSON
{"timestamp":"2026-01-01T00:00:04.000000Z","message":"cannot notify: trying again later","build_id":"a"}
"#;
    let ended = OffsetDateTime::UNIX_EPOCH;
    let mut journal = Journal::default();
    journal.add("worker1", &[ended], log);
    let whats: Vec<&What> = journal.entries.iter().map(|entry| &entry.what).collect();
    assert_eq!(whats, [&What::Ended, &What::LostBroker, &What::CannotNotify("a".to_owned())]);
    assert_eq!(journal.entries[2].at.second(), 4);
}
