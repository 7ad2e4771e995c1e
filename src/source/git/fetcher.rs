//! One repository's files: its objects from the server, as far as they are not kept from earlier, and its
//! tree from the objects.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use git2::Oid;
use image_builder_actors::model::fault::{Fault, Reason};

use super::address::Home;
use super::advertisement::{Advertisement, Ref};
use super::cache::{Cache, Entry, Kept};
use super::files::disk_fault;
use super::objects::{CheckedOut, Git, Objects, Started, Trouble};
use super::remote::Connection;
use super::resolve::Wanted;
use super::transfer::{Search, is_single};
use crate::source::fault;
use crate::source::http::{Address, Http};

/// What all repositories of one request are fetched with.
pub(super) struct Fetcher {
    pub(super) http: Arc<Http>,
    pub(super) home: Home,
    pub(super) git: Git,
    /// Where objects are kept for the next time; `None` = nowhere.
    pub(super) cache: Option<Arc<Cache>>,
    /// Whose request it is.
    pub(super) user: String,
    /// A directory for what is only needed meanwhile.
    pub(super) scratch: PathBuf,
    /// A process for the first repository, which started while its server was asked.
    pub(super) started: Cell<Option<Started>>,
}

impl Fetcher {
    /// Writes the files of what is wanted into `tree`; returns the commit, and what is unfinished.
    pub(super) fn fetch(
        &self,
        connection: &Connection,
        refs: &Advertisement,
        wanted: &Wanted,
        tree: &Path,
    ) -> Result<(String, CheckedOut), Fault> {
        let settled = |trouble| settled(trouble, &connection.address);
        if let Some(entry) = self.entry(connection, refs, wanted)? {
            let was_empty = entry.known().is_empty();
            match self.by_entry(connection, refs, wanted, tree, entry) {
                // It may be what was kept that is wrong, and not what was sent: without it, that shows.
                Err(Trouble::Unreadable(fault)) if !was_empty => {
                    tracing::warn!(%fault, "what was kept of a repository is thrown away");
                    remove(tree)?;
                }
                result => return result.map_err(settled),
            }
        }
        let repository = self.scratch.join("repository.git");
        let fetched = self.fetch_into_scratch(connection, refs, wanted, tree, &repository);
        let fetched = fetched.map_err(settled)?;
        remove(&repository)?;
        Ok(fetched)
    }

    /// The same, with a `.git` beside the files that has the commits before it, their tags, and `branch`. Nothing is
    /// taken from what is kept, nor kept.
    pub(super) fn fetch_with_history(
        &self,
        connection: &Connection,
        refs: &Advertisement,
        wanted: &Wanted,
        tree: &Path,
        branch: Option<&str>,
    ) -> Result<(String, CheckedOut), Fault> {
        let repository = self.scratch.join("repository.git");
        let fetch = || {
            let mut objects = self.objects(&repository)?;
            let mut search = Search {
                connection,
                refs,
                objects: &mut objects,
                repository: &repository,
                known: &[],
            };
            let commit = search.obtain(wanted)?;
            search.commits(&commit)?;
            let checked_out = objects.check_out(&commit, tree, false)?;
            objects.write_git_directory(&commit, branch, tags(refs), tree)?;
            Ok((commit, checked_out))
        };
        let fetched = fetch().map_err(|trouble| settled(trouble, &connection.address))?;
        remove(&repository)?;
        Ok(fetched)
    }

    /// What is kept of the repository for those who may see what this credential shows, and the turn to work
    /// on it.
    fn entry(
        &self,
        connection: &Connection,
        refs: &Advertisement,
        wanted: &Wanted,
    ) -> Result<Option<Entry>, Fault> {
        let Some(cache) = self.cache.as_ref().filter(|_| is_single(refs, wanted)) else {
            return Ok(None);
        };
        let session = &self.http.session;
        let shown = connection.authorization.as_ref();
        let authorization = shown.map(|shown| self.home.known_as(shown));
        let kept = Kept { user: &self.user, url: connection.url.as_str(), authorization };
        session.runtime.block_on(async {
            tokio::select! {
                biased;
                () = session.cancel.cancelled() => Ok(None),
                entry = cache.entry(&kept) => entry.map(Some),
            }
        })
    }

    fn objects(&self, repository: &Path) -> Result<Objects, Fault> {
        let session = &self.http.session;
        let process = self.started.take().map_or_else(|| self.git.start(session), Ok)?;
        Objects::open(session, &self.git, process, repository)
    }

    fn by_entry(
        &self,
        connection: &Connection,
        refs: &Advertisement,
        wanted: &Wanted,
        tree: &Path,
        mut entry: Entry,
    ) -> Result<(String, CheckedOut), Trouble> {
        let result = (|| {
            let repository = entry.path().to_owned();
            let mut objects = self.objects(&repository)?;
            let known: Vec<Oid> =
                entry.known().iter().filter_map(|id| Oid::from_str(id).ok()).collect();
            let mut search = Search {
                connection,
                refs,
                objects: &mut objects,
                repository: &repository,
                known: &known,
            };
            let commit = search.obtain(wanted)?;
            entry.keep(&commit)?;
            let checked_out = objects.check_out(&commit, tree, true)?;
            Ok((commit, checked_out))
        })();
        if matches!(result, Err(Trouble::Unreadable(_))) {
            entry.discard();
        }
        result
    }

    fn fetch_into_scratch(
        &self,
        connection: &Connection,
        refs: &Advertisement,
        wanted: &Wanted,
        tree: &Path,
        repository: &Path,
    ) -> Result<(String, CheckedOut), Trouble> {
        let mut objects = self.objects(repository)?;
        let objects_of = &mut objects;
        let mut search = Search { connection, refs, objects: objects_of, repository, known: &[] };
        let commit = search.obtain(wanted)?;
        let checked_out = objects.check_out(&commit, tree, false)?;
        Ok((commit, checked_out))
    }
}

/// The tags that a server lists, by name, with what they point to.
fn tags(refs: &Advertisement) -> Vec<(String, String)> {
    let name = |each: &Ref| Some(each.name.strip_prefix("refs/tags/")?.to_owned());
    refs.refs.iter().filter_map(|each| Some((name(each)?, each.id.to_string()))).collect()
}

/// The fault that trouble with a server comes to. What a stranger's server sends is the stranger's doing.
fn settled(trouble: Trouble, address: &Address) -> Fault {
    match trouble {
        Trouble::Fault(fault) => fault,
        Trouble::Unreadable(fault) if address.is_trusted => fault,
        Trouble::Unreadable(fault) => Fault { reason: Reason::ForbiddenSource, ..fault },
        Trouble::NotOurs => fault(
            Reason::RefNotFound,
            format!("The server of the {} does not give out what is wanted.", address.label),
        ),
    }
}

fn remove(directory: &Path) -> Result<(), Fault> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(disk_fault(&error, "the clone"))
        }
        _ => Ok(()),
    }
}
