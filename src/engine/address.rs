//! Where the engine is, and how to open a connection to it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::net::address::without_credentials;

/// An engine that has not taken a connection for this long is out of reach.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The port of a `buildkitd`, by its own examples.
const BUILDKIT_PORT: u16 = 1234;

/// A connection to the engine, whatever it runs over.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Where the engine listens.
#[derive(Clone)]
pub(super) enum Address {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
    Tls {
        /// `host:port`.
        authority: String,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
    },
}

impl Address {
    /// Reads `DOCKER_HOST` and its companions. `https://`, and `tcp://` with `DOCKER_TLS_VERIFY`,
    /// are TLS with a client certificate of `DOCKER_CERT_PATH`; the engine's certificate is always verified.
    pub(super) fn of_docker(
        host: &str,
        tls_verify: bool,
        cert_path: Option<&Path>,
    ) -> Result<Self, DockerAddressError> {
        let host = host.trim();
        if let Some(path) = host.strip_prefix("unix://") {
            return match path {
                "" => Err(DockerAddressError::Host(host.to_owned())),
                path => Ok(Address::Unix(path.into())),
            };
        }
        let (scheme, rest) =
            host.split_once("://").ok_or_else(|| DockerAddressError::Host(host.to_owned()))?;
        let authority = rest.trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '\\', '@', '?', '#', '%']) {
            return Err(DockerAddressError::Host(host.to_owned()));
        }
        let tls = match scheme {
            "https" => true,
            "tcp" => tls_verify,
            "http" => false,
            _ => return Err(DockerAddressError::Host(host.to_owned())),
        };
        // The ports that Docker itself assumes.
        let port = if tls { 2376 } else { 2375 };
        let has_port = authority.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
        if !tls {
            return Ok(Address::Tcp(authority));
        }
        let directory = cert_path.ok_or(DockerAddressError::NoCertPath)?;
        let config = Arc::new(client_config(directory).map_err(DockerAddressError::Certificate)?);
        let name = server_name(&authority).ok_or(DockerAddressError::Host(host.to_owned()))?;
        Ok(Address::Tls { authority, name, config })
    }

    /// Reads one address of `BUILDKIT_HOST`: `unix://` or `tcp://`, which with certificates is TLS. The port is
    /// 1234 unless it is named. `None` = it is none.
    pub(super) fn of_buildkit(host: &str, tls: Option<&Arc<ClientConfig>>) -> Option<Self> {
        if let Some(path) = host.strip_prefix("unix://") {
            return path.starts_with('/').then(|| Address::Unix(path.into()));
        }
        let authority = host.strip_prefix("tcp://")?.trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '\\', '@', '?', '#', '%', ' ']) {
            return None;
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let authority =
            if has_port { authority.to_owned() } else { format!("{authority}:{BUILDKIT_PORT}") };
        match tls {
            None => Some(Address::Tcp(authority)),
            Some(config) => {
                let name = server_name(&authority)?;
                Some(Address::Tls { authority, name, config: config.clone() })
            }
        }
    }

    /// Opens a connection, within [`CONNECT_TIMEOUT`].
    pub(super) async fn open(&self) -> io::Result<Box<dyn Wire>> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.dial())
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    async fn dial(&self) -> io::Result<Box<dyn Wire>> {
        match self {
            Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Address::Tcp(authority) => Ok(Box::new(tcp(authority).await?)),
            Address::Tls { authority, name, config } => {
                let stream = tcp(authority).await?;
                let connector = TlsConnector::from(config.clone());
                Ok(Box::new(connector.connect(name.clone(), stream).await?))
            }
        }
    }

    /// What stands in a request's `Host` header.
    pub(super) fn host_header(&self) -> &str {
        match self {
            Address::Unix(_) => "docker",
            Address::Tcp(authority) | Address::Tls { authority, .. } => authority,
        }
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(authority) => write!(f, "tcp://{authority}"),
            Address::Tls { authority, .. } => write!(f, "https://{authority}"),
        }
    }
}

async fn tcp(authority: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The name that an engine's certificate has to have.
fn server_name(authority: &str) -> Option<ServerName<'static>> {
    let host = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).ok()
}

/// An address of a Docker Engine that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerAddressError {
    #[error("DOCKER_HOST: {} is not unix://PATH, tcp://HOST:PORT or https://HOST:PORT", without_credentials(.0))]
    Host(String),
    #[error("DOCKER_CERT_PATH: needed for a DOCKER_HOST with TLS")]
    NoCertPath,
    #[error("DOCKER_CERT_PATH: {0}")]
    Certificate(BadCertificate),
}

/// A file of certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}: {why}", path.display())]
pub struct BadCertificate {
    pub path: PathBuf,
    pub why: String,
}

/// The configuration of a directory with `ca.pem`, `cert.pem` and `key.pem`: the names that Docker and `buildctl`
/// use.
pub(super) fn client_config(directory: &Path) -> Result<ClientConfig, BadCertificate> {
    let (ca, cert, key) =
        (directory.join("ca.pem"), directory.join("cert.pem"), directory.join("key.pem"));
    let bad = |path: &Path, why: &dyn std::fmt::Display| BadCertificate {
        path: path.to_owned(),
        why: why.to_string(),
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, _> {
        CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| bad(path, &error))
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&ca)? {
        roots.add(certificate).map_err(|error| bad(&ca, &error))?;
    }
    let chain = certificates(&cert)?;
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| bad(&key, &error))?;
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&ca, &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, private)
        .map_err(|error| bad(&cert, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(host: &str) -> Result<String, DockerAddressError> {
        Address::of_docker(host, false, None).map(|address| address.to_string())
    }

    #[test]
    fn docker_host_is_read_as_docker_reads_it() {
        for (host, address) in [
            ("unix:///run/docker.sock", "unix:///run/docker.sock"),
            ("tcp://10.0.0.1", "tcp://10.0.0.1:2375"),
            ("tcp://engine:4000/", "tcp://engine:4000"),
            ("http://[::1]:4000", "tcp://[::1]:4000"),
        ] {
            assert_eq!(parse(host).ok().as_deref(), Some(address), "{host}");
        }
        for host in ["", "docker", "unix://", "ssh://x", "tcp://", "tcp://u:p@x", "tcp://x/y"] {
            assert!(matches!(parse(host), Err(DockerAddressError::Host(_))), "{host}");
        }
        assert!(matches!(parse("https://x"), Err(DockerAddressError::NoCertPath)));
    }
}
