//! The planner port: what it promises, and what only the real one does.

#[path = "planner/dockerfile.rs"]
mod dockerfile;
#[path = "planner/hostile.rs"]
mod hostile;
#[path = "planner/nixpacks.rs"]
mod nixpacks;
#[path = "planner/world.rs"]
mod world;

mod conformance {
    image_builder_actors::planner_conformance!(super::world::real());
}
