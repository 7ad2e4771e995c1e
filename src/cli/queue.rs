//! `image-builder queue`: what waits where on the broker, and lanes that are emptied.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{environment, print, wait_for};
use crate::broker::rabbitmq::queues::{Counts, Queues, QueuesError, Seen};
use crate::broker::rabbitmq::topology::Role;
use crate::broker::sqlite::moving::Moved;
use crate::broker::sqlite::queues::{Counted, waiting_by_queue};
use crate::config::{Config, ConfigErrors, broker_address};
use crate::data_dir;
use crate::exit::Exit;
use crate::wiring;

/// Between two reports of how far a long move is.
const BETWEEN_REPORTS: Duration = Duration::from_secs(1);

/// The exit codes, as `--help` tells them.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0   done
  64  usage
  69  the broker or a queue is not available
  75  `queue move`: DATA_DIR is in use; stop the worker first
  78  bad settings, or the broker refuses them
"
    };
}

/// Show how many messages wait in which queue.
///
/// Lists the build queue, the lanes that requests wait in for their turn, the queues that delay retries, and
/// those of failed attempts, outcomes and dead letters. On RabbitMQ, messages that somebody has in hand are not
/// counted. Where RABBITMQ_URI is not set it is the embedded queue in DATA_DIR that is counted, whether or not
/// its worker is at work. The settings come from the environment or config/.env like the worker's own; nothing
/// is touched.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = concat!(exit_codes!(), "
Examples:
  image-builder queue
  image-builder queue --json | jq -r 'select(.role == \"lane\") | .ready'
  image-builder queue move")
)]
pub struct Arguments {
    /// Print one line of JSON for each queue; `ready` and `consumers` are null where there is no such queue
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Move what waits: the lanes' requests back into the build queue, or the embedded queue to RabbitMQ
    ///
    /// Without --to, all requests that wait in RabbitMQ's lanes go back into the build queue, where a version of
    /// image-builder without lanes takes them from. Lanes that are left empty may be deleted.
    ///
    /// With --to, all that waits in the embedded queue goes to the RabbitMQ at that address: requests, failed
    /// attempts, outcomes, what waits for its time, dead letters and cancellations. Set RABBITMQ_URI afterwards.
    ///
    /// Stop the workers first. Each message is confirmed where it goes before it is removed where it was, with its
    /// id, its time and what is known of it; a command that is killed loses nothing, and can be run again.
    #[command(after_long_help = concat!(exit_codes!(), "
Examples:
  image-builder queue move
  image-builder queue move --to - < address"))]
    Move {
        /// Print one line of JSON: how many were moved
        #[arg(long)]
        json: bool,
        /// Where the embedded queue is moved to: an amqp:// or amqps:// address, or - to read it from standard
        /// input, where no other user of the machine sees its password
        #[arg(long, value_name = "ADDRESS")]
        to: Option<String>,
    },
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.config()?;
    if let Some(Command::Move { json, to: Some(to) }) = &arguments.command {
        return Ok(wait_for(move_to(&config, to, *json)));
    }
    let Some(queues) = wiring::queues(&config) else {
        return Ok(wait_for(embedded(&config, arguments)));
    };
    let done = wait_for(async {
        match &arguments.command {
            None => show(&queues, arguments.json).await,
            Some(Command::Move { json, .. }) => empty_lanes(&queues, *json).await,
        }
    });
    Ok(done.unwrap_or_else(|error| {
        eprintln!("image-builder: {error}");
        match error {
            QueuesError::Refused(_) => Exit::Config,
            _ => Exit::Unavailable,
        }
    }))
}

/// The same of the embedded queue.
async fn embedded(config: &Config, arguments: &Arguments) -> Exit {
    if arguments.command.is_some() {
        eprintln!(
            "image-builder: the embedded queue has no lanes: say --to where to move it, or set RABBITMQ_URI where those of RabbitMQ are meant"
        );
        return Exit::Usage;
    }
    match waiting_by_queue(&config.data_dir.join(data_dir::QUEUE)).await {
        Ok(counted) if arguments.json => print(&counted_as_json(&counted)),
        Ok(counted) => print(&counted_as_table(&counted)),
        Err(error) => {
            eprintln!("image-builder: {error}");
            Exit::Unavailable
        }
    }
}

