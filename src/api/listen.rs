//! The addresses that the worker serves HTTP at.

use std::io::ErrorKind;

use tokio::net::TcpListener;

use crate::exit::{Exit, StartError};

/// Listens at `host:port`, the value of this setting.
///
/// # Errors
///
/// This machine cannot listen there at all, or not now.
pub async fn listen(setting: &str, address: &str) -> Result<TcpListener, StartError> {
    let unusable = |error| {
        StartError::new(Exit::Config, format!("{setting}: {address} cannot be used: {error}"))
    };
    let found: Vec<_> = tokio::net::lookup_host(address).await.map_err(unusable)?.collect();
    TcpListener::bind(&found[..]).await.map_err(|error| match error.kind() {
        ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied => unusable(error),
        _ => {
            let why = format!("{setting}: cannot listen on {address}: {error}");
            StartError::new(Exit::Unavailable, why)
        }
    })
}
