//! What an operator sees of the program: its metrics, its dashboard, its readiness, its log and its
//! traces, all of the real binary.
//!
//! All of it needs the development services (`.devcontainer/stack.sh up` and `images`) and
//! `promtool`.

#[path = "../support/mod.rs"]
mod support;

mod dashboard;
mod http;
mod logs;
mod metrics;
mod scrape;
mod traces;

use support::worker::{Settings, Worker};
use support::world::World;

/// A worker that has not reached its broker: it can be looked at, and has nothing to do.
pub(crate) struct Idle {
    pub(crate) worker: Worker,
    _data: tempfile::TempDir,
}

impl Idle {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(more: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory can be made");
        let settings: Settings = [
            // Port 1 is nobody's.
            ("RABBITMQ_URI", "amqp://guest:guest@127.0.0.1:1/%2f"),
            ("DATA_DIR", &data.path().display().to_string()),
            ("HTTP_ADDR", "127.0.0.1:0"),
            ("TENANCY", "trusted"),
        ]
        .iter()
        .chain(more)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
        Self { worker: Worker::spawn(&settings), _data: data }
    }
}

/// A request for a repository that is not there: the cheapest job that goes all the way.
pub(crate) fn hopeless(world: &World) -> serde_json::Value {
    let repo = format!("it/{}", support::unique("missing"));
    serde_json::json!({"userID": world.user, "repo": repo, "uuid": support::unique("build")})
}
