//! What a build sees beside its plan, by name.

use std::time::Duration;

use bollard::auth::DockerCredentials;
use futures_util::future::join_all;
use image_builder_actors::model::digest::{add_part, hex};
use image_builder_actors::model::fault::Fault;
use image_builder_actors::ports::Plan;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{DockerEngine, inspect_image};
use crate::blocking::blocking;
use crate::engine::buildkit::context::Context;
use crate::engine::credentials::PullCredentials;

/// How long an engine or a registry may take to say what an image is now. A registry is asked again when the
/// image is pulled.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where the engine has an image of that name, which most engines take then.
const LESS_PATIENCE: Duration = Duration::from_secs(2);
/// Names the front end that reads the Dockerfile, in place of a line in it.
const FRONT_END: &str = "BUILDKIT_SYNTAX";

/// See [`inputs`](image_builder_actors::ports::ImageBuilder::inputs).
pub(super) async fn of(engine: &DockerEngine, plan: &Plan) -> Result<Option<String>, Fault> {
    if plan.build_args.contains_key(FRONT_END) {
        return Ok(None);
    }
    let unwanted = CancellationToken::new();
    let _end = unwanted.clone().drop_guard();
    let (opened, limits) = (plan.clone(), engine.settings.limits.clone());
    let seen = blocking(move || {
        let context = Context::open(&opened, &limits)?;
        let Some(bases) = context.bases() else { return Ok(None) };
        Ok(context.contents(unwanted)?.map(|contents| (bases, contents)))
    });
    let Some((bases, contents)) = seen.await? else { return Ok(None) };

    let credentials = engine.settings.pull_credentials(plan);
    let known = join_all(bases.iter().map(|base| now(engine, base, &credentials))).await;
    let mut hash = Sha256::new();
    add_part(&mut hash, contents);
    for (base, now) in bases.iter().zip(known) {
        let Some(now) = now else {
            tracing::debug!(base, "what this base image is now cannot be told");
            return Ok(None);
        };
        add_part(&mut hash, base);
        add_part(&mut hash, now.here);
        add_part(&mut hash, now.at_its_registry);
    }
    Ok(Some(format!("inputs:{}", hex(&hash.finalize()))))
}

/// What an image is. Engines differ in which of both they take, so both count.
#[derive(Debug, Default)]
struct Now {
    /// The engine's id of it; empty = the engine has none of this name.
    here: String,
    /// Its digest; empty = the registry does not say.
    at_its_registry: String,
}

/// What a base image is now; `None` = neither the engine nor the registry says.
async fn now(engine: &DockerEngine, base: &str, credentials: &PullCredentials) -> Option<Now> {
    if let Some((_, digest)) = base.split_once('@') {
        return Some(Now { at_its_registry: digest.to_owned(), ..Now::default() });
    }
    let docker = engine.negotiated().await.ok()?;
    let login = credentials.of(registry(base)).await.map(|login| DockerCredentials {
        username: Some(login.username),
        password: Some(login.password.expose().to_owned()),
        ..DockerCredentials::default()
    });
    let asked = tokio::time::timeout(PATIENCE, inspect_image(docker, base)).await;
    let here = asked.ok().and_then(Result::ok).flatten();
    let patience = if here.is_some() { LESS_PATIENCE } else { PATIENCE };
    let asked = tokio::time::timeout(patience, docker.inspect_registry_image(base, login)).await;
    let there = asked.ok().and_then(Result::ok).and_then(|image| image.descriptor.digest);
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
