//! Git's smart HTTP protocol: from a repository's address to a tree of files. Knows no forge.
//!
//! Everything that touches the network goes through [`Http`], so that a credential, an address, a status code,
//! a limit and a cancelled job are looked after in one place. What is fetched is read by libgit2, in a
//! [process of its own](objects::child).
//!
//! | file | does |
//! |---|---|
//! | `remote` | the protocol's requests |
//! | `advertisement` | the refs that a server offers |
//! | `resolve` | what of them a request asks for |
//! | `negotiation` | one fetch: what is wanted, and what is there |
//! | `answer` | what comes of it, with the pack |
//! | `transfer` | getting a commit from servers that allow more or less |
//! | `objects` | packs, and the files in them |
//! | `cache` | objects that are kept for the next time |
//! | `fetcher` | one repository, with all of these |
//! | `files` | what is written, with git's modes |
//! | `ini`, `address`, `submodules` | repositories inside repositories |
//! | `lfs` | real content in place of Git LFS pointers |

mod address;
mod advertisement;
mod answer;
mod cache;
mod fetcher;
mod files;
#[cfg(fuzzing)]
pub(super) mod fuzzing;
mod ini;
mod lfs;
mod negotiation;
pub(super) mod objects;
mod remote;
mod resolve;
mod submodules;
mod transfer;

use std::cell::Cell;
use std::sync::Arc;

use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::request::Target;
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::ports::FetchedSource;
use reqwest::Url;
use time::OffsetDateTime;

pub(super) use self::address::Home;
pub(super) use self::cache::Cache;
pub use self::cache::CacheSettings;
use self::fetcher::Fetcher;
pub(super) use self::objects::Git;
use super::http::{Address, Http};

/// One fetch, on a blocking thread. It owns the workspace: when the job was given up, the workspace
/// goes after the last write into it.
pub(super) struct Fetch {
    pub(super) http: Arc<Http>,
    pub(super) home: Home,
    pub(super) git: Git,
    pub(super) cache: Option<Arc<Cache>>,
    /// Whose request it is.
    pub(super) user: String,
    pub(super) repository: Address,
    /// The repository's address for people.
    pub(super) page: Url,
    /// A release is given as its tag, if there is one.
    pub(super) target: Target,
    pub(super) pinned: Option<String>,
    /// Whether the files are to have a `.git` beside them.
    pub(super) keeps_git_dir: bool,
    pub(super) workspace: Workspace,
}

impl Fetch {
    pub(super) fn run(self) -> Result<FetchedSource, Fault> {
        let Self { http, home, git, cache, user, .. } = self;
        let (address, page, workspace) = (self.repository, self.page, self.workspace);
        let session = http.session.clone();
        session.check()?;
        let started = Cell::new(Some(git.start(&session)?));
        let (connection, refs) =
            remote::discover(&http, &address, home.authorization_for(&address))?;
        let pinned = self.pinned.as_deref();
        let resolved = resolve::resolve(&refs, &self.target, pinned, &address)?;

        session.note(format!("fetching {} of {}", self.target, address.label));
        let scratch = workspace.path().to_owned();
        let fetcher = Fetcher { http, home, git, cache, user, scratch, started };
        let tree = workspace.path().join("tree");
        let (commit, checked_out) = if self.keeps_git_dir {
            let is_branch = matches!(self.target, Target::DefaultBranch | Target::Branch(_));
            let branch = resolved.version.as_deref().filter(|_| is_branch);
            fetcher.fetch_with_history(&connection, &refs, &resolved.wanted, &tree, branch)?
        } else {
            fetcher.fetch(&connection, &refs, &resolved.wanted, &tree)?
        };
        // A time that no calendar has counts as the beginning of time.
        let committed_at = OffsetDateTime::from_unix_timestamp(checked_out.committed_at)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        submodules::finish(&fetcher, &connection, checked_out, &tree)?;

        session.note_total();
        let version = resolved.version.unwrap_or_else(|| commit[..12].to_owned());
        Ok(FetchedSource { commit, committed_at, version, url: page.into(), tree, workspace })
    }
}
