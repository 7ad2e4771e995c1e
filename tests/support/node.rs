//! A RabbitMQ node of a test's own, to be restarted, killed and frozen.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use rustix::process::Signal;
use tempfile::TempDir;

use super::broker::BrokerAt;
use super::daemon::{self, Daemon};
use super::{client, free_port, runtime, unique};

/// How long one answer may take.
const TO_ANSWER: Duration = Duration::from_secs(3);

const CTL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// A node, with ports and data of its own. It is gone with this value.
pub struct Node {
    // Ends before its directory does.
    server: Mutex<Option<Daemon>>,
    name: String,
    amqp_port: u16,
    management_port: u16,
    distribution_port: u16,
    dir: TempDir,
}

impl Node {
    /// Starts a node with these lines in its `rabbitmq.conf`, and waits until it answers.
    pub fn new(settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("ib-node-").tempdir().expect("a directory");
        let node = Self {
            server: Mutex::new(None),
            name: format!("{}@localhost", unique("test")),
            amqp_port: free_port(),
            management_port: free_port(),
            distribution_port: free_port(),
            dir,
        };
        let mut configuration = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\n\
             log.console = true\nlog.file = false\n",
            node.amqp_port, node.management_port
        );
        for line in settings {
            configuration += line;
            configuration.push('\n');
        }
        std::fs::write(node.path("rabbitmq.conf"), configuration).expect("written");
        std::fs::write(node.path("plugins"), "[rabbitmq_management].").expect("written");
        let home = node.path("data");
        std::fs::create_dir(&home).expect("a directory");
        node.make_over(&home);
        node.start();
        node
    }

    /// The node runs as the user that the package made for it.
    fn make_over(&self, home: &Path) {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.dir.path(), open).expect("the directory is ours");
        let chown = Command::new("chown").arg("rabbitmq:rabbitmq").arg(home).status();
        assert!(
            chown.is_ok_and(|ended| ended.success()),
            "this test starts a RabbitMQ node of its own, as root, from the package rabbitmq-server"
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts it again on its data, and waits until it answers.
    pub fn start(&self) {
        let mut command = daemon::command("a RabbitMQ node");
        command
            .args(["--reuid=rabbitmq", "--regid=rabbitmq", "--init-groups", SERVER])
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", self.path("data"))
            // The program is the virtual machine itself then, and no script that starts it.
            .env("RUNNING_UNDER_SYSTEMD", "1")
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", self.path("data"))
            .env("RABBITMQ_LOG_BASE", self.path("data"))
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("plugins"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                // The last: how often it looks for deliveries that are held for too long, in ms.
                "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1} \
                 -rabbit channel_tick_interval 1000",
            );
        let server = Daemon::start(command, &self.path("log"));
        server.wait_until(|| self.answers());
        *self.server() = Some(server);
    }

    fn answers(&self) -> bool {
        let at = self.at();
        let asked = runtime().block_on(async {
            let who = client().get(format!("{}/api/whoami", at.management));
            let answer = who.timeout(TO_ANSWER).send().await;
            // One that has just begun to listen may never answer those who were too early.
            let connecting = Connection::connect(&at.uri, ConnectionProperties::default());
            let connection = tokio::time::timeout(TO_ANSWER, connecting).await.ok()?.ok()?;
            let _ = connection.close(200, "it answers".into()).await;
            answer.ok()
        });
        asked.is_some_and(|answer| answer.status().is_success())
    }

    /// Runs `rabbitmqctl` on it.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) {
        let ended = Command::new("setpriv")
            .args(["--reuid=rabbitmq", "--regid=rabbitmq", "--init-groups", CTL])
            .args(arguments)
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", self.path("data"))
            .env("RABBITMQ_NODENAME", &self.name)
            .output()
            .expect("rabbitmqctl is there");
        assert!(
            ended.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&ended.stderr)
        );
    }

    /// Where it is.
    pub fn at(&self) -> BrokerAt {
        BrokerAt {
            uri: format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.amqp_port),
            management: format!("http://guest:guest@127.0.0.1:{}", self.management_port),
        }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.amqp_port)
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
        let server = self.server().take().expect("it runs");
        server.signal(signal);
        server.wait();
    }

    /// Lets it do nothing: connections stay open, and nobody answers.
    pub fn freeze(&self) {
        self.server().as_ref().expect("it runs").signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.server().as_ref().expect("it runs").signal(Signal::CONT);
    }

    fn server(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
