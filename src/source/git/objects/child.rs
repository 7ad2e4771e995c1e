//! The git child: libgit2, in a process of its own.
//!
//! A pack of a kilobyte may unpack to gigabytes, and what reads it is a large library in C. In a child none
//! of that reaches the worker, and a child can be bounded and killed. It has no network and no credential:
//! the worker fetches, and hands it the pack.

use std::fs;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use git2::{ErrorCode, Indexer, ObjectType, Oid, Repository};
use image_builder_actors::model::fault::{Fault, Reason};
use rustix::process::Resource;

use super::repository::{check_size, git_fault, object, open};
use super::selection::Selection;
use super::wire::{self, Answer, CheckOut, CheckedOut, Command, Start};
use super::{CHILD, checkout, git_directory};
use crate::child;
use crate::source::fault;

/// Runs the child if the program was called as it; `None` = it was not. To be asked first thing in
/// `main`, before anything is read or started.
pub(in crate::source) fn run() -> Option<ExitCode> {
    if !child::is_called(CHILD) {
        return None;
    }
    Some(match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "{error}"));
            ExitCode::from(child::EXIT_WORKER)
        }
    })
}

fn serve() -> io::Result<()> {
    let mut input = BufReader::with_capacity(4 * wire::PIECE, io::stdin().lock());
    let mut output = BufWriter::new(io::stdout().lock());
    let Some(start) = wire::message::<Start>(&mut input)? else { return Ok(()) };
    child::limit(Resource::Core, 0, 0)?;
    child::limit_cpu(start.cpu_seconds)?;
    // Not the address space: packs are mapped, and cost no memory that cannot be had back.
    child::limit(Resource::Data, start.memory_bytes, start.memory_bytes)?;
    // Where the machine runs out of memory before that, this is what it should end, not the worker.
    drop(fs::write("/proc/self/oom_score_adj", "1000"));
    set_up().map_err(|error| io::Error::other(error.message().to_owned()))?;

    let repository = open(&start.repository);
    while let Some(command) = wire::message(&mut input)? {
        let answer = match &repository {
            Ok(repository) => perform(repository, command, &mut input),
            Err(fault) => Err(fault.clone()),
        };
        let failed = answer.is_err();
        wire::answer(&mut output, &answer.unwrap_or_else(Answer::from))?;
        if failed {
            // What is left of a pack is nobody's.
            break;
        }
    }
    Ok(())
}

/// libgit2 reads no configuration of the machine or its user, maps packs in small windows, and takes what
/// was indexed for what its name says: it was named by what it is.
#[allow(
    unsafe_code,
    reason = "libgit2 is set up for the whole process, which has one thread and has opened nothing"
)]
pub(super) fn set_up() -> Result<(), git2::Error> {
    use git2::{ConfigLevel, opts};
    for level in
        [ConfigLevel::System, ConfigLevel::Global, ConfigLevel::XDG, ConfigLevel::ProgramData]
    {
        // SAFETY: no other thread is there.
        unsafe { opts::set_search_path(level, "")? };
    }
    // SAFETY: the same.
    unsafe {
        opts::set_mwindow_size(32 << 20)?;
        opts::set_mwindow_mapped_limit(128 << 20)?;
        opts::set_cache_max_size(32 << 20)?;
        // The worker names the repository, and it is the worker's.
        opts::set_verify_owner_validation(false)?;
    }
    opts::strict_hash_verification(false);
    Ok(())
}

fn perform(
    repository: &Repository,
    command: Command,
    input: &mut impl Read,
) -> Result<Answer, Fault> {
    match command {
        Command::Index => index(repository, input),
        Command::Has(id) => {
            let odb = repository.odb().map_err(|error| git_fault(&error))?;
            Ok(Answer::Is(odb.exists(object(&id)?)))
        }
        Command::Peel(id) => peel(repository, object(&id)?).map(Answer::Commit),
        Command::Starting { digits, tips } => starting(repository.path(), &digits, &tips),
        Command::CheckOut(wish) => check_out(repository, &wish),
        Command::GitDirectory(wish) => git_directory::write(repository.path(), &wish),
    }
}

