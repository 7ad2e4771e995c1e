//! A TCP proxy whose network a test can break.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    Up,
    /// Connections stay open and new ones are taken, but no byte gets through, ever: what has lost
    /// bytes is cut when the network changes again.
    BlackHole,
    /// Connections are cut, and new ones at once.
    Down,
}

/// Listens on a port of its own and forwards to one address. Dropping it cuts everything.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    network: watch::Sender<Network>,
    accepted: Arc<AtomicUsize>,
    /// Connections that the client has not closed.
    open: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(target: &str, network: Network) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let network = watch::Sender::new(network);
        let open = watch::Sender::new(0);
        let accepted = Arc::new(AtomicUsize::new(0));
        let connections =
            (target.to_owned(), network.clone(), open.clone(), accepted.clone(), listener);
        let task = tokio::spawn(async move {
            let (target, network, open, accepted, listener) = connections;
            while let Ok((client, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                open.send_modify(|count| *count += 1);
                let (target, network, open) = (target.clone(), network.subscribe(), open.clone());
                tokio::spawn(async move {
                    // An error is an end like any other.
                    let _ = serve(client, &target, network).await;
                    open.send_modify(|count| *count -= 1);
                });
            }
        });
        Ok(Self { address, network, accepted, open, task })
    }

    pub(crate) fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// How many connections were ever taken.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The number of connections that are open.
    pub(crate) fn open(&self) -> watch::Receiver<usize> {
        self.open.subscribe()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Network::Down);
    }
}

async fn serve(
    mut client: TcpStream,
    target: &str,
    mut network: watch::Receiver<Network>,
) -> io::Result<()> {
    if *network.borrow_and_update() == Network::Up {
        let mut server = TcpStream::connect(target).await?;
        tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut client, &mut server) => return copied.map(drop),
            _ = network.wait_for(|network| *network != Network::Up) => {}
        }
        if *network.borrow_and_update() == Network::BlackHole {
            return swallow(client, network, Some(server)).await;
        }
    } else if *network.borrow() == Network::BlackHole {
        return swallow(client, network, None).await;
    }
    Ok(())
}

/// Takes what the client says, until the client is tired of it or the network changes. The server
/// hears nothing meanwhile.
async fn swallow(
    mut client: TcpStream,
    mut network: watch::Receiver<Network>,
    _server: Option<TcpStream>,
) -> io::Result<()> {
    let mut ignored = [0; 4096];
    loop {
        tokio::select! {
            read = client.read(&mut ignored) => if read? == 0 { return Ok(()) },
            _ = network.changed() => return Ok(()),
        }
    }
}