/// Moves the embedded queue to RabbitMQ.
async fn move_to(config: &Config, to: &str, json: bool) -> Exit {
    let uri = match to {
        "-" => io::read_to_string(io::stdin()).map(|text| text.trim().to_owned()),
        uri => Ok(uri.to_owned()),
    };
    let uri = uri.map_err(|error| format!("cannot read the address: {error}"));
    let uri = match uri.and_then(|uri| broker_address(&uri).map_err(|what| format!("--to: {what}")))
    {
        Ok(uri) => uri,
        Err(text) => {
            eprintln!("image-builder: {text}");
            return Exit::Usage;
        }
    };
    let mut told = Instant::now();
    let moved = wiring::move_queue(config, uri, |moved| {
        if told.elapsed() > BETWEEN_REPORTS {
            told = Instant::now();
            eprintln!("moved {} messages", moved.messages);
        }
    });
    let Moved { messages, dead_letters, cancellations, unreadable } = match moved.await {
        Ok(moved) => moved,
        Err(error) => return error.told(),
    };
    print(&match json {
        true => {
            let line = json!({
                "moved": messages,
                "deadLetters": dead_letters,
                "cancellations": cancellations,
                "unreadable": unreadable,
            });
            format!("{line}\n")
        }
        false => {
            let left = match unreadable {
                0 => String::new(),
                some => format!("; {some} cannot be read, and were left"),
            };
            format!(
                "moved {messages} messages, {dead_letters} dead letters and {cancellations} cancellations{left}\n"
            )
        }
    })
}

fn counted_as_json(counted: &[Counted]) -> String {
    let mut lines = String::new();
    for Counted { queue, waiting, delayed, in_hand } in counted {
        let line = json!({"name": queue, "role": queue, "ready": waiting, "delayed": delayed, "inHand": in_hand});
        let _ = writeln!(lines, "{line}");
    }
    lines
}

fn counted_as_table(counted: &[Counted]) -> String {
    let mut lines = "QUEUE    READY    DELAYED  IN HAND\n".to_owned();
    for Counted { queue, waiting, delayed, in_hand } in counted {
        let _ = writeln!(lines, "{queue:<7}  {waiting:<7}  {delayed:<7}  {in_hand}");
    }
    lines
}

async fn show(queues: &Queues, json: bool) -> Result<Exit, QueuesError> {
    let seen = queues.look().await?;
    Ok(print(&if json { lines_of_json(&seen) } else { table(&seen) }))
}

async fn empty_lanes(queues: &Queues, json: bool) -> Result<Exit, QueuesError> {
    let seen = queues.look().await?;
    let build = seen.iter().find(|queue| queue.role == Role::Build);
    let consumers = build.and_then(|queue| queue.counts).map_or(0, |counts| counts.consumers);
    if consumers > 0 {
        eprintln!(
            "image-builder: warning: {consumers} of the workers still read the build queue, and fill the \
             lanes again: stop them first"
        );
    }
    let moved = queues.empty_lanes().await?;
    Ok(print(&match json {
        true => format!("{}\n", json!({"moved": moved})),
        false => format!("moved {moved}\n"),
    }))
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Build => "build",
        Role::Fail => "fail",
        Role::Outcome => "outcome",
        Role::Dead => "dead",
        Role::Result => "result",
        Role::Lane => "lane",
        Role::Rung => "retry",
        Role::Ledger | Role::Cancellations => "stream",
    }
}

fn lines_of_json(seen: &[Seen]) -> String {
    let mut lines = String::new();
    for Seen { name, role: of, counts } in seen {
        let ready = counts.map(|counts| counts.ready);
        let consumers = counts.map(|counts| counts.consumers);
        let line = json!({"name": name, "role": role(*of), "ready": ready, "consumers": consumers});
        let _ = writeln!(lines, "{line}");
    }
    lines
}

fn table(seen: &[Seen]) -> String {
    let widest = seen.iter().map(|queue| queue.name.chars().count()).max().unwrap_or(0);
    let mut lines = format!("{:<widest$}  ROLE     READY    CONSUMERS\n", "QUEUE");
    for Seen { name, role: of, counts } in seen {
        let line = match counts {
            Some(Counts { ready, consumers }) => {
                format!("{name:<widest$}  {:<7}  {ready:<7}  {consumers}", role(*of))
            }
            None => format!("{name:<widest$}  {:<7}  there is no such queue", role(*of)),
        };
        let _ = writeln!(lines, "{line}");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> [Seen; 2] {
        let counts = Some(Counts { ready: 12, consumers: 3 });
        [
            Seen { name: "builds".to_owned(), role: Role::Build, counts },
            Seen { name: "builds.lane.1".to_owned(), role: Role::Lane, counts: None },
        ]
    }

    #[test]
    fn queues_are_listed_one_a_line() {
        assert_eq!(
            table(&seen()),
            "QUEUE          ROLE     READY    CONSUMERS\n\
             builds         build    12       3\n\
             builds.lane.1  lane     there is no such queue\n"
        );
    }

    #[test]
    fn a_queue_that_is_not_there_has_no_counts_in_json() {
        let lines = lines_of_json(&seen());
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(
            lines,
            [
                r#"{"consumers":3,"name":"builds","ready":12,"role":"build"}"#,
                r#"{"consumers":null,"name":"builds.lane.1","ready":null,"role":"lane"}"#,
            ]
        );
    }
}
