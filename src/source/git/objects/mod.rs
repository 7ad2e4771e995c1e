//! The objects of one repository, as the worker sees them: in the hands of a [child] process.
//!
//! | file | does |
//! |---|---|
//! | `child` | the child: takes packs, and answers about what is in them |
//! | `wire` | what worker and child say to each other |
//! | `repository` | the repository that the objects are in |
//! | `walk`, `checkout`, `write` | from a commit to files, within the limits |
//! | `attributes`, `glob` | what `.gitattributes` say of a file |
//! | `conversion`, `encoding` | from what is stored of a file to what is written |
//! | `selection` | which Git LFS files are wanted |
//! | `git_directory` | a `.git` beside the files, where one is asked for |
//! | `unpacked` | files that are kept for the next commit |

mod attributes;
mod checkout;
pub(in crate::source) mod child;
mod conversion;
mod encoding;
#[cfg(fuzzing)]
pub(in crate::source) mod fuzzing;
mod git_directory;
mod glob;
mod repository;
mod selection;
#[cfg(test)]
mod tests;
pub(super) mod unpacked;
mod walk;
mod wire;
mod write;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use image_builder_actors::model::fault::{Fault, Reason};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

pub(super) use self::walk::shown;
use self::wire::{Answer, CheckOut, Command, GitDirectory, Start};
pub(super) use self::wire::{CheckedOut, FoundPointer};
use super::files::disk_fault;
use crate::child as process;
use crate::source::fault;
use crate::source::session::{Session, cancelled};

/// The argument that makes the program this child. Not for people.
const CHILD: &str = "__git-child";
const TOO_MUCH_MEMORY: &str = "Git needs more memory for the repository than it may have: its objects \
                               unpack to too much, or are too many.";
/// What is read of a child's last words, in bytes.
const LAST_WORDS: u64 = 2 << 10;

/// How git is run.
#[derive(Debug, Clone)]
pub(in crate::source) struct Git {
    /// The program that becomes the child: this one.
    pub(in crate::source) program: PathBuf,
    pub(in crate::source) memory_bytes: u64,
    pub(in crate::source) cpu_time: Duration,
}

/// A process of git's that waits for its work. Dropping it ends it.
pub(super) struct Started {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Git {
    /// Starts a process, which takes a while in which something else can be done.
    pub(super) fn start(&self, session: &Session) -> Result<Started, Fault> {
        let failed = |error| disk_fault(&error, "anything: git does not start");
        let _entered = session.runtime.enter();
        let mut child = process::command(&self.program, CHILD).spawn().map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        let (stdout, stderr) = (BufReader::new(stdout), child.stderr.take());
        Ok(Started { child, stdin, stdout, stderr })
    }
}

/// Why objects cannot be had.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server does not give out one of the wanted objects.
    NotOurs,
    /// What is there, or came, cannot be read.
    Unreadable(Fault),
    Fault(Fault),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Trouble::Fault(fault)
    }
}

/// The objects of a repository. Dropping it ends the child.
pub(super) struct Objects {
    session: Arc<Session>,
    git: Git,
    process: Started,
}

impl Objects {
    /// Those of the bare repository at this path, which is made where there is none.
    pub(super) fn open(
        session: &Arc<Session>,
        git: &Git,
        process: Started,
        repository: &Path,
    ) -> Result<Self, Fault> {
        let failed = |error| disk_fault(&error, "anything: git does not start");
        let (session, git) = (session.clone(), git.clone());
        let start = Start {
            repository: repository.to_owned(),
            memory_bytes: git.memory_bytes,
            cpu_seconds: git.cpu_time.as_secs().max(1),
        };
        let mut objects = Self { session, git, process };
        let frame = wire::framed(&start).map_err(failed)?;
        // A child that died without reading shows in its answer.
        drop(objects.session.clone().runtime.block_on(objects.process.stdin.write_all(&frame)));
        Ok(objects)
    }

    /// Whether there is such an object. With it is all that it was fetched with.
    pub(super) fn has(&mut self, id: &str) -> Result<bool, Trouble> {
        match self.ask(&Command::Has(id.to_owned()))? {
            Answer::Is(there) => Ok(there),
            other => Err(confused(&other)),
        }
    }

    /// The commit that an object is, or that a tag points to in the end; `None` = it is no commit.
    pub(super) fn peel(&mut self, id: &str) -> Result<Option<String>, Trouble> {
        match self.ask(&Command::Peel(id.to_owned()))? {
            Answer::Commit(commit) => Ok(commit),
            other => Err(confused(&other)),
        }
    }

    /// The commits that these tips reach and that begin with these digits, two at the most.
    pub(super) fn starting(
        &mut self,
        digits: &str,
        tips: &[String],
    ) -> Result<Vec<String>, Trouble> {
        let (digits, tips) = (digits.to_owned(), tips.to_vec());
        match self.ask(&Command::Starting { digits, tips })? {
            Answer::Commits(commits) => Ok(commits),
            other => Err(confused(&other)),
        }
    }

    /// Writes the files of a commit into `directory`, which is empty or does not exist, and counts them. With
    /// `keeps` they are kept beside the objects, and what is kept of them is taken.
    pub(super) fn check_out(
        &mut self,
        commit: &str,
        directory: &Path,
        keeps: bool,
    ) -> Result<CheckedOut, Trouble> {
        let room = self.session.room.clone();
        let (commit, directory) = (commit.to_owned(), directory.to_owned());
        match self.ask(&Command::CheckOut(CheckOut { commit, directory, keeps, room }))? {
            Answer::CheckedOut(done) => {
                self.session.room.take_over(&done.room);
                Ok(*done)
            }
            other => Err(confused(&other)),
        }
    }

