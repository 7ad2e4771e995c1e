//! A stand-in for `buildkitd`.
//!
//! It is no BuildKit: it listens where one would, and hands each connection on to the BuildKit within a Docker
//! Engine, which it has upgrade the connection first. So its clients speak plain gRPC, as to a `buildkitd`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

/// Stands in for one `buildkitd`, until it is dropped: then all its connections are cut.
pub struct BuildkitBridge {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl BuildkitBridge {
    /// Before the engine that listens on this socket.
    pub async fn start(engine: &Path) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), engine).await
    }

    /// The same at an address; port 0 = any that is free.
    pub async fn start_at(address: SocketAddr, engine: &Path) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let engine = engine.to_owned();
        let task = tokio::spawn(async move {
            // Dropped with the task, and with it its connections.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, engine.clone()));
            }
        });
        Self { address, task }
    }

    /// As `BUILDKIT_HOST` has it.
    pub fn host(&self) -> String {
        format!("tcp://{}", self.address)
    }
}

impl BuildkitBridge {
    /// Is gone from now on: its connections are cut, and new ones refused.
    pub async fn cut(&mut self) {
        self.task.abort();
        // The port is free once the task is dropped.
        let _ = (&mut self.task).await;
    }
}

impl Drop for BuildkitBridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, engine: PathBuf) {
    // An engine that is gone is a connection that breaks.
    let Ok(mut engine) = UnixStream::connect(engine).await else { return };
    let upgrade =
        "POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    if engine.write_all(upgrade.as_bytes()).await.is_err() {
        return;
    }
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = engine.read_u8().await else { return };
        head.push(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    let _ = copy_bidirectional(&mut client, &mut engine).await;
}
