//! Where images go.

use super::reader::Reader;
use crate::registry::{RegistryCredentials, RegistryUrl};

#[derive(Debug, Clone)]
pub struct RegistryConfig {
    pub url: RegistryUrl,
    /// `None` = anonymous.
    pub credentials: Option<RegistryCredentials>,
}

impl RegistryConfig {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        let url = read.registry_url();
        let username = read.registry_username();
        let (password, good) = read.good(Reader::registry_password);
        // A bad one is set, too.
        match (&username, password.is_some() || !good) {
            (Some(_), false) => {
                read.bad("REGISTRY_PASSWORD", "is missing beside REGISTRY_USERNAME");
            }
            (None, true) => read.bad("REGISTRY_USERNAME", "is missing beside REGISTRY_PASSWORD"),
            _ => {}
        }
        let credentials = username.zip(password);
        let credentials =
            credentials.map(|(username, password)| RegistryCredentials { username, password });
        Self { url, credentials }
    }
}
