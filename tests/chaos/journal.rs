//! What happened to the workers, and when: from the ends of their processes, and from their logs.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::managers::Told;

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
    /// A delivery of this build was accepted.
    Accepted(String),
    /// An outcome of this build was made.
    Made(String),
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
            let what = match message {
                "job accepted" => What::Accepted,
                "image is ready" => What::Made,
                _ if message.starts_with("given up: ") => What::Made,
                _ => return None,
            };
            Some(entry(at, what(line["build_id"].as_str()?.to_owned())))
        }));
    }

    /// The last end or loss before this time of a worker that had accepted the build before.
    pub fn last_setback(&self, build_id: &str, before: OffsetDateTime) -> Option<&Entry> {
        let had = |setback: &Entry| {
            self.entries.iter().any(|entry| {
                entry.worker == setback.worker
                    && entry.at <= setback.at
                    && matches!(&entry.what, What::Accepted(id) if id == build_id)
            })
        };
        let setbacks = self.entries.iter().filter(|entry| {
            matches!(entry.what, What::Ended | What::LostBroker) && entry.at <= before
        });
        setbacks.filter(|setback| had(setback)).max_by_key(|setback| setback.at)
    }

    /// The worker that made an outcome of this time: the one that said so last before.
    pub fn maker(&self, build_id: &str, made: OffsetDateTime) -> Option<&str> {
        let before = self.entries.iter().filter(|entry| {
            entry.at <= made && matches!(&entry.what, What::Made(id) if id == build_id)
        });
        before.max_by_key(|entry| entry.at).map(|entry| entry.worker.as_str())
    }
}

impl Told {
    /// When its outcome was made.
    pub fn made(&self) -> OffsetDateTime {
        let text = self.body["timestamp"].as_str().unwrap_or_default();
        OffsetDateTime::parse(text, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// The worker that told it: each has addresses of its own for the managers.
    pub fn teller(&self) -> &str {
        self.to.split('/').nth(1).unwrap_or_default()
    }
}

#[test]
fn a_log_tells_of_lost_connections_and_of_outcomes() {
    let log = r#"{"timestamp":"2026-01-01T00:00:01.000000Z","message":"at work"}
{"timestamp":"2026-01-01T00:00:01.000000Z","message":"job accepted","build_id":"a"}
{"timestamp":"2026-01-01T00:00:02.000000Z","message":"image is ready","build_id":"a"}
{"timestamp":"2026-01-01T00:00:03.000000Z","message":"lost the broker","connection":"x"}
no JSON
{"timestamp":"2026-01-01T00:00:04.000000Z","message":"given up: No.","build_id":"a"}
"#;
    let ended = OffsetDateTime::UNIX_EPOCH;
    let mut journal = Journal::default();
    journal.add("worker1", &[ended], log);
    let whats: Vec<&What> = journal.entries.iter().map(|entry| &entry.what).collect();
    let (accepted, made) = (What::Accepted("a".to_owned()), What::Made("a".to_owned()));
    assert_eq!(whats, [&What::Ended, &accepted, &made, &What::LostBroker, &made]);
    let made_at = journal.entries[2].at;
    journal.add("worker2", &[], &log.replace("00:00:02", "00:00:03"));
    assert_eq!(journal.maker("a", made_at), Some("worker1"));
    assert_eq!(journal.maker("a", made_at + time::Duration::SECOND), Some("worker2"));
    assert_eq!(journal.maker("a", ended), None);
    assert_eq!(journal.maker("b", made_at), None);
    let later = made_at + time::Duration::HOUR;
    let last = journal.last_setback("a", later).expect("a lost connection");
    assert_eq!((&last.what, last.at), (&What::LostBroker, made_at + time::Duration::SECOND));
    assert!(
        journal.last_setback("a", made_at).is_none() && journal.last_setback("b", later).is_none()
    );
}
