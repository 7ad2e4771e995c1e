//! Opens one connection. An attempt that takes too long leaves neither a socket nor a thread behind.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::types::LongString;
use lapin::{Connection, ConnectionProperties, ErrorKind};

use super::ConnectError;
use super::address::Address;

/// Why an attempt failed.
pub(super) enum Failure {
    /// Worth trying again.
    Temporary(String),
    /// Somebody has to change something first.
    Permanent(ConnectError),
}

impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        Failure::Temporary(error.to_string())
    }
}

/// Connects under `name`, within `limit`.
pub(super) async fn connect(
    address: &Address,
    name: &str,
    limit: Duration,
) -> Result<Connection, Failure> {
    let socket = SocketHandle::default();
    let keep = socket.clone();
    let properties =
        ConnectionProperties::default().with_connection_name(LongString::from(name.to_owned()));
    let connecting = Connection::connector(
        address.uri().clone(),
        lapin::runtime::default_runtime()?,
        async move |uri, runtime| {
            let target = (uri.authority.host.clone(), uri.authority.port);
            let stream = AsyncTcpStream::connect(&runtime, runtime.to_socket_addrs(target)).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                keep.set(plain.get_ref())?;
            }
            match uri.scheme {
                lapin::uri::AMQPScheme::AMQP => Ok(stream),
                lapin::uri::AMQPScheme::AMQPS => {
                    let tls = OwnedTLSConfig::default();
                    Ok(stream.into_tls(&uri.authority.host, tls.as_ref()).await?)
                }
            }
        },
        properties,
    );
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(classify(address, error)),
        Err(_) => {
            socket.shut_down();
            Err(Failure::Temporary(format!("it did not answer within {limit:?}")))
        }
    }
}

/// A second handle on a connection's socket. The library's thread waits for its first answer for
/// ever: only an end of the socket lets it go.
#[derive(Clone, Default)]
struct SocketHandle(Arc<Mutex<SocketState>>);

#[derive(Default)]
struct SocketState {
    socket: Option<TcpStream>,
    given_up: bool,
}

impl SocketHandle {
    fn set(&self, stream: &impl AsFd) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.given_up {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        state.socket = Some(TcpStream::from(stream.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    fn shut_down(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.given_up = true;
        if let Some(socket) = state.socket.take() {
            // An error means that the socket is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Tells what waiting may mend from what it will not.
fn classify(address: &Address, error: lapin::Error) -> Failure {
    let permanent = |reason: &str, hint| {
        let reason = reason.to_owned();
        Failure::Permanent(ConnectError::Refused { address: address.to_string(), reason, hint })
    };
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => {
            let text = refusal.get_message().as_str();
            match refusal.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => permanent(text, ""),
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if !passes_by_itself(text) => {
                    permanent(text, address.vhost_hint())
                }
                _ => error.into(),
            }
        }
        ErrorKind::AuthProviderError(text) => permanent(text, ""),
        _ => error.into(),
    }
}

/// A virtual host that restarts, and one with too many connections, are "not allowed" as well.
fn passes_by_itself(refusal: &str) -> bool {
    refusal.contains("is down") || refusal.contains("limit")
}
