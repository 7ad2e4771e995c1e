//! What a job is made of: the request, what earlier tries left behind, and what the stages add.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::board::Place;
use crate::fault::{Fault, Reason, Stage};
use crate::lease::Lease;
use crate::progress::{Progress, cut};
use crate::secret::{Redactor, Secret};

/// A build request that was read and found good.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Stable through all tries: the client's `uuid`, else the message id.
    pub build_id: String,
    /// Owner of the build; becomes the image's namespace.
    pub user_id: String,
    /// The application that the image is for.
    pub application_id: String,
    pub forge: Forge,
    pub repo: RepoName,
    pub target: Target,
    /// Credential for the forge; `None` = anonymous.
    pub token: Option<Secret>,
    /// Build even where an image of the same inputs is in the registry.
    pub force: bool,
    /// The build that was given up and that an operator asks for again with this request.
    pub redrive_of: Option<String>,
    pub plan: PlanRequest,
}

impl BuildRequest {
    /// Every secret of the request, to be taken out of what others write.
    pub fn redactor(&self) -> Redactor {
        Redactor::new(self.token.iter().cloned().chain(self.plan.secrets.values().cloned()))
    }

    /// Whether an image of the same inputs may stand in for a build.
    pub fn may_reuse(&self) -> bool {
        !self.force && self.plan.secrets.is_empty()
    }
}

/// A forge that requests can name (`connector` in the contract).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forge {
    Github,
}

impl Forge {
    pub fn as_str(self) -> &'static str {
        match self {
            Forge::Github => "github",
        }
    }

    /// The forge that a request's `connector` names.
    pub fn from_name(name: &str) -> Option<Self> {
        (name == "github").then_some(Forge::Github)
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
    pub envs: BTreeMap<String, String>,
    pub build_args: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Secret>,
    pub nix_pkgs: Vec<String>,
    pub nix_libs: Vec<String>,
    pub apt_pkgs: Vec<String>,
    pub install_command: Option<String>,
    pub build_command: Option<String>,
    pub start_command: Option<String>,
}

/// What is known of a job and saves work when it is tried again. Holds no credential.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Checkpoint {
    /// The full commit that the first try resolved: later tries build the same one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What the image is known by, once the build was planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planned: Option<Planned>,
    /// An image that an engine has built and that only needs to be pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<BuiltImage>,
}

/// What a plan came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    pub key: BuildKey,
    pub builder: BuilderKind,
}

/// One failed try, as it is kept in the history. Holds no credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub stage: Stage,
    pub reason: Reason,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Whether it counts against the total of tries.
    pub counted: bool,
    /// How long the failing service asked to be left alone, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

/// What earlier tries left behind: travels with the request, in a header of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// When the request was made: the AMQP timestamp, else when a worker first saw it.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// When a worker first had the request in hand; `None` = not known, as after a crash of that worker.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub since: Option<OffsetDateTime>,
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// The last lines of the last failed build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

impl History {
    /// The history keeps this many tries at the most: the oldest uncounted ones go first.
    const LONGEST: usize = 40;
    /// And this many bytes of a message or a step: all headers of a message travel in one AMQP frame.
    const LONGEST_TEXT: usize = 500;

    pub fn new(requested_at: OffsetDateTime) -> Self {
        Self {
            requested_at,
            since: None,
            attempts: Vec::new(),
            checkpoint: Checkpoint::default(),
            log: Vec::new(),
        }
    }

    /// Tries that were begun and counted.
    pub fn counted(&self) -> u32 {
        self.attempts.iter().filter(|attempt| attempt.counted).count() as u32
    }

    /// Adds a failed try.
    pub fn record(&mut self, fault: &Fault, counted: bool) {
        if self.attempts.len() >= Self::LONGEST {
            let oldest = self.attempts.iter().position(|attempt| !attempt.counted).unwrap_or(0);
            self.attempts.remove(oldest);
        }
        self.attempts.push(Attempt {
            at: OffsetDateTime::now_utc(),
            stage: fault.stage,
            reason: fault.reason,
            message: cut(fault.message.clone(), Self::LONGEST_TEXT),
            step: fault.step.clone().map(|step| cut(step, Self::LONGEST_TEXT)),
            counted,
            retry_after: fault.retry_after.map(|delay| delay.as_secs()),
        });
    }
}

/// How long each stage had the job in hand, over all that this worker did with it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    pub connector: Duration,
    pub builder: Duration,
    pub pusher: Duration,
}

/// One build request on its way through the worker: whoever holds it is responsible for it.
///
/// Dropping it unsettled hands the delivery back, see [`Lease`].
#[derive(Debug)]
pub struct Job {
    pub request: BuildRequest,
    pub history: History,
    pub timings: Timings,
    /// When this worker got the delivery.
    pub received: Instant,
    /// Past this moment the job must be settled.
    pub deadline: Instant,
    /// Where the build's output goes, and where its last lines are kept.
    pub progress: Progress,
    /// The job's place among all that this worker has in hand.
    pub place: Place,
    pub lease: Lease,
}

impl Job {
    /// How long the job may wait for work that may take `limit`: with less than half of that left it
    /// would only be cut short, so it goes back to the queue instead.
    pub fn patience(&self, limit: Duration) -> Instant {
        let all = self.deadline.saturating_duration_since(self.received);
        self.deadline.checked_sub(limit.min(all) / 2).unwrap_or(self.received)
    }

    /// The number of the present try, from 1.
    pub fn attempt(&self) -> u32 {
        self.history.counted() + 1
    }
}

/// An image that the engine has built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuiltImage {
    /// The engine's id of the image, `sha256:…`.
    pub id: String,
    pub builder: BuilderKind,
    pub key: BuildKey,
}

/// An image that the registry has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryImage {
    /// The registry's own digest of the manifest, `sha256:…`.
    pub digest: String,
    /// Digest of the image's configuration, which is the engine's id of the image.
    pub image_id: String,
    /// What the registry stores for it: configuration and compressed layers, in bytes.
    pub size_bytes: u64,
}

/// Names all that goes into an image: requests of the same key get the same image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BuildKey(String);

impl BuildKey {
    /// The key of a build: `plan` is the [fingerprint](crate::ports::Plan::fingerprint) of the plan,
    /// build arguments and planner version included.
    pub fn of(request: &BuildRequest, commit: &str, plan: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [
            &request.user_id,
            &request.application_id,
            request.forge.as_str(),
            &request.repo.to_string(),
            commit,
            &request.plan.root_directory,
            plan,
        ] {
            // Each part with its length before it, so that no two lists of parts read the same.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self(hex(&hash.finalize()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag that the registry keeps an image of this key under.
    pub fn tag(&self) -> String {
        format!("key-{}", self.0)
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
