//! Whom a forge's lack of capacity concerns: never more than those who meet it for the same cause.
//!
//! | what was seen | whom it concerns |
//! |---|---|
//! | the forge's own address, or its API's, takes no connection | all who need that host |
//! | another server that the forge names takes none | the repository |
//! | the forge asks a token for patience | the token |
//! | it asks a request without one for patience, and it is the API, or says that none are left | all who ask that host without one |
//! | it asks otherwise, or the Git LFS server does | the repository |

use image_builder_actors::model::scope::{Fingerprint, Scope};
use image_builder_actors::model::secret::Secret;
use reqwest::Url;

/// What one fetch is known by at its forge.
#[derive(Debug, Clone)]
pub(super) struct Concerns {
    pub(super) repository: Scope,
    token: Option<Scope>,
}

impl Concerns {
    /// Of a fetch of the repository with this page.
    pub(super) fn new(page: &Url, token: Option<&Secret>) -> Self {
        let token = token.map(|token| Scope::Token(Fingerprint::of(&host(page), token)));
        Self { repository: Scope::Repository(page.to_string()), token }
    }

    /// All that it could meet at this forge; of the API only where it is asked.
    pub(super) fn all(&self, forge: &Url, api: Option<&Url>) -> Vec<Scope> {
        let hosts = [Some(forge), api].into_iter().flatten();
        let by_host = hosts.flat_map(|url| {
            let asker = self.token.clone().unwrap_or_else(|| Scope::Anonymous(host(url)));
            [Scope::Host(host(url)), asker]
        });
        by_host.chain([self.repository.clone()]).collect()
    }

    /// Whom it concerns that `url` takes no connection, which was led to from `asked`.
    pub(super) fn unreachable(&self, asked: &Url, url: Option<&Url>) -> Scope {
        let url = url.unwrap_or(asked);
        match url.origin() == asked.origin() {
            true => Scope::Host(host(url)),
            false => self.repository.clone(),
        }
    }

    /// Whom it concerns that `asked` wants patience. `counts_askers` = it counts all without a token
    /// together.
    pub(super) fn limited(&self, asked: &Url, with_token: bool, counts_askers: bool) -> Scope {
        match &self.token {
            Some(token) if with_token => token.clone(),
            _ if counts_askers => Scope::Anonymous(host(asked)),
            _ => self.repository.clone(),
        }
    }
}

/// The name of a host, with its port where that is not the scheme's own.
fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_concerns_more_than_what_a_fetch_waits_for() {
        let url = |text: &str| Url::parse(text).expect("a valid address");
        let (git, api) = (url("https://forge.test/a/b.git"), url("http://api.test:81/x"));
        for token in [None, Some(Secret::new("hunter2"))] {
            let concerns = Concerns::new(&url("https://forge.test/a/b"), token.as_ref());
            let (all, of_git) = (concerns.all(&git, Some(&api)), concerns.all(&git, None));
            let with_token = token.is_some();
            for exhausted in [false, true] {
                assert!(of_git.contains(&concerns.limited(&git, with_token, exhausted)));
            }
            assert!(all.contains(&concerns.limited(&api, with_token, true)));
            assert!(!of_git.contains(&Scope::Anonymous("api.test:81".to_owned())));
            assert_eq!(concerns.unreachable(&api, None), Scope::Host("api.test:81".to_owned()));
            let elsewhere = url("https://store.test/x");
            assert_eq!(concerns.unreachable(&git, Some(&elsewhere)), concerns.repository);
        }
    }
}
