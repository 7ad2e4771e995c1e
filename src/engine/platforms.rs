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

/// Refuses platforms that the engine cannot build for, and says what is to be known of the others: a step that
/// runs commands on another machine's platform is emulated, if that.
///
/// # Errors
/// `unsupported`, with what can be done.
pub(super) fn check(wanted: &[Platform], engine: &Abilities) -> Result<Option<String>, Fault> {
    let unsupported = |message| Err(Fault::new(StageName::Builder, Reason::Unsupported, message));
    let foreign = wanted.iter().copied().filter(|one| !engine.platforms.contains(one));
    let foreign = list(foreign);
    if !engine.several {
        if !foreign.is_empty() {
            let own = list(engine.platforms.iter().copied());
            return unsupported(format!(
                "`buildPlan.platforms`: the build service builds for {own}, and not for {foreign}."
            ));
        }
        if wanted.len() > 1 {
            return unsupported(format!(
                "`buildPlan.platforms`: the engine keeps images of one platform each, and cannot make one for {}: \
                 ask for one platform, or have the operator use an engine with the containerd image store.",
                list(wanted.iter().copied())
            ));
        }
    }
    let native = engine.platforms.first();
    let emulated = wanted.iter().copied();
    let emulated = emulated.filter(|one| Some(one) != native && engine.platforms.contains(one));
    let emulated = list(emulated);
    let remedy = "`FROM --platform=$BUILDPLATFORM` runs them on the engine's own";
    Ok(match (foreign.is_empty(), emulated.is_empty()) {
        (true, true) => None,
        (true, false) => Some(format!(
            "warning: the engine emulates {emulated}: steps that run commands take much longer there; {remedy}"
        )),
        (false, _) => Some(format!(
            "warning: the engine cannot run commands of {foreign}, and steps that do fail; {remedy}"
        )),
    })
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
        assert_eq!(check(&[], &engine(&[amd64], false)), Ok(None));
        assert_eq!(check(&[amd64], &engine(&[amd64], false)), Ok(None));
        assert_eq!(check(&[amd64], &engine(&[amd64, arm64], true)), Ok(None));
        for (platforms, said) in [
            (vec![amd64, arm64], "emulates `linux/arm64`"),
            (vec![amd64], "cannot run commands of `linux/arm64`"),
        ] {
            let warning = check(&[amd64, arm64], &engine(&platforms, true)).expect("it can");
            assert!(warning.is_some_and(|warning| warning.contains(said)), "{said}");
        }
        let message = refused(&[amd64, arm64], engine(&[amd64], false));
        assert!(message.contains("for `linux/amd64`, and not for `linux/arm64`"), "{message}");
        let message = refused(&[amd64, arm64], engine(&[amd64, arm64], false));
        assert!(message.contains("containerd"), "{message}");
    }
}
