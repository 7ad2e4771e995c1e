//! What a run says at its end, and the evidence of what was wrong.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::oracle::{Count, Oracle, Violation};
use crate::support::managers::Told;

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
        list(&mut text, "outcomes", &count.endings);
        let figures = [
            ("faults that had nothing to strike", self.in_vain),
            ("worker processes", self.processes),
            ("lost", count.lost),
            ("contradictory", count.contradictions),
            ("told again, the same outcome", count.told_again),
            ("told again, from an outcome that was made again", count.made_again),
            ("told twice because published twice", count.second_copies),
            ("builds told with more than one digest", count.other_digests),
            ("requests without an id that were given two", count.two_ids),
            ("violations", count.violations.len()),
        ];
        for (what, figure) in figures {
            let _ = writeln!(text, "  {figure:>5}  {what}");
        }
        eprint!("{text}");
        let _ = fs::write(directory().join("report.txt"), &text);
    }
}

fn list(text: &mut String, what: &str, counts: &BTreeMap<String, usize>) {
    let _ = writeln!(text, "  {:>5}  {what}", counts.values().sum::<usize>());
    for (name, count) in counts {
        let _ = writeln!(text, "         {count:>5}  {name}");
    }
}

/// Writes down what the managers were told and, of each build that something is wrong with, all that
/// the workers logged of it; returns the file.
pub fn keep_evidence(violations: &[Violation], told: &[Told], logs: &[PathBuf]) -> PathBuf {
    let notifications: String = told
        .iter()
        .map(|told| format!("{} {} {} {}\n", told.to, told.answered, told.webhook_id, told.raw))
        .collect();
    let _ = fs::write(directory().join("notifications.log"), notifications);
    let mut text = String::new();
    for violation in violations {
        let _ = writeln!(text, "### {}", violation.text);
        let Some(id) = &violation.build_id else { continue };
        for told in told.iter().filter(|told| told.build_id() == id) {
            let _ = writeln!(text, "told {}, answered {}: {}", told.to, told.answered, told.raw);
        }
        for log in logs {
            let name = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let lines = fs::read(log).unwrap_or_default();
            for line in String::from_utf8_lossy(&lines).lines().filter(|line| line.contains(id)) {
                let _ = writeln!(text, "{name}: {line}");
            }
        }
    }
    let file = directory().join("evidence.txt");
    let _ = fs::write(&file, text);
    file
}
