//! Images: as the engine has them, as the registry has them, and what goes into one.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::digest::hex;
use crate::model::request::{BuildRequest, BuilderKind};

/// An image that the engine has built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuiltImage {
    /// The engine's id of the image, `sha256:…`.
    pub id: String,
    pub builder: BuilderKind,
    pub key: BuildKey,
}

/// Where the image of a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageLocation {
    /// On the engine, which has yet to push it.
    OnEngine(BuiltImage),
    /// In the registry, where some builders put it by themselves.
    InRegistry(RegistryImage),
}

/// An image that the registry has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryImage {
    /// The registry's own digest of the manifest, `sha256:…`.
    pub digest: String,
    /// Digest of the image's configuration, which is the engine's id of the image.
    pub image_id: String,
    /// What the registry stores for it: configuration and compressed layers, in bytes.
    pub size_bytes: u64,
}

/// Names all that goes into an image: requests of the same key get the same image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BuildKey(String);

impl BuildKey {
    /// The key of a build: `plan` is the [fingerprint](crate::ports::Plan::fingerprint) of the plan,
    /// build arguments and planner version included.
    pub fn of(request: &BuildRequest, commit: &str, plan: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [
            &request.user_id,
            &request.application_id,
            request.forge.as_str(),
            &request.repo.to_string(),
            commit,
            &request.plan.root_directory,
            plan,
        ] {
            // Each part with its length before it, so that no two lists of parts read the same.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self(hex(&hash.finalize()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag that the registry keeps an image of this key under.
    pub fn tag(&self) -> String {
        format!("key-{}", self.0)
    }
}
