//! What is there after a run: collected elsewhere, judged by the oracle.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::journal::Journal;
use crate::support::managers::Notification;
use crate::support::registry;

/// All that is known of a run when it is over.
#[derive(Default)]
pub struct Evidence {
    /// What all names of the run begin with.
    pub run: String,
    /// The registry's name in references.
    pub registry_name: String,
    /// All notifications, refused ones included.
    pub notifications: Vec<Notification>,
    /// What managers got and could not take.
    pub bad_notifications: Vec<String>,
    /// Repository and digest of the told images that the registry has.
    pub digests: BTreeSet<(String, String)>,
    /// Repository and tag of all images that the registry has of the run's users, with their digests.
    pub tags: BTreeMap<(String, String), String>,
    /// The users and build ids of the dead letters.
    pub letters: Vec<(String, String)>,
    /// Queues and how many messages they had when all was told, unacked ones included.
    pub waiting: Vec<(String, u64)>,
    /// Queues and bodies that were in them when the workers had ended.
    pub messages: Vec<(String, String)>,
    pub left: Left,
    pub workers: Vec<Past>,
    pub journal: Journal,
    /// Faults that could not be done as they were meant.
    pub failed_faults: Vec<String>,
}

/// What there is beside the services.
#[derive(Default)]
pub struct Left {
    /// What is in the workers' directories for workspaces.
    pub workspaces: Vec<String>,
    /// The command lines of all processes of the machine.
    pub processes: Vec<String>,
    /// What the engine has of containers.
    pub containers: Vec<String>,
}

/// A worker that has ended.
pub struct Past {
    pub name: String,
    pub log: String,
    /// Ends of its processes that nobody has asked for.
    pub odd_ends: Vec<String>,
}

impl Evidence {
    /// Adds what the registry has, of what was told and of the run's users.
    pub fn ask_registry(&mut self) {
        let images = self.notifications.iter().filter(|told| told.kind() == "image.ready");
        let images: BTreeSet<_> = images.map(|told| self.image(told)).collect();
        let there = |(repository, digest): &(String, String)| {
            registry::digest(repository, digest).as_deref() == Some(digest.as_str())
        };
        self.digests = images.into_iter().filter(there).collect();
        for repository in registry::repositories(&self.run) {
            for tag in registry::tags(&repository) {
                let digest = registry::digest(&repository, &tag).unwrap_or_default();
                self.tags.insert((repository.clone(), tag), digest);
            }
        }
    }

    /// Repository and digest of the image that was told, as the registry has them.
    pub fn image(&self, told: &Notification) -> (String, String) {
        let repository = told.text("/image/repository");
        let path = repository.strip_prefix(&self.registry_name).unwrap_or(repository);
        (path.trim_matches('/').to_owned(), told.text("/image/digest").to_owned())
    }
}

/// The user and build id that a dead letter is of; its body where it names none.
pub fn build_of_letter(body: &str) -> (String, String) {
    let letter: Value = serde_json::from_str(body).unwrap_or_default();
    let request = &letter["request"];
    let user = request["userID"].as_str().or(request["pullInfo"]["userID"].as_str());
    let id = letter["buildID"].as_str().unwrap_or(body);
    (user.unwrap_or_default().to_owned(), id.to_owned())
}
