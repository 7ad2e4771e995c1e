//! A container engine of a test's own, to be restarted and killed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use super::daemon::{self, Daemon};
use super::setting;

/// The bridge that `stack.sh` makes for engines of another root: they would remove the machine's.
const BRIDGE: &str = "ib-newer";

/// An engine, with a socket and data of its own. It is gone with this value. It is the machine's `dockerd`, or, where
/// `ENGINE_ROOT` names a root file system (`NEWER_ROOT` of `stack.sh env`), that of this root; with
/// `ENGINE_STORE=containerd` its images are in containerd's store.
///
/// Its processes and mounts have namespaces of their own: whatever ends the engine ends its builds
/// too, and leaves no mount. It shares the machine's network, the engine's default bridge included, and
/// changes nothing of it: it pushes to all registries that the machine reaches.
///
/// An engine of another root sees no files of the machine but temporary ones.
pub struct OwnEngine {
    // Ends before its directory does.
    daemon: Mutex<Option<Daemon>>,
    data: PathBuf,
    /// The network that it is in; `None` = the machine's.
    network: Option<PathBuf>,
    dir: TempDir,
}

impl OwnEngine {
    /// Starts an engine without images.
    pub fn new() -> Self {
        let dir = directory();
        let data = dir.path().join("data");
        Self::start_in(dir, data, None)
    }

    /// Starts an engine that keeps its data here.
    pub fn with_data(data: PathBuf) -> Self {
        Self::start_in(directory(), data, None)
    }

    /// Starts an engine in this network, which is its own: it has its bridge and its rules there, as by default.
    pub fn in_network(network: &Path) -> Self {
        let dir = directory();
        let data = dir.path().join("data");
        Self::start_in(dir, data, Some(network.to_owned()))
    }

    fn start_in(dir: TempDir, data: PathBuf, network: Option<PathBuf>) -> Self {
        let engine = Self { daemon: Mutex::new(None), data, network, dir };
        engine.start();
        engine
    }

    /// Starts it again on its data, and waits until it answers.
    pub fn start(&self) {
        let exec = self.path("exec");
        // What a killed engine leaves there names processes of a namespace that is gone.
        if exec.exists() {
            std::fs::remove_dir_all(&exec).expect("the directory is ours");
        }
        let configuration = self.path("daemon.json");
        let with_containerd = setting("ENGINE_STORE", "") == "containerd";
        let features = json!({"features": {"containerd-snapshotter": with_containerd}});
        std::fs::write(&configuration, features.to_string()).expect("the directory is ours");
        let mut command = daemon::command("a container engine");
        if let Some(network) = &self.network {
            command.arg("nsenter").arg(format!("--net={}", network.display()));
        }
        command.args(["unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]);
        match setting("ENGINE_ROOT", "").as_str() {
            "" => command.arg("dockerd"),
            root => {
                let enter = concat!(env!("CARGO_MANIFEST_DIR"), "/.devcontainer/in-root.sh");
                command.args([enter, root]).arg(std::env::temp_dir()).arg("dockerd");
                match self.network {
                    Some(_) => &mut command,
                    None => command.args(["--bridge", BRIDGE]),
                }
            }
        };
        if self.network.is_none() {
            command.args(["--iptables=false", "--ip6tables=false"]);
            command.args(["--ip-forward=false", "--ip-masq=false"]);
        }
        command
            .arg("--config-file")
            .arg(configuration)
            .args(["--pidfile", "", "--host"])
            .arg(self.host())
            .arg("--data-root")
            .arg(&self.data)
            .arg("--exec-root")
            .arg(exec);
        let daemon = Daemon::start(command, &self.path("log"));
        daemon.wait_until(|| self.answers());
        *self.daemon() = Some(daemon);
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut socket = UnixStream::connect(self.socket())?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
            let mut answer = [0; 12];
            socket.read_exact(&mut answer)?;
            Ok(answer.ends_with(b" 200"))
        };
        ask().unwrap_or(false)
    }

    /// `DOCKER_HOST` of those who use it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.path("engine.sock")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Ends it as an operator would.
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// Ends it as a crash of its machine would.
    pub fn kill(&self) {
        self.end(Signal::KILL);
    }

    fn end(&self, signal: Signal) {
        let daemon = self.daemon().take().expect("it runs");
        kill_process(only_child(daemon.pid()), signal).expect("dockerd runs");
        daemon.wait();
    }

    /// Gives it an image that the machine's engine has.
    pub fn load(&self, image: &str) {
        let mut save = Command::new("/usr/bin/docker")
            .args(["save", image])
            .stdout(Stdio::piped())
            .spawn()
            .expect("docker is installed");
        let saved = save.stdout.take().expect("piped");
        let load = Command::new("/usr/bin/docker")
            .args(["--host", &self.host(), "load", "--quiet"])
            .stdin(saved)
            .output()
            .expect("docker is installed");
        assert!(
            save.wait().expect("it ends").success() && load.status.success(),
            "this test needs {image}: make it with `.devcontainer/stack.sh images`: {load:?}"
        );
    }

    /// Runs docker's own client, and returns what it wrote.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> String {
        let ended = Command::new("/usr/bin/docker")
            .args(["--host", &self.host()])
            .args(arguments)
            .output()
            .expect("docker is installed");
        assert!(
            ended.status.success(),
            "docker {arguments:?}: {}",
            String::from_utf8_lossy(&ended.stderr)
        );
        String::from_utf8_lossy(&ended.stdout).into_owned()
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        // One that was ended is gone already.
        if self.daemon().is_some() {
            self.kill();
        }
    }
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("ib-engine-").tempdir().expect("a directory")
}

/// The process that `unshare` has started.
fn only_child(of: Pid) -> Pid {
    let pid = of.as_raw_nonzero();
    let children = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(Path::new(&children)).expect("/proc tells of children");
    let child = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    child.and_then(Pid::from_raw).expect("it has a child")
}
