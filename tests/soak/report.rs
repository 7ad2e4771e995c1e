//! What a run says at its end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sample::{CHANNELS, CONNECTIONS, FDS, FILES, POOL, PRIVATE, RSS, Sample, TCP, THREADS};

/// Where a run keeps its report: `target/soak`.
pub fn directory() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    target.parent().unwrap_or(target).join("soak")
}

pub struct Report {
    /// One after each idle stretch: when, after how many requests, and what was held.
    pub samples: Vec<(Duration, usize, Sample)>,
    pub endings: BTreeMap<String, usize>,
    /// Images of the run on the engine.
    pub images: usize,
    pub violations: Vec<String>,
}

impl Report {
    pub fn text(&self) -> String {
        let mut text =
            "minute   jobs  RSS KiB  anonymous KiB  fds  threads  pool  TCP  AMQP  channels  files\n"
                .to_owned();
        for (at, jobs, sample) in &self.samples {
            let (memory, levels) = (&sample.memory, &sample.levels);
            let _ = writeln!(
                text,
                "{:6.1}  {jobs:5}  {:7}  {:13}  {:3}  {:7}  {:4}  {:3}  {:4}  {:8}  {:5}",
                at.as_secs_f64() / 60.0,
                memory[RSS],
                memory[PRIVATE],
                levels[FDS],
                levels[THREADS],
                levels[POOL],
                levels[TCP],
                levels[CONNECTIONS],
                levels[CHANNELS],
                levels[FILES],
            );
        }
        for (ending, count) in &self.endings {
            let _ = writeln!(text, "{count:6}  {ending}");
        }
        let _ = writeln!(text, "{:6}  images on the engine at the end", self.images);
        let verdict = if self.violations.is_empty() { "nothing leaked" } else { "NOT WELL" };
        let _ = writeln!(text, "verdict: {verdict}");
        for violation in &self.violations {
            let _ = writeln!(text, "  {violation}");
        }
        text
    }

    /// Prints it, and writes it to `report.txt`.
    pub fn publish(&self) {
        let text = self.text();
        eprint!("{text}");
        let directory = directory();
        fs::create_dir_all(&directory)
            .and_then(|()| fs::write(directory.join("report.txt"), &text))
            .expect("the target directory can be written");
    }
}
