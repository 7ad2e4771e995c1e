//! Where images go.

use image_builder_actors::model::secret::Secret;

use super::reader::Reader;
use crate::registry::{RegistryCredentials, RegistryUrl};

#[derive(Debug, Clone)]
pub struct RegistryConfig {
    pub url: RegistryUrl,
    /// `None` = anonymous.
    pub credentials: Option<RegistryCredentials>,
    /// By what workers know the tags that a worker put. `None` = by what they share besides.
    pub reuse_secret: Option<Secret>,
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
        Self { url, credentials, reuse_secret: read.reuse_secret() }
    }
}
