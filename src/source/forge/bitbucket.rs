//! Bitbucket Cloud: git alone, since it has no releases.

use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::HeaderValue;

use super::{Forge, base, user_and_password};
use crate::source::GitSetupError;

pub(super) struct Bitbucket {
    url: Url,
}

impl Bitbucket {
    /// At its address for people and for git (`BITBUCKET_URL`).
    pub(super) fn new(url: &str) -> Result<Self, GitSetupError> {
        Ok(Self { url: base("BITBUCKET_URL", url)? })
    }
}

impl Forge for Bitbucket {
    fn url(&self) -> &Url {
        &self.url
    }

    /// That of access tokens; app passwords and API tokens are given with theirs.
    fn git_user(&self) -> &'static str {
        "x-token-auth"
    }

    fn git_authorization(&self, token: &Secret) -> HeaderValue {
        user_and_password(token, self.git_user())
    }
}
