//! What end-to-end tests are made of: the real program as a process, the real services around it,
//! and the receivers of its notifications. Everything here blocks; the services' clients run on
//! [`runtime`].

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

pub mod broker;
pub mod buildkit_bridge;
pub mod canary;
pub mod daemon;
pub mod engine;
pub mod forward_proxy;
pub mod git_server;
pub mod managers;
pub mod marked;
pub mod node;
pub mod own_engine;
pub mod postgres;
pub mod private_tls;
pub mod proxy;
pub mod raw_amqp;
pub mod registry;
pub mod request;
pub mod slow;
pub mod stand_in;
pub mod turnstile;
pub mod worker;
pub mod world;

use std::net::Ipv4Addr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;

/// Longest wait for something that takes seconds on an idle machine. Tests wait for events; this
/// only ends those whose event never comes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A client of servers that speak no TLS. It trusts nobody: to read the machine's certificates takes longer than most of
/// what is asked.
pub fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().tls_certs_only([]).build();
    client.expect("a client can be made")
}

/// The runtime of all clients and stand-ins of this process.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a test may have threads")
    })
}

/// A name that nothing else on this machine has.
pub fn unique(hint: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let started = OnceLock::get_or_init(&STARTED, || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    });
    format!("{hint}-{started:x}-{}-{count}", std::process::id())
}

static STARTED: OnceLock<u64> = OnceLock::new();

/// Looks again and again, for what tells nobody when it changes.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The value of an environment variable, as `stack.sh env` prints them, or its default.
pub fn setting(name: &str, default: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// A local port that no connection is given by itself, so that whoever lets go of it for a while can
/// have it again. None is handed out twice.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 500) as u16 * 24;
    (first..32_000)
        .map(|_| first + NEXT.fetch_add(1, Ordering::Relaxed))
        .find(|port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("one of thousands of ports is free")
}

/// A local port that nobody gets through until it is opened.
pub struct Door {
    behind: Behind,
    pub port: u16,
}

enum Behind {
    /// Nobody listens: connections are refused.
    Nobody(TcpSocket),
    /// Connections are taken, and nobody reads what is said on them.
    Deaf(TcpListener),
}

impl Door {
    /// One that refuses connections. Nobody else can have the port meanwhile.
    pub fn closed() -> Self {
        let _guard = runtime().enter();
        let socket = TcpSocket::new_v4().expect("sockets are to be had");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a local port is free");
        let port = socket.local_addr().expect("the port is known").port();
        Self { behind: Behind::Nobody(socket), port }
    }

    /// One that takes connections and lets them wait.
    pub fn deaf() -> Self {
        let Self { behind: Behind::Nobody(socket), port } = Self::closed() else {
            unreachable!("a closed door has nobody behind it")
        };
        let _guard = runtime().enter();
        Self { behind: Behind::Deaf(listen(socket)), port }
    }

    /// From now on all connections are passed on to this address, those that wait as well.
    pub fn open(self, to: &str) {
        let _guard = runtime().enter();
        let listener = match self.behind {
            Behind::Nobody(socket) => listen(socket),
            Behind::Deaf(listener) => listener,
        };
        let to = to.to_owned();
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let to = to.clone();
                tokio::spawn(async move {
                    if let Ok(mut stream) = TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut stream).await;
                    }
                });
            }
        });
    }
}

fn listen(socket: TcpSocket) -> TcpListener {
    socket.listen(64).expect("a bound socket can listen")
}
