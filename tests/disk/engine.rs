//! A container engine of the test's own, with a small disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image_builder::disk::space::{Place, Room};
use image_builder::docker::{DockerEngine, DockerSettings};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// An engine whose data lies on a file system in a file. It is gone with this value.
///
/// It has a network namespace of its own: without one, an engine that is started without a bridge
/// deletes the bridge of the machine's engine.
pub(crate) struct SmallEngine {
    pub(crate) engine: Arc<DockerEngine>,
    host: String,
    daemon: Child,
    disk: PathBuf,
    log: PathBuf,
    _dir: TempDir,
}

impl SmallEngine {
    /// Starts an engine with this many MiB of disk.
    pub(crate) async fn start(mebibytes: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("ib-disk-").tempdir().expect("a directory");
        let (image, disk) = (dir.path().join("disk.img"), dir.path().join("disk"));
        std::fs::create_dir(&disk).expect("a directory");
        File::create(&image)
            .and_then(|file| file.set_len(mebibytes << 20))
            .expect("a file for the file system");
        run("mkfs.ext4", &["-q", "-m", "0", path(&image)]);
        run("mount", &["-o", "loop", path(&image), path(&disk)]);
        let host = format!("unix://{}", path(&dir.path().join("engine.sock")));
        let log = dir.path().join("log");
        let file = File::create(&log).expect("a log");
        let daemon = Command::new("unshare")
            .args(["--net", "dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--ip-forward=false", "--ip-masq=false", "--host", &host])
            .arg("--data-root")
            .arg(disk.join("engine"))
            .arg("--exec-root")
            .arg(dir.path().join("exec"))
            .arg("--pidfile")
            .arg(dir.path().join("pid"))
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the log"))
            .stderr(file)
            .spawn()
            .expect("unshare starts: these tests need root and util-linux");
        let settings = DockerSettings {
            host: host.clone(),
            network: Some("none".to_owned()),
            ..DockerSettings::default()
        };
        let engine = Arc::new(DockerEngine::connect(settings).expect("good settings"));
        let mut small = Self { engine, host, daemon, disk, log, _dir: dir };
        small.wait_until_up().await;
        small
    }

    async fn wait_until_up(&mut self) {
        let started = Instant::now();
        while let Err(fault) = self.engine.ping().await {
            let dead = self.daemon.try_wait().expect("the engine is a child");
            let late = started.elapsed() > PATIENCE;
            if late || dead.is_some() {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                panic!("these tests need root and dockerd, and it does not start: {fault}\n{log}");
            }
            // Nothing tells that a socket will be there.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// A path on the engine's disk.
    pub(crate) fn disk(&self) -> &Path {
        &self.disk
    }

    pub(crate) fn room(&self) -> Room {
        Place { name: "the small disk", path: self.disk.clone() }.room().expect("it is mounted")
    }

    /// Gives the engine an image that the machine's engine has.
    pub(crate) fn load(&self, image: &str) {
        let mut save = Command::new("docker")
            .args(["save", image])
            .env_remove("DOCKER_HOST")
            .stdout(Stdio::piped())
            .spawn()
            .expect("docker is installed");
        let saved = save.stdout.take().expect("piped");
        let load = Command::new("docker")
            .args(["--host", &self.host, "load", "--quiet"])
            .stdin(saved)
            .output()
            .expect("docker is installed");
        assert!(
            save.wait().expect("it ends").success() && load.status.success(),
            "this test needs {image}: make it with `.devcontainer/stack.sh images`: {load:?}"
        );
    }

    /// Runs docker's own client, and returns what it wrote.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--host", &self.host];
        all.extend(arguments);
        run("docker", &all)
    }
}

impl Drop for SmallEngine {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.daemon);
        // It ends its own children then.
        let _ = kill_process(pid, Signal::TERM);
        let started = Instant::now();
        while matches!(self.daemon.try_wait(), Ok(None)) {
            if started.elapsed() > Duration::from_secs(20) {
                let _ = self.daemon.kill();
                let _ = self.daemon.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = Command::new("umount").args(["--lazy", path(&self.disk)]).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let ended = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
    assert!(
        ended.status.success(),
        "{program} {arguments:?} failed; it needs root: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
