//! Hooks of forges, and what is built after them.

use image_builder_actors::model::request::ForgeName;
use image_builder_actors::parse::Rules;
use reqwest::Url;

use super::reader::Reader;
use crate::hooks::ApplicationsSettings;

#[derive(Debug, Clone)]
pub struct HooksConfig {
    /// `host:port` of a server that has hooks alone; `None` = there is none.
    pub address: Option<String>,
    /// Where people reach the service.
    pub public_url: Option<Url>,
    /// What is built after a push.
    pub applications: ApplicationsSettings,
}

impl HooksConfig {
    /// The file of the applications is looked at where it is known which forges there are.
    pub(super) fn read(read: &mut Reader<'_>, rules: Option<Rules>) -> Self {
        let secrets = [
            (ForgeName::Github, read.github_hook_secret()),
            (ForgeName::Gitlab, read.gitlab_hook_secret()),
            (ForgeName::Gitea, read.gitea_hook_secret()),
        ];
        let secrets = secrets.into_iter().filter_map(|(forge, secret)| Some((forge, secret?)));
        let applications =
            ApplicationsSettings { file: read.applications_file(), secrets: secrets.collect() };
        if let Some(Err(lines)) = rules.map(|rules| applications.check(&rules)) {
            read.errors.extend(lines);
        }
        Self { address: read.hooks_addr(), public_url: read.public_url(), applications }
    }
}
