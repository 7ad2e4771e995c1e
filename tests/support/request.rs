//! What workers are asked for, and what an oracle expects of it.

use serde_json::Value;

/// How a request has to end. Where things break, each may also end in a fault of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Image,
    /// `build.failed` for this reason.
    Failed(&'static str),
    ImageOrCancelled,
}

/// What is expected of a sort of requests.
pub trait Expected: Copy {
    fn ending(self) -> Ending;

    /// Whether an image of the same inputs may stand in for its own.
    fn may_be_reused(self) -> bool;

    /// Whether its first try has to give an image, since all is well when it is asked for.
    fn passes_at_once(self) -> bool;
}

/// A request of one of a test's sorts. The oracle takes it from the `requests.rs` of the test that it is
/// part of.
#[derive(Debug, Clone)]
pub struct Request<Sort: Expected> {
    pub sort: Sort,
    /// Known beforehand, unless the request has none.
    pub build_id: Option<String>,
    pub message_id: Option<String>,
    pub application: String,
    pub user: String,
    /// The one that an image has to be of.
    pub commit: Option<String>,
    pub body: Value,
    /// How often it is published.
    pub copies: usize,
}
