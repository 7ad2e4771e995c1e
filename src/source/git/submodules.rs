//! A commit's files with those of its submodules, nested ones included, and with their LFS content.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use git2::Oid;
use image_builder_actors::model::fault::{Fault, Reason};

use super::fetcher::Fetcher;
use super::lfs::{Placeholder, Pointer};
use super::objects::{CheckedOut, FoundPointer, shown};
use super::remote::{Connection, discover};
use super::resolve::Wanted;
use super::{ini, lfs};
use crate::source::fault;
use crate::source::http::Address;

/// A submodule that has still to be fetched.
struct Pending {
    address: Address,
    commit: Oid,
    /// The path from the root of it all, for people.
    path: String,
    /// Where its files belong: an empty directory.
    directory: PathBuf,
}

/// Fills in what is unfinished of a tree of files: the content of Git LFS files and the submodules, nested
/// ones included, one at a time.
pub(super) fn finish(
    fetcher: &Fetcher,
    connection: &Connection,
    checked_out: CheckedOut,
    tree: &Path,
) -> Result<(), Fault> {
    let session = &fetcher.http.session;
    let mut pending = finish_one(fetcher, connection, checked_out, tree, "")?;
    while let Some(submodule) = pending.pop() {
        session.check()?;
        session.note(format!("fetching submodule {}", submodule.path));
        let Pending { address, commit, path, directory } = submodule;
        let authorization = fetcher.home.authorization_for(&address);
        let (connection, refs) = discover(&fetcher.http, &address, authorization)?;
        let wanted = match refs.refs.iter().find(|each| each.id == commit) {
            Some(_) => Wanted::Tip(commit),
            None => Wanted::Commit { id: commit, branch: None },
        };
        let (_, checked_out) = fetcher.fetch(&connection, &refs, &wanted, &directory)?;
        let prefix = format!("{path}/");
        pending.extend(finish_one(fetcher, &connection, checked_out, &directory, &prefix)?);
    }
    Ok(())
}

/// Fills in the Git LFS files of one repository, and returns the submodules that belong among its files.
fn finish_one(
    fetcher: &Fetcher,
    connection: &Connection,
    checked_out: CheckedOut,
    directory: &Path,
    prefix: &str,
) -> Result<Vec<Pending>, Fault> {
    let session = &fetcher.http.session;
    let CheckedOut { pointers, submodules, modules, lfs_config, notes, .. } = checked_out;
    for note in notes {
        session.note(match prefix.trim_end_matches('/') {
            "" => note,
            path => format!("submodule {path}: {note}"),
        });
    }
    if !pointers.is_empty() {
        let placeholder = |found: FoundPointer| Placeholder {
            file: directory.join(OsStr::from_bytes(&found.path)),
            path: format!("{prefix}{}", shown(&found.path)),
            executable: found.executable,
            pointer: Pointer { oid: found.oid, size: found.size },
        };
        let pointers: Vec<_> = pointers.into_iter().map(placeholder).collect();
        lfs::fill_in(connection, lfs_config.as_deref(), &pointers, &fetcher.scratch)?;
    }
    let declared = declarations(modules.as_deref().unwrap_or_default());
    let mut pending = Vec::new();
    for (path, commit) in submodules {
        session.count_submodule()?;
        let shown_path = format!("{prefix}{}", shown(&path));
        let declaration = std::str::from_utf8(&path).ok().and_then(|path| declared.get(path));
        let Some(Declaration { url, skipped }) = declaration else {
            // The checkout has made it.
            session.note(format!(
                "submodule {shown_path} is an empty directory: .gitmodules does not say where it is"
            ));
            continue;
        };
        if *skipped {
            continue;
        }
        let missing = |what: &str| {
            let message = format!("Submodule `{shown_path}` has no {what}.");
            fault(Reason::RepositoryNotFound, message)
        };
        let url = url.as_deref().ok_or_else(|| missing("`url` in .gitmodules"))?;
        pending.push(Pending {
            address: address(fetcher, &connection.address, &shown_path, url)?,
            commit: Oid::from_str(&commit).map_err(|_| missing("commit"))?,
            directory: directory.join(OsStr::from_bytes(&path)),
            path: shown_path,
        });
    }
    Ok(pending)
}

/// Where a submodule is, as far as a build may go there.
fn address(
    fetcher: &Fetcher,
    parent: &Address,
    path: &str,
    declared: &str,
) -> Result<Address, Fault> {
    let url = fetcher.home.submodule_url(&parent.url, declared).map_err(|problem| {
        fault(
            Reason::ForbiddenSource,
            format!("Submodule `{path}` must not be fetched from its address: {problem}."),
        )
    })?;
    let address = Address {
        is_trusted: fetcher.home.owns(&url),
        is_api: false,
        label: format!("submodule `{path}` ({url})"),
        url,
    };
    fetcher.http.check(&address, &address.url)?;
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
