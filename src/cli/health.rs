//! `image-builder health`: asks a worker how it is.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use reqwest::{Client, StatusCode};
use serde::Deserialize;

use super::{environment, print, wait_for};
use crate::config::ConfigErrors;
use crate::exit::Exit;
use crate::net::http::{causes, read_at_most};

/// Longest wait for the whole answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Ask the worker at HTTP_ADDR whether it is alive.
///
/// Of the settings, from the environment and from config/.env, only HTTP_ADDR is looked at. Where it is
/// every address of the machine (0.0.0.0:8080), the machine itself is asked.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0   it is
  64  usage
  69  it is not, or does not answer within 3 seconds
  78  HTTP_ADDR is bad

Example: a container's health
  HEALTHCHECK CMD [\"image-builder\", \"health\"]

`image-builder config --example` lists the settings.")]
pub struct Arguments {
    /// Ask whether it can work: whether it reaches broker, engine and registry, and has room on the disk
    #[arg(long)]
    ready: bool,
}

/// # Errors
///
/// `HTTP_ADDR` is bad.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let address = on_this_machine(environment()?.http_addr()?);
    let (path, good) =
        if arguments.ready { ("/readyz", "is ready") } else { ("/livez", "is alive") };
    Ok(match wait_for(ask(&address, path)) {
        Ok(()) => print(&format!("the worker at {address} {good}\n")),
        Err(bad) => {
            eprintln!("image-builder: the worker at {address} {bad}");
            Exit::Unavailable
        }
    })
}

/// Where a server that listens at `address` is reached from its own machine.
pub(super) fn on_this_machine(address: String) -> String {
    match address.parse() {
        Ok(SocketAddr::V4(v4)) if v4.ip().is_unspecified() => format!("127.0.0.1:{}", v4.port()),
        Ok(SocketAddr::V6(v6)) if v6.ip().is_unspecified() => format!("[::1]:{}", v6.port()),
        // Another address, or a name.
        _ => address,
    }
}

/// Asks. An error is what follows the worker's address in a sentence.
async fn ask(address: &str, path: &str) -> Result<(), String> {
    let failed = |error| format!("does not answer: {}", causes(error));
    // The worker is here: no proxy leads to it, and no authority is needed.
    let client = Client::builder().no_proxy().tls_certs_only([]).timeout(PATIENCE).build();
    let client = client.map_err(failed)?;
    let url = format!("http://{address}{path}");
    let mut response = client.get(url).send().await.map_err(failed)?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(());
    }
    let (body, _) = read_at_most(&mut response, LONGEST_ANSWER).await.map_err(failed)?;
    match serde_json::from_slice(&body) {
        Ok(Report { draining: true, .. }) => Err("is not ready: it drains and ends".to_owned()),
        Ok(Report { needs, .. }) => Err(format!("is not ready: {}", unmet(&needs))),
        Err(_) => Err(format!("answers {status}")),
    }
}

/// What `/readyz` tells.
#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    draining: bool,
    needs: Vec<Need>,
}

#[derive(Deserialize)]
struct Need {
    name: String,
    ready: bool,
    detail: Option<String>,
}

fn unmet(needs: &[Need]) -> String {
    let unmet = needs.iter().filter(|need| !need.ready).map(|need| match &need.detail {
        Some(detail) => format!("{} ({detail})", need.name),
        None => need.name.clone(),
    });
    unmet.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_at_every_address_is_asked_on_this_machine() {
        for (address, asked) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.1:8082", "127.0.0.1:8082"),
            ("192.0.2.7:80", "192.0.2.7:80"),
            ("worker.internal:8080", "worker.internal:8080"),
        ] {
            assert_eq!(on_this_machine(address.to_owned()), asked);
        }
    }
}
