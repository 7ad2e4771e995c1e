//! Any git server over HTTPS that the operator has named.

use image_builder_actors::model::request::RepoName;
use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::HeaderValue;

use super::{Forge, user_and_password};
use crate::source::http::{Address, below};

/// One server.
pub(super) struct GitServer {
    pub(super) url: Url,
}

impl GitServer {
    /// The repository's address, exactly as it was given: some servers want `.git` at its end, and some must
    /// not have it. Its owner begins with the server.
    fn address(&self, repo: &RepoName) -> Url {
        let directories = repo.owner.split('/').skip(1);
        below(&self.url, directories.chain([repo.name.as_str()]))
    }
}

impl Forge for GitServer {
    fn url(&self) -> &Url {
        &self.url
    }

    fn git_user(&self) -> &'static str {
        "git"
    }

    fn repository(&self, repo: &RepoName) -> Address {
        Address {
            url: self.address(repo),
            is_trusted: true,
            is_api: false,
            label: format!("repository `{repo}`"),
        }
    }

    fn page(&self, repo: &RepoName) -> Url {
        self.address(repo)
    }

    fn git_authorization(&self, token: &Secret) -> HeaderValue {
        user_and_password(token, self.git_user())
    }
}
