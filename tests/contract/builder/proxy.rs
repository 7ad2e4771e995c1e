//! The engine's socket on a TCP port, plain or behind TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Hands connections on to the engine's socket; dropping it cuts every one of them.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    _connections: JoinSet<()>,
}

impl Proxy {
    pub(super) async fn start(address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut pipes = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let tls = tls.clone();
                pipes.spawn(async move {
                    let engine = UnixStream::connect("/var/run/docker.sock").await;
                    let mut engine = engine.expect("these tests need /var/run/docker.sock");
                    // Either side may hang up at any time, or refuse the other's certificate.
                    match tls {
                        None => drop(copy_bidirectional(&mut client, &mut engine).await),
                        Some(tls) => {
                            if let Ok(mut client) = tls.accept(client).await {
                                drop(copy_bidirectional(&mut client, &mut engine).await);
                            }
                        }
                    }
                });
            }
        });
        Self { address, _connections: connections }
    }
}

/// An authority, and the certificates of a server on 127.0.0.1 and of a client, as Docker wants
/// them in `DOCKER_CERT_PATH`.
pub(super) struct Certificates(TempDir);

impl Certificates {
    pub(super) fn make() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let script = "set -e
            openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca \
                -keyout ca-key.pem -out ca.pem
            for name in server cert; do
                printf 'subjectAltName=IP:127.0.0.1\\n' > ext
                openssl req -newkey rsa:2048 -nodes -subj /CN=$name -keyout $name-key.pem -out req
                openssl x509 -req -days 2 -in req -CA ca.pem -CAkey ca-key.pem -CAcreateserial \
                    -extfile ext -out $name.pem
            done
            mv cert-key.pem key.pem";
        let made = Command::new("sh")
            .args(["-c", script])
            .current_dir(directory.path())
            .output()
            .expect("a shell");
        let errors = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "this test needs the `openssl` command: {errors}");
        Self(directory)
    }

    pub(super) fn directory(&self) -> &Path {
        self.0.path()
    }

    /// The server's side, which wants the client's certificate.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let certificate = |name: &str| {
            CertificateDer::from_pem_file(self.0.path().join(name)).expect("a certificate")
        };
        let key = PrivateKeyDer::from_pem_file(self.0.path().join("server-key.pem"));
        let mut roots = RootCertStore::empty();
        roots.add(certificate("ca.pem")).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .expect("a verifier");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![certificate("server.pem")], key.expect("a key"))
            .expect("a server's configuration");
        TlsAcceptor::from(Arc::new(config))
    }
}
