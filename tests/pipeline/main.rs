//! A job's way through the six actors, on ports in memory.

#[path = "../support/crew.rs"]
mod crew;

mod faults;
mod outcomes;
mod resuming;
mod supervision;