    /// Writes a `.git` into a directory that has the files of a commit. All that leads to the commit is there.
    pub(super) fn write_git_directory(
        &mut self,
        commit: &str,
        branch: Option<&str>,
        tags: Vec<(String, String)>,
        directory: &Path,
    ) -> Result<(), Trouble> {
        let (commit, branch) = (commit.to_owned(), branch.map(str::to_owned));
        let wish = GitDirectory { commit, branch, tags, directory: directory.to_owned() };
        match self.ask(&Command::GitDirectory(wish))? {
            Answer::Done => Ok(()),
            other => Err(confused(&other)),
        }
    }

    fn ask(&mut self, command: &Command) -> Result<Answer, Trouble> {
        let session = self.session.clone();
        session.runtime.block_on(async {
            self.begin(command).await?;
            self.answer().await
        })
    }

    /// Says that a pack comes.
    pub(super) async fn begin_pack(&mut self) -> Result<(), Trouble> {
        self.begin(&Command::Index).await
    }

    /// Hands on a part of a pack.
    pub(super) async fn pack(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        for piece in bytes.chunks(wire::PIECE) {
            self.send(&(piece.len() as u32).to_be_bytes()).await?;
            self.send(piece).await?;
        }
        Ok(())
    }

    /// Says that the pack is there, and waits until it is taken.
    pub(super) async fn end_pack(&mut self) -> Result<(), Trouble> {
        self.send(&[0; 4]).await?;
        self.answer().await.map(drop)
    }

    async fn begin(&mut self, command: &Command) -> Result<(), Trouble> {
        let frame = wire::framed(command).map_err(|error| disk_fault(&error, "a request"))?;
        self.send(&frame).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let sent = tokio::select! {
            biased;
            () = self.session.cancel.cancelled() => return Err(cancelled().into()),
            sent = self.process.stdin.write_all(bytes) => sent,
        };
        match sent {
            Ok(()) => Ok(()),
            // It has ended, and said why, or its exit status does.
            Err(_) => self.answer().await.map(drop),
        }
    }

    async fn answer(&mut self) -> Result<Answer, Trouble> {
        let session = self.session.clone();
        tokio::select! {
            biased;
            () = session.cancel.cancelled() => Err(cancelled().into()),
            answer = self.read_answer() => answer,
        }
    }

    async fn read_answer(&mut self) -> Result<Answer, Trouble> {
        let Ok(length) = self.process.stdout.read_u32().await else {
            return Err(self.ended().await);
        };
        let mut frame = vec![0; (length as usize).min(wire::LONGEST)];
        if self.process.stdout.read_exact(&mut frame).await.is_err() {
            return Err(self.ended().await);
        }
        match serde_json::from_slice(&frame) {
            Ok(Answer::Failed { reason, message }) => {
                let fault = fault(reason, message);
                Err(match reason {
                    Reason::ForgeFailed => Trouble::Unreadable(fault),
                    _ => Trouble::Fault(fault),
                })
            }
            Ok(answer) => Ok(answer),
            Err(error) => Err(disk_fault(&error.into(), "what git said").into()),
        }
    }

    /// Why the child ended without an answer.
    async fn ended(&mut self) -> Trouble {
        let words = process::read_some(self.process.stderr.take(), LAST_WORDS).await;
        let words = String::from_utf8_lossy(&words);
        match self.process.child.wait().await {
            Ok(status) => {
                tracing::debug!(%status, %words, "git ended");
                broken_off(&self.git, status)
            }
            Err(error) => disk_fault(&error, "anything: git is gone").into(),
        }
    }
}

/// A child keeps to its limits, or is ended by them: that is the repository's doing.
fn broken_off(git: &Git, status: ExitStatus) -> Trouble {
    const SIGABRT: i32 = 6;
    const SIGKILL: i32 = 9;
    const SIGXCPU: i32 = 24;
    let worker =
        |what: &str| fault(Reason::Crashed, format!("The worker's git {what} ({status})."));
    match status.signal() {
        Some(SIGABRT) => fault(Reason::TooLarge, TOO_MUCH_MEMORY).into(),
        Some(SIGXCPU) => {
            let limit = git.cpu_time.as_secs();
            let message =
                format!("Git needs more than {limit} s of processor time for the repository.");
            fault(Reason::TooLarge, message).into()
        }
        Some(SIGKILL) => worker("was stopped by the system").into(),
        // Any other than the code of a panic.
        None if status.code() != Some(101) => worker("failed").into(),
        _ => Trouble::Unreadable(fault(
            Reason::ForbiddenSource,
            format!("Git breaks off when it reads the repository ({status}): it is malformed."),
        )),
    }
}

/// The fault of an answer to another question. There is none while both sides are of one program.
fn confused(answer: &Answer) -> Trouble {
    let what = match answer {
        Answer::CheckedOut(done) => format!("{} pointers", done.pointers.len()),
        other => format!("{other:?}"),
    };
    fault(Reason::Crashed, format!("The worker's git answered another question: {what}.")).into()
}
