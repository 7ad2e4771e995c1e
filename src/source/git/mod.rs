//! The source connector: from a request to a tree of files, over git's smart HTTP protocol.
//!
//! libgit2 speaks the git protocol and keeps the objects; everything that touches the network goes
//! through `client`, so that a credential, an address, a status code, a limit and a cancelled
//! job are looked after in one place.
//!
//! | file | does |
//! |---|---|
//! | `address` | where a repository is, and whether a build may reach there |
//! | `client` | HTTP with deadlines, limits and faults in the contract's words |
//! | `advertisement` | the refs that a server offers |
//! | `resolve` | what of them a request asks for |
//! | `transport` | one fetch by libgit2 over our HTTP |
//! | `transfer` | getting a commit from servers that allow more or less |
//! | `walk`, `checkout` | from a commit to files, within the limits |
//! | `ini`, `submodules` | repositories inside repositories |
//! | `lfs` | real content in place of Git LFS pointers |
//! | `releases` | GitHub's REST API: from a release to its tag |

mod address;
mod advertisement;
mod checkout;
mod client;
mod ini;
mod lfs;
mod releases;
mod resolve;
mod session;
mod submodules;
mod transfer;
mod transport;
mod walk;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use git2::Repository;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::{BuildRequest, Target};
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::ports::{FetchedSource, SourceConnector};
use time::OffsetDateTime;

use address::{Address, Forge};
use client::Clients;
use session::Session;
use submodules::Recorded;

use crate::blocking::blocking;

/// Where the forge is, and what a source may cost.
#[derive(Debug, Clone)]
pub struct GitSettings {
    /// The forge's address for people and for git (`GITHUB_URL`), http or https.
    pub url: String,
    /// The address of its REST API (`GITHUB_API_URL`), http or https; used for releases alone.
    pub api_url: String,
    /// How long a server may be silent before it is given up.
    pub silence: Duration,
    pub limits: Limits,
}

impl Default for GitSettings {
    fn default() -> Self {
        Self {
            url: "https://github.com".to_owned(),
            api_url: "https://api.github.com".to_owned(),
            silence: Duration::from_secs(30),
            limits: Limits::default(),
        }
    }
}

