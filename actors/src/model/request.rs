//! A build request that was read and found good.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::identity::BuildIdentity;
use crate::model::login::RegistryLogin;
use crate::model::platform::Platform;
use crate::model::secret::{Redactor, Secret, Tripwire};

/// A build request that was read and found good.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Stable through all tries: the client's `uuid`, else the message id.
    pub build_id: String,
    /// Owner of the build; becomes the image's namespace.
    pub user_id: String,
    /// The application that the image is for.
    pub application_id: String,
    pub forge: ForgeName,
    pub repo: RepoName,
    pub target: Target,
    /// Credential for the forge; `None` = anonymous.
    pub token: Option<Secret>,
    /// Names the credential that a token is made of at each try; there is no token beside it.
    pub token_ref: Option<String>,
    /// Build even where an image of the same inputs is in the registry.
    pub force: bool,
    /// It takes the place of older requests for the same application and ref that do not build yet, whatever the
    /// service does otherwise.
    pub supersede: bool,
    /// The forge is to show on the commit how the build stands.
    pub commit_status: bool,
    /// The build that was given up and that an operator asks for again with this request.
    pub redrive_of: Option<String>,
    pub plan: PlanRequest,
}

impl BuildRequest {
    /// Which build it asks for.
    pub fn identity(&self) -> BuildIdentity {
        BuildIdentity::new(Some(&self.user_id), &self.build_id)
    }

    /// All that it asks for, but for the values of credentials: requests that differ in it are not the same,
    /// though they bring the same id.
    pub fn meaning(&self) -> String {
        let Self { application_id, forge, repo, target, token_ref, force, plan, .. } = self;
        let Self { supersede, commit_status, .. } = self;
        format!(
            "{application_id:?} {forge:?} {repo:?} {target:?} {token_ref:?} {force} {supersede} {commit_status} \
             {plan:?}"
        )
    }

    /// Takes every secret of the request out of what others write.
    pub fn redactor(&self) -> Redactor {
        self.redactor_with(&[])
    }

    /// The same, with secrets that are not the request's and that its build comes to see.
    pub fn redactor_with(&self, others: &[Secret]) -> Redactor {
        let logins = self.plan.registry_auth.values().map(|login| &login.password);
        let own = self.token.iter().chain(self.plan.secrets.values()).chain(logins);
        // A token may be given with its user.
        let token = self.token.as_ref().and_then(|token| token.expose().split_once(':'));
        let password = token.map(|(_, password)| Secret::new(password));
        Redactor::new(own.chain(others).cloned().chain(password))
    }

    /// What notices a secret of the request in its image.
    pub fn tripwire(&self) -> Tripwire {
        let token = self.token.iter().map(|token| ("the request's token".to_owned(), token));
        let secrets = self.plan.secrets.iter();
        let secrets = secrets.map(|(id, secret)| (format!("the request's secret `{id}`"), secret));
        let logins = self.plan.registry_auth.iter();
        let logins =
            logins.map(|(host, login)| (format!("the password for {host}"), &login.password));
        Tripwire::new(
            token.chain(secrets).chain(logins).map(|(name, secret)| (name, secret.clone())),
        )
    }

    /// Whether an image of the same inputs may stand in for a build.
    pub fn may_reuse(&self) -> bool {
        !self.force && self.plan.secrets.is_empty()
    }
}

/// A forge that requests can name, in their field `connector`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForgeName {
    Github,
    Gitlab,
    /// And Forgejo.
    Gitea,
    Bitbucket,
    /// Any git server that the operator has named; a repository's owner begins with the server.
    Git,
}

impl ForgeName {
    pub const ALL: [ForgeName; 5] = [
        ForgeName::Github,
        ForgeName::Gitlab,
        ForgeName::Gitea,
        ForgeName::Bitbucket,
        ForgeName::Git,
    ];

    /// Those that send hooks after a push.
    pub const WITH_HOOKS: [ForgeName; 3] = [ForgeName::Github, ForgeName::Gitlab, ForgeName::Gitea];

    pub fn as_str(self) -> &'static str {
        match self {
            ForgeName::Github => "github",
            ForgeName::Gitlab => "gitlab",
            ForgeName::Gitea => "gitea",
            ForgeName::Bitbucket => "bitbucket",
            ForgeName::Git => "git",
        }
    }

    /// The forge that a request's `connector` names.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = if name == "forgejo" { "gitea" } else { name };
        Self::ALL.into_iter().find(|forge| forge.as_str() == name)
    }
}

/// A repository's place at its forge.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoName {
    pub owner: String,
    pub name: String,
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// What of the repository is to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The head of the branch that the remote's HEAD names.
    DefaultBranch,
    Branch(String),
    Tag(String),
    /// A release by its tag; `latest` = the forge's newest full release.
    Release(String),
    /// A commit, full or short, in lower-case hex; the branch, where known, helps to find a short one.
    Commit {
        id: String,
        branch: Option<String>,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::DefaultBranch => f.write_str("the default branch"),
            Target::Branch(name) => write!(f, "branch `{name}`"),
            Target::Tag(name) => write!(f, "tag `{name}`"),
            Target::Release(name) => write!(f, "release `{name}`"),
            Target::Commit { id, .. } => write!(f, "commit `{id}`"),
        }
    }
}

/// How an image is made from a source tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuilderKind {
    Dockerfile,
    Nixpacks,
}

impl BuilderKind {
    pub fn as_str(self) -> &'static str {
        match self {
            BuilderKind::Dockerfile => "dockerfile",
            BuilderKind::Nixpacks => "nixpacks",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [BuilderKind::Dockerfile, BuilderKind::Nixpacks]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

/// The request's `buildPlan`, read and with empty values taken as absent.
#[derive(Debug, Clone, Default)]
pub struct PlanRequest {
    /// `None` = a Dockerfile if the root has one, else nixpacks.
    pub builder: Option<BuilderKind>,
    /// Relative to the repository's root; empty = the root itself. Not yet checked against the tree.
    pub root_directory: String,
    pub dockerfile_path: Option<String>,
    pub nixpacks_path: Option<String>,
    pub target: Option<String>,
    /// Whether the source has a `.git` with the history of the commit, for `git describe` and the like.
    pub keep_git_dir: bool,
    pub envs: BTreeMap<String, String>,
    pub build_args: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Secret>,
    /// Credentials for base images, by the registry's [host](crate::model::login::registry_host).
    pub registry_auth: BTreeMap<String, RegistryLogin>,
    /// What the image is for, each once, in a fixed order; none = the engine's own platform.
    pub platforms: Vec<Platform>,
    pub nix_pkgs: Vec<String>,
    pub nix_libs: Vec<String>,
    pub apt_pkgs: Vec<String>,
    pub install_command: Option<String>,
    pub build_command: Option<String>,
    pub start_command: Option<String>,
}
