//! What holds whatever goes away.

use std::collections::BTreeSet;

use crate::support::git_server::GitRepo;
use crate::support::managers::Notification;
use crate::support::worker::Worker;
use crate::support::world::{World, dockerfile, repository};

/// A repository whose build takes no time.
pub fn quick() -> GitRepo {
    repository("quick", &[("Dockerfile", &dockerfile("COPY . /src"))])
}

/// One more request passes. All that was delivered before it is in hand then, or done.
#[track_caller]
pub fn fresh_request_passes(world: &World) -> String {
    let repo = quick();
    let id = world.publish(&world.request(&repo));
    world.outcome(&id).ready().after(1);
    id
}

/// Ends the deployment: of these builds and no others an image was told, of each one image under one
/// id. No queue has anything left, and nothing was given up.
///
/// Returns how many notifications were repetitions.
#[track_caller]
pub fn all_ended_in_their_image(world: &World, workers: &[&Worker], ids: &[String]) -> usize {
    let (told, letters) = world.finish(workers);
    assert!(letters.is_empty(), "{letters:?}");
    let expected: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    let ended: BTreeSet<&str> = told.iter().map(Notification::build_id).collect();
    assert_eq!(ended, expected);
    for id in &expected {
        let of_it: Vec<&Notification> = told.iter().filter(|told| told.build_id() == *id).collect();
        for told in &of_it {
            assert_eq!(told.webhook_id, told.own_id(), "{}", told.raw);
        }
        let digests: BTreeSet<&str> = of_it.iter().map(|told| told.text("/image/digest")).collect();
        assert_eq!(digests.len(), 1, "{id}: {digests:?}");
    }
    told.len() - expected.len()
}
