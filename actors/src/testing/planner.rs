//! In-memory planner.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;

use super::script::{Record, Script};
use crate::model::build_log::BuildLog;
use crate::model::fault::{Fault, Reason, StageName};
use crate::model::request::{BuildRequest, BuilderKind, PlanRequest};
use crate::ports::{FetchedSource, Plan, Planner};

/// A planner that knows Dockerfiles by their names and applications by their `package.json`, and
/// looks into neither. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct FakePlanner {
    pub script: Script<Fault>,
    /// The builds that were planned or were to be, by id.
    pub calls: Record<String>,
}

impl Planner for FakePlanner {
    fn plan<'a>(
        &'a self,
        source: &'a FetchedSource,
        wish: &'a BuildRequest,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Plan, Fault>> {
        Box::pin(async move {
            self.calls.push(wish.build_id.clone());
            self.script.play().await?;
            let plan = plan(&source.tree, &wish.plan)?;
            progress.note(format!("building with {}", plan.builder.as_str()));
            Ok(plan)
        })
    }
}

fn plan(tree: &Path, wish: &PlanRequest) -> Result<Plan, Fault> {
    let context = find_context(tree, &wish.root_directory)?;
    let wants_dockerfile = wish.dockerfile_path.is_some() || context.join("Dockerfile").exists();
    let builder = wish.builder.unwrap_or(match wants_dockerfile {
        true => BuilderKind::Dockerfile,
        false => BuilderKind::Nixpacks,
    });
    refuse_foreign_fields(wish, builder)?;

    let dockerfile = match builder {
        BuilderKind::Dockerfile => wish.dockerfile_path.clone().unwrap_or("Dockerfile".to_owned()),
        BuilderKind::Nixpacks => ".nixpacks/Dockerfile".to_owned(),
    };
    let mut build_args = wish.envs.clone();
    match builder {
        BuilderKind::Dockerfile => build_args.extend(wish.build_args.clone()),
        BuilderKind::Nixpacks => generate(&context, &build_args)?,
    }
    if !context.join(&dockerfile).is_file() {
        return Err(fault(Reason::NoBuildPlan, format!("there is no `{dockerfile}`")));
    }
    let fingerprint = fingerprint(&context, &dockerfile, wish, &build_args);
    Ok(Plan {
        builder,
        context,
        dockerfile,
        target: wish.target.clone(),
        build_args,
        secrets: wish.secrets.clone(),
        platforms: wish.platforms.clone(),
        registry_auth: wish.registry_auth.clone(),
        fingerprint,
    })
}

fn find_context(tree: &Path, root_directory: &str) -> Result<PathBuf, Fault> {
    let tree = tree.canonicalize().map_err(|error| fault(Reason::Crashed, error.to_string()))?;
    match tree.join(root_directory.trim_start_matches('/')).canonicalize() {
        Ok(path) if path.is_dir() && path.starts_with(&tree) => Ok(path),
        _ => {
            let message = format!("`rootDirectory`: `{root_directory}` cannot be used");
            Err(fault(Reason::InvalidPlan, message))
        }
    }
}

fn refuse_foreign_fields(wish: &PlanRequest, builder: BuilderKind) -> Result<(), Fault> {
    let foreign = match builder {
        BuilderKind::Dockerfile => [
            ("startCommand", wish.start_command.is_some()),
            ("buildCommand", wish.build_command.is_some()),
            ("installCommand", wish.install_command.is_some()),
            ("nixPkgs", !wish.nix_pkgs.is_empty()),
            ("nixLibs", !wish.nix_libs.is_empty()),
            ("aptPkgs", !wish.apt_pkgs.is_empty()),
            ("nixpacksPath", wish.nixpacks_path.is_some()),
        ]
        .to_vec(),
        BuilderKind::Nixpacks => [
            ("dockerfilePath", wish.dockerfile_path.is_some()),
            ("target", wish.target.is_some()),
            ("buildArgs", !wish.build_args.is_empty()),
        ]
        .to_vec(),
    };
    let names: Vec<_> = foreign.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let message = format!("`{}` does not know {}", builder.as_str(), names.join(", "));
    Err(fault(Reason::InvalidPlan, message))
}

/// Writes a Dockerfile where nixpacks would.
fn generate(context: &Path, variables: &BTreeMap<String, String>) -> Result<(), Fault> {
    if !context.join("package.json").is_file() {
        let message = "there is neither a Dockerfile nor a `package.json`";
        return Err(fault(Reason::NoBuildPlan, message));
    }
    let arguments: String = variables.keys().map(|name| format!("ARG {name}\n")).collect();
    let text = format!("FROM scratch\n{arguments}COPY . /app\nCMD [\"npm\", \"start\"]\n");
    let path = context.join(".nixpacks/Dockerfile");
    fs::create_dir_all(context.join(".nixpacks"))
        .and_then(|()| if path.exists() { fs::remove_file(&path) } else { Ok(()) })
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| fault(Reason::Crashed, error.to_string()))
}

fn fingerprint(
    context: &Path,
    dockerfile: &str,
    wish: &PlanRequest,
    build_args: &BTreeMap<String, String>,
) -> String {
    let mut hasher = DefaultHasher::new();
    fs::read(context.join(dockerfile)).unwrap_or_default().hash(&mut hasher);
    let secrets: Vec<_> = wish.secrets.keys().collect();
    (dockerfile, &wish.target, build_args, secrets, &wish.start_command, &wish.platforms)
        .hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn fault(reason: Reason, message: impl Into<String>) -> Fault {
    Fault::new(StageName::Builder, reason, message)
}