/// Why a [`GitConnector`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GitSetupError {
    #[error("{variable} is not an http or https address without a credential: {problem}")]
    BadUrl { variable: &'static str, problem: String },
    #[error("the HTTP client cannot be made: {0}")]
    Http(#[from] reqwest::Error),
    #[error("libgit2 cannot be set up: {0}")]
    Git(String),
}

/// Longest wait for the forge's answer to a ping.
const PING: Duration = Duration::from_secs(10);

/// Fetches sources from GitHub, or from whatever speaks git's smart HTTP at `GITHUB_URL`.
pub struct GitConnector {
    forge: Arc<Forge>,
    clients: Clients,
    silence: Duration,
    limits: Limits,
}

impl GitConnector {
    /// Needs an installed rustls provider. Sets libgit2 up for the whole process: it reads no
    /// configuration of the machine or its user, and opens no connection by itself.
    pub fn new(settings: GitSettings) -> Result<Self, GitSetupError> {
        transport::set_up_libgit2()?;
        Ok(Self {
            forge: Arc::new(Forge::new(&settings.url, &settings.api_url)?),
            clients: Clients::new()?,
            silence: settings.silence,
            limits: settings.limits,
        })
    }
}

impl GitConnector {
    /// Whether the forge answers at all, for a worker that waits for it.
    ///
    /// # Errors
    /// `forge_down`, or `forge_failed` while it answers with a server's error.
    pub async fn ping(&self) -> Result<(), Fault> {
        let fault = |reason, message| Fault::new(StageName::Connector, reason, message);
        let request = self.clients.get(true).get(self.forge.url().clone()).timeout(PING).send();
        match request.await {
            Ok(response) if response.status().is_server_error() => {
                let message = format!("The forge answers {}.", response.status());
                Err(fault(Reason::ForgeFailed, message))
            }
            Ok(_) => Ok(()),
            Err(_) => Err(fault(Reason::ForgeDown, "The forge cannot be reached.".to_owned())),
        }
    }
}

#[async_trait]
impl SourceConnector for GitConnector {
    async fn fetch(
        &self,
        request: &BuildRequest,
        pinned: Option<&str>,
        workspace: Workspace,
        progress: &BuildLog,
    ) -> Result<FetchedSource, Fault> {
        let session = Arc::new(Session::new(
            self.forge.clone(),
            self.clients.clone(),
            self.silence,
            self.limits.clone(),
            request.token.clone(),
            progress.clone(),
        ));
        // Dropping this future ends the work wherever it is, and with it the blocking thread.
        let _end = session.cancel.clone().drop_guard();
        let place = workspace.path().display().to_string();

        let result = async {
            let target = self.target(&session, request, pinned).await?;
            let job = Job {
                address: self.forge.repository(&request.repo),
                url: self.forge.people_url(&request.repo),
                target,
                pinned: pinned.map(str::to_owned),
                session,
                workspace,
            };
            blocking(move || {
                #[cfg(feature = "failpoints")]
                fail::fail_point!("connector::fetching");
                job.run()
            })
            .await
        };
        result.await.map_err(|mut fault| {
            fault.message = progress.redact(&fault.message).replace(&place, "the workspace");
            fault
        })
    }
}

impl GitConnector {
    /// The request's target, with a release turned into its tag.
    async fn target(
        &self,
        session: &Session,
        request: &BuildRequest,
        pinned: Option<&str>,
    ) -> Result<Wanted, Fault> {
        match &request.target {
            // What is pinned needs no answer from the API: the commit is known.
            Target::Release(name) if pinned.is_none() => {
                match releases::tag_of(session, &request.repo, name).await? {
                    Some(tag) => Ok(Wanted::Target(Target::Tag(tag))),
                    None => Ok(Wanted::MissingRelease(name.clone())),
                }
            }
            target => Ok(Wanted::Target(target.clone())),
        }
    }
}

/// What is to be fetched, as far as it is known before the repository was asked.
enum Wanted {
    Target(Target),
    /// The API knows no such release; whether it knows the repository, it does not say.
    MissingRelease(String),
}

/// One fetch, on a blocking thread. It owns the workspace: when the job was given up, the workspace
/// goes after the last write into it.
struct Job {
    address: Address,
    url: String,
    target: Wanted,
    pinned: Option<String>,
    session: Arc<Session>,
    workspace: Workspace,
}

impl Job {
    fn run(self) -> Result<FetchedSource, Fault> {
        let session = &self.session;
        session.check()?;
        let (connection, advertisement) = client::discover(session, &self.address)?;
        let target = match &self.target {
            Wanted::Target(target) => target,
            Wanted::MissingRelease(name) => {
                return Err(fault(
                    Reason::RefNotFound,
                    format!("{} has no release `{name}`.", self.address.label),
                ));
            }
        };
        let resolved =
            resolve::resolve(&advertisement, target, self.pinned.as_deref(), &self.address)?;

        session.note(format!("fetching {target} of {}", self.address.label));
        let bare = self.workspace.path().join("repository.git");
        let repository = session::new_repository(&bare)?;
        let connection = Arc::new(connection);
        let wanted = &resolved.wanted;
        let commit = transfer::obtain(session, &connection, &advertisement, wanted, &repository)?;

        let tree = self.workspace.path().join("tree");
        let recorded = Recorded { connection, commit };
        submodules::check_out(session, &repository, &recorded, &tree, self.workspace.path())?;
        let committed_at = committed_at(&repository, commit)?;
        drop(repository);
        session::remove_repository(&bare)?;

        let commit = commit.to_string();
        session.note_total(&commit);
        Ok(FetchedSource {
            version: resolved.version.unwrap_or_else(|| commit[..12].to_owned()),
            commit,
            committed_at,
            url: self.url,
            tree,
            workspace: self.workspace,
        })
    }
}

/// When the commit was made; a time that no calendar has counts as the beginning of time.
fn committed_at(repository: &Repository, commit: git2::Oid) -> Result<OffsetDateTime, Fault> {
    let commit = repository.find_commit(commit).map_err(|error| session::git_fault(&error))?;
    let seconds = commit.committer().when().seconds();
    Ok(OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// A fault of this stage.
fn fault(reason: Reason, message: impl Into<String>) -> Fault {
    Fault::new(StageName::Connector, reason, message)
}
