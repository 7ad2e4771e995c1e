//! Images: as the engine has them, as the registry has them, and what goes into one.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::digest::{add_part, hex};
use crate::model::request::{BuildRequest, BuilderKind};

/// The label with the commit that an image was made of.
pub const REVISION_LABEL: &str = "org.opencontainers.image.revision";
/// The label with the repository's page.
pub const SOURCE_LABEL: &str = "org.opencontainers.image.source";
/// The label with the commit's time, in RFC 3339.
pub const CREATED_LABEL: &str = "org.opencontainers.image.created";
/// The label with the [build key](BuildKey).
pub const KEY_LABEL: &str = "image-builder.build-key";
/// The label with the [builder](BuilderKind) that made an image.
pub const BUILDER_LABEL: &str = "image-builder.builder";

/// An image that the engine has built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuiltImage {
    /// The engine's id of the image, `sha256:…`.
    pub id: String,
    pub builder: BuilderKind,
    pub key: BuildKey,
    /// An image that was read from a message has none.
    #[serde(skip)]
    pub pin: ImagePin,
}

impl BuiltImage {
    /// Without a pin.
    pub fn new(id: String, builder: BuilderKind, key: BuildKey) -> Self {
        Self { id, builder, key, pin: ImagePin::default() }
    }
}

/// Keeps an image on the engine, however short room is, until the last clone is dropped.
#[derive(Clone, Default)]
pub struct ImagePin(Option<Arc<dyn Any + Send + Sync>>);

impl ImagePin {
    /// Dropping `guard` lets the image go.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(guard)))
    }
}

impl fmt::Debug for ImagePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "pinned" } else { "not pinned" })
    }
}

/// A pin makes an image no other one.
impl PartialEq for ImagePin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ImagePin {}

/// Where the image of a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageLocation {
    /// On the engine, which has yet to push it.
    OnEngine(BuiltImage),
    /// In the registry, which was asked for it.
    InRegistry(RegistryImage),
    /// In the registry, where some builders put it by themselves: by this digest, under no tag, and looked at
    /// by nobody yet.
    Pushed { digest: String },
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
    /// What the registry stores under the digest, so that it can be stored under further tags.
    pub manifest: Arc<StoredManifest>,
}

/// A manifest, byte by byte.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredManifest {
    pub media_type: String,
    pub bytes: Vec<u8>,
}

impl fmt::Debug for StoredManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.media_type, self.bytes.len())
    }
}

/// The digest of `bytes` as registries write it: `sha256:…`.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Whether `text` is `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Names all that goes into an image: requests of the same key get the same image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BuildKey(String);

impl BuildKey {
    /// The key of a build: `plan` is the [fingerprint](crate::ports::Plan::fingerprint) of the plan,
    /// build arguments and planner version included; `seen` is what the build sees beside it, by its
    /// [inputs](crate::ports::ImageBuilder::inputs), else the commit.
    pub fn of(request: &BuildRequest, seen: &str, plan: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [
            &request.user_id,
            &request.application_id,
            request.forge.as_str(),
            &request.repo.to_string(),
            seen,
            &request.plan.root_directory,
            plan,
        ] {
            add_part(&mut hash, part);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::request::{ForgeName, PlanRequest, RepoName, Target};

    fn request() -> BuildRequest {
        BuildRequest {
            build_id: "a-build".to_owned(),
            user_id: "someone".to_owned(),
            application_id: "an-application".to_owned(),
            forge: ForgeName::Github,
            repo: RepoName { owner: "owner".to_owned(), name: "name".to_owned() },
            target: Target::DefaultBranch,
            token: None,
            force: false,
            supersede: false,
            commit_status: false,
            redrive_of: None,
            token_ref: None,
            plan: PlanRequest { root_directory: "apps/web".to_owned(), ..PlanRequest::default() },
        }
    }

    #[test]
    fn the_key_of_a_build_is_what_it_was_when_the_registry_s_images_were_tagged() {
        let key = BuildKey::of(&request(), "0123456789abcdef0123456789abcdef01234567", "a-plan");
        assert_eq!(
            key.as_str(),
            "6384f8782fa3be4ace33ec0229e9911c515c638ab60fd29467d6789f27f48c62"
        );
    }

    #[test]
    fn all_that_goes_into_an_image_is_in_its_key_and_the_single_build_is_not() {
        let key = |request: &BuildRequest, commit| BuildKey::of(request, commit, "a-plan");
        let first = key(&request(), "c");
        let again = BuildRequest { build_id: "b".to_owned(), force: true, ..request() };
        assert_eq!(key(&again, "c"), first);
        let of_another = BuildRequest { user_id: "else".to_owned(), ..request() };
        let elsewhere = BuildRequest { plan: PlanRequest::default(), ..request() };
        for other in [key(&of_another, "c"), key(&elsewhere, "c"), key(&request(), "d")] {
            assert_ne!(other, first);
        }
        assert_ne!(BuildKey::of(&request(), "c", "another-plan"), first);
    }

    #[test]
    fn a_digest_is_sha256_in_lower_case_hexadecimal() {
        assert!(is_digest(&digest_of(b"x")));
        for text in ["sha256:", "sha256:00", &digest_of(b"x").to_uppercase(), "md5:00"] {
            assert!(!is_digest(text), "{text}");
        }
    }
}
