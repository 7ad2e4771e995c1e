//! The broker port's adapters.

pub mod rabbitmq;
pub mod sqlite;
