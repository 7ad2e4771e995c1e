//! What a build may use up: a step that needs more memory or processes than its control group has ends, and its user
//! is told; the others go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use image_builder::engine::settings::BuildSettings;
use image_builder_actors::model::fault::Reason;

use super::world::RealWorld;
use crate::registry::unique;

/// What builds of these tests may hold, in bytes.
const LIMIT: u64 = 64 << 20;

/// How many processes they may have.
const PROCESSES: u32 = 100;

/// A control group with these limits, on a machine without swap. It is gone with this value, once the engine has let
/// go of it.
struct Group {
    name: String,
    directory: PathBuf,
}

impl Group {
    /// Needs root.
    fn new() -> Self {
        let name = format!("image-builder-tests-{}", unique());
        let old = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match old.is_dir() {
            true => (old, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let directory = root.join(&name);
        fs::create_dir(&directory).expect("this test makes a control group, which needs root");
        fs::write(directory.join(limit), LIMIT.to_string()).expect("the limit is set");
        let processes = match old.is_dir() {
            true => Path::new("/sys/fs/cgroup/pids").join(&name),
            false => directory.clone(),
        };
        fs::create_dir_all(&processes).expect("this test makes a control group, which needs root");
        fs::write(processes.join("pids.max"), PROCESSES.to_string()).expect("the limit is set");
        Self { name, directory }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The engine makes groups in it, and leaves the upper one; those of other hierarchies are empty.
        let of_all = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let all = of_all.map(|hierarchy| hierarchy.path().join(&self.name));
        for group in all.chain([self.directory.clone()]) {
            let _ = fs::remove_dir(group.join("buildkit"));
            let _ = fs::remove_dir(group);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_uses_up_its_memory_ends_and_its_user_is_told() {
    let group = Group::new();
    let cgroups = vec![format!("/{}", group.name)];
    let world = RealWorld::with(BuildSettings { cgroups, ..BuildSettings::default() }).await;
    // It keeps all of what has no end of line.
    let hog = |bytes: u64| {
        world.dockerfile(&format!(
            "RUN : {}; head -c {bytes} /dev/zero | tail > /dev/null",
            unique()
        ))
    };
    world.output(&hog(LIMIT / 8)).await;

    let order = hog(LIMIT * 4);
    let begun = Instant::now();
    let (result, log) = world.build(&order).await;
    let facts = world.engine.facts().await.expect("the engine answers");
    if facts.version.starts_with("20.10") {
        // It has no groups for builds: what is set for it has no effect, as the documents say.
        result.unwrap_or_else(|fault| panic!("{fault}\n{}", log.tail().join("\n")));
        return;
    }
    let fault = result.expect_err("there is not so much memory");
    assert_eq!(fault.reason, Reason::OutOfMemory, "{fault} after {:?}", begun.elapsed());
    assert!(
        fault.message.contains("the memory was used up that this user's builds may have (67"),
        "{fault}"
    );

    // A step that ends with the same code by itself has not run out of memory.
    let fault = world.fault(&world.dockerfile(&format!("RUN : {}; exit 137", unique()))).await;
    assert_eq!(fault.reason, Reason::BuildFailed, "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_forks_without_end_ends_and_builds_of_other_groups_go_on() {
    let group = Group::new();
    let cgroups = vec![format!("/{}", group.name)];
    let world = RealWorld::with(BuildSettings { cgroups, ..BuildSettings::default() }).await;
    let facts = world.engine.facts().await.expect("the engine answers");
    if facts.version.starts_with("20.10") {
        // It has no groups for builds, as the documents say, and this machine is not for bombs.
        return;
    }
    let other = RealWorld::new().await;
    let bomb = "while true; do sleep 600 & done";
    let order = world.dockerfile(&format!("RUN : {}; {bomb}", unique()));
    let (bombed, beside) = tokio::join!(world.build(&order), async {
        let step = format!("RUN : {}; for i in 1 2 3 4; do (true); done; echo done", unique());
        other.output(&other.dockerfile(&step)).await
    });
    assert!(beside.iter().any(|line| line == "done"), "{beside:?}");
    let (result, log) = bombed;
    let fault = result.expect_err("there are not so many processes");
    assert_eq!(fault.reason, Reason::BuildFailed, "{fault}");
    assert!(fault.message.contains("exit code"), "{fault}");
    let written = log.tail().join("\n");
    assert!(written.contains("fork"), "{written}");
}
