//! The inside of image-builder: what happens to a build request, and nothing of how.
//!
//! The inside knows no message broker, container engine, git or HTTP: it speaks to [`ports`].
//!
//! A job's way, and who has it in hand:
//!
//! ```text
//! build queue ─ consumer ─▶ listener ─▶ backlog ─ dispatcher ─▶ listener ─▶ connector ─▶ builder ─▶ pusher
//!      ▲                                                           └───────────┴────────────┴─────────┤
//!      └── retry ladder ◀──── retry ◀──── fail queue ◀───────────────────────────────────────────────┤
//!                                                     notifier ◀─── outcome queue ◀───────────────────┘
//! ```
//!
//! The rooms, each of which knows only those above it:
//!
//! | room | what is in it |
//! |---|---|
//! | [`model`] | what things are: requests, faults, histories, images, notifications |
//! | [`parse`] | from JSON to the model, one clear message a rule |
//! | [`dead_letter`] | the copy of what was given up, without any credential |
//! | [`ports`] | what the inside asks of the outside, with the promises |
//! | [`scheduling`] | how much is in hand, who waits for what, who was withdrawn, when a failure is tried again |
//! | [`telemetry`] | what an operator sees |
//! | [`delivery`] | who settles a delivery, and when |
//! | [`supervision`] | who keeps the actors alive |
//! | [`pipeline`] | the six actors and those who bring them their work, put together |
//!
//! `testing` has the ports in memory.

pub mod dead_letter;
pub mod delivery;
pub mod model;
pub mod parse;
pub mod pipeline;
pub mod ports;
pub mod scheduling;
pub mod supervision;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
