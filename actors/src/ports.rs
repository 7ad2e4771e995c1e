//! The ports: what the inside asks of the outside. Each has one real adapter and one in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::fault::{Fault, Reason};
use crate::job::{BuildKey, BuildRequest, BuilderKind, BuiltImage, RegistryImage};
use crate::outcome::Notification;
use crate::progress::Progress;
use crate::reference::ImageReference;
use crate::secret::Secret;
use crate::workspace::Workspace;

// ---- the broker -------------------------------------------------------------------------------

/// A queue that an actor consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    Build,
    Fail,
    Outcome,
}

/// Where a message is published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    Build,
    /// Back to the build queue, after a delay that is one of the ladder's rungs.
    BuildAfter(Duration),
    Fail,
    Outcome,
    /// Back to the outcome queue, after a delay that is one of the ladder's rungs.
    OutcomeAfter(Duration),
    Dead,
    Result,
    /// The log of told outcomes, see [`Broker::follow`].
    Told,
}

/// The header that an adapter adds to a message that it publishes once more, since the broker's answer
/// to the first time was lost: the number of times before. Both may be in the queue.
pub const REPEATED: &str = "x-image-builder-repeated";

/// A message as the inside sees it: a body and a few properties.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub body: Vec<u8>,
    pub message_id: Option<String>,
    pub timestamp: Option<OffsetDateTime>,
    /// Headers with a text for a value. The broker's own (`x-death`, `x-delivery-count`) are not here.
    pub headers: BTreeMap<String, String>,
    /// How long a queue keeps it at the most; `None` = for ever.
    pub expires_after: Option<Duration>,
}

/// A message that was delivered and waits to be settled.
#[derive(Debug)]
pub struct RawDelivery {
    pub message: Message,
    /// The broker's name for this delivery on its channel.
    pub tag: u64,
    /// How often it was delivered before without being settled.
    pub redeliveries: u64,
    /// Whether the broker itself put it here because it was delivered too often.
    pub over_delivery_limit: bool,
}

/// A subscription: deliveries until the broker or the connection ends it (`None`), and their settling.
pub struct Subscription {
    pub deliveries: mpsc::Receiver<RawDelivery>,
    pub settle: Arc<dyn Settle>,
}

/// Settles the deliveries of one subscription. After the subscription's end every call fails, and
/// the broker delivers again what was not settled.
#[async_trait]
pub trait Settle: Send + Sync {
    /// Whether the delivery can still be settled, as far as is known here. One that cannot is
    /// delivered again whatever is done about this one.
    fn holds(&self, tag: u64) -> bool;
    /// The delivery is done with.
    async fn ack(&self, tag: u64) -> Result<(), BrokerError>;
    /// The delivery goes back to its queue.
    async fn nack(&self, tag: u64) -> Result<(), BrokerError>;
    /// No further deliveries; those in hand can still be settled. What had come by then is still
    /// received, for its owner to give back, before the deliveries end.
    async fn cancel(&self);
    /// Waits until nothing of the subscription can be settled any more.
    async fn ended(&self);
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The broker cannot be reached, or did not confirm in time: it may or may not have the message.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// The broker refused or returned the message.
    #[error("the broker did not take the message: {0}")]
    Refused(String),
    /// The delivery's channel is gone; the broker will deliver it again.
    #[error("the delivery is stale: its channel is gone")]
    Stale,
}

/// A durable queueing system.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Subscribes to a queue, with at most `prefetch` unsettled deliveries at once.
    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, BrokerError>;

    /// Publishes durably: returns once the broker has confirmed that the message is in its queue.
    async fn publish(&self, route: Route, message: Message) -> Result<(), BrokerError>;

    /// Reads the log of told outcomes: the bodies of all that it has, and then of what is added. Every
    /// follower gets them in the same order. What is older than some days may be missing.
    ///
    /// # Errors
    /// [`BrokerError::Refused`]: there is no such log for now, though the broker answers.
    async fn follow(&self) -> Result<mpsc::Receiver<Vec<u8>>, BrokerError>;
}

// ---- the forge --------------------------------------------------------------------------------

