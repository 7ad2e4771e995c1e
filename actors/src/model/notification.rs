//! How builds end, as notifications say it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::model::fault::{Kind, Reason, StageName};
use crate::model::identity::BuildIdentity;
use crate::model::request::BuildRequest;

/// What a notification is about; decides who is notified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NotificationType {
    #[serde(rename = "image.ready")]
    ImageReady,
    #[serde(rename = "build.failed")]
    BuildFailed,
    #[serde(rename = "build.cancelled")]
    BuildCancelled,
}

impl NotificationType {
    pub const ALL: [NotificationType; 3] = [
        NotificationType::ImageReady,
        NotificationType::BuildFailed,
        NotificationType::BuildCancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            NotificationType::ImageReady => "image.ready",
            NotificationType::BuildFailed => "build.failed",
            NotificationType::BuildCancelled => "build.cancelled",
        }
    }
}

/// A notification, ready to be sent: the body is the same, byte by byte, on every try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// `webhook-id`: see [`notification_id`].
    pub id: String,
    pub kind: NotificationType,
    pub body: Vec<u8>,
    /// W3C trace context to hand on, where the request brought one.
    pub traceparent: Option<String>,
}

/// The part of a body that the notifier reads to know whom to notify.
#[derive(Debug, Deserialize)]
pub struct NotificationHead<'a> {
    #[serde(rename = "type")]
    pub kind: NotificationType,
    #[serde(borrow)]
    pub data: &'a RawValue,
}

/// Which build the body of a notification is about; `None` = it cannot be read.
pub fn notified_build(body: &[u8]) -> Option<BuildIdentity> {
    #[derive(Deserialize)]
    struct About {
        data: Build,
    }
    #[derive(Deserialize)]
    struct Build {
        #[serde(rename = "buildID")]
        build_id: String,
        #[serde(rename = "userID")]
        user_id: String,
    }
    let About { data } = serde_json::from_slice(body).ok()?;
    Some(BuildIdentity { user_id: Some(data.user_id), build_id: data.build_id })
}

/// A whole notification body.
#[derive(Debug, Serialize)]
pub struct NotificationBody<T> {
    #[serde(rename = "type")]
    pub kind: NotificationType,
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    pub data: T,
}

/// `data` of `image.ready`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReady {
    #[serde(rename = "buildID")]
    pub build_id: String,
    #[serde(rename = "applicationID")]
    pub application_id: String,
    #[serde(rename = "userID")]
    pub user_id: String,
    pub connector: String,
    pub repo: String,
    pub commit: String,
    pub builder: String,
    /// Tries begun.
    pub attempts: u32,
    /// Whether an image of the same inputs stood in for a build.
    pub reused: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    pub image: Image,
    pub seconds: Seconds,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    pub reference: String,
    pub repository: String,
    pub tag: String,
    pub digest: String,
    #[serde(rename = "imageID")]
    pub image_id: String,
    /// What the registry stores for it: configuration and compressed layers, in bytes.
    pub size_bytes: u64,
}

/// Where the time went, in seconds; `queue` is all that no stage had it in hand.
#[derive(Debug, Serialize)]
pub struct Seconds {
    pub queue: f64,
    pub connector: f64,
    pub builder: f64,
    pub pusher: f64,
    pub total: f64,
}

/// `data` of `build.failed` and `build.cancelled`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildFailed {
    #[serde(rename = "buildID")]
    pub build_id: String,
    #[serde(rename = "applicationID")]
    pub application_id: Option<String>,
    #[serde(rename = "userID")]
    pub user_id: String,
    pub connector: Option<String>,
    pub repo: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// Absent where nobody has to do anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Culprit>,
    pub stage: StageName,
    pub reason: Reason,
    pub message: String,
    /// Tries begun.
    pub attempts: u32,
    /// The last lines of the build.
    pub log: Vec<String>,
}

/// Whom and what an outcome is about: as much as could be read of the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub build_id: String,
    /// `None` = unreadable: then there is nobody to notify.
    pub user_id: Option<String>,
    pub application_id: Option<String>,
    pub connector: Option<String>,
    pub repo: Option<String>,
}

impl Subject {
    /// What is known of a request that nobody has read.
    pub fn unread(build: BuildIdentity) -> Self {
        let BuildIdentity { user_id, build_id } = build;
        Self { build_id, user_id, ..Self::default() }
    }

    /// Which build it is about.
    pub fn identity(&self) -> BuildIdentity {
        BuildIdentity { user_id: self.user_id.clone(), build_id: self.build_id.clone() }
    }

    pub fn of(request: &BuildRequest) -> Self {
        Self {
            build_id: request.build_id.clone(),
            user_id: Some(request.user_id.clone()),
            application_id: Some(request.application_id.clone()),
            connector: Some(request.forge.as_str().to_owned()),
            repo: Some(request.repo.to_string()),
        }
    }
}

/// Who has to do something about a failed build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Culprit {
    User,
    Service,
}

impl Culprit {
    /// The culprit's name, as it stands in notifications and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Culprit::User => "user",
            Culprit::Service => "service",
        }
    }

    /// Whom a notification names for this reason, in its field `fault`; `None` = nobody: somebody wanted it so.
    pub fn of(reason: Reason) -> Option<Self> {
        match reason.kind() {
            Kind::User | Kind::Build => Some(Culprit::User),
            Kind::Service | Kind::Refused | Kind::Capacity | Kind::Crash => Some(Culprit::Service),
            Kind::Withdrawn => None,
        }
    }
}

impl<T: Serialize> NotificationBody<T> {
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a notification has only string keys")
    }
}

/// The `webhook-id` of a build's notification: the same whenever it is repeated, and another one for
/// another user, build or type.
pub fn notification_id(build: &BuildIdentity, kind: NotificationType) -> String {
    build.hash("notification", [kind.as_str()]).to_string()
}
