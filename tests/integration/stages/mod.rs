//! What goes wrong at each stage of a job's way, one by one, and what becomes of the job: one test a
//! row.
//!
//! | what goes wrong | see |
//! |---|---|
//! | the worker is killed | [`killed`] |
//! | the worker is asked to end | [`drained`] |
//! | the actor hangs, or its job | [`hung`] |
//! | the actor panics, or its job | [`crate::panics`] |

mod drained;
mod killed;

use crate::support::broker;
use crate::support::git_server::GitRepo;
use crate::support::managers::Told;
use crate::support::unique;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, repository};

/// A repository whose build tells each time that it runs.
struct Marked {
    repo: GitRepo,
    mark: String,
}

impl Marked {
    /// Its build does this after it has told.
    fn new(then: &str) -> Self {
        let mark = unique("mark");
        let steps = format!("RUN echo ran {mark}; {then}");
        let repo = repository("stages", &[("Dockerfile", &dockerfile(&steps))]);
        Self { repo, mark: format!("ran {mark}") }
    }

    fn good() -> Self {
        Self::new("true")
    }

    fn failing() -> Self {
        Self::new("exit 3")
    }

    /// How often the build has run on these workers.
    fn runs(&self, workers: &[&Worker]) -> usize {
        let lines = workers.iter().flat_map(|worker| worker.lines());
        lines.filter(|line| self.is_run(line)).count()
    }

    /// Whether the line is what the build wrote, and not one that shows its step.
    fn is_run(&self, line: &str) -> bool {
        line.contains(&self.mark) && !line.contains("RUN echo")
    }
}

/// Drains the worker, and checks that nothing is left on the delay ladders either. Returns the
/// accepted notifications and the number of dead letters.
#[track_caller]
fn finish(world: &World, workers: &[&Worker]) -> (Vec<Told>, usize) {
    let (told, letters) = world.finish(workers);
    // What waits here comes to its own queue when its time is up.
    for queue in broker::queues(&world.user) {
        let left = world.broker.drain(&queue);
        assert!(left.is_empty(), "{queue}: {left:?}");
    }
    for queue in ["BUILD_QUEUE", "OUTCOME_QUEUE"] {
        let left = world.broker.drain(&world.settings[queue]);
        assert!(left.is_empty(), "{queue}: {left:?}");
    }
    (told, letters.len())
}
