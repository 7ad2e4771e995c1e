//! Git's smart HTTP protocol: from a repository's address to a tree of files. Knows no forge.
//!
//! libgit2 speaks the git protocol and keeps the objects; everything that touches the network goes
//! through [`Http`], so that a credential, an address, a status code, a limit and a cancelled job are
//! looked after in one place.
//!
//! | file | does |
//! |---|---|
//! | `remote` | the protocol's requests |
//! | `advertisement` | the refs that a server offers |
//! | `resolve` | what of them a request asks for |
//! | `transport` | one fetch by libgit2 over our HTTP |
//! | `transfer` | getting a commit from servers that allow more or less |
//! | `repository` | the clone itself |
//! | `walk`, `checkout`, `files` | from a commit to files, within the limits |
//! | `ini`, `address`, `submodules` | repositories inside repositories |
//! | `lfs` | real content in place of Git LFS pointers |

mod address;
mod advertisement;
mod checkout;
mod files;
mod ini;
mod lfs;
mod remote;
mod repository;
mod resolve;
mod submodules;
mod transfer;
mod transport;
mod walk;

use std::sync::Arc;

use git2::Repository;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::model::request::Target;
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::ports::FetchedSource;
use reqwest::Url;
use time::OffsetDateTime;

pub(super) use self::address::Home;
use self::submodules::Recorded;
pub(super) use self::transport::set_up_libgit2;
use super::http::{Address, Http};

/// One fetch, on a blocking thread. It owns the workspace: when the job was given up, the workspace
/// goes after the last write into it.
pub(super) struct Fetch {
    pub(super) http: Arc<Http>,
    pub(super) home: Home,
    pub(super) repository: Address,
    /// The repository's address for people.
    pub(super) page: Url,
    /// A release is given as its tag, if there is one.
    pub(super) target: Target,
    pub(super) pinned: Option<String>,
    pub(super) workspace: Workspace,
}

impl Fetch {
    pub(super) fn run(self) -> Result<FetchedSource, Fault> {
        let Self { http, home, repository: address, page, target, pinned, workspace } = self;
        let session = &http.session;
        session.check()?;
        let authorization = home.authorization_for(&address);
        let (connection, refs) = remote::discover(&http, &address, authorization)?;
        let resolved = resolve::resolve(&refs, &target, pinned.as_deref(), &address)?;

        session.note(format!("fetching {target} of {}", address.label));
        let bare = workspace.path().join("repository.git");
        let repository = repository::create(&bare)?;
        let connection = Arc::new(connection);
        let commit = transfer::obtain(&connection, &refs, &resolved.wanted, &repository)?;

        let tree = workspace.path().join("tree");
        let recorded = Recorded { connection, commit };
        submodules::check_out(&home, &repository, &recorded, &tree, workspace.path())?;
        let committed_at = committed_at(&repository, commit)?;
        drop(repository);
        repository::remove(&bare)?;

        let commit = commit.to_string();
        session.note_total();
        let version = resolved.version.unwrap_or_else(|| commit[..12].to_owned());
        Ok(FetchedSource { commit, committed_at, version, url: page.into(), tree, workspace })
    }
}

/// When the commit was made; a time that no calendar has counts as the beginning of time.
fn committed_at(repository: &Repository, commit: git2::Oid) -> Result<OffsetDateTime, Fault> {
    let commit = repository.find_commit(commit).map_err(|error| repository::git_fault(&error))?;
    let seconds = commit.committer().when().seconds();
    Ok(OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}
