//! The commands, one module each.

pub mod dead_letters;
pub mod serve;
