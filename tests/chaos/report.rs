//! What a run says at its end, and the evidence of what was wrong.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::evidence::Evidence;
use crate::oracle::{Cause, Count, Finding, Kind, Oracle};

/// Where a run keeps its logs: `target/chaos`.
pub fn directory() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    target.parent().unwrap_or(target).join("chaos")
}

pub struct Report {
    pub seed: u64,
    pub duration: Duration,
    /// Faults that happened, by kind.
    pub faults: BTreeMap<String, usize>,
    /// Faults that had nothing to strike.
    pub in_vain: usize,
    /// Processes that the workers were.
    pub processes: usize,
    pub count: Count,
}

impl Report {
    pub fn print(&self, oracle: &Oracle) {
        let mut sorts: BTreeMap<String, usize> = BTreeMap::new();
        for asked in &oracle.asked {
            *sorts.entry(format!("{:?}", asked.request.sort)).or_default() += 1;
        }
        let count = &self.count;
        let mut text = format!("chaos: seed {}, {:.0} s\n", self.seed, self.duration.as_secs_f64());
        list(&mut text, "requests", &sorts);
        list(&mut text, "faults", &self.faults);
        list(&mut text, "builds, by their outcome", &count.endings);
        list(&mut text, "notifications that were repeated", &self.repeats());
        let other_ids = count.repeats.iter().filter(|repeat| !repeat.same_id).count();
        let figures = [
            ("of them under another webhook-id than the first", other_ids),
            ("faults that had nothing to strike", self.in_vain),
            ("worker processes", self.processes),
            ("lost", count.found(Finding::Lost)),
            ("contradictory", count.found(Finding::Contradictory)),
            ("builds told with more than one digest", count.found(Finding::TwoDigests)),
            ("requests without an id that were given two", count.two_ids),
            ("violations", count.violations.len()),
        ];
        for (what, figure) in figures {
            let _ = writeln!(text, "  {figure:>5}  {what}");
        }
        eprint!("{text}");
        let _ = fs::write(directory().join("report.txt"), &text);
    }

    /// Repeated notifications by why they were.
    fn repeats(&self) -> BTreeMap<&'static str, usize> {
        let mut repeats = BTreeMap::new();
        for repeat in &self.count.repeats {
            let what = match repeat.kind {
                Kind::NotifiedAgain(Cause::Crash) => "the worker had ended",
                Kind::NotifiedAgain(Cause::Connection) => "its connection to the broker was lost",
                Kind::NotifiedAgain(Cause::Answer) => "it did not get the manager's answer",
                Kind::NotifiedAgain(Cause::Unknown) => "for no reason",
                Kind::MadeAgain => "the outcome was made again",
                Kind::PublishedTwice => "the request was published twice",
            };
            *repeats.entry(what).or_default() += 1;
        }
        repeats
    }
}

fn list<K: Display>(text: &mut String, what: &str, counts: &BTreeMap<K, usize>) {
    let _ = writeln!(text, "  {:>5}  {what}", counts.values().sum::<usize>());
    for (name, count) in counts {
        let _ = writeln!(text, "         {count:>5}  {name}");
    }
}

/// Writes down what the managers were told, what of it was repeated and, of each build that something is
/// wrong with, all that the workers logged of it; returns the file.
pub fn keep_evidence(count: &Count, evidence: &Evidence) -> PathBuf {
    let Count { repeats, violations, .. } = count;
    let told = evidence.notifications.iter();
    let notifications: String = told
        .map(|told| format!("{} {} {} {}\n", told.to, told.answered, told.webhook_id, told.raw))
        .collect();
    let _ = fs::write(directory().join("notifications.log"), notifications);
    let repeats: String = repeats.iter().map(|repeat| format!("{repeat:?}\n")).collect();
    let _ = fs::write(directory().join("repeats.log"), repeats);
    let mut text = String::new();
    for violation in violations {
        let _ = writeln!(text, "### {:?}: {}", violation.finding, violation.text);
        let Some(id) = &violation.build_id else { continue };
        for told in evidence.notifications.iter().filter(|told| told.build_id() == id) {
            let _ = writeln!(text, "told {}, answered {}: {}", told.to, told.answered, told.raw);
        }
        for worker in &evidence.workers {
            for line in worker.log.lines().filter(|line| line.contains(id)) {
                let _ = writeln!(text, "{}: {line}", worker.name);
            }
        }
    }
    let file = directory().join("evidence.txt");
    let _ = fs::write(&file, text);
    file
}
