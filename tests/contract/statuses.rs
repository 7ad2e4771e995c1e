//! The commit status port at each forge. Their APIs are stand-ins that take what the real ones document, and
//! nothing else.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image_builder::source::{ForgeSettings, GitConnector, GitSettings, GithubSettings};
use image_builder_actors::model::request::{ForgeName, RepoName};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::{CommitStatus, CommitStatuses, StatusState};
use image_builder_actors::testing::conformance::commit_statuses::{Shown, TOKEN, World, status};
use serde_json::Value;

use crate::stand_in::{Answer, Asked, StandIn};

/// What a forge was told, by repository and commit.
type Told = Arc<Mutex<Vec<(String, String, Shown)>>>;

struct Forge {
    forge: ForgeName,
    connector: GitConnector,
    told: Told,
    refusal: Arc<Mutex<Option<Answer>>>,
    server: StandIn,
}

impl Forge {
    async fn start(forge: ForgeName) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let (told, refusal) = (Told::default(), Arc::<Mutex<Option<Answer>>>::default());
        let (telling, refusing) = (told.clone(), refusal.clone());
        let server = StandIn::start(move |asked| {
            if let Some(refusal) = refusing.lock().expect("no panic inside").take() {
                return refusal;
            }
            match read(forge, asked) {
                Ok(status) => {
                    telling.lock().expect("no panic inside").push(status);
                    Answer::Text { status: 201, headers: Vec::new(), body: b"{}".to_vec() }
                }
                Err(why) => Answer::Text { status: 422, headers: Vec::new(), body: why.into() },
            }
        })
        .await;
        let url = || Some(server.url());
        let github = GithubSettings { url: server.url(), api_url: server.url() };
        let forges = ForgeSettings { gitlab: url(), gitea: url(), bitbucket: url(), git: vec![] };
        let settings = GitSettings { github, forges, ..GitSettings::default() };
        let connector = GitConnector::new(settings).expect("the settings are good");
        Self { forge, connector, told, refusal, server }
    }
}

/// What a request shows, by the documentation of this forge's API.
fn read(forge: ForgeName, asked: &Asked) -> Result<(String, String, Shown), String> {
    let body: Value = serde_json::from_slice(&asked.body).map_err(|error| error.to_string())?;
    let parts: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
    let (repo, commit, fields, authorization) = match (forge, &parts[..]) {
        (ForgeName::Github, ["repos", owner, name, "statuses", commit]) => {
            let fields = ["context", "state", "description", "target_url"];
            (format!("{owner}/{name}"), *commit, fields, format!("Bearer {TOKEN}"))
        }
        (ForgeName::Gitea, ["api", "v1", "repos", owner, name, "statuses", commit]) => {
            let fields = ["context", "state", "description", "target_url"];
            (format!("{owner}/{name}"), *commit, fields, format!("token {TOKEN}"))
        }
        (ForgeName::Gitlab, ["api", "v4", "projects", project, "statuses", commit]) => {
            let fields = ["name", "state", "description", "target_url"];
            (project.replace("%2F", "/"), *commit, fields, format!("Bearer {TOKEN}"))
        }
        (
            ForgeName::Bitbucket,
            ["2.0", "repositories", owner, name, "commit", commit, "statuses", "build"],
        ) => {
            let fields = ["key", "state", "description", "url"];
            (format!("{owner}/{name}"), *commit, fields, format!("Bearer {TOKEN}"))
        }
        (_, path) => return Err(format!("no such route: {path:?}")),
    };
    if asked.method.as_str() != "POST" || asked.header("authorization") != authorization {
        return Err("not authorised so".to_owned());
    }
    let known: BTreeSet<_> = fields.into_iter().chain(["name"]).collect();
    let foreign = body.as_object().and_then(|body| body.keys().find(|it| !known.contains(&***it)));
    if let Some(foreign) = foreign {
        return Err(format!("no such field: {foreign}"));
    }
    let [name, state, description, link] = fields.map(|field| {
        let text = body[field].as_str().ok_or_else(|| format!("no text: {field}"));
        text.map(str::to_owned)
    });
    let state = state?;
    let good = match (forge, &*state) {
        (ForgeName::Gitlab, "pending" | "running") => None,
        (ForgeName::Gitlab, "failed" | "canceled") => Some(false),
        (ForgeName::Bitbucket, "INPROGRESS") => None,
        (ForgeName::Bitbucket, "FAILED" | "STOPPED") => Some(false),
        (ForgeName::Bitbucket, "SUCCESSFUL") => Some(true),
        (ForgeName::Github | ForgeName::Gitea, "pending") => None,
        (ForgeName::Github | ForgeName::Gitea, "failure" | "error") => Some(false),
        (ForgeName::Github | ForgeName::Gitea | ForgeName::Gitlab, "success") => Some(true),
        (_, other) => return Err(format!("no such state: {other}")),
    };
    Ok((repo, commit.to_owned(), (name?, good, description?, link?)))
}

