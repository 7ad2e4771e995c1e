//! What can go wrong with a job, in the words of the notifications
//! (`docs/requests-and-notifications.md`).
//!
//! A [`Fault`] names the stage, the reason and one plain sentence for a person. The reason alone
//! decides the [`Kind`], and the kind decides what happens next (see [`crate::scheduling::retry_policy`]).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::scope::Scope;

/// The part of the pipeline in which a fault happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    Listener,
    Connector,
    Builder,
    Pusher,
}

impl StageName {
    /// Every stage, in the order of a job's way.
    pub const ALL: [StageName; 4] =
        [StageName::Listener, StageName::Connector, StageName::Builder, StageName::Pusher];

    /// The stage's name, as it stands in notifications and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            StageName::Listener => "listener",
            StageName::Connector => "connector",
            StageName::Builder => "builder",
            StageName::Pusher => "pusher",
        }
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who has to act on a fault, and with that what becomes of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request or the repository is at fault: final at once.
    User,
    /// The build itself failed: retried, since downloads inside a build are flaky; the same failure
    /// at the same step twice in a row is final.
    Build,
    /// A service that the worker needs failed: retried with backoff.
    Service,
    /// A service refused for good: final, and an operator has to act.
    Refused,
    /// There is no room to work at the moment, for those whom the fault's [`Scope`] names: they wait,
    /// and no attempt is counted.
    Capacity,
    /// The worker itself died or panicked.
    Crash,
    /// Somebody no longer wants the result: final.
    Withdrawn,
}

impl Kind {
    /// The kind's name, as it stands in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Build => "build",
            Kind::Service => "service",
            Kind::Refused => "refused",
            Kind::Capacity => "capacity",
            Kind::Crash => "crash",
            Kind::Withdrawn => "withdrawn",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $kind:ident;)*) => {
        /// Why a job failed. `docs/requests-and-notifications.md` explains each to its receivers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Reason {
            /// Every reason there is, in the order of that page's table.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant),*];

            /// The reason's name, as it stands in notifications and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// The kind that the reason belongs to.
            pub fn kind(self) -> Kind {
                match self { $(Reason::$variant => Kind::$kind,)* }
            }
        }
    };
}

reasons! {
    /// The request breaks a rule that requests have.
    InvalidRequest = "invalid_request", User;
    /// The request asks for something that this worker does not know.
    Unsupported = "unsupported", User;
    /// The forge has no such repository, or does not show it to this credential.
    RepositoryNotFound = "repository_not_found", User;
    /// The forge refused the credential, or wants one.
    Unauthorized = "unauthorized", User;
    /// The repository has no such branch, tag, release or commit.
    RefNotFound = "ref_not_found", User;
    /// The source lies, or leads, to where a build must not reach, or is broken.
    ForbiddenSource = "forbidden_source", User;
    /// Neither a Dockerfile nor anything that nixpacks knows was found.
    NoBuildPlan = "no_build_plan", User;
    /// The build plan contradicts itself or the repository.
    InvalidPlan = "invalid_plan", User;
    /// The source is over a limit.
    TooLarge = "too_large", User;
    /// The image would show a secret of its request.
    SecretInImage = "secret_in_image", User;
    /// The build used more memory than it may.
    OutOfMemory = "out_of_memory", User;
    /// A step of the build failed.
    BuildFailed = "build_failed", Build;
    /// The build ran longer than it may.
    BuildTimeout = "build_timeout", Build;
    /// The forge answered with an error.
    ForgeFailed = "forge_failed", Service;
    /// The container engine failed.
    EngineFailed = "engine_failed", Service;
    /// The registry failed.
    RegistryFailed = "registry_failed", Service;
    /// A service did not answer in time.
    Timeout = "timeout", Service;
    /// The registry refused the image or the worker's credential.
    RegistryRefused = "registry_refused", Refused;
    /// The forge asks for patience.
    RateLimited = "rate_limited", Capacity;
    /// The container engine is out of reach.
    EngineDown = "engine_down", Capacity;
    /// The registry is out of reach.
    RegistryDown = "registry_down", Capacity;
    /// The forge is out of reach.
    ForgeDown = "forge_down", Capacity;
    /// The disk is nearly full.
    DiskLow = "disk_low", Capacity;
    /// The worker died or panicked with the job in hand.
    Crashed = "crashed", Crash;
    /// Somebody asked for the build to stop.
    Cancelled = "cancelled", Withdrawn;
    /// A newer request for the same application and ref made this one pointless.
    Superseded = "superseded", Withdrawn;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One failure of one job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {reason}: {message}")]
pub struct Fault {
    pub stage: StageName,
    pub reason: Reason,
    /// One plain sentence for the user: what failed, on which input, what to do. Holds no credential.
    pub message: String,
    /// The build step that failed, where there is one: by it a repeated failure is recognised.
    pub step: Option<String>,
    /// How long the failing service asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Of a capacity fault: whom it concerns.
    pub scope: Scope,
    /// Whether the container engine died with the job in hand, perhaps of it.
    pub engine_died: bool,
}

impl Fault {
    pub fn new(stage: StageName, reason: Reason, message: impl Into<String>) -> Self {
        let (step, retry_after, scope) = (None, None, Scope::Service);
        let message = message.into();
        Self { stage, reason, message, step, retry_after, scope, engine_died: false }
    }

    /// The container engine died with the job in hand. That is the fault of one of those that it had in
    /// hand, or of none: so it is a lack of capacity at first.
    pub fn of_dead_engine(stage: StageName, message: impl Into<String>) -> Self {
        Self { engine_died: true, ..Self::new(stage, Reason::EngineDown, message) }
    }

    /// Names the build step that failed.
    pub fn at_step(mut self, step: impl Into<String>) -> Self {
        self.step = Some(step.into());
        self
    }

    /// Says how long the failing service asks to be left alone.
    pub fn retry_after(mut self, delay: Option<Duration>) -> Self {
        self.retry_after = delay;
        self
    }

    /// Says whom a lack of capacity concerns.
    pub fn concerning(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    pub fn kind(&self) -> Kind {
        self.reason.kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_written_the_same_by_serde_and_by_display() {
        for reason in Reason::ALL {
            let json = serde_json::to_value(reason).expect("a reason serialises");
            assert_eq!(json, reason.to_string());
        }
    }
}