/// Takes a pack. It is there as a whole, or not at all.
pub(super) fn index(repository: &Repository, input: &mut impl Read) -> Result<Answer, Fault> {
    let packs = repository.path().join("objects/pack");
    // A pack may build on what is there.
    let there = repository.odb().map_err(|error| git_fault(&error))?;
    let mut indexer =
        Indexer::new(Some(&there), &packs, 0o444, false).map_err(|error| git_fault(&error))?;
    let mut head = Vec::with_capacity(HEAD);
    let lost = |error: io::Error| fault(Reason::Crashed, format!("A pack was lost: {error}."));
    while let Some(piece) = wire::piece(input).map_err(lost)? {
        head.extend(piece.iter().take(HEAD - head.len()));
        indexer.write_all(&piece).map_err(|error| {
            let by_git = error.get_ref().and_then(|error| error.downcast_ref());
            by_git.map_or_else(|| lost(io::Error::other("it cannot be kept")), git_fault)
        })?;
    }
    // A pack without an object: nothing is new.
    if head.len() == HEAD && head.starts_with(b"PACK") && head.ends_with(&[0; 4]) {
        return Ok(Answer::Done);
    }
    indexer.commit().map_err(|error| git_fault(&error))?;
    Ok(Answer::Done)
}

/// Length of a pack's head: `PACK`, its version and the number of its objects.
const HEAD: usize = 12;

pub(super) fn peel(repository: &Repository, id: Oid) -> Result<Option<String>, Fault> {
    check_size(repository, id)?;
    let object = repository.find_object(id, None).map_err(|error| git_fault(&error))?;
    match object.peel(ObjectType::Commit) {
        Ok(commit) => Ok(Some(commit.id().to_string())),
        Err(error)
            if matches!(error.code(), ErrorCode::InvalidSpec | ErrorCode::Peel)
                || object.kind() != Some(ObjectType::Tag) =>
        {
            Ok(None)
        }
        Err(error) => Err(git_fault(&error)),
    }
}

/// Opens the repository once more: where its history ends may have changed since.
fn starting(repository: &Path, digits: &str, tips: &[String]) -> Result<Answer, Fault> {
    let repository = open(repository)?;
    let mut walk = repository.revwalk().map_err(|error| git_fault(&error))?;
    for tip in tips {
        // A tag may point to something without a history.
        if let Ok(Some(commit)) = peel(&repository, object(tip)?) {
            walk.push(object(&commit)?).map_err(|error| git_fault(&error))?;
        }
    }
    let mut found = Vec::new();
    for id in walk {
        let id = id.map_err(|error| git_fault(&error))?.to_string();
        if id.starts_with(digits) {
            found.push(id);
            if found.len() > 1 {
                break;
            }
        }
    }
    Ok(Answer::Commits(found))
}

pub(super) fn check_out(repository: &Repository, wish: &CheckOut) -> Result<Answer, Fault> {
    let id = object(&wish.commit)?;
    let commit = repository.find_commit(id).map_err(|error| git_fault(&error))?;
    let tree = commit.tree_id();
    let mut unfinished = checkout::write_tree(repository, tree, wish)?;
    let text = |name, wanted: bool| {
        if wanted { checkout::text(repository, tree, name) } else { Ok(None) }
    };
    let lfs_config = text(".lfsconfig", !unfinished.pointers.is_empty())?;
    let selection = Selection::parse(lfs_config.as_deref().unwrap_or_default());
    let found = unfinished.pointers.len();
    unfinished.pointers.retain(|pointer| selection.allows(&pointer.path));
    let left = found - unfinished.pointers.len();
    if left > 0 {
        let note = format!("{left} of {found} Git LFS files stay pointers, as .lfsconfig says");
        unfinished.notes.push(note);
    }
    Ok(Answer::CheckedOut(Box::new(CheckedOut {
        committed_at: commit.committer().when().seconds(),
        modules: text(".gitmodules", !unfinished.submodules.is_empty())?,
        lfs_config,
        submodules: unfinished.submodules,
        pointers: unfinished.pointers,
        notes: unfinished.notes,
        room: wish.room.clone(),
    })))
}
