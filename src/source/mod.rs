//! The source port: from what a request asks for to a tree of files.
//!
//! The [forge] says where a repository is, how a token is shown, and which tag a release has; [git]
//! does the rest.

mod concerns;
mod forge;
#[cfg(fuzzing)]
pub mod fuzzing;
mod git;
mod http;
mod session;
mod statuses;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::{BuildRequest, Target};
use image_builder_actors::model::scope::Scope;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::ports::{FetchedSource, SourceConnector};

use self::concerns::Concerns;
use self::forge::{Forge, Forges};
pub use self::forge::{ForgeSettings, GithubSettings};
pub use self::git::CacheSettings;
use self::git::{Cache, Fetch, Git, Home};
use self::http::{Clients, Http};
use self::session::Session;
use crate::blocking::blocking;
use crate::child::THIS_PROGRAM;
use crate::net::networks::Networks;
use crate::net::proxy::Proxies;

/// Where the forges are, and what a source may cost.
#[derive(Debug, Clone)]
pub struct GitSettings {
    pub github: GithubSettings,
    /// The other forges.
    pub forges: ForgeSettings,
    pub proxies: Proxies,
    /// What servers that repositories name may be though they are not public.
    pub allowed: Networks,
    /// How long a server may be silent before it is given up.
    pub silence: Duration,
    pub limits: Limits,
    /// The program that becomes git's process: this one.
    pub program: PathBuf,
    /// Where objects are kept for the next build; `None` = nowhere.
    pub cache: Option<CacheSettings>,
}

impl Default for GitSettings {
    fn default() -> Self {
        Self {
            github: GithubSettings::default(),
            forges: ForgeSettings::default(),
            proxies: Proxies::default(),
            allowed: Networks::default(),
            silence: Duration::from_secs(30),
            limits: Limits::default(),
            program: PathBuf::from(THIS_PROGRAM),
            cache: None,
        }
    }
}

/// Why a [`GitConnector`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GitSetupError {
    #[error("{variable} is not an http or https address without a credential: {problem}")]
    BadUrl { variable: &'static str, problem: String },
    #[error("the HTTP client cannot be made: {0}")]
    Http(#[from] anyhow::Error),
    #[error("DATA_DIR: the cache of git objects cannot be opened: {0}")]
    Cache(std::io::Error),
}

/// Fetches sources over git from the forges.
pub struct GitConnector {
    forges: Forges,
    clients: Clients,
    silence: Duration,
    limits: Limits,
    git: Git,
    cache: Option<Arc<Cache>>,
}

impl GitConnector {
    /// Needs an installed rustls provider.
    pub fn new(settings: GitSettings) -> Result<Self, GitSetupError> {
        let git = Git {
            program: settings.program,
            memory_bytes: settings.limits.git_memory_bytes,
            cpu_time: settings.limits.git_cpu_time,
        };
        Ok(Self {
            forges: Forges::new(&settings.github, &settings.forges)?,
            clients: Clients::new(&settings.proxies, &settings.allowed)?,
            silence: settings.silence,
            limits: settings.limits,
            git,
            cache: settings.cache.map(Cache::open).transpose().map_err(GitSetupError::Cache)?,
        })
    }

    /// Whether the usual forge answers at all, for a worker that waits for one.
    ///
    /// # Errors
    /// `forge_down`, or `forge_failed` while it answers with a server's error.
    pub async fn ping(&self) -> Result<(), Fault> {
        self.clients.ping(self.forges.usual().url()).await
    }

    fn concerns(&self, forge: &dyn Forge, request: &BuildRequest) -> Concerns {
        let page = forge.page(&request.repo);
        // What a reference stands for is another token at each try.
        let reference = request.token_ref.as_ref().map(Secret::new);
        Concerns::new(&page, reference.as_ref().or(token(request)))
    }

    async fn fetch_into(
        &self,
        request: &BuildRequest,
        pinned: Option<&str>,
        workspace: Workspace,
        session: Arc<Session>,
    ) -> Result<FetchedSource, Fault> {
        let forge = self.forges.of(request)?;
        let token = token(request);
        let (clients, rate_limit) = (self.clients.clone(), forge.rate_limit());
        let http = Arc::new(Http { session, clients, rate_limit });
        let mut target = request.target.clone();
        // What is pinned needs no answer from the API: the commit is known.
        if let (Target::Release(name), None) = (&target, pinned)
            && let Some(tag) = forge.release_tag(&http, token, &request.repo, name).await?
        {
            target = Target::Tag(tag);
        }
        let fetch = Fetch {
            http,
            home: Home {
                url: forge.url().clone(),
                authorization: token.map(|token| forge.git_authorization(token)),
                // No credential looks like it.
                reference: request.token_ref.as_ref().map(|name| format!("tokenRef {name}")),
            },
            git: self.git.clone(),
            cache: self.cache.clone(),
            user: request.user_id.clone(),
            repository: forge.repository(&request.repo),
            page: forge.page(&request.repo),
            target,
            pinned: pinned.map(str::to_owned),
            keeps_git_dir: request.plan.keep_git_dir,
            workspace,
        };
        blocking(move || {
            #[cfg(feature = "failpoints")]
            fail::fail_point!("connector::fetching");
            fetch.run()
        })
        .await
    }
}

impl SourceConnector for GitConnector {
    fn fetch<'a>(
        &'a self,
        request: &'a BuildRequest,
        pinned: Option<&'a str>,
        workspace: Workspace,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<FetchedSource, Fault>> {
        Box::pin(async move {
            let concerns = self.concerns(&**self.forges.of(request)?, request);
            let session = Session::new(self.silence, &self.limits, concerns, progress.clone());
            let session = Arc::new(session);
            // Dropping this future ends the work wherever it is, and with it the blocking thread.
            let _end = session.cancel.clone().drop_guard();
            let place = workspace.path().display().to_string();
            let fetched = self.fetch_into(request, pinned, workspace, session).await;
            fetched.map_err(|mut fault| {
                fault.message = progress.redact(&fault.message).replace(&place, "the workspace");
                fault
            })
        })
    }

    fn scopes(&self, request: &BuildRequest, pinned: Option<&str>) -> Vec<Scope> {
        let Ok(forge) = self.forges.of(request) else { return Vec::new() };
        let asks_api = matches!(request.target, Target::Release(_)) && pinned.is_none();
        let api = forge.api().filter(|_| asks_api);
        self.concerns(&**forge, request).all(forge.url(), api)
    }
}

/// Runs git's process if the program was called as it; `None` = it was not. To be asked first thing in
/// `main`, before anything is read or started.
pub fn run_child() -> Option<ExitCode> {
    git::objects::child::run()
}

fn token(request: &BuildRequest) -> Option<&Secret> {
    request.token.as_ref().filter(|token| !token.is_empty())
}

/// A fault of this stage.
fn fault(reason: Reason, message: impl Into<String>) -> Fault {
    Fault::new(StageName::Connector, reason, message)
}
