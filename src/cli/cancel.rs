//! `image-builder cancel`: asks a service to stop a build.

use clap::Args;

use super::api::client::{Client, build_path};
use super::{environment, print, wait_for};
use crate::config::ConfigErrors;
use crate::exit::Exit;
use crate::text::{ascii, plain};

/// Stop a build.
///
/// It stops where it is, and ends as cancelled; `image-builder logs -f` waits for that. The service is the one
/// at IMAGE_BUILDER_URL, else the one at HTTP_ADDR on this machine; API_TOKEN is sent where it is set.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0   every worker is told
  1   there is no such build, or it has ended
  64  usage
  69  the service is not available
  75  temporary failure: try it again
  78  bad settings, or the service does not take the token

Example:
  image-builder cancel 5b0d7a1c-27ec-4f0f-a1f9-2f8b1f3f1c55

`image-builder config --example` lists the settings, and docs/settings.md explains them.")]
pub struct Arguments {
    /// The build's id
    id: String,
    /// Whose build it is, where several users chose one id
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.api()?;
    let path = build_path(&arguments.id, "", arguments.user.as_deref());
    Ok(match wait_for(async { Client::new(&config).delete(&path).await }) {
        Ok(answer) if arguments.json => print(&format!("{}\n", ascii(&answer))),
        Ok(_) => print(&format!("asked to cancel {}\n", plain(&arguments.id))),
        Err(failure) => failure.told(),
    })
}
