//! What workers are asked for in the chaos and the soak run, and what their oracle expects of it.

use lapin::BasicProperties;
use serde_json::{Value, json};

/// What kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// An application of its own, files only.
    Files,
    /// The same, with a step that runs.
    Step,
    /// With a step that uses a secret.
    Secret,
    /// From a repository that wants a token.
    Private,
    /// An application that others build as well, so that an image may be there already.
    Shared,
    /// The same, to be built in any case.
    Forced,
    /// Published twice under one id.
    Twice,
    /// With the message's id for its only one.
    MessageId,
    /// Without any id.
    NoId,
    /// In the older, nested shape.
    Nested,
    /// A step fails each time.
    Failing,
    /// There is no such repository.
    Missing,
    /// There is no such branch.
    NoRef,
    /// Neither a Dockerfile nor anything that nixpacks knows.
    NoPlan,
    /// Not a request that can be understood.
    Malformed,
    /// Taken back soon after.
    Cancelled,
    /// Asked for and taken back while no worker is connected.
    CancelledUnheard,
    /// Under the id of another user's build.
    SameId,
    /// Like `Files`, when nothing is wrong any longer: its first try has to give an image.
    Fresh,
}

/// How a request has to end. Where things break, each may also end in a fault of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Image,
    /// `build.failed` for this reason.
    Failed(&'static str),
    ImageOrCancelled,
    Cancelled,
}

impl Sort {
    /// Whether its user takes it back.
    pub fn is_cancelled(self) -> bool {
        matches!(self, Self::Cancelled | Self::CancelledUnheard)
    }

    pub fn ending(self) -> Ending {
        match self {
            Self::Failing => Ending::Failed("build_failed"),
            Self::Missing => Ending::Failed("repository_not_found"),
            Self::NoRef => Ending::Failed("ref_not_found"),
            Self::NoPlan => Ending::Failed("no_build_plan"),
            Self::Malformed => Ending::Failed("invalid_request"),
            Self::Cancelled => Ending::ImageOrCancelled,
            Self::CancelledUnheard => Ending::Cancelled,
            _ => Ending::Image,
        }
    }
}

/// A request as it is published.
#[derive(Debug, Clone)]
pub struct Request {
    pub sort: Sort,
    /// Known beforehand, unless the request has none.
    pub build_id: Option<String>,
    pub message_id: Option<String>,
    pub application: String,
    pub user: String,
    /// The one that an image has to be of.
    pub commit: String,
    pub body: Value,
    /// How often it is published.
    pub copies: usize,
}

impl Request {
    /// A request of this sort and id. What only one sort of one run needs is added to the body there.
    pub fn new(
        sort: Sort,
        id: String,
        user: String,
        application: String,
        repo: &str,
        commit: &str,
    ) -> Self {
        let repo = match sort {
            Sort::Missing => format!("{repo}-missing"),
            Sort::Malformed => "this names no repository".to_owned(),
            _ => repo.to_owned(),
        };
        let mut body = match sort {
            Sort::Nested => {
                let info = json!({"userID": user, "repo": repo, "commit": commit});
                json!({"applicationID": application, "pullInfo": info})
            }
            _ => json!({"userID": user, "applicationID": application, "repo": repo}),
        };
        if sort == Sort::Forced {
            body["force"] = true.into();
        }
        if !matches!(sort, Sort::MessageId | Sort::NoId) {
            body["uuid"] = id.as_str().into();
        }
        Self {
            sort,
            message_id: (sort == Sort::MessageId).then(|| id.clone()),
            build_id: (sort != Sort::NoId).then_some(id),
            application,
            user,
            commit: commit.to_owned(),
            body,
            copies: if sort == Sort::Twice { 2 } else { 1 },
        }
    }

    /// The properties of its message.
    pub fn properties(&self) -> BasicProperties {
        match &self.message_id {
            Some(id) => BasicProperties::default().with_message_id(id.as_str().into()),
            None => BasicProperties::default(),
        }
    }
}
