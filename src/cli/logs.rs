//! `image-builder logs`: a build's log.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use image_builder_actors::model::secret::without_escapes;
use serde_json::json;

use super::api::client::{Client, Failure, build_path};
use super::api::events::{Followed, follow};
use super::api::outcome;
use super::api::screen::{Colours, log_line};
use super::{environment, print, until_interrupted, wait_for};
use crate::config::ConfigErrors;
use crate::exit::Exit;
use crate::text::{ascii, plain};

/// Print a build's log.
///
/// With -f as it is written, until the build has ended. The service is the one at IMAGE_BUILDER_URL, else the one at
/// HTTP_ADDR on this machine; API_TOKEN is sent where it is set. With -f the command outlives a restart of the
/// service.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0    printed; with -f: the image is in the registry
  1    there is no such build; with -f: it failed by its own fault, or was cancelled
  64   usage
  69   the service is not available; with -f: a service that the build takes failed
  75   temporary failure: try it again
  78   bad settings, or the service does not take the token
  130  interrupted; the build goes on

Examples:
  image-builder logs -f 5b0d7a1c-27ec-4f0f-a1f9-2f8b1f3f1c55
  image-builder logs 5b0d7a1c-27ec-4f0f-a1f9-2f8b1f3f1c55 > build.log

`image-builder config --example` lists the settings, and docs/settings.md explains them.")]
pub struct Arguments {
    /// The build's id
    id: String,
    /// Go on until the build has ended, and end as it did
    #[arg(short, long)]
    follow: bool,
    /// Whose build it is, where several users chose one id
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Print lines of JSON: `{"line": …}`, and with -f the outcome as the last one
    #[arg(long)]
    json: bool,
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.api()?;
    Ok(wait_for(until_interrupted(async {
        let client = Client::new(&config);
        let done = match arguments.follow {
            true => followed(&client, arguments).await,
            false => whole(&client, arguments).await,
        };
        done.unwrap_or_else(|failure| failure.told())
    })))
}

/// How lines are printed.
#[derive(Debug, Clone, Copy)]
struct Printer {
    json: bool,
    /// Whether a terminal would act upon what is printed.
    is_terminal: bool,
    colours: Colours,
}

impl Printer {
    fn new(json: bool) -> Self {
        Self { json, is_terminal: io::stdout().is_terminal(), colours: Colours::of_stdout() }
    }

    /// Whether anybody still reads.
    fn line(self, line: &str) -> bool {
        let line = match self {
            Self { json: true, .. } => ascii(&json!({"line": without_escapes(line)})),
            Self { is_terminal: true, colours, .. } => log_line(line, colours),
            _ => without_escapes(line),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
    }
}

async fn followed(client: &Client, arguments: &Arguments) -> Result<Exit, Failure> {
    let printer = Printer::new(arguments.json);
    let ended = follow(client, &arguments.id, arguments.user.as_deref(), false, |it| match it {
        // Who does not read any more still wants to know how it ends.
        Followed::Line(line) => drop(printer.line(line)),
        Followed::State(_) => {}
        Followed::Away(why) => eprintln!("-- {}; trying again", plain(why)),
    });
    let ended = ended.await?;
    if arguments.json {
        print(&format!("{}\n", ascii(&ended)));
    }
    eprintln!("{}", outcome::sentence(&ended));
    Ok(outcome::exit(&ended))
}

async fn whole(client: &Client, arguments: &Arguments) -> Result<Exit, Failure> {
    let printer = Printer::new(arguments.json);
    let path = build_path(&arguments.id, "/log", arguments.user.as_deref());
    let mut answer = client.open(&path, &[("accept", "text/plain".to_owned())]).await?;
    let mut line = Vec::new();
    while let Some(bytes) = answer.chunk().await.map_err(|error| client.broken(error))? {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if line.ends_with(b"\n") {
                line.pop();
                if !printer.line(&String::from_utf8_lossy(&line)) {
                    return Ok(Exit::Ok);
                }
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        printer.line(&String::from_utf8_lossy(&line));
    }
    Ok(Exit::Ok)
}
