//! What a stage makes of a job, named for the state that the thing has reached. It goes to the next
//! stage as [`Work`](crate::pipeline::stage::Work).

use std::time::Instant;

use actix::Message;

use crate::delivery::lease::{Lease, Leased};
use crate::model::image::{BuiltImage, RegistryImage};
use crate::model::request::BuilderKind;

/// A message was delivered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Delivered {
    pub lease: Lease,
    /// When the worker got it.
    pub received: Instant,
}

impl Leased for Delivered {
    fn lease(&self) -> &Lease {
        &self.lease
    }
}

/// A job's image is there to be pushed, or already in the registry.
#[derive(Debug)]
pub struct ImageBuilt {
    pub commit: String,
    pub built: Built,
}

/// Where a job's image is.
#[derive(Debug)]
pub enum Built {
    /// On the engine.
    Here(BuiltImage),
    /// In the registry, from an earlier build of the same inputs.
    Reused { image: RegistryImage, builder: BuilderKind },
}
