//! What a worker looks at once, when it starts: whether the steps of its builds reach what they should not.

use std::sync::Arc;
use std::time::Duration;

use super::reach::{self, Reach};
use super::{Finding, Status, inside, temporary_folder};
use crate::config::Config;
use crate::wiring::tools::Tools;

/// Pause before the engine is looked for again.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest time for the build.
const PATIENCE: Duration = Duration::from_secs(120);

/// Has a step of a tiny build look, once there is an engine.
///
/// # Errors
/// What it reaches, or why that is not known, for people.
pub(crate) async fn look(config: &Config) -> Result<(), String> {
    let tools = Tools::assemble(config.tools(), false).map_err(|error| error.to_string())?;
    let tools = Arc::new(tools);
    loop {
        let folder = temporary_folder().map_err(|error| error.to_string())?;
        let reach = Reach::of(&config.tools(), Some(config)).await;
        let forge = config.forge.url.clone();
        let looking = inside::look(tools.clone(), None, forge, reach, folder.path().to_owned());
        let found = tokio::time::timeout(PATIENCE, looking).await;
        let found = found.map_err(|_| "not known: a tiny build took too long".to_owned())?;
        if found.iter().any(|it| it.check == inside::BUILD && it.status == Status::Skip) {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        return judged(&found);
    }
}

fn judged(found: &[Finding]) -> Result<(), String> {
    let told = |it: &Finding| {
        let remedy = it.remedy.as_ref().map_or(String::new(), |remedy| format!(". {remedy}"));
        format!("{}{remedy}", it.detail)
    };
    match found.iter().find(|it| it.check == reach::NAME) {
        Some(it) if it.status == Status::Ok => Ok(()),
        Some(it) if it.status == Status::Skip => Err(format!("not known: {}", it.detail)),
        Some(it) => Err(told(it)),
        None => {
            let why = found.first().map(told).unwrap_or_default();
            Err(format!("not known, since no tiny build could look: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_seen_is_said_to_be_good() {
        let of = |found: Finding| judged(&[found]);
        assert_eq!(of(Finding::ok(reach::NAME, "fine")), Ok(()));
        let bad = of(Finding::fail(reach::NAME, "a step reaches broker", "Load the rules"));
        assert_eq!(bad, Err("a step reaches broker. Load the rules".to_owned()));
        for unknown in [
            Finding::skip(reach::NAME, "the image has no bash"),
            Finding::warn(inside::BUILD, "no image", "Name one"),
        ] {
            assert!(of(unknown).expect_err("nobody knows").starts_with("not known"));
        }
    }
}
