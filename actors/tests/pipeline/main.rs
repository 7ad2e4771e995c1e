//! A job's way through the six actors, on ports in memory.

mod capacity;
mod credentials;
mod deaths;
mod engine_deaths;
mod faults;
mod history;
mod identity;
mod notifying;
mod outcomes;
mod publishing;
mod resuming;
mod sharing;
mod statuses;
mod supervision;

mod ward;
