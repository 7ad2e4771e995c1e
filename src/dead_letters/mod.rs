//! Dead letters for whoever works on them, over the command line or over HTTP: which are meant, and what
//! requests are made of them. Where they are kept is an adapter's
//! ([`DeadLetterStore`](image_builder_actors::ports::DeadLetterStore)).
//!
//! | file | what it does |
//! |---|---|
//! | `letter.rs` | what is kept, and which of it is meant |
//! | `redrive.rs` | from a letter to a fresh request |

pub(crate) mod letter;
pub(crate) mod redrive;
