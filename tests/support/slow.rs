//! Builds that take until a test has seen enough of them.

use serde_json::{Value, json};

use super::git_server::GitRepo;
use super::turnstile::Steps;
use super::unique;
use super::worker::Worker;
use super::world::{World, repository, with};

/// A build whose step is held, and seen by the text that it writes first. Its worker needs
/// `BUILDER_NETWORK=host`, as those of a world have.
pub struct Slow {
    pub repo: GitRepo,
    pub build_id: String,
    mark: String,
    steps: Steps,
}

impl Slow {
    /// Publishes a request for it, and waits until this worker is at its step.
    #[track_caller]
    pub fn begin(world: &World, worker: &Worker) -> Self {
        Self::begin_with(world, worker, json!({}))
    }

    /// The same, with these fields in the request.
    #[track_caller]
    pub fn begin_with(world: &World, worker: &Worker, fields: Value) -> Self {
        let mark = format!("begun {}", unique("slow"));
        let steps = Steps::start();
        let repo = repository("slow", &[("Dockerfile", &steps.dockerfile_saying(&mark))]);
        let build_id = world.publish(&with(world.request(&repo), fields));
        let slow = Self { repo, build_id, mark, steps };
        slow.wait_until_begun(worker);
        slow
    }

    /// Waits until the step runs.
    #[track_caller]
    pub fn wait_until_begun(&self, worker: &Worker) {
        worker.wait_for_line_where("the step begins", |line| self.is_begin(line));
    }

    /// Lets the step end, now and whenever it runs again.
    pub fn let_go(&self) {
        self.steps.turnstile.let_all_go();
    }

    /// How often the step was run for this worker.
    pub fn times_begun(&self, worker: &Worker) -> usize {
        worker.lines().iter().filter(|line| self.is_begin(line)).count()
    }

    fn is_begin(&self, line: &str) -> bool {
        // Not the line that shows the step itself.
        line.contains(&self.mark) && !line.contains("RUN ")
    }
}
