//! Images: as the engine has them, as the registry has them, and what goes into one.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::digest::{add_part, hex};
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
            redrive_of: None,
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
}
