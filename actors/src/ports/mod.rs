//! The ports: what the inside asks of the outside, one file a port, with the promises that its
//! conformance suite checks. Each has one real adapter and one in memory.

mod broker;
mod builder;
mod notifier;
mod planner;
mod probe;
mod registry;
mod source;

pub use self::broker::{
    Broker, BrokerError, Message, Queue, REPEATED, RawDelivery, Route, Settle, Subscription,
};
pub use self::builder::{BuildOrder, ImageBuilder};
pub use self::notifier::{Notifier, NotifyError};
pub use self::planner::{Plan, Planner};
pub use self::probe::Probe;
pub use self::registry::Registry;
pub use self::source::{FetchedSource, SourceConnector};
