//! Builds that take a while.

use serde_json::{Value, json};

use super::git_server::GitRepo;
use super::unique;
use super::worker::Worker;
use super::world::{World, dockerfile, repository, with};

/// A build whose step takes a while, which is seen by the text that it writes first.
pub struct Slow {
    pub repo: GitRepo,
    pub build_id: String,
    mark: String,
}

impl Slow {
    /// Publishes a request for it, and waits until this worker is at its step.
    #[track_caller]
    pub fn begin(seconds: u32, world: &World, worker: &Worker) -> Self {
        Self::begin_with(seconds, world, worker, json!({}))
    }

    /// The same, with these fields in the request.
    #[track_caller]
    pub fn begin_with(seconds: u32, world: &World, worker: &Worker, fields: Value) -> Self {
        let mark = unique("slow");
        let dockerfile = dockerfile(&format!("RUN echo begun {mark}; sleep {seconds}"));
        let repo = repository("slow", &[("Dockerfile", &dockerfile)]);
        let build_id = world.publish(&with(world.request(&repo), fields));
        let slow = Self { repo, build_id, mark: format!("begun {mark}") };
        slow.wait_until_begun(worker);
        slow
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
