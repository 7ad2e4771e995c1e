//! `image-builder queue`: what waits where on the broker, and lanes that are emptied.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{environment, print, wait_for};
use crate::broker::rabbitmq::queues::{Counts, Queues, QueuesError, Seen};
use crate::broker::rabbitmq::topology::Role;
use crate::broker::sqlite::queues::{Counted, waiting_by_queue};
use crate::config::{Config, ConfigErrors};
use crate::data_dir;
use crate::exit::Exit;
use crate::wiring;

/// The exit codes, as `--help` tells them.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0   done
  64  usage
  69  the broker or a queue is not available
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
    /// Move all requests that wait in the lanes back into the build queue
    ///
    /// A version of image-builder without lanes takes them from there. Stop the workers first: those that
    /// run read the build queue and fill the lanes again. Each request is in the build queue before it is
    /// removed from its lane, with its id, its time and what is known of it; a command that is killed loses
    /// nothing, and can be run again. Lanes that are left empty may be deleted.
    #[command(after_long_help = concat!(exit_codes!(), "\nExample:\n  image-builder queue move"))]
    Move {
        /// Print one line of JSON: how many were moved
        #[arg(long)]
        json: bool,
    },
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.config()?;
    let Some(queues) = wiring::queues(&config) else {
        return Ok(wait_for(embedded(&config, arguments)));
    };
    let done = wait_for(async {
        match arguments.command {
            None => show(&queues, arguments.json).await,
            Some(Command::Move { json }) => empty_lanes(&queues, json).await,
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
            "image-builder: the embedded queue has no lanes; set RABBITMQ_URI where those of RabbitMQ are meant"
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
