//! The strategy `dockerfile`: the source brings its own Dockerfile.

use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::request::{BuilderKind, PlanRequest};
use image_builder_actors::ports::Plan;

use super::confine::{self, Unusable};
use super::fingerprint::Fingerprint;
use super::{Context, PlannerSettings, invalid};

mod predefined;
mod stages;

pub(super) use self::predefined::Predefined;
pub(super) use self::stages::images;

pub(super) const DEFAULT_NAME: &str = "Dockerfile";
/// What a Dockerfile may be called, the one that is preferred first, as `docker build` has it.
const DEFAULT_NAMES: [&str; 2] = [DEFAULT_NAME, "dockerfile"];

/// Raised when the same Dockerfile and request come to mean another build than before.
const PLANNER: &str = "dockerfile 1";

/// The Dockerfile of a usual name that the context has, so that it is built by it.
pub(super) fn default_in(context: &Context) -> Option<&'static str> {
    // A link counts wherever it leads, so that a bad one is an error and not passed over.
    let exists =
        |name: &&str| context.path.join(name).symlink_metadata().is_ok_and(|found| !found.is_dir());
    DEFAULT_NAMES.into_iter().find(exists)
}

/// `predefined` = what there is to give where the Dockerfile declares it; `None` = nobody builds by this plan.
pub(super) fn plan(
    context: &Context,
    wish: &PlanRequest,
    settings: &PlannerSettings,
    predefined: Option<&Predefined>,
) -> Result<Plan, Fault> {
    let limits = &settings.limits;
    let usual = || default_in(context).unwrap_or(DEFAULT_NAME);
    let shown = wish.dockerfile_path.as_deref().unwrap_or_else(usual);
    let path = confine::resolve(&context.path, shown).map_err(|unusable| match unusable {
        Unusable::Missing => {
            let message = format!("there is no `{shown}` in {}", context.shown);
            Fault::new(StageName::Builder, Reason::NoBuildPlan, message)
        }
        Unusable::LeadsOut => {
            invalid(format!("the Dockerfile `{shown}` leads out of {}", context.shown))
        }
    })?;
    let bytes = confine::read_plan_bytes(&path, shown, limits.plan_file_bytes)?;
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(invalid(format!("the Dockerfile `{shown}` is UTF-16 text: save it as UTF-8")));
    }
    // Only what engines need not understand, such as a comment, may be in another encoding.
    let text = String::from_utf8_lossy(&bytes);
    if text.trim().is_empty() {
        return Err(invalid(format!("the Dockerfile `{shown}` is empty")));
    }
    // Not the name of what a link leads to: the ignore file beside the link is the one that counts.
    let dockerfile = confine::named(&context.path, shown, &path)
        .ok_or_else(|| invalid(format!("the path of `{shown}` is not UTF-8 text")))?;

    let mut build_args = wish.envs.clone();
    build_args.extend(wish.build_args.clone());
    if let Some(predefined) = predefined {
        predefined.give(&stages::declared(&text), &mut build_args);
    }
    stages::check(&text, &build_args, settings.own_front_end)
        .map_err(|why| invalid(format!("the Dockerfile `{shown}` {why}")))?;
    let fingerprint = Fingerprint::new(PLANNER)
        .part("dockerfile", &dockerfile)
        .part("text", &bytes)
        .part("target", wish.target.as_deref().unwrap_or_default())
        .pairs("build arguments", &build_args)
        .names("secrets", wish.secrets.keys())
        .platforms(&wish.platforms)
        .git_directory(wish.keep_git_dir)
        .finish();
    Ok(Plan {
        builder: BuilderKind::Dockerfile,
        context: context.path.clone(),
        dockerfile,
        target: wish.target.clone(),
        build_args,
        secrets: wish.secrets.clone(),
        platforms: wish.platforms.clone(),
        registry_auth: wish.registry_auth.clone(),
        fingerprint,
    })
}
