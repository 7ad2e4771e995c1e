//! What is there after a run: collected here, judged by the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::journal::Journal;
use crate::post::Post;
use crate::support::managers::Told;
use crate::support::registry;
use crate::world::{World, lock};

/// All that is known of a run when it is over.
#[derive(Default)]
pub struct Evidence {
    /// What all names of the run begin with.
    pub run: String,
    /// The registry's name in references.
    pub registry_name: String,
    /// All notifications, refused ones included.
    pub told: Vec<Told>,
    /// What managers got and could not take.
    pub bad_notifications: Vec<String>,
    /// Repository and digest of the told images that the registry has.
    pub digests: BTreeSet<(String, String)>,
    /// Repository and tag of all images that the registry has of the run's users, with their digests.
    pub tags: BTreeMap<(String, String), String>,
    /// The build ids of the dead letters.
    pub letters: Vec<String>,
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
    /// What is there after the workers have ended.
    pub fn collect(
        world: &World,
        post: &mut Post,
        left: Left,
        waiting: Vec<(String, u64)>,
    ) -> Self {
        let mut evidence = Self {
            run: world.run.clone(),
            registry_name: world.registry_name.clone(),
            told: world.managers.all(),
            bad_notifications: world.managers.faults(),
            left,
            waiting,
            ..Self::default()
        };
        for site in &world.workers {
            let worker = lock(&site.worker);
            let log = fs::read(&worker.log).expect("its log is kept");
            let log = String::from_utf8_lossy(&log).into_owned();
            evidence.journal.add(&worker.name, &worker.ends(), &log);
            evidence.workers.push(Past {
                name: worker.name.clone(),
                log,
                odd_ends: worker.faults(),
            });
        }
        evidence.ask_broker(world, post);
        evidence.ask_registry();
        evidence
    }

    fn ask_broker(&mut self, world: &World, post: &mut Post) {
        for queue in world.broker_at.queues(&format!("{}.", self.run)) {
            for body in post.drain(&queue) {
                let body = String::from_utf8_lossy(&body).into_owned();
                if queue == world.dead_queue {
                    let letter: Value = serde_json::from_str(&body).unwrap_or_default();
                    self.letters.push(letter["buildID"].as_str().unwrap_or(&body).to_owned());
                } else {
                    self.messages.push((queue.clone(), body));
                }
            }
        }
    }

    fn ask_registry(&mut self) {
        let images = self.told.iter().filter(|told| told.kind() == "image.ready");
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
    pub fn image(&self, told: &Told) -> (String, String) {
        let repository = told.text("/image/repository");
        let path = repository.strip_prefix(&self.registry_name).unwrap_or(repository);
        (path.trim_matches('/').to_owned(), told.text("/image/digest").to_owned())
    }
}

impl Left {
    pub fn collect(world: &World) -> Self {
        let mut left = Self::default();
        for site in &world.workers {
            let work = lock(&site.worker).data.join("work");
            let entries = fs::read_dir(&work).expect("workspaces are there").flatten();
            left.workspaces.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            left.processes.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
        let format = "{{.Image}} {{.Command}}";
        let containers =
            lock(&world.engine).docker(&["ps", "--all", "--no-trunc", "--format", format]);
        left.containers.extend(containers.lines().map(str::to_owned));
        left
    }
}
