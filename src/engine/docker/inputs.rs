//! What the base images of a build are now, by an engine and the registries that it asks.

use std::collections::BTreeSet;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use futures_util::future::join_all;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::ports::Plan;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::{DockerEngine, inspect_image};
use crate::engine::buildkit::inputs::{self, Now};
use crate::engine::credentials::PullCredentials;

/// How long an engine or a registry may take to say what an image is now. A registry is asked again when the
/// image is pulled.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where the engine has an image of that name, which most engines take then.
const LESS_PATIENCE: Duration = Duration::from_secs(2);

/// See [`inputs`](image_builder_actors::ports::ImageBuilder::inputs).
pub(super) async fn of(engine: &DockerEngine, plan: &Plan) -> Result<Option<String>, Fault> {
    let known = async |bases: BTreeSet<String>| {
        let credentials = engine.settings.builds.pull_credentials(plan);
        join_all(bases.iter().map(|base| now(engine, base, &credentials))).await
    };
    inputs::name(plan, &engine.settings.builds.limits, &engine.builds.times, known).await
}

/// What a base image is now; `None` = neither the engine nor the registry says.
async fn now(engine: &DockerEngine, base: &str, credentials: &PullCredentials) -> Option<Now> {
    if let Some(now) = Now::by_digest(base) {
        return Some(now);
    }
    let docker = engine.negotiated().await.ok()?;
    let login = credentials.of(registry(base)).await.map(|login| DockerCredentials {
        username: Some(login.username),
        password: Some(login.password.expose().to_owned()),
        ..DockerCredentials::default()
    });
    let (tell, is_here) = oneshot::channel();
    let here = async {
        let asked = timeout(PATIENCE, inspect_image(docker, base)).await;
        let here = asked.ok().and_then(Result::ok).flatten();
        // Whoever would listen has got an answer.
        let _ = tell.send(here.is_some());
        here
    };
    let impatience = async {
        let patience = if is_here.await == Ok(true) { LESS_PATIENCE } else { PATIENCE };
        sleep(patience).await;
    };
    let there = async {
        tokio::select! {
            asked = docker.inspect_registry_image(base, login) => asked.ok(),
            () = impatience => None,
        }
    };
    let (here, there) = tokio::join!(here, there);
    let there = there.and_then(|image| image.descriptor.digest);
    let now = Now {
        here: here.and_then(|image| image.id).unwrap_or_default(),
        at_its_registry: there.unwrap_or_default(),
    };
    (!now.here.is_empty() || !now.at_its_registry.is_empty()).then_some(now)
}

/// The registry of an image, as Docker reads its name.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_an_image_is_the_one_that_docker_asks() {
        for (image, host) in [
            ("alpine", "docker.io"),
            ("library/alpine:3", "docker.io"),
            ("localhost/a", "localhost"),
            ("localhost:5000/a/b", "localhost:5000"),
            ("ghcr.io/a/b:c", "ghcr.io"),
        ] {
            assert_eq!(registry(image), host, "{image}");
        }
    }
}