impl World for Forge {
    fn statuses(&self) -> &dyn CommitStatuses {
        &self.connector
    }

    fn forge(&self) -> ForgeName {
        self.forge
    }

    fn refuse_next(&self, patience: Option<Duration>) {
        let said = format!("{{\"message\": \"not with {TOKEN}\"}}");
        let refusal = Answer::Text { status: 403, headers: Vec::new(), body: said.into() };
        let refusal = match patience {
            Some(patience) => refusal.with("retry-after", &patience.as_secs().to_string()),
            None => refusal,
        };
        *self.refusal.lock().expect("no panic inside") = Some(refusal);
    }

    fn shown(&self, repo: &RepoName, commit: &str) -> Vec<Shown> {
        let told = self.told.lock().expect("no panic inside");
        let of = told.iter().filter(|(of, at, _)| *of == repo.to_string() && at == commit);
        of.map(|(_, _, shown)| shown.clone()).collect()
    }
}

mod at_github {
    use image_builder_actors::model::request::ForgeName;
    image_builder_actors::commit_statuses_conformance!(
        super::Forge::start(ForgeName::Github).await
    );
}

mod at_gitlab {
    use image_builder_actors::model::request::ForgeName;
    image_builder_actors::commit_statuses_conformance!(
        super::Forge::start(ForgeName::Gitlab).await
    );
}

mod at_gitea {
    use image_builder_actors::model::request::ForgeName;
    image_builder_actors::commit_statuses_conformance!(super::Forge::start(ForgeName::Gitea).await);
}

mod at_bitbucket {
    use image_builder_actors::model::request::ForgeName;
    image_builder_actors::commit_statuses_conformance!(
        super::Forge::start(ForgeName::Bitbucket).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bitbucket_takes_names_and_passwords_short_keys_and_always_a_link() {
    let world = Forge::start(ForgeName::Bitbucket).await;
    let name = format!("image-builder/{}", "x".repeat(200));
    let long = CommitStatus {
        name: name.clone(),
        link: None,
        ..status(world.forge, StatusState::Success)
    };
    let token = Secret::new("carol:canary-4b7d-app-password");
    // The stand-in knows the one token alone: what it was asked is what matters.
    assert!(world.connector.show(&long, &token).await.is_err());
    let asked = world.server.asked();
    let body: Value = serde_json::from_slice(&asked[0].body).expect("JSON");
    assert_eq!(body["key"].as_str().map(str::len), Some(40));
    assert_eq!((&body["name"], &body["state"]), (&name.into(), &"SUCCESSFUL".into()));
    assert_eq!(body["url"], format!("{}/owner/a.name", world.server.url()));
    let basic = format!("Basic {}", STANDARD.encode("carol:canary-4b7d-app-password"));
    assert_eq!(asked[0].header("authorization"), basic);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_server_of_no_kind_shows_nothing_and_a_forge_that_is_away_may_be_back() {
    let world = Forge::start(ForgeName::Github).await;
    let git = status(ForgeName::Git, StatusState::Success);
    let error = world.connector.show(&git, &Secret::new(TOKEN)).await.expect_err("it cannot");
    assert!(!error.passes, "{error:?}");
    let Forge { connector, server, forge, .. } = world;
    drop(server);
    let status = status(forge, StatusState::Success);
    let error = connector.show(&status, &Secret::new(TOKEN)).await.expect_err("nobody is there");
    assert!(error.passes && !error.message.contains("127.0.0.1"), "{error:?}");
}
