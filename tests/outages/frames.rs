//! A broker whose frames are short: all that a message carries beside its body has to fit one.

use serde_json::json;

use crate::support::node::Node;
use crate::support::world::{World, dockerfile, repository};

#[test]
fn a_failure_with_a_long_log_fits_a_broker_with_short_frames() {
    let node = Node::new(&["frame_max = 8192"]);
    let world = World::on(node.at()).with("RETRY_MAX_ATTEMPTS", "3");
    let worker = world.worker();
    let noise = "RUN for i in $(seq 400); do echo \"$i \\\"quoted\\\" noise, and some more of it\"; done; exit 3";
    let repo = repository("noisy", &[("Dockerfile", &dockerfile(noise))]);
    let id = world.publish(&world.request(&repo));
    let told = world.outcome(&id).failed("build_failed");
    assert_eq!(told.data()["fault"], json!("user"), "{}", told.raw);
    assert_eq!(worker.restarts(), [0; 6]);
    let (told, letters) = world.finish(&[&worker]);
    assert_eq!((told.len(), letters.len()), (1, 1));
}
