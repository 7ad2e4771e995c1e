//! What the commands that ask a service share.
//!
//! | file | what it does |
//! |---|---|
//! | `client.rs` | asks |
//! | `events.rs` | follows a build |
//! | `outcome.rs` | how a build ended, as an exit code and in words |
//! | `screen.rs` | colours and tables |

pub(super) mod client;
pub(super) mod events;
pub(super) mod outcome;
pub(super) mod screen;
