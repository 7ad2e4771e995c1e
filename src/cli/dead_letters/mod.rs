//! The operator's commands for builds that were given up: `image-builder dead …`.
//!
//! | file | what it does |
//! |---|---|
//! | `arguments.rs` | the command line |
//! | `queue.rs` | reads the dead queue without taking anything from it |
//! | `letter.rs` | what is in the queue, and which of it is meant |
//! | `show.rs` | letters as people and programs read them |
//! | `given.rs` | what an operator gives for what was taken out of a letter |
//! | `redrive.rs` | from a letter to a fresh request |

mod arguments;
mod given;
mod letter;
mod queue;
mod redrive;
mod show;

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Stdout, Write};

use image_builder_actors::ports::Message;
use time::OffsetDateTime;

pub use arguments::Command;
use arguments::{Filter, List, Redrive};
use given::Given;
use letter::Letters;
use queue::{DeadQueue, QueueError};

use crate::broker::rabbitmq::RabbitSettings;
use crate::exit::Exit;

/// Why a command failed. The message says what to do, and holds no credential.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("{0}")]
    Given(#[from] given::GivenError),
    #[error("{0}")]
    NotFound(#[from] letter::NotFound),
    #[error("cannot redrive {id}: {refusal}")]
    Refused { id: String, refusal: redrive::Refusal },
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Failure::Queue(error) => error.exit(),
            Failure::Given(_) => Exit::Usage,
            Failure::NotFound(_) | Failure::Refused { .. } => Exit::Failed,
            // Whoever read us has seen enough.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Failure::Output(_) => Exit::Failed,
        }
    }
}

/// Carries out a command.
pub async fn run(command: Command, settings: &RabbitSettings) -> Exit {
    let mut out = BufWriter::new(io::stdout());
    let done = match command {
        Command::List(list) => self::list(list, settings, &mut out).await,
        Command::Show { id, json } => show(&id, json, settings, &mut out).await,
        Command::Redrive(redrive) => self::redrive(redrive, settings, &mut out).await,
        Command::Drop { id } => drop_letter(&id, settings, &mut out).await,
    };
    match done.and_then(|exit| Ok(out.flush().map(|()| exit)?)) {
        Ok(exit) => exit,
        Err(failure) => {
            let exit = failure.exit();
            if exit != Exit::Ok {
                eprintln!("image-builder: {failure}");
            }
            exit
        }
    }
}

type Out = BufWriter<Stdout>;

async fn open(settings: &RabbitSettings) -> Result<DeadQueue, QueueError> {
    DeadQueue::open(settings, |warning| eprintln!("image-builder: warning: {warning}")).await
}

async fn list(list: List, settings: &RabbitSettings, out: &mut Out) -> Result<Exit, Failure> {
    let mut queue = open(settings).await?;
    let mut listed = 0_usize;
    while let Some(batch) = queue.next().await? {
        for found in batch.filter(|found| list.filter.takes(found)) {
            if list.json {
                writeln!(out, "{}", show::json(&found))?;
            } else {
                if listed == 0 {
                    writeln!(out, "{}", show::heading())?;
                }
                writeln!(out, "{}", show::line(&found))?;
            }
            listed += 1;
        }
        out.flush()?;
    }
    queue.close().await?;
    if listed == 0 && !list.json {
        eprintln!("no dead letters{}", if list.filter.is_empty() { "" } else { " of this kind" });
    }
    Ok(Exit::Ok)
}

async fn show(
    id: &str,
    json: bool,
    settings: &RabbitSettings,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut queue = open(settings).await?;
    let letters = Letters::find(&mut queue, id).await?;
    queue.close().await?;
    for (number, found) in letters?.0.iter().enumerate() {
        if json {
            writeln!(out, "{}", show::json(found))?;
        } else {
            if number > 0 {
                writeln!(out)?;
            }
            show::whole(out, found)?;
        }
    }
    Ok(Exit::Ok)
}

async fn drop_letter(id: &str, settings: &RabbitSettings, out: &mut Out) -> Result<Exit, Failure> {
    let mut queue = open(settings).await?;
    let letters = Letters::find(&mut queue, id).await?;
    for found in letters.iter().flat_map(|letters| &letters.0) {
        queue.remove(found.tag).await?;
    }
    queue.close().await?;
    writeln!(out, "dropped {}", show::plain(letters?.id()))?;
    Ok(Exit::Ok)
}

async fn redrive(
    arguments: Redrive,
    settings: &RabbitSettings,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let given = Given::read(&arguments.credentials)?;
    match &arguments.id {
        Some(id) => redrive_one(id, &given, settings, out).await,
        None => redrive_all(&arguments.filter, &given, settings, out).await,
    }
}

async fn redrive_one(
    id: &str,
    given: &Given,
    settings: &RabbitSettings,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut queue = open(settings).await?;
    let letters = match Letters::find(&mut queue, id).await? {
        Ok(letters) => letters,
        Err(none) => {
            queue.close().await?;
            return Err(none.into());
        }
    };
    let found = letters.newest();
    let new_id = redrive::new_id(found);
    let request = given
        .check_secrets(found)
        .and_then(|()| redrive::request(found, given, redrive::Token::Always, &new_id));
    let body = match request {
        Ok(body) => body,
        Err(refusal) => {
            queue.close().await?;
            return Err(Failure::Refused { id: show::plain(letters.id()), refusal });
        }
    };
    queue.request(&message(body, &new_id)).await?;
    // All letters of one build are copies of one request.
    for found in &letters.0 {
        queue.remove(found.tag).await?;
    }
    queue.close().await?;
    writeln!(out, "{} -> {new_id}", show::plain(letters.id()))?;
    Ok(Exit::Ok)
}

async fn redrive_all(
    filter: &Filter,
    given: &Given,
    settings: &RabbitSettings,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut queue = open(settings).await?;
    let mut redriven = BTreeSet::new();
    let mut skipped = 0_usize;
    while let Some(batch) = queue.next().await? {
        for found in batch.filter(|found| filter.takes(found)) {
            if redriven.contains(&found.id) {
                // Another copy of the same request.
                queue.remove(found.tag).await?;
                continue;
            }
            let new_id = redrive::new_id(&found);
            match redrive::request(&found, given, redrive::Token::WhereNeeded, &new_id) {
                Ok(body) => {
                    queue.request(&message(body, &new_id)).await?;
                    queue.remove(found.tag).await?;
                    // Who does not listen any more does not end what was begun.
                    let _ = writeln!(out, "{} -> {new_id}", show::plain(&found.id));
                    redriven.insert(found.id);
                }
                Err(refusal) => {
                    eprintln!("skipped {}: {refusal}", show::plain(&found.id));
                    skipped += 1;
                }
            }
        }
        let _ = out.flush();
    }
    queue.close().await?;
    eprintln!("{} redriven, {skipped} skipped", redriven.len());
    Ok(if skipped == 0 { Exit::Ok } else { Exit::Failed })
}

fn message(body: Vec<u8>, id: &str) -> Message {
    Message {
        body,
        message_id: Some(id.to_owned()),
        timestamp: Some(OffsetDateTime::now_utc()),
        ..Message::default()
    }
}
