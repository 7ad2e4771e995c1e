//! Builds that take a while.

use super::unique;
use super::worker::Worker;
use super::world::dockerfile;

/// A step that takes a while, which is seen by the text that it writes first.
pub struct Slow {
    pub dockerfile: String,
    mark: String,
}

impl Slow {
    pub fn new(seconds: u32) -> Self {
        let mark = unique("slow");
        let dockerfile = dockerfile(&format!("RUN echo begun {mark}; sleep {seconds}"));
        Self { dockerfile, mark: format!("begun {mark}") }
    }

    /// Waits until the step runs.
    #[track_caller]
    pub fn wait_until_begun(&self, worker: &Worker) {
        worker.wait_for_line_where("the step begins", |line| self.is_begin(line));
    }

    /// How often the step was run for this worker.
    pub fn times_begun(&self, worker: &Worker) -> usize {
        worker.lines().iter().filter(|line| self.is_begin(line)).count()
    }

    fn is_begin(&self, line: &str) -> bool {
        // Not the line that shows the step itself.
        line.contains(&self.mark) && !line.contains("RUN echo")
    }
}
