//! The only way from the workers to a service, which can be barred.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{free_port, runtime};

/// What the way is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Each piece of up to 16 KiB takes this much longer.
    Slow(Duration),
    /// Connections stay open and new ones are taken, but nothing gets through. What has lost bytes
    /// is cut when the way changes again.
    Silent,
    /// Connections are cut, and new ones are cut at once.
    Cut,
    /// Connections are cut, and nobody listens.
    Refused,
    /// Connections are cut, and whoever asks by HTTP is answered this.
    Answers(&'static str),
}

impl Way {
    fn leads_on(self) -> bool {
        matches!(self, Way::Open | Way::Slow(_))
    }
}

/// Where something listens.
#[derive(Debug, Clone)]
pub enum Place {
    /// `host:port`
    Tcp(String),
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp(address) => f.write_str(address),
            Place::Unix(path) => path.display().fmt(f),
        }
    }
}

/// When connections may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cutting {
    Anywhere,
    /// Only while none of their requests waits for its answer: what the service has been told, it has
    /// been seen to be told.
    BetweenRequests,
}

#[derive(Debug, Clone, Copy)]
struct State {
    way: Way,
    /// How often all connections were to be cut.
    cuts: u64,
}

/// Dropping it closes it.
pub struct Gate {
    at: Place,
    to: Place,
    state: watch::Sender<State>,
    /// Local ports of the connections to the service.
    ports: Arc<Mutex<BTreeSet<u16>>>,
    task: JoinHandle<()>,
}

impl Gate {
    pub fn tcp(to: &str, cutting: Cutting) -> Self {
        let port = free_port();
        Self::start(Place::Tcp(format!("127.0.0.1:{port}")), Place::Tcp(to.to_owned()), cutting)
    }

    pub fn unix(at: PathBuf, to: PathBuf) -> Self {
        Self::start(Place::Unix(at), Place::Unix(to), Cutting::Anywhere)
    }

    fn start(at: Place, to: Place, cutting: Cutting) -> Self {
        let state = watch::Sender::new(State { way: Way::Open, cuts: 0 });
        let ports: Arc<Mutex<BTreeSet<u16>>> = Arc::default();
        let passage =
            Passage { to: to.clone(), state: state.subscribe(), cutting, ports: ports.clone() };
        let listener = runtime().block_on(Listener::bind(&at)).expect("the address is free");
        let task = runtime().spawn(listen(at.clone(), listener, passage));
        Self { at, to, state, ports, task }
    }

    pub fn set(&self, way: Way) {
        self.state.send_modify(|state| state.way = way);
    }

    /// Cuts all connections; new ones are welcome.
    pub fn cut_once(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Host and port, or the socket's path.
    pub fn address(&self) -> String {
        self.at.to_string()
    }

    /// The same of the service.
    pub fn leads_to(&self) -> String {
        self.to.to_string()
    }

    /// The ports from which the service sees those who come through here.
    pub fn ports(&self) -> Vec<u16> {
        self.ports.lock().expect("nobody panics with it").iter().copied().collect()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Way::Refused);
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(at: &Place) -> io::Result<Self> {
        match at {
            Place::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
            Place::Unix(path) => {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                UnixListener::bind(path).map(Listener::Unix)
            }
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
            Listener::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

async fn listen(at: Place, listener: Listener, passage: Passage) {
    let mut state = passage.state.clone();
    let mut listener = Some(listener);
    loop {
        let Some(open) = &listener else {
            if state.wait_for(|state| state.way != Way::Refused).await.is_err() {
                return;
            }
            match Listener::bind(&at).await {
                Ok(open) => listener = Some(open),
                Err(error) => {
                    eprintln!("chaos: cannot listen at {at:?}: {error}; trying again");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            continue;
        };
        tokio::select! {
            _ = state.wait_for(|state| state.way == Way::Refused) => listener = None,
            Ok(client) = open.accept() => {
                let passing = passage.clone();
                // An error is an end like any other.
                tokio::spawn(async move { drop(passing.pass(client).await) });
            }
        }
    }
}

#[derive(Clone)]
struct Passage {
    to: Place,
    state: watch::Receiver<State>,
    cutting: Cutting,
    ports: Arc<Mutex<BTreeSet<u16>>>,
}

impl Passage {
    async fn pass(mut self, client: Box<dyn Stream>) -> io::Result<()> {
        let state = *self.state.borrow_and_update();
        match state.way {
            Way::Open | Way::Slow(_) => {}
            Way::Silent => return swallow(client, &mut self.state).await,
            Way::Cut | Way::Refused => return Ok(()),
            Way::Answers(text) => return answer(client, text).await,
        }
        match self.to.clone() {
            Place::Tcp(address) => {
                let server = TcpStream::connect(address).await?;
                let port = server.local_addr()?.port();
                let ports = self.ports.clone();
                ports.lock().expect("nobody panics with it").insert(port);
                let passed = self.between(client, server, state.cuts).await;
                ports.lock().expect("nobody panics with it").remove(&port);
                passed
            }
            Place::Unix(path) => {
                let server = UnixStream::connect(path).await?;
                self.between(client, server, state.cuts).await
            }
        }
    }

    async fn between(
        mut self,
        client: Box<dyn Stream>,
        server: impl Stream,
        cuts: u64,
    ) -> io::Result<()> {
        // Whether a request waits for its answer.
        let asked = watch::Sender::new(false);
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_server, mut to_server) = tokio::io::split(server);
        {
            let state = self.state.clone();
            let begun = || {
                asked.send_replace(true);
            };
            let ended = || {
                asked.send_replace(false);
            };
            let there = copy(&mut from_client, &mut to_server, &state, begun, || ());
            let back = copy(&mut from_server, &mut to_client, &state, || (), ended);
            let barred = async {
                let now_barred = |state: &State| !state.way.leads_on() || state.cuts != cuts;
                let _ = self.state.wait_for(now_barred).await;
                if self.cutting == Cutting::BetweenRequests {
                    let _ = asked.subscribe().wait_for(|asked| !asked).await;
                }
            };
            tokio::select! {
                _ = async { tokio::join!(there, back) } => return Ok(()),
                () = barred => {}
            }
        }
        if self.state.borrow_and_update().way == Way::Silent {
            // The server's end stays open as well.
            return swallow(from_client, &mut self.state).await;
        }
        Ok(())
    }
}

/// Copies until one end is closed, and passes the end on.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    state: &watch::Receiver<State>,
    before: impl Fn(),
    after: impl Fn(),
) -> io::Result<()> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let read = match from.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        let way = state.borrow().way;
        if let Way::Slow(delay) = way {
            tokio::time::sleep(delay).await;
        }
        before();
        to.write_all(&piece[..read]).await?;
        to.flush().await?;
        after();
    }
    to.shutdown().await
}

/// Takes what the client says until the way changes.
async fn swallow(
    mut client: impl AsyncRead + Unpin,
    state: &mut watch::Receiver<State>,
) -> io::Result<()> {
    let mut ignored = vec![0; 4096];
    loop {
        tokio::select! {
            read = client.read(&mut ignored) => if read? == 0 { return Ok(()) },
            _ = state.changed() => return Ok(()),
        }
    }
}

/// Answers one request without caring what it is.
async fn answer(mut client: Box<dyn Stream>, text: &str) -> io::Result<()> {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = client.read(&mut piece).await?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&piece[..read]);
    }
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await?;
    // To close with the body unread would reset the connection, and the answer with it.
    let rest = async { while client.read(&mut piece).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
    Ok(())
}
