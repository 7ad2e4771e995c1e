//! What things are: values without behaviour of their own beyond reading, writing and comparing.

pub mod build_log;
pub mod digest;
pub mod fault;
pub mod history;
pub mod identity;
pub mod image;
pub mod limits;
pub mod login;
pub mod notification;
pub mod platform;
pub mod reference;
pub mod request;
pub mod scope;
pub mod secret;
pub mod shutdown;
pub mod suspect;
pub mod workspace;

#[cfg(test)]
mod tests;
