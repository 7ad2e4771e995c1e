//! The broker under test, the workers' ways to it, and the oracle's own.

mod embedded;
mod post;
mod rabbitmq;

use std::path::Path;
use std::sync::Mutex;

use self::embedded::Embedded;
use self::rabbitmq::RabbitMq;
use crate::gate::Gate;
pub use crate::oracle::Taken;
use crate::requests::Request;
use crate::support::setting;

/// A broker, with everything in a run that depends on which one it is.
pub trait Broker: Send + Sync {
    /// How many workers share it.
    fn workers(&self) -> usize;

    /// What a worker has to be told of it.
    fn settings(&self, worker: usize) -> Vec<(&'static str, String)>;

    /// The ways to it that can be barred: a worker's, or all. None = it is in the worker's own process.
    fn gates(&self, worker: Option<usize>) -> Vec<&Mutex<Gate>>;

    /// Waits until requests can be published.
    fn until_ready(&self);

    /// Publishes a request once, however long that takes: until it is durable, or refused for good.
    fn publish(&self, request: &Request) -> Taken;

    /// Says that nobody wants a build any more, until that is durable.
    fn cancel(&self, user: &str, build_id: &str);

    /// Has no worker hear anything until what is returned is dropped.
    fn cut_off(&self) -> Box<dyn Silence + '_>;

    /// Closes a worker's connections, as an operator would; returns how many.
    fn close_connections(&self, worker: usize) -> usize;

    /// Ends it, by a kill or as an operator would, and starts it again on its data; `false` = it ends with its
    /// worker alone.
    fn restart(&self, kill: bool) -> bool;

    /// Messages that are anywhere in the queues, unsettled ones included, by queue; dead letters and what
    /// is kept for good are not counted. The figures may be some seconds old.
    ///
    /// # Errors
    /// It cannot be told for now.
    fn waiting(&self) -> Result<Vec<(String, u64)>, String>;

    /// What it has when the workers have ended.
    fn leavings(&self) -> Leavings;
}

/// Lasts until it is dropped.
pub trait Silence {}

/// What a broker has in the end.
#[derive(Debug, Default)]
pub struct Leavings {
    /// The bodies of the dead letters.
    pub letters: Vec<String>,
    /// Queues and bodies of all other messages.
    pub messages: Vec<(String, String)>,
}

/// The broker that `BROKER` names: `rabbitmq`, which is the default, or `embedded`. `run` is what all names begin
/// with, and files are below `home`.
pub fn start(run: &str, home: &Path) -> Box<dyn Broker> {
    match setting("BROKER", "rabbitmq").as_str() {
        "rabbitmq" => Box::new(RabbitMq::start(run)),
        "embedded" => Box::new(Embedded::start(home)),
        other => panic!("BROKER is rabbitmq or embedded, and not {other}"),
    }
}
