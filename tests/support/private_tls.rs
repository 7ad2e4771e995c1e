//! TLS by a certificate authority of a test's own, in front of servers that speak none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A certificate authority, made by openssl.
pub struct Authority {
    directory: TempDir,
}

/// How a client comes to speak TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    AtOnce,
    /// It asks for it, as PostgreSQL's clients do.
    OnRequest,
}

/// A server with TLS in front of one without. Dropping it ends it.
pub struct Front {
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=the tests' own authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        authority
    }

    /// Its certificate.
    pub fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A front for these names, before the server at this address.
    pub async fn front(&self, names: &[&str], begin: Begin, server: &str) -> Front {
        let config = Arc::new(self.config(names));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a local port is free");
        let address = listener.local_addr().expect("the port is known");
        let server = server.to_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, server) = (TlsAcceptor::from(config.clone()), server.clone());
                tokio::spawn(async move {
                    let mut client = client;
                    if begin == Begin::OnRequest {
                        let mut request = [0; 8];
                        client.read_exact(&mut request).await?;
                        client.write_all(b"S").await?;
                    }
                    let mut client = acceptor.accept(client).await?;
                    let mut server = TcpStream::connect(&server).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Front { address, _tasks: tasks }
    }

    fn config(&self, names: &[&str]) -> ServerConfig {
        let file = |end: &str| format!("{}.{end}", names[0]);
        let names: Vec<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let extensions = format!("subjectAltName={}\n", names.join(","));
        std::fs::write(self.path(&file("ext")), extensions).expect("a file can be written");
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=a server",
            "-keyout",
            &file("key"),
            "-out",
            &file("csr"),
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &file("csr"),
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &file("ext"),
            "-out",
            &file("pem"),
        ]);
        let certificates = CertificateDer::pem_file_iter(self.path(&file("pem")))
            .and_then(Iterator::collect)
            .expect("openssl writes PEM");
        let key = PrivateKeyDer::from_pem_file(self.path(&file("key"))).expect("a key in PEM");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the versions are the library's")
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .expect("key and certificate fit")
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.directory.path()).join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let status = Command::new("openssl")
            .args(arguments)
            .current_dir(self.directory.path())
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("openssl is installed").success(), "openssl {arguments:?}");
    }
}
