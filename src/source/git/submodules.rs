//! A commit's files with those of its submodules, nested ones included, and with their LFS content.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use git2::{Oid, Repository};
use image_builder_actors::model::fault::{Fault, Reason};

use super::address::Home;
use super::checkout::write_tree;
use super::remote::{Connection, discover};
use super::repository::{self, git_fault};
use super::resolve::Wanted;
use super::walk::shown;
use super::{ini, lfs, transfer};
use crate::source::fault;
use crate::source::http::{Address, Http, check_address};

/// Longest `.gitmodules` or `.lfsconfig` that is read, in bytes.
const LONGEST_CONFIG: usize = 1 << 20;

/// A commit of a repository.
pub(super) struct Recorded {
    pub(super) connection: Arc<Connection>,
    pub(super) commit: Oid,
}

/// A submodule that has still to be fetched.
struct Pending {
    address: Address,
    commit: Oid,
    /// The path from the root of it all, for people.
    path: String,
    /// Where its files belong: an empty directory.
    directory: PathBuf,
}

/// Writes the files of `recorded`, which is in `repository`, into `tree`, and those of its
/// submodules below it. Clones them into directories of their own in `scratch`, one at a time.
pub(super) fn check_out(
    home: &Home,
    repository: &Repository,
    recorded: &Recorded,
    tree: &Path,
    scratch: &Path,
) -> Result<(), Fault> {
    let http = &recorded.connection.http;
    let mut pending = check_out_one(home, repository, recorded, tree, "", scratch)?;
    while let Some(submodule) = pending.pop() {
        http.session.check()?;
        http.session.note(format!("fetching submodule {}", submodule.path));
        let bare = scratch.join("submodule.git");
        let repository = repository::create(&bare)?;
        let Pending { address, commit, path, directory } = submodule;
        let connection = fetch(http, home, &address, commit, &repository)?;
        let recorded = Recorded { connection, commit };
        let prefix = format!("{path}/");
        let below = check_out_one(home, &repository, &recorded, &directory, &prefix, scratch)?;
        pending.extend(below);
        drop(repository);
        repository::remove(&bare)?;
    }
    Ok(())
}

/// Writes one repository's own files, and returns the submodules that belong among them.
fn check_out_one(
    home: &Home,
    repository: &Repository,
    recorded: &Recorded,
    directory: &Path,
    prefix: &str,
    scratch: &Path,
) -> Result<Vec<Pending>, Fault> {
    let session = &recorded.connection.http.session;
    let unfinished = write_tree(session, repository, recorded.commit, directory)?;
    if !unfinished.pointers.is_empty() {
        let config = file(repository, recorded.commit, ".lfsconfig")?;
        let pointers = &unfinished.pointers;
        lfs::fill_in(&recorded.connection, config.as_deref(), pointers, scratch)?;
    }
    if unfinished.submodules.is_empty() {
        return Ok(Vec::new());
    }
    let declared = file(repository, recorded.commit, ".gitmodules")?;
    let declared = declarations(declared.as_deref().unwrap_or_default());
    let mut pending = Vec::new();
    for (path, commit) in unfinished.submodules {
        session.count_submodule()?;
        let shown_path = format!("{prefix}{}", shown(&path));
        let declaration = std::str::from_utf8(&path).ok().and_then(|path| declared.get(path));
        if declaration.is_some_and(|declaration| declaration.skipped) {
            continue;
        }
        let url = declaration.and_then(|declaration| declaration.url.as_deref());
        let url = url.ok_or_else(|| {
            fault(
                Reason::RepositoryNotFound,
                format!("Submodule `{shown_path}` has no `url` in .gitmodules."),
            )
        })?;
        pending.push(Pending {
            address: address(home, &recorded.connection.address, &shown_path, url)?,
            commit,
            path: shown_path,
            directory: directory.join(OsStr::from_bytes(&path)),
        });
    }
    Ok(pending)
}

fn fetch(
    http: &Arc<Http>,
    home: &Home,
    address: &Address,
    commit: Oid,
    repository: &Repository,
) -> Result<Arc<Connection>, Fault> {
    let (connection, refs) = discover(http, address, home.authorization_for(address))?;
    let wanted = match refs.refs.iter().find(|each| each.id == commit) {
        Some(_) => Wanted::Tip(commit),
        None => Wanted::Commit { id: commit, branch: None },
    };
    let connection = Arc::new(connection);
    transfer::obtain(&connection, &refs, &wanted, repository)?;
    Ok(connection)
}

/// Where a submodule is, as far as a build may go there.
fn address(home: &Home, parent: &Address, path: &str, declared: &str) -> Result<Address, Fault> {
    let url = home.submodule_url(&parent.url, declared).map_err(|problem| {
        fault(
            Reason::ForbiddenSource,
            format!("Submodule `{path}` must not be fetched from its address: {problem}."),
        )
    })?;
    let address = Address {
        is_trusted: home.owns(&url),
        is_api: false,
        label: format!("submodule `{path}` ({url})"),
        url,
    };
    check_address(&address, &address.url)?;
    Ok(address)
}

/// What `.gitmodules` says of a submodule.
#[derive(Debug, Default)]
struct Declaration {
    url: Option<String>,
    /// `update = none`: git leaves the directory empty.
    skipped: bool,
}

/// The declarations of `.gitmodules`, by path.
fn declarations(text: &str) -> HashMap<String, Declaration> {
    let mut by_name: HashMap<String, (Option<String>, Declaration)> = HashMap::new();
    for setting in ini::parse(text) {
        let (true, Some(name)) = (setting.section == "submodule", setting.subsection) else {
            continue;
        };
        let (path, declaration) = by_name.entry(name).or_default();
        match setting.key.as_str() {
            "path" => *path = Some(setting.value.trim_end_matches('/').to_owned()),
            "url" => declaration.url = Some(setting.value).filter(|url| !url.is_empty()),
            "update" => declaration.skipped = setting.value == "none",
            _ => {}
        }
    }
    by_name.into_values().filter_map(|(path, declaration)| Some((path?, declaration))).collect()
}

/// The text of a plain file in the root of a commit's tree.
fn file(repository: &Repository, commit: Oid, name: &str) -> Result<Option<String>, Fault> {
    let tree = repository
        .find_commit(commit)
        .and_then(|commit| commit.tree())
        .map_err(|error| git_fault(&error))?;
    let Some(entry) = tree.get_name(name) else { return Ok(None) };
    let Ok(blob) = repository.find_blob(entry.id()) else { return Ok(None) };
    if blob.content().len() > LONGEST_CONFIG {
        return Err(fault(Reason::TooLarge, format!("The file `{name}` has more than 1 MiB.")));
    }
    Ok(Some(String::from_utf8_lossy(blob.content()).into_owned()))
}
