//! A `.git` beside the files of a commit: what `git describe`, `git log` and `git status` read.
//!
//! It is made anew, of objects and names alone: no address, no credential, no hook, and no configuration but that it
//! is a repository. The same commit and tags make the same bytes of it, whatever the server packed.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use git2::{Index, Oid, Reference, Repository, Sort};
use image_builder_actors::model::fault::{Fault, Reason};

use super::repository::{check_size, git_fault, object, open};
use super::wire::{Answer, GitDirectory};
use crate::source::fault;
use crate::source::git::files::{disk_fault, new_directory, new_file};

/// What git needs to know.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n";
/// Objects of more bytes are packed as they are: that takes no time, and always gives the same pack.
const LARGEST_DELTA: i64 = 50;
/// All commits together may hold so many bytes: a server can send them as little that unpacks to much.
const MOST_COMMITS: usize = 1 << 30;
/// The directories of a repository, each after the one that it is in.
const DIRECTORIES: [&str; 7] =
    ["", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags"];

/// Writes it. `repository` has the commit with its files, and all commits before it.
pub(super) fn write(repository: &Path, wish: &GitDirectory) -> Result<Answer, Fault> {
    // Opened once more: where its history ends has changed since.
    let repository = open(repository)?;
    let commit = object(&wish.commit)?;
    let place = wish.directory.join(".git");
    for directory in DIRECTORIES {
        new_directory(&place.join(directory)).map_err(|error| disk_fault(&error, "`.git`"))?;
    }
    let commits = commits(&repository, commit)?;
    let tags = tags(&repository, wish, &commits.iter().copied().collect())?;
    pack(&repository, commit, &commits, &tags, &place.join("objects/pack"))
        .map_err(|error| git_fault(&error))?;
    write_index(&repository, commit, &place.join("index")).map_err(|error| git_fault(&error))?;

    let branch = wish.branch.as_ref().map(|name| format!("refs/heads/{name}"));
    let branch = branch.filter(|name| Reference::is_valid_name(name));
    let head = branch.as_ref().map_or_else(|| commit.to_string(), |name| format!("ref: {name}"));
    let refs = packed_refs(commit, branch.as_deref(), &tags);
    for (name, text) in [("config", CONFIG), ("HEAD", &format!("{head}\n")), ("packed-refs", &refs)]
    {
        new_file(&place.join(name), false)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| disk_fault(&error, "`.git`"))?;
    }
    Ok(Answer::Done)
}

/// A tag of one of the commits.
struct Tag {
    name: String,
    /// What its ref points to: the commit, or a tag object.
    id: Oid,
    /// The tag objects on the way to the commit.
    objects: Vec<Oid>,
    commit: Oid,
}

/// A commit and all that it comes from, in an order that depends on nothing else.
fn commits(repository: &Repository, commit: Oid) -> Result<Vec<Oid>, Fault> {
    let walk = || {
        let mut walk = repository.revwalk()?;
        walk.set_sorting(Sort::TOPOLOGICAL | Sort::TIME)?;
        walk.push(commit)?;
        walk.collect::<Result<Vec<_>, _>>()
    };
    let mut commits = walk().map_err(|error| git_fault(&error))?;
    commits.sort_unstable();
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    let mut left = MOST_COMMITS;
    for id in &commits {
        let (bytes, _) = odb.read_header(*id).map_err(|error| git_fault(&error))?;
        left = left.checked_sub(bytes).ok_or_else(|| {
            let message = "The history has more than 1 GiB of commits: leave out `keepGitDir`.";
            fault(Reason::TooLarge, message)
        })?;
    }
    Ok(commits)
}

/// Those of the tags that are of one of these commits, by their names.
fn tags(
    repository: &Repository,
    wish: &GitDirectory,
    commits: &HashSet<Oid>,
) -> Result<Vec<Tag>, Fault> {
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    let mut tags = Vec::new();
    for (name, id) in &wish.tags {
        let (name, id) = (format!("refs/tags/{name}"), object(id)?);
        // The server sends tag objects for commits that it sends, and for no others.
        if !Reference::is_valid_name(&name) || !odb.exists(id) {
            continue;
        }
        let (objects, commit) = chain(repository, id)?;
        if commits.contains(&commit) {
            tags.push(Tag { name, id, objects, commit });
        }
    }
    tags.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(tags)
}

/// The tag objects from one on, since a tag may be of a tag, and what the last one is of.
fn chain(repository: &Repository, id: Oid) -> Result<(Vec<Oid>, Oid), Fault> {
    let (mut objects, mut next) = (Vec::new(), id);
    let odb = repository.odb().map_err(|error| git_fault(&error))?;
    while odb.exists(next) {
        check_size(repository, next)?;
        let Ok(tag) = repository.find_tag(next) else { break };
        objects.push(next);
        next = tag.target_id();
    }
    Ok((objects, next))
}

fn pack(
    repository: &Repository,
    commit: Oid,
    commits: &[Oid],
    tags: &[Tag],
    directory: &Path,
) -> Result<(), git2::Error> {
    repository.config()?.set_i64("core.bigFileThreshold", LARGEST_DELTA)?;
    let mut pack = repository.packbuilder()?;
    pack.set_threads(1);
    let objects = tags.iter().flat_map(|tag| &tag.objects);
    for id in commits.iter().chain(objects) {
        pack.insert_object(*id, None)?;
    }
    pack.insert_tree(repository.find_commit(commit)?.tree_id())?;
    pack.write(directory, 0o444)
}

/// The list of the commit's files. Of none it says how it is on disk: git looks by itself whether one was changed.
fn write_index(repository: &Repository, commit: Oid, path: &Path) -> Result<(), git2::Error> {
    let mut index = Index::open(path)?;
    index.read_tree(&repository.find_commit(commit)?.tree()?)?;
    index.write()
}

fn packed_refs(commit: Oid, branch: Option<&str>, tags: &[Tag]) -> String {
    let mut text = "# pack-refs with: peeled fully-peeled sorted \n".to_owned();
    // Branches come before tags in their order.
    if let Some(branch) = branch {
        let _ = writeln!(text, "{commit} {branch}");
    }
    for tag in tags {
        let _ = writeln!(text, "{} {}", tag.id, tag.name);
        if tag.id != tag.commit {
            let _ = writeln!(text, "^{}", tag.commit);
        }
    }
    text
}
