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
mod hung;
mod killed;

use crate::support::broker;
use crate::support::managers::Notification;
use crate::support::worker::Worker;
use crate::support::world::World;

/// Drains the worker, and checks that nothing is left on the delay ladders either. Returns the
/// accepted notifications and the number of dead letters.
#[track_caller]
fn finish(world: &World, workers: &[&Worker]) -> (Vec<Notification>, usize) {
    let (told, letters) = world.finish(workers);
    // What waits here comes to its own queue when its time is up.
    for queue in broker::queues(&format!("{}.", world.user)) {
        let left = world.broker.drain(&queue);
        assert!(left.is_empty(), "{queue}: {left:?}");
    }
    for queue in ["BUILD_QUEUE", "OUTCOME_QUEUE"] {
        let left = world.broker.drain(&world.settings[queue]);
        assert!(left.is_empty(), "{queue}: {left:?}");
    }
    (told, letters.len())
}
