//! The builder port: what it promises, and what only a real engine can show.

mod docker;
mod features;
mod inputs;
mod limits;
mod proxy;
mod pruning;
mod pushing;
mod secrets;
mod sharing;
mod tenants;
pub(crate) mod world;

mod conformance {
    image_builder_actors::builder_conformance!(super::world::RealWorld::new().await);
}
