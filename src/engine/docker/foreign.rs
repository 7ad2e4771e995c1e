//! Base images that an engine has of another platform than the one they are asked for.
//!
//! Engines with containerd's image store take such an image by its name alone, and build on what cannot run. Where
//! that would happen, base images are taken from their registries.

use bollard::models::ImageInspect;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Fault;
use image_builder_actors::ports::Plan;

use super::{DockerEngine, inspect_image};
use crate::blocking::blocking;
use crate::engine::buildkit::context::Context;

/// Whether the engine has one of the plan's base images for another platform. Says so.
///
/// # Errors
/// The Dockerfile cannot be sent.
pub(super) async fn has_other_bases(
    engine: &DockerEngine,
    plan: &Plan,
    progress: &BuildLog,
) -> Result<bool, Fault> {
    let (opened, limits) = (plan.clone(), engine.settings.builds.limits.clone());
    let bases = blocking(move || {
        Context::open(&opened, &limits).map(|context| context.bases_with_platforms(&opened))
    });
    for (image, platform) in bases.await? {
        // What the engine cannot say now it says when it builds.
        let Ok(Some(here)) = inspect_image(&engine.docker, &image).await else { continue };
        if let Some(other) = other_platform(&here, &platform) {
            progress.note(format!(
                "the engine has `{image}` for {other}, and not for {platform}: base images are taken from their \
                 registries"
            ));
            return Ok(true);
        }
    }
    Ok(false)
}

/// The platform of an image, where it is of a single one that is not the wanted one.
fn other_platform(image: &ImageInspect, wanted: &str) -> Option<String> {
    let kind = image.descriptor.as_ref().and_then(|descriptor| descriptor.media_type.as_deref());
    if kind.is_some_and(|kind| kind.contains("index") || kind.contains("manifest.list")) {
        return None;
    }
    let (os, architecture) = (image.os.as_deref()?, image.architecture.as_deref()?);
    let mut wanted = wanted.splitn(3, '/');
    let (wanted_os, wanted_architecture) = (wanted.next()?, wanted.next()?);
    let variants = image.variant.as_deref().filter(|it| !it.is_empty()).zip(wanted.next());
    let is_same = os == wanted_os
        && usual(architecture) == usual(wanted_architecture)
        && variants.is_none_or(|(here, wanted)| here == wanted);
    (!is_same).then(|| format!("{os}/{architecture}"))
}

/// What an architecture is called in platforms.
fn usual(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_one_platform_is_told_from_one_of_another() {
        let image = |architecture: &str, variant: &str| ImageInspect {
            os: Some("linux".to_owned()),
            architecture: Some(architecture.to_owned()),
            variant: Some(variant.to_owned()),
            ..ImageInspect::default()
        };
        for (image, wanted) in [
            (image("amd64", ""), "linux/amd64"),
            (image("amd64", ""), "linux/x86_64"),
            (image("arm64", "v8"), "linux/arm64"),
            (image("arm", "v7"), "linux/arm/v7"),
            (image("arm64", ""), "linux/aarch64/v8"),
            (ImageInspect::default(), "linux/arm64"),
            (image("amd64", ""), "nonsense"),
        ] {
            assert_eq!(other_platform(&image, wanted), None, "{wanted}");
        }
        let other = other_platform(&image("amd64", ""), "linux/arm64");
        assert_eq!(other.as_deref(), Some("linux/amd64"));
        assert!(other_platform(&image("arm", "v6"), "linux/arm/v7").is_some());
        assert!(other_platform(&image("amd64", ""), "windows/amd64").is_some());
    }
}
