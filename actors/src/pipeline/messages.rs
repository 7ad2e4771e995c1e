//! What a stage makes of a job, named for the state that the thing has reached. It goes to the next
//! stage as [`Work`](crate::pipeline::stage::Work).

use crate::model::image::{BuiltImage, RegistryImage};
use crate::model::request::BuilderKind;

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
