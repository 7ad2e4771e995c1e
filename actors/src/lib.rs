//! The inside of image-builder: what happens to a build request, and nothing of how.
//!
//! The inside knows no message broker, container engine, git or HTTP: it speaks to [`ports`].
//!
//! A job's way, and who has it in hand:
//!
//! ```text
//! build queue ─ intake ─▶ listener ─▶ connector ─▶ builder ─▶ pusher ─▶ outcome queue ─▶ notifier
//!      ▲                     └───────────┴────────────┴─────────┤
//!      └── delay ladder ◀── retry ◀── fail queue ◀──────────────┘
//! ```
//!
//! | to read about | see |
//! |---|---|
//! | what a job is made of | [`job`], [`request`], [`fault`], [`outcome`], [`progress`], [`workspace`] |
//! | what its image is called, and how it is found again | [`images`], [`mod@reference`] |
//! | who settles a delivery, and when | [`lease`], [`desk`], [`intake`], [`redelivery`] |
//! | who waits for whom, who was withdrawn | [`board`], [`fair`] |
//! | that one outcome of a build is told | [`told`], [`notifier`] |
//! | what becomes of a failure | [`policy`], [`history`], [`dead`] |
//! | the actors | [`listener`], [`connector`], [`builder`], [`pusher`], [`notifier`], [`retry`], [`messages`] |
//! | what an operator sees of them | [`journey`], [`metrics`], [`trace`], [`health`] |
//! | who keeps them alive | [`supervisor`], [`pool`], [`lifecycle`], [`capacity`] |

pub mod board;
pub mod builder;
pub mod capacity;
pub mod connector;
pub mod crew;
pub mod dead;
pub mod desk;
pub mod fair;
#[cfg(feature = "testing")]
pub mod fakes;
pub mod fault;
pub mod health;
pub mod history;
pub mod images;
pub mod intake;
pub mod job;
pub mod journey;
pub mod lease;
pub mod lifecycle;
pub mod limits;
pub mod listener;
pub mod messages;
pub mod metrics;
pub mod notifier;
pub mod outcome;
pub mod policy;
pub mod pool;
pub mod ports;
pub mod progress;
pub mod pusher;
pub mod redelivery;
pub mod reference;
pub mod request;
pub mod retry;
pub mod secret;
pub mod supervisor;
pub mod told;
pub mod trace;
pub mod workspace;
