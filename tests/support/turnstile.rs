//! A place that things are counted at, and held until a test lets them go: build steps on the engine,
//! and whatever else calls from the other side of the program.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{PATIENCE, engine, runtime};

/// Who is inside, who was, and who may go. Clones are the same turnstile.
#[derive(Clone)]
pub struct Turnstile(Arc<watch::Sender<Count>>);

/// What a turnstile has counted.
#[derive(Debug, Clone, Default)]
pub struct Count {
    /// Every name that came, in the order of their coming.
    pub came: Vec<String>,
    /// Names as often as they are inside.
    inside: Vec<String>,
    /// Who was inside, after each coming and going.
    pub moments: Vec<BTreeSet<String>>,
    may_go: BTreeSet<String>,
    all_may_go: bool,
}

impl Count {
    /// Who is inside.
    pub fn inside(&self) -> BTreeSet<String> {
        self.inside.iter().cloned().collect()
    }

    /// The most that were ever inside at once.
    pub fn most(&self) -> usize {
        self.moments.iter().map(BTreeSet::len).max().unwrap_or_default()
    }

    fn note(&mut self) {
        self.moments.push(self.inside());
    }
}

impl Turnstile {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Count::default())))
    }

    pub fn count(&self) -> Count {
        self.0.borrow().clone()
    }

    /// Waits until the count is as wanted.
    #[track_caller]
    pub fn until(&self, what: &str, wanted: impl FnMut(&Count) -> bool) -> Count {
        let mut changes = self.0.subscribe();
        let found = runtime().block_on(async {
            let found = tokio::time::timeout(PATIENCE, changes.wait_for(wanted)).await;
            found.ok().map(|count| count.expect("the turnstile stands").clone())
        });
        found.unwrap_or_else(|| panic!("{what}: not within {PATIENCE:?}: {:?}", self.count()))
    }

    pub fn let_go(&self, name: &str) {
        self.0.send_modify(|count| {
            count.may_go.insert(name.to_owned());
        });
    }

    /// Holds nobody any more.
    pub fn let_all_go(&self) {
        self.0.send_modify(|count| count.all_may_go = true);
    }

    /// Comes in, and is inside for as long as the answer lives.
    pub fn enter(&self, name: &str) -> Inside {
        self.0.send_modify(|count| {
            if !count.came.iter().any(|came| came == name) {
                count.came.push(name.to_owned());
            }
            count.inside.push(name.to_owned());
            count.note();
        });
        Inside { turnstile: self.clone(), name: name.to_owned() }
    }
}

/// Somebody who is inside.
pub struct Inside {
    turnstile: Turnstile,
    name: String,
}

impl Inside {
    /// Waits until it may go.
    pub async fn held(&self) {
        let mut changes = self.turnstile.0.subscribe();
        let may_go =
            changes.wait_for(|count| count.all_may_go || count.may_go.contains(&self.name));
        may_go.await.expect("the turnstile stands");
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.turnstile.0.send_modify(|count| {
            let place = count.inside.iter().position(|name| *name == self.name);
            count.inside.remove(place.expect("it is inside"));
            count.note();
        });
    }
}

/// A turnstile for build steps: each connects to it from inside of its build, and is inside for as
/// long as its process lives. Builds need the machine's own network (`BUILDER_NETWORK=host`).
pub struct Steps {
    pub turnstile: Turnstile,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Steps {
    pub fn start() -> Self {
        let turnstile = Turnstile::new();
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a local port is free");
        let address = listener.local_addr().expect("the port is known");
        let at = turnstile.clone();
        let task = runtime().spawn(async move {
            while let Ok((step, _)) = listener.accept().await {
                tokio::spawn(pass(step, at.clone()));
            }
        });
        Self { turnstile, address, task }
    }

    /// A Dockerfile whose one step goes through the turnstile, under the name that the build argument
    /// `STEP` has.
    pub fn dockerfile(&self) -> String {
        self.dockerfile_saying("$STEP")
    }

    /// The same, whose step writes this first.
    pub fn dockerfile_saying(&self, words: &str) -> String {
        let port = self.address.port();
        let wait = format!("nc 127.0.0.1 {port} -e sh -c 'echo $STEP && read -r answer'");
        format!("FROM {}\nARG STEP\nRUN echo {words} && {wait}\n", engine::BASE)
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(step: TcpStream, turnstile: Turnstile) {
    let (from, mut to) = step.into_split();
    let mut from = BufReader::new(from);
    let mut name = String::new();
    if from.read_line(&mut name).await.is_err() {
        return;
    }
    let inside = turnstile.enter(name.trim());
    let mut rest = Vec::new();
    // Its end, as the engine ends it: whatever is read, the process is gone.
    let mut gone = std::pin::pin!(from.read_to_end(&mut rest));
    tokio::select! {
        _ = &mut gone => {}
        () = inside.held() => {
            if to.write_all(b"go\n").await.is_ok() {
                // An error is an end as well.
                let _ = gone.await;
            }
        }
    }
}