/// A source tree in a workspace of its own, without any `.git`.
#[derive(Debug)]
pub struct FetchedSource {
    /// The full commit, 40 lower-case hex digits.
    pub commit: String,
    /// When the commit was made.
    pub committed_at: OffsetDateTime,
    /// What a person would call this version: the tag, release or branch, else the short commit.
    pub version: String,
    /// The repository's address for people, without a credential.
    pub url: String,
    /// The root of the tree: a directory inside `workspace`.
    pub tree: PathBuf,
    /// Dropping it removes the tree.
    pub workspace: Workspace,
}

/// Resolves what a request asks for and fetches it.
#[async_trait]
pub trait SourceConnector: Send + Sync + 'static {
    /// Fetches the source of `request` into `workspace`. With `pinned`, the full commit that an
    /// earlier try resolved, that commit is fetched whatever the ref points to by now.
    ///
    /// Dropping the future ends the transfer.
    async fn fetch(
        &self,
        request: &BuildRequest,
        pinned: Option<&str>,
        workspace: Workspace,
        progress: &Progress,
    ) -> Result<FetchedSource, Fault>;
}

// ---- the engine -------------------------------------------------------------------------------

/// How an image is to be made: both strategies come down to a Dockerfile.
#[derive(Debug, Clone)]
pub struct Plan {
    pub builder: BuilderKind,
    /// The directory that is the build context.
    pub context: PathBuf,
    /// The Dockerfile's path relative to the context.
    pub dockerfile: String,
    /// The stage to build; `None` = the last.
    pub target: Option<String>,
    pub build_args: BTreeMap<String, String>,
    /// Secrets that `RUN --mount=type=secret` steps may mount, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// Changes whenever anything in the plan does (secrets apart), or the planner itself.
    pub fingerprint: String,
}

/// One image to build.
#[derive(Debug, Clone)]
pub struct BuildOrder {
    pub build_id: String,
    pub key: BuildKey,
    pub plan: Plan,
    pub labels: BTreeMap<String, String>,
}

/// Decides how a source becomes an image.
#[async_trait]
pub trait Planner: Send + Sync + 'static {
    /// Makes the plan that `wish.plan` asks for, and writes what it needs beside the source into its
    /// workspace. Whose build it is decides which caches it shares.
    async fn plan(
        &self,
        source: &FetchedSource,
        request: &BuildRequest,
        progress: &Progress,
    ) -> Result<Plan, Fault>;
}

/// Builds images.
#[async_trait]
pub trait ImageBuilder: Send + Sync + 'static {
    /// Builds the image. Dropping the future stops the build on the engine.
    async fn build(&self, order: &BuildOrder, progress: &Progress) -> Result<BuiltImage, Fault>;

    /// The image of this key that the engine has from an earlier build.
    async fn find(&self, key: &BuildKey) -> Result<Option<BuiltImage>, Fault>;
}

// ---- the registry -----------------------------------------------------------------------------

/// Stores images and tells what it stores.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// The image that the registry has under a tag or digest.
    async fn find(&self, reference: &ImageReference) -> Result<Option<RegistryImage>, Fault>;

    /// Pushes an image under the reference's tag and under `further_tags`, and asks the registry
    /// for the digest that it was told.
    async fn push(
        &self,
        image: &BuiltImage,
        reference: &ImageReference,
        further_tags: &[String],
        progress: &Progress,
    ) -> Result<RegistryImage, Fault>;

    /// Puts the reference's tag and `further_tags` on an image that the repository has already.
    async fn tag(
        &self,
        image: &RegistryImage,
        reference: &ImageReference,
        further_tags: &[String],
    ) -> Result<(), Fault>;

    /// The labels of an image that the reference's repository has.
    async fn labels(
        &self,
        reference: &ImageReference,
        image: &RegistryImage,
    ) -> Result<BTreeMap<String, String>, Fault>;
}

// ---- room to work -----------------------------------------------------------------------------

/// Looks whether there is room to work again.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Whether what a capacity fault named is back; the error says what is still missing.
    async fn probe(&self, reason: Reason) -> Result<(), String>;
}

// ---- the managers -----------------------------------------------------------------------------

/// Why a notification was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NotifyError {
    pub message: String,
    /// How long the receiver asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// Tells the managers how builds ended.
#[async_trait]
pub trait Notifier: Send + Sync + 'static {
    async fn notify(&self, notification: &Notification) -> Result<(), NotifyError>;
}
