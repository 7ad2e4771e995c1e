//! `image-builder read-log`: a worker's log as a person reads it.

use std::io;

use clap::Args;

use crate::exit::Exit;
use crate::telemetry::read::LogReader;

/// Show a log in JSON, from the standard input, as text.
///
/// Lines that are no log lines are shown as they are. What `docker compose logs` puts before a line stays
/// there, and tells the workers apart.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Colours are for terminals. NO_COLOR=1 takes them away; where the output only leads to a terminal,
CLICOLOR_FORCE=1 gives them, and COLUMNS says how wide it is.

Exit codes:
  0   the log has ended, or nobody reads on
  1   it cannot be read, or not be written
  64  usage

Example:
  docker logs -f worker 2>&1 | image-builder read-log")]
pub struct Arguments {}

/// Reads until the log ends.
pub fn run() -> Exit {
    match LogReader::to_stdout().read(io::stdin().lock(), io::stdout().lock()) {
        Ok(()) => Exit::Ok,
        // Whoever read us has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            eprintln!("image-builder: the log cannot be passed on: {error}");
            Exit::Failed
        }
    }
}
