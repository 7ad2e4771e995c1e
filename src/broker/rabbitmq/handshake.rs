//! Opens one connection. An attempt that takes too long leaves neither a socket nor a thread behind.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::types::LongString;
use lapin::uri::{AMQPScheme, AMQPUri};
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
    match tokio::time::timeout(limit, attempt(address, name)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(classify(address, error)),
        Err(_) => Err(Failure::Temporary(format!("it did not answer within {limit:?}"))),
    }
}

/// The socket is opened here, and the library's thread is given it: that thread may outlive the runtime,
/// and with it whatever it would wait for.
async fn attempt(address: &Address, name: &str) -> Result<Connection, lapin::Error> {
    let (library, runtime) = transport::runtimes();
    let AMQPUri { scheme, authority, .. } = address.uri();
    let target = (authority.host.clone(), authority.port);
    let stream = AsyncTcpStream::connect(&runtime, runtime.to_socket_addrs(target)).await?;
    let mut unfinished = Unfinished(match &stream {
        AsyncTcpStream::Plain(plain) => Some(plain.get_ref().as_fd().try_clone_to_owned()?.into()),
        _ => None,
    });
    let stream = match scheme {
        AMQPScheme::AMQP => stream,
        AMQPScheme::AMQPS => {
            stream.into_tls(&authority.host, OwnedTLSConfig::default().as_ref()).await?
        }
    };
    let stream = Mutex::new(Some(AsyncTcpStream::Plain(Transport::new(stream))));
    let connection = Connection::connector(
        address.uri().clone(),
        library,
        async move |_, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The library does not connect again by itself.
            Ok(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?)
        },
        ConnectionProperties::default().with_connection_name(LongString::from(name.to_owned())),
    )
    .await?;
    unfinished.0 = None;
    Ok(connection)
}

/// A second handle on the socket of an attempt that is not finished. Dropped, it shuts the socket down: the
/// library's thread would wait for its first answer for ever, and only the end of the socket lets it go.
struct Unfinished(Option<TcpStream>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            // An error means that the socket is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
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
