//! Daemons of a test's own. They end with the test's process, however that ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

/// How long a daemon is given to end when it was asked to.
const GOODBYE: Duration = Duration::from_secs(30);

/// Begins a command that is killed by the kernel when its parent is gone; arguments of `setpriv`, and
/// then the program, are to follow.
///
/// # Panics
///
/// Without root.
#[track_caller]
pub fn command(what: &str) -> Command {
    assert!(geteuid().is_root(), "this test starts {what} of its own, which needs root");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command
}

/// A running daemon. Dropping it kills it.
pub struct Daemon {
    child: Mutex<Child>,
    log: PathBuf,
}

impl Daemon {
    /// Starts it; what it writes is added to its log.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the log can be shared"))
            .stderr(file);
        Self { child: Mutex::new(spawn(command)), log: log.to_owned() }
    }

    /// Waits until it answers.
    #[track_caller]
    pub fn wait_until(&self, answers: impl Fn() -> bool) {
        let deadline = Instant::now() + super::PATIENCE;
        while !answers() {
            let ended = self.has_ended();
            if ended || Instant::now() > deadline {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let what = if ended { "has ended" } else { "does not answer" };
                panic!("a daemon of the test's own {what}:\n{log}");
            }
            // Nothing tells when it will.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child())
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child();
        kill_process(Pid::from_child(&child), signal).expect("it was not yet waited for");
    }

    /// Waits until it has ended as it was asked to.
    #[track_caller]
    pub fn wait(&self) {
        let deadline = Instant::now() + GOODBYE;
        while !self.has_ended() {
            assert!(Instant::now() < deadline, "a daemon did not end within {GOODBYE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn has_ended(&self) -> bool {
        self.child().try_wait().expect("a child can be waited for").is_some()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut child = self.child();
        // An error means that it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Starts a process from a thread that lives as long as this process: what the kernel takes for the
/// parent is the thread.
fn spawn(command: Command) -> Child {
    type Order = (Command, Sender<std::io::Result<Child>>);
    static ORDERS: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                // Whoever gave the order waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, spawned) = channel();
    let order = (command, answer);
    orders.lock().expect("nobody panics with it").send(order).expect("the thread lives");
    spawned.recv().expect("the thread answers").expect("setpriv starts: it is in util-linux")
}
