//! Where sources come from.

use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::ForgeName;
use image_builder_actors::parse::Rules;
use reqwest::Url;

use super::reader::Reader;
use crate::credentials::GithubAppSettings;
use crate::source::ForgeSettings;

#[derive(Debug, Clone)]
pub struct ForgeConfig {
    /// Without a trailing slash.
    pub url: String,
    pub api_url: String,
    pub others: ForgeSettings,
    /// Who makes tokens of what the platform calls credentials; may hold a credential.
    pub credentials_url: Option<Url>,
    pub github_app: Option<GithubAppSettings>,
}

impl ForgeConfig {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        let (url, api_url) = (read.github_url(), read.github_api_url());
        let id = read.github_app_id();
        let (key, good) = read.good(Reader::github_app_key);
        // A bad one is set, too.
        match (&id, key.is_some() || !good) {
            (Some(_), false) => read.bad("GITHUB_APP_KEY", "is missing beside GITHUB_APP_ID"),
            (None, true) => read.bad("GITHUB_APP_ID", "is missing beside GITHUB_APP_KEY"),
            _ => {}
        }
        let github_app = id.zip(key).zip(Url::parse(&api_url).ok());
        let github_app =
            github_app.map(|((id, key), api_url)| GithubAppSettings { id, key, api_url });
        let others = ForgeSettings {
            gitlab: Some(read.gitlab_url()),
            gitea: read.gitea_url(),
            bitbucket: Some(read.bitbucket_url()),
            git: read.git_servers().unwrap_or_default(),
        };
        Self { url, api_url, others, credentials_url: read.credentials_url(), github_app }
    }

    /// What requests are checked against.
    pub fn rules(&self, limits: &Limits) -> Rules {
        let ForgeSettings { gitlab, gitea, bitbucket, git } = &self.others;
        let others = [
            (ForgeName::Gitlab, gitlab.as_slice()),
            (ForgeName::Gitea, gitea.as_slice()),
            (ForgeName::Bitbucket, bitbucket.as_slice()),
            (ForgeName::Git, git),
        ];
        let urls = others.iter().flat_map(|(name, urls)| urls.iter().map(|url| (*name, url)));
        let rules = Rules::new(&self.url, limits.clone());
        urls.fold(rules, |rules, (name, url)| rules.with(name, url))
    }
}
