//! The operator's commands for builds that were given up: `image-builder dead …`.
//!
//! | file | what it does |
//! |---|---|
//! | `arguments.rs` | the command line |
//! | `show.rs` | letters as people and programs read them |
//! | `given.rs` | what an operator gives for what was taken out of a letter |
//! | `over_http.rs` | the letters of a service that runs |
//!
//! What letters are, and what requests are made of them, is in [`crate::dead_letters`].

mod arguments;
pub(super) mod given;
pub(super) mod over_http;
mod show;

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Stdout, Write};

use image_builder_actors::ports::{DeadLetterReading, DeadLetterStore, DeadLettersError};

pub use arguments::Command;
use arguments::{Choice, List, Redrive};
use given::given;

use crate::dead_letters::letter::{Found, Letters, NotFound, Wanted};
use crate::dead_letters::redrive::{self, Given, message};
use crate::exit::Exit;
use crate::text;

/// Why a command failed. The message says what to do, and holds no credential.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Letters(#[from] DeadLettersError),
    #[error("{0}")]
    Given(#[from] given::GivenError),
    #[error("{0}")]
    NotFound(#[from] NotFound),
    #[error("cannot redrive {id}: {refusal}")]
    Refused { id: String, refusal: redrive::Refusal },
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Failure::Letters(DeadLettersError::Refused(_)) => Exit::Config,
            Failure::Letters(DeadLettersError::Busy(_)) => Exit::Temporary,
            Failure::Letters(DeadLettersError::Unavailable(_)) => Exit::Unavailable,
            Failure::Given(_) => Exit::Usage,
            Failure::NotFound(_) | Failure::Refused { .. } => Exit::Failed,
            // Whoever read us has seen enough.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Failure::Output(_) => Exit::Failed,
        }
    }
}

/// Carries out a command.
pub async fn run(command: Command, store: &dyn DeadLetterStore) -> Exit {
    let mut out = BufWriter::new(io::stdout());
    let done = match command {
        Command::List(list) => self::list(list, store, &mut out).await,
        Command::Show { id, user, json } => show(&Wanted { id, user }, json, store, &mut out).await,
        Command::Redrive(redrive) => self::redrive(redrive, store, &mut out).await,
        Command::Drop(choice) => drop_letters(choice, store, &mut out).await,
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

async fn open(store: &dyn DeadLetterStore) -> Result<Box<dyn DeadLetterReading>, DeadLettersError> {
    let reading = store.read().await?;
    if let Some(warning) = reading.warning() {
        eprintln!("image-builder: warning: {warning}");
    }
    Ok(reading)
}

async fn list(list: List, store: &dyn DeadLetterStore, out: &mut Out) -> Result<Exit, Failure> {
    let mut reading = open(store).await?;
    let mut listed = 0_usize;
    while let Some(batch) = reading.next().await? {
        for found in batch.into_iter().map(Found::of).filter(|found| list.filter.takes(found)) {
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
    reading.close().await?;
    if listed == 0 && !list.json {
        eprintln!("no dead letters{}", if list.filter.is_empty() { "" } else { " of this kind" });
    }
    Ok(Exit::Ok)
}

async fn show(
    wanted: &Wanted,
    json: bool,
    store: &dyn DeadLetterStore,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut reading = open(store).await?;
    let letters = Letters::find(&mut *reading, wanted).await?;
    reading.close().await?;
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

async fn drop_letters(
    choice: Choice,
    store: &dyn DeadLetterStore,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut reading = open(store).await?;
    let Some(wanted) = choice.wanted() else {
        let mut builds = BTreeSet::new();
        while let Some(batch) = reading.next().await? {
            for found in batch.into_iter().map(Found::of).filter(|it| choice.filter.takes(it)) {
                if !choice.dry_run {
                    reading.remove(&[found.tag]).await?;
                }
                if builds.insert(found.build()) {
                    // Who does not listen any more does not end what was begun.
                    let _ = writeln!(out, "{}", show::dropped(&found.id, &choice));
                }
            }
            let _ = out.flush();
        }
        reading.close().await?;
        let done = if choice.dry_run { "would be dropped" } else { "dropped" };
        eprintln!("{} {done}", builds.len());
        return Ok(Exit::Ok);
    };
    let letters = Letters::find(&mut *reading, &wanted).await?;
    let letters = letters.and_then(Letters::of_one_user);
    if let Ok(letters) = &letters
        && !choice.dry_run
    {
        reading.remove(&letters.tags()).await?;
    }
    reading.close().await?;
    writeln!(out, "{}", show::dropped(letters?.id(), &choice))?;
    Ok(Exit::Ok)
}

async fn redrive(
    arguments: Redrive,
    store: &dyn DeadLetterStore,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let given = given(&arguments.credentials)?;
    match arguments.choice.wanted() {
        Some(wanted) => redrive_one(&wanted, &arguments.choice, &given, store, out).await,
        None => redrive_all(&arguments.choice, &given, store, out).await,
    }
}

async fn redrive_one(
    wanted: &Wanted,
    choice: &Choice,
    given: &Given,
    store: &dyn DeadLetterStore,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut reading = open(store).await?;
    let letters = Letters::find(&mut *reading, wanted).await?;
    let letters = match letters.and_then(Letters::of_one_user) {
        Ok(letters) => letters,
        Err(none) => {
            reading.close().await?;
            return Err(none.into());
        }
    };
    let found = letters.newest();
    let new_id = redrive::new_id(found);
    let request = redrive::check_secrets(found, given)
        .and_then(|()| redrive::request(found, given, redrive::Token::Always, &new_id));
    let body = match request {
        Ok(body) => body,
        Err(refusal) => {
            reading.close().await?;
            return Err(Failure::Refused { id: text::plain(letters.id()), refusal });
        }
    };
    if !choice.dry_run {
        // All letters of one build are copies of one request.
        reading.redrive(message(body, &new_id), &letters.tags()).await?;
    }
    reading.close().await?;
    writeln!(out, "{}", show::redriven(letters.id(), &new_id, choice))?;
    Ok(Exit::Ok)
}

async fn redrive_all(
    choice: &Choice,
    given: &Given,
    store: &dyn DeadLetterStore,
    out: &mut Out,
) -> Result<Exit, Failure> {
    let mut reading = open(store).await?;
    let mut redriven = BTreeSet::new();
    let mut skipped = 0_usize;
    while let Some(batch) = reading.next().await? {
        for found in batch.into_iter().map(Found::of).filter(|it| choice.filter.takes(it)) {
            if redriven.contains(&found.build()) {
                // Another copy of the same user's request.
                if !choice.dry_run {
                    reading.remove(&[found.tag]).await?;
                }
                continue;
            }
            let new_id = redrive::new_id(&found);
            match redrive::request(&found, given, redrive::Token::WhereNeeded, &new_id) {
                Ok(body) => {
                    if !choice.dry_run {
                        reading.redrive(message(body, &new_id), &[found.tag]).await?;
                    }
                    // Who does not listen any more does not end what was begun.
                    let _ = writeln!(out, "{}", show::redriven(&found.id, &new_id, choice));
                    redriven.insert(found.build());
                }
                Err(refusal) => {
                    eprintln!("skipped {}: {refusal}", text::plain(&found.id));
                    skipped += 1;
                }
            }
        }
        let _ = out.flush();
    }
    reading.close().await?;
    let done = if choice.dry_run { "would be redriven" } else { "redriven" };
    eprintln!("{} {done}, {skipped} skipped", redriven.len());
    Ok(if skipped == 0 { Exit::Ok } else { Exit::Failed })
}
