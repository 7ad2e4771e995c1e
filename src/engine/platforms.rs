//! Whether an engine can build for the platforms that a plan names.

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::platform::{Platform, list};

/// What an engine can build for.
#[derive(Debug, Clone)]
pub(super) struct Abilities {
    /// Its own platforms, the machine's first, then those that it can emulate.
    pub(super) platforms: Vec<Platform>,
    /// Whether it can keep one image for several platforms: with the containerd image store, or as a
    /// BuildKit of its own.
    pub(super) several: bool,
}

/// Refuses platforms that the engine cannot build for.
///
/// # Errors
/// `unsupported`, with what can be done.
pub(super) fn check(wanted: &[Platform], engine: &Abilities) -> Result<(), Fault> {
    let unsupported = |message| Err(Fault::new(StageName::Builder, Reason::Unsupported, message));
    let foreign = wanted.iter().copied().filter(|one| !engine.platforms.contains(one));
    let foreign = list(foreign);
    if !foreign.is_empty() {
        let own = list(engine.platforms.iter().copied());
        return unsupported(format!(
            "`buildPlan.platforms`: the build service builds for {own}, and not for {foreign}."
        ));
    }
    if wanted.len() > 1 && !engine.several {
        return unsupported(format!(
            "`buildPlan.platforms`: the engine keeps images of one platform each, and cannot make one for {}: \
             ask for one platform, or have the operator use an engine with the containerd image store.",
            list(wanted.iter().copied())
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(name: &str) -> Platform {
        Platform::from_name(name).expect("a known platform")
    }

    #[test]
    fn what_an_engine_cannot_build_for_is_refused_with_what_it_can() {
        let [amd64, arm64] = ["linux/amd64", "linux/arm64"].map(platform);
        let engine =
            |platforms: &[Platform], several| Abilities { platforms: platforms.to_vec(), several };
        let refused = |wanted: &[Platform], engine| {
            let fault = check(wanted, &engine).expect_err("it cannot");
            assert_eq!(fault.reason, Reason::Unsupported);
            fault.message
        };
        assert_eq!(check(&[], &engine(&[amd64], false)), Ok(()));
        assert_eq!(check(&[amd64], &engine(&[amd64], false)), Ok(()));
        assert_eq!(check(&[amd64, arm64], &engine(&[amd64, arm64], true)), Ok(()));
        let message = refused(&[amd64, arm64], engine(&[amd64], true));
        assert!(message.contains("for `linux/amd64`, and not for `linux/arm64`"), "{message}");
        let message = refused(&[amd64, arm64], engine(&[amd64, arm64], false));
        assert!(message.contains("containerd"), "{message}");
    }
}
