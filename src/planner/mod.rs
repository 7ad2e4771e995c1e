//! Decides how a source becomes an image: by its own Dockerfile, or by what nixpacks makes of it.
//!
//! Both strategies end in a Dockerfile inside the build context. nixpacks runs in a child process
//! (see [`child`]), because what it reads was written by strangers.

use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::{BuildRequest, BuilderKind, PlanRequest};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::ports::{FetchedSource, Plan, Planner};

use self::confine::Unusable;
use self::dockerfile::Predefined;
use self::nixpacks::Sight;
use crate::blocking::blocking;
use crate::child::THIS_PROGRAM;
use crate::net::proxy;

mod aside;
mod buildable;
mod cache;
pub mod child;
mod confine;
mod dockerfile;
mod fingerprint;
mod nixpacks;

pub use self::cache::cache_secret;
pub use self::nixpacks::VERSION as NIXPACKS_VERSION;

/// Settings of the planner.
#[derive(Debug, Clone)]
pub struct PlannerSettings {
    pub limits: Limits,
    /// The program that becomes nixpacks' process: this one, called as [`child::COMMAND`].
    pub program: PathBuf,
    /// Makes the names of the cache mounts unguessable, so that nobody's Dockerfile can mount the
    /// cache of somebody else's build. See [`cache_secret`].
    pub cache_secret: Secret,
    /// Whether the engine's own front end reads every Dockerfile, whatever its `# syntax=` line names.
    pub own_front_end: bool,
}

impl PlannerSettings {
    /// For an engine whose own front end reads every Dockerfile.
    pub fn new(limits: Limits, cache_secret: Secret) -> Self {
        Self { limits, program: PathBuf::from(THIS_PROGRAM), cache_secret, own_front_end: true }
    }
}

/// Plans by looking at the source tree.
#[derive(Debug, Clone)]
pub struct SourcePlanner {
    settings: PlannerSettings,
}

/// A plan, and where it comes from.
#[derive(Debug, Clone)]
pub struct ExplainedPlan {
    pub plan: Plan,
    /// Why this builder, as the end of a sentence: "there is a `Dockerfile`".
    pub because: String,
    /// What `nixpacks plan --format json` would print; `None` where a Dockerfile is the plan.
    pub nixpacks: Option<serde_json::Value>,
    /// What the request gives and the plan leaves out, a sentence each.
    pub left_out: Vec<String>,
}

impl ExplainedPlan {
    /// The text of the Dockerfile, and the images that it is built from.
    ///
    /// # Errors
    /// The Dockerfile is not there any more, or has become too long.
    pub fn dockerfile(&self, limits: &Limits) -> Result<(String, Vec<String>), Fault> {
        let Plan { context, dockerfile, build_args, target, .. } = &self.plan;
        let path = context.join(dockerfile);
        let bytes = confine::read_plan_bytes(&path, dockerfile, limits.plan_file_bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let images = dockerfile::images(&text, build_args, target.as_deref());
        Ok((text, images))
    }
}

impl SourcePlanner {
    pub fn new(settings: PlannerSettings) -> Self {
        Self { settings }
    }

    /// Whether planning this tree writes into it, so that it has to be one of the build's own.
    ///
    /// # Errors
    /// The plan contradicts itself or the tree.
    pub async fn writes_into(&self, tree: &Path, request: &PlanRequest) -> Result<bool, Fault> {
        let (tree, request) = (tree.to_owned(), request.clone());
        let settings = self.settings.clone();
        let (step, _) = blocking(move || first_step(&tree, &request, &settings, None)).await?;
        Ok(matches!(step, Step::Nixpacks(_)))
    }

    /// Like [`Planner::plan`], with nixpacks' own plan beside it.
    pub async fn explain(
        &self,
        source: &FetchedSource,
        wish: &BuildRequest,
        progress: &BuildLog,
    ) -> Result<ExplainedPlan, Fault> {
        let (wish, left_out) = without_proxies(wish, progress);
        let wish = &wish;
        let (tree, request) = (source.tree.clone(), wish.plan.clone());
        let (settings, predefined) = (self.settings.clone(), Predefined::of(source));
        let (step, because) = blocking(move || {
            #[cfg(feature = "failpoints")]
            fail::fail_point!("builder::planning");
            first_step(&tree, &request, &settings, predefined.as_ref())
        })
        .await?;
        match step {
            Step::Ready(plan) => {
                progress.note(format!("building by the Dockerfile `{}`", plan.dockerfile));
                Ok(ExplainedPlan { plan: *plan, because, nixpacks: None, left_out })
            }
            Step::Nixpacks(sight) => {
                let (plan, printed) =
                    nixpacks::plan(&self.settings, source, wish, sight, progress).await?;
                Ok(ExplainedPlan { plan, because, nixpacks: Some(printed), left_out })
            }
        }
    }
}

impl Planner for SourcePlanner {
    fn plan<'a>(
        &'a self,
        source: &'a FetchedSource,
        wish: &'a BuildRequest,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Plan, Fault>> {
        Box::pin(async move {
            self.explain(source, wish, progress).await.map(|explained| explained.plan)
        })
    }
}

/// The directory that is built, as the request and as the disk name it.
#[derive(Debug, Clone)]
struct Context {
    /// Canonical, and inside the source tree.
    path: PathBuf,
    /// For messages: "the repository's root" or "directory `web`".
    shown: String,
}

enum Step {
    Ready(Box<Plan>),
    Nixpacks(Sight),
}

