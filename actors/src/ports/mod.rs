//! The ports: what the inside asks of the outside, one file a port, with the promises that its
//! conformance suite checks. Each has one real adapter and one in memory.
//!
//! What waits returns a `BoxFuture` of one lifetime. The bounds between lifetimes that `#[async_trait]` writes in its
//! place have the compiler prove anew, for every method of every adapter, that all the adapter holds is `Send`: half of
//! the time of compiling it (rust-lang/rust#157595).

mod broker;
pub mod build_store;
mod builder;
mod commit_statuses;
mod credentials;
mod dead_letters;
mod notifier;
mod outcome_ledger;
mod planner;
mod probe;
mod registry;
mod source;

pub use self::broker::{
    Acknowledger, Backlog, Broker, BrokerError, Cancellation, DELIVERY_LIMIT, Delivery,
    LONGEST_ENVELOPE, LONGEST_ID, LONGEST_TRACEPARENT, Load, Message, Place, Queue, Subscription,
    Taker, Turn,
};
pub use self::builder::{BuildOrder, Claim, Exposed, ImageBuilder};
pub use self::commit_statuses::{CommitStatus, CommitStatuses, StatusError, StatusState};
pub use self::credentials::Credentials;
pub use self::dead_letters::{
    DeadLetterReading, DeadLetterStore, DeadLetters, DeadLettersError, KeptLetter,
};
pub use self::notifier::{Notifier, NotifyError};
pub use self::outcome_ledger::{
    LedgerError, OutcomeCopy, OutcomeLedger, Recorded, Verdict, request_name,
};
pub use self::planner::{Plan, Planner};
pub use self::probe::Probe;
pub use self::registry::{RefusedTag, Registry};
pub use self::source::{FetchedSource, SourceConnector};
