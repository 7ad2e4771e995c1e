//! Who works on what, and when.

pub mod admission;
pub mod capacity;
pub mod fair_semaphore;
pub mod holds;
pub mod keyed_locks;
pub mod retry_policy;
