//! Opens one connection. An attempt that takes too long leaves neither a socket nor a thread behind.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::types::LongString;
use lapin::uri::AMQPScheme;
use lapin::{Connection, ConnectionProperties, ErrorKind};

use super::ConnectError;
use super::address::Address;
use super::transport::{self, Transport};
use crate::net::http::in_short;

/// Why an attempt failed.
pub(super) enum Failure {
    /// Worth trying again.
    Temporary(String),
    /// Somebody has to change something first.
    Permanent(ConnectError),
}

impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        Failure::Temporary(in_words(&error))
    }
}

/// Connects under `name`, within `limit`.
pub(super) async fn connect(
    address: &Address,
    name: &str,
    limit: Duration,
) -> Result<Connection, Failure> {
    let attempt = Attempt::default();
    let socket = attempt.0.clone();
    let properties =
        ConnectionProperties::default().with_connection_name(LongString::from(name.to_owned()));
    let (library, runtime) = transport::runtimes();
    let connecting = Connection::connector(
        address.uri().clone(),
        library,
        async move |uri, _| {
            let target = (uri.authority.host.clone(), uri.authority.port);
            let stream = AsyncTcpStream::connect(&runtime, runtime.to_socket_addrs(target)).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                socket.lock().keep(plain.get_ref())?;
            }
            let stream = match uri.scheme {
                AMQPScheme::AMQP => stream,
                AMQPScheme::AMQPS => {
                    let tls = OwnedTLSConfig::default();
                    stream.into_tls(&uri.authority.host, tls.as_ref()).await?
                }
            };
            Ok(AsyncTcpStream::Plain(Transport::new(stream)))
        },
        properties,
    );
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(connection)) => {
            attempt.succeeded();
            Ok(connection)
        }
        Ok(Err(error)) => Err(classify(address, error)),
        Err(_) => Err(Failure::Temporary(format!("it did not answer within {limit:?}"))),
    }
}

/// One attempt. Dropped before it has succeeded, it shuts the socket down: the library's thread
/// would wait for its first answer for ever, and only the end of the socket lets it go.
#[derive(Default)]
struct Attempt(SharedSocket);

#[derive(Clone, Default)]
struct SharedSocket(Arc<Mutex<Socket>>);

/// A second handle on an attempt's socket.
#[derive(Default)]
enum Socket {
    #[default]
    NotYetOpen,
    Open(TcpStream),
    /// The attempt has ended: nobody waits for its socket.
    Done,
}

impl Attempt {
    fn succeeded(&self) {
        *self.0.lock() = Socket::Done;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Socket::Open(socket) = std::mem::replace(&mut *self.0.lock(), Socket::Done) {
            // An error means that the socket is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl SharedSocket {
    fn lock(&self) -> MutexGuard<'_, Socket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Socket {
    fn keep(&mut self, stream: &impl AsFd) -> io::Result<()> {
        if matches!(self, Socket::Done) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        *self = Socket::Open(TcpStream::from(stream.as_fd().try_clone_to_owned()?));
        Ok(())
    }
}

/// What went wrong, without the library's own names for it.
pub(super) fn in_words(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        ErrorKind::IOError(error) => in_short(error),
        _ => error.to_string(),
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
