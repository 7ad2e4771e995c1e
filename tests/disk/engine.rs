//! A container engine of the test's own, with a small disk.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use image_builder::engine::docker::disk::space::{Place, Room};
use image_builder::engine::docker::{DockerEngine, DockerSettings, Tenancy};
use image_builder::engine::settings::BuildSettings;
use tempfile::TempDir;

use crate::orders::Order;
use crate::support::PATIENCE;
use crate::support::own_engine::OwnEngine;

/// An engine whose data lies on a file system in a file. It is gone with this value.
pub(crate) struct SmallEngine {
    pub(crate) engine: Arc<DockerEngine>,
    /// Its process, and docker's own client of it.
    pub(crate) own: OwnEngine,
    disk: Disk,
}

/// A file system in a file. It is gone with this value; nobody may be at work on it then.
struct Disk {
    at: PathBuf,
    _dir: TempDir,
}

impl SmallEngine {
    /// Starts an engine with this many MiB of disk.
    pub(crate) async fn start(mebibytes: u64) -> Self {
        let disk = Disk::new(mebibytes);
        let own = OwnEngine::with_data(disk.at.join("engine"));
        let settings = DockerSettings {
            host: own.host(),
            builds: BuildSettings {
                network: Some("none".to_owned()),
                tenancy: Tenancy::Trusted,
                ..BuildSettings::default()
            },
            ..DockerSettings::default()
        };
        let engine = Arc::new(DockerEngine::connect(settings).expect("good settings"));
        engine.ping().await.expect("it has answered before");
        Self { engine, own, disk }
    }

    /// A path on the engine's disk.
    pub(crate) fn disk(&self) -> &Path {
        &self.disk.at
    }

    pub(crate) fn room(&self) -> Room {
        Place { name: "the small disk", path: self.disk.at.clone() }.room().expect("it is mounted")
    }

    /// Waits until the engine has let go of what it built. For a moment after a build nothing of it can be pruned,
    /// and nothing tells when that is over: it is tried with a build that nobody needs.
    pub(crate) async fn has_let_go(&self) {
        let before = self.cache_records();
        let image = Order::of_bytes(1000).build(&*self.engine).await.expect("the build is good");
        self.own.docker(&["image", "rm", "--force", &image.id]);
        let records = self.cache_records();
        let of_this: Vec<&String> = records.difference(&before).collect();
        assert!(!of_this.is_empty(), "a build has records in the cache");
        let deadline = Instant::now() + PATIENCE;
        while of_this.iter().any(|id| self.cache_records().contains(*id)) {
            assert!(Instant::now() < deadline, "the engine holds on to {of_this:?}");
            for id in &of_this {
                self.own.docker(&["builder", "prune", "--force", "--filter", &format!("id={id}")]);
            }
        }
    }

    fn cache_records(&self) -> HashSet<String> {
        let format = "{{range .BuildCache}}{{.ID}} {{end}}";
        let listed = self.own.docker(&["system", "df", "--verbose", "--format", format]);
        listed.split_whitespace().map(str::to_owned).collect()
    }

    /// Takes up room on the disk until only this much is free; given back when the file is removed
    /// that is returned.
    pub(crate) fn fill_up_to(&self, free: u64) -> PathBuf {
        let ballast = self.disk.at.join("ballast");
        let file = File::create(&ballast).expect("created");
        let bytes = self.room().free - free;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .expect("there is room");
        ballast
    }
}

impl Disk {
    fn new(mebibytes: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("ib-disk-").tempdir().expect("a directory");
        let (image, at) = (dir.path().join("disk.img"), dir.path().join("disk"));
        std::fs::create_dir(&at).expect("a directory");
        File::create(&image)
            .and_then(|file| file.set_len(mebibytes << 20))
            .expect("a file for the file system");
        run("mkfs.ext4", &["-q", "-m", "0", path(&image)]);
        run("mount", &["-o", "loop", path(&image), path(&at)]);
        Self { at, _dir: dir }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", path(&self.at)]).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let ended = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
    assert!(
        ended.status.success(),
        "{program} {arguments:?} failed; it needs root: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
