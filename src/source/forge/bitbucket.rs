//! Bitbucket Cloud: git, and statuses of commits. It has no releases.

use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::{CommitStatus, StatusState};
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::api::accept_json;
use super::{Forge, StatusCall, base, user_and_password};
use crate::net::http::authorization;
use crate::source::GitSetupError;
use crate::source::http::below;

/// Longest name of a status, in bytes.
const LONGEST_KEY: usize = 40;

pub(super) struct Bitbucket {
    url: Url,
    api: Url,
}

impl Bitbucket {
    /// At its address for people and for git (`BITBUCKET_URL`).
    pub(super) fn new(url: &str) -> Result<Self, GitSetupError> {
        let url = base("BITBUCKET_URL", url)?;
        let mut api = url.clone();
        if api.host_str() == Some("bitbucket.org") {
            api = base("BITBUCKET_URL", "https://api.bitbucket.org")?;
        }
        Ok(Self { url, api })
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

    fn status(&self, status: &CommitStatus) -> Option<StatusCall> {
        let CommitStatus { repo, commit, name, state, description, link, .. } = status;
        let state = match state {
            StatusState::Queued | StatusState::Building => "INPROGRESS",
            StatusState::Success => "SUCCESSFUL",
            StatusState::Failure | StatusState::Error => "FAILED",
            StatusState::Cancelled => "STOPPED",
        };
        let mut key = name.clone();
        if key.len() > LONGEST_KEY {
            key = format!("{:x}", Sha256::digest(name));
            key.truncate(LONGEST_KEY);
        }
        // It takes none without a link.
        let link = link.clone().unwrap_or_else(|| self.page(repo).into());
        let head = ["2.0", "repositories", &repo.owner, &repo.name, "commit", commit];
        Some(StatusCall {
            url: below(&self.api, head.into_iter().chain(["statuses", "build"])),
            headers: accept_json(),
            body: json!({
                "state": state, "key": key, "name": name, "description": description, "url": link,
            }),
        })
    }

    fn api_authorization(&self, token: &Secret) -> Option<HeaderValue> {
        match token.expose().contains(':') {
            true => Some(user_and_password(token, self.git_user())),
            false => authorization("Bearer", token.expose()),
        }
    }

    fn git_authorization(&self, token: &Secret) -> HeaderValue {
        user_and_password(token, self.git_user())
    }
}
