//! Collects what is there after a run.

use std::fs;

use crate::brokers::Leavings;
use crate::evidence::{Evidence, Left, Past, build_of_letter};
use crate::world::{World, lock};

impl Evidence {
    /// What is there after the workers have ended.
    pub fn collect(world: &World, left: Left, waiting: Vec<(String, u64)>) -> Self {
        let mut evidence = Self {
            run: world.run.clone(),
            registry_name: world.registry_name.clone(),
            notifications: world.managers.all(),
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
        let Leavings { letters, messages } = world.broker.leavings();
        evidence.letters = letters.iter().map(|letter| build_of_letter(letter)).collect();
        evidence.messages = messages;
        evidence.ask_registry();
        evidence
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