/// All that can be decided without nixpacks, and why it is this builder.
fn first_step(
    tree: &Path,
    wish: &PlanRequest,
    settings: &PlannerSettings,
    predefined: Option<&Predefined>,
) -> Result<(Step, String), Fault> {
    let context = find_context(tree, &wish.root_directory)?;
    check_names(wish)?;

    let (builder, because) = match (wish.builder, dockerfile::default_in(&context)) {
        (Some(builder), _) => (builder, "it is asked for".to_owned()),
        (None, _) if wish.dockerfile_path.is_some() => {
            (BuilderKind::Dockerfile, "`dockerfilePath` is given".to_owned())
        }
        (None, Some(name)) => (BuilderKind::Dockerfile, format!("there is a `{name}`")),
        (None, None) => (BuilderKind::Nixpacks, "there is no `Dockerfile`".to_owned()),
    };
    refuse_foreign_fields(wish, builder, &because)?;

    let step = match builder {
        BuilderKind::Dockerfile => {
            Step::Ready(Box::new(dockerfile::plan(&context, wish, settings, predefined)?))
        }
        BuilderKind::Nixpacks => {
            let dockerfile_missing = wish
                .builder
                .is_none()
                .then(|| format!("`{}` in {}", dockerfile::DEFAULT_NAME, context.shown));
            Step::Nixpacks(Sight { context, dockerfile_missing })
        }
    };
    Ok((step, because))
}

/// The request without variables for proxies, and what is said of these. They are the service's to set: they decide
/// nothing about an image, and the engine leaves them out of the keys of its cache, so that a user's own would decide
/// what other builds find there.
fn without_proxies(wish: &BuildRequest, progress: &BuildLog) -> (BuildRequest, Vec<String>) {
    let (mut wish, mut left_out) = (wish.clone(), Vec::new());
    for (field, variables) in
        [("envs", &mut wish.plan.envs), ("buildArgs", &mut wish.plan.build_args)]
    {
        variables.retain(|name, _| {
            let is_the_services = proxy::is_variable(name);
            if is_the_services {
                let what = format!("`{field}.{name}` is not used: the build service sets it");
                progress.note(what.clone());
                left_out.push(what);
            }
            !is_the_services
        });
    }
    (wish, left_out)
}

fn find_context(tree: &Path, root_directory: &str) -> Result<Context, Fault> {
    let tree = tree.canonicalize().map_err(|error| disk_fault("open the source tree", &error))?;
    let path = confine::resolve(&tree, root_directory).map_err(|unusable| {
        invalid(match unusable {
            Unusable::Missing => format!("`rootDirectory`: there is no `{root_directory}`"),
            Unusable::LeadsOut => {
                format!("`rootDirectory`: `{root_directory}` leads out of the repository")
            }
        })
    })?;
    if !path.is_dir() {
        return Err(invalid(format!("`rootDirectory`: `{root_directory}` is not a directory")));
    }
    let shown = match path.strip_prefix(&tree) {
        Ok(inside) if inside.as_os_str().is_empty() => "the repository's root".to_owned(),
        _ => format!("directory `{}`", root_directory.trim_matches('/')),
    };
    Ok(Context { path, shown })
}

/// Refuses fields that the builder would silently ignore.
fn refuse_foreign_fields(
    wish: &PlanRequest,
    builder: BuilderKind,
    because: &str,
) -> Result<(), Fault> {
    let (fields, other) = match builder {
        BuilderKind::Dockerfile => (
            vec![
                ("nixpacksPath", wish.nixpacks_path.is_some()),
                ("nixPkgs", !wish.nix_pkgs.is_empty()),
                ("nixLibs", !wish.nix_libs.is_empty()),
                ("aptPkgs", !wish.apt_pkgs.is_empty()),
                ("installCommand", wish.install_command.is_some()),
                ("buildCommand", wish.build_command.is_some()),
                ("startCommand", wish.start_command.is_some()),
            ],
            BuilderKind::Nixpacks,
        ),
        BuilderKind::Nixpacks => (
            vec![
                ("dockerfilePath", wish.dockerfile_path.is_some()),
                ("target", wish.target.is_some()),
                ("buildArgs", !wish.build_args.is_empty()),
            ],
            BuilderKind::Dockerfile,
        ),
    };
    let foreign: Vec<_> =
        fields.iter().filter(|(_, given)| *given).map(|(name, _)| format!("`{name}`")).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let because =
        if wish.builder.is_some() { String::new() } else { format!(", because {because}") };
    Err(invalid(format!(
        "only the builder `{other}` knows {fields}, but this build uses `{builder}`{because}: \
         leave out what does not fit, or set `builder` to `{other}`",
        fields = foreign.join(", "),
        builder = builder.as_str(),
        other = other.as_str(),
    )))
}

/// Refuses names that cannot be passed on as they are.
fn check_names(wish: &PlanRequest) -> Result<(), Fault> {
    let fields = [
        ("envs", wish.envs.keys().collect::<Vec<_>>()),
        ("buildArgs", wish.build_args.keys().collect()),
        ("secrets", wish.secrets.keys().collect()),
    ];
    for (field, names) in fields {
        let bad = |name: &&&String| {
            name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if let Some(name) = names.iter().find(bad) {
            return Err(invalid(format!(
                "`{field}`: `{name}` cannot be a name: use letters, digits, `.`, `_` and `-`"
            )));
        }
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new(StageName::Builder, Reason::InvalidPlan, message)
}

/// The worker's own disk failed: not the user's fault.
fn disk_fault(doing: &str, error: &std::io::Error) -> Fault {
    let reason = match error.kind() {
        std::io::ErrorKind::StorageFull => Reason::DiskLow,
        _ => Reason::Crashed,
    };
    Fault::new(StageName::Builder, reason, format!("the worker could not {doing}: {error}"))
}
