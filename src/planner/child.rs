//! nixpacks, in a process of its own.
//!
//! nixpacks reads what strangers wrote and was made for a person's terminal: a few hundred kilobytes
//! of brackets in a `nixpacks.toml` overflow the stack, a deep chain of directories keeps it busy for
//! minutes, and it prints to stdout. In a child none of that reaches the worker, and a child can be
//! bounded and killed.
//!
//! The child reads a `Task` from stdin and writes an `Answer` as the last line of stdout. Both
//! are JSON.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use ::nixpacks::get_providers;
use ::nixpacks::nixpacks::app::App;
use ::nixpacks::nixpacks::builder::ImageBuilder;
use ::nixpacks::nixpacks::builder::docker::DockerBuilderOptions;
use ::nixpacks::nixpacks::builder::docker::docker_image_builder::DockerImageBuilder;
use ::nixpacks::nixpacks::environment::Environment;
use ::nixpacks::nixpacks::logger::Logger;
use ::nixpacks::nixpacks::nix::pkg::Pkg;
use ::nixpacks::nixpacks::plan::generator::{GeneratePlanOptions, NixpacksBuildPlanGenerator};
use ::nixpacks::nixpacks::plan::phase::{Phase, StartPhase};
use ::nixpacks::nixpacks::plan::{BuildPlan, PlanGenerator};
use anyhow::{Context, Result, bail};
use futures_util::FutureExt;
use rustix::process::Resource;
use serde::{Deserialize, Serialize};

use crate::child;

/// The argument that makes the program this child. Not for people.
pub const COMMAND: &str = "__nixpacks-child";

/// Where nixpacks writes to, below the context.
pub(super) const OUTPUT: &str = ".nixpacks";

/// All that nixpacks may write for one source, in bytes a file.
const LONGEST_OUTPUT: u64 = 64 << 20;

/// What the child is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Task {
    pub app: PathBuf,
    pub config_file: Option<String>,
    pub envs: BTreeMap<String, String>,
    pub nix_pkgs: Vec<String>,
    pub nix_libs: Vec<String>,
    pub apt_pkgs: Vec<String>,
    pub install_command: Option<String>,
    pub build_command: Option<String>,
    pub start_command: Option<String>,
    pub cache_key: String,
    pub cpu_seconds: u64,
    pub memory_bytes: u64,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Planned(Box<Planned>),
    /// No provider knows the source.
    NothingFound,
    /// There is a plan, but nothing to start.
    NoStart,
    /// nixpacks gave an error.
    Refused(String),
    /// The disk is full.
    DiskFull,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Planned {
    /// The directory that was planned: the app, or its only directory.
    pub app: PathBuf,
    /// The plan as the nixpacks command prints it.
    pub plan: serde_json::Value,
    pub variables: BTreeMap<String, String>,
}

/// Runs the child if the program was called as it; `None` = it was not. To be asked first thing in
/// `main`, before anything is read or started.
pub fn run() -> Option<ExitCode> {
    if !child::is_called(COMMAND) {
        return None;
    }
    Some(match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "{error:#}"));
            ExitCode::from(child::EXIT_WORKER)
        }
    })
}

fn answer() -> Result<()> {
    let mut task = String::new();
    io::stdin().read_to_string(&mut task).context("cannot read the task")?;
    let task: Task = serde_json::from_str(&task).context("cannot understand the task")?;
    child::limit(Resource::Core, 0, 0)?;
    child::limit_cpu(task.cpu_seconds)?;
    child::limit(Resource::As, task.memory_bytes, task.memory_bytes)?;
    child::limit(Resource::Fsize, LONGEST_OUTPUT, LONGEST_OUTPUT)?;

    let answer = plan(&task).unwrap_or_else(|error| refusal(&task, &error));
    // On a line of its own, whatever nixpacks has printed.
    writeln!(io::stdout(), "\n{}", serde_json::to_string(&answer)?).context("cannot answer")
}

fn refusal(task: &Task, error: &anyhow::Error) -> Answer {
    let disk_full = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    if disk_full.into_iter().any(|cause| cause.kind() == io::ErrorKind::StorageFull) {
        return Answer::DiskFull;
    }
    // Where the worker keeps the source is nobody's business.
    let place = task.app.display().to_string();
    Answer::Refused(format!("{error:#}").replace(&format!("{place}/"), "").replace(&place, "."))
}

fn plan(task: &Task) -> Result<Answer> {
    let path = task.app.to_str().context("the source's path is not UTF-8 text")?;
    let environment = Environment::new(task.envs.clone());
    let options =
        GeneratePlanOptions { plan: Some(overrides(task)), config_file: task.config_file.clone() };
    let (plan, app) = NixpacksBuildPlanGenerator::new(get_providers(), options)
        .generate_plan(&App::new(path)?, &environment)?;
    if !app.source.starts_with(&task.app) {
        bail!("the app leads out of its directory");
    }
    if plan.phases.as_ref().is_none_or(BTreeMap::is_empty) {
        return Ok(Answer::NothingFound);
    }
    if plan.start_phase.as_ref().is_none_or(|start| start.cmd.is_none()) {
        return Ok(Answer::NoStart);
    }
    check_file_names(&plan)?;
    write(&plan, &app.source, &environment, &task.cache_key)?;
    let variables = plan.variables.clone().unwrap_or_default();
    let printed = serde_json::from_str(&plan.to_json()?)?;
    Ok(Answer::Planned(Box::new(Planned { app: app.source, plan: printed, variables })))
}

/// The request's own wishes, put together as the nixpacks command does with its flags.
fn overrides(task: &Task) -> BuildPlan {
    let more = |wishes: &[String]| {
        // "..." stands for what was there.
        wishes.iter().cloned().chain(["...".to_owned()]).collect::<Vec<_>>()
    };
    let mut plan = BuildPlan::default();
    if !task.nix_pkgs.is_empty() || !task.nix_libs.is_empty() || !task.apt_pkgs.is_empty() {
        let pkgs = more(&task.nix_pkgs).iter().map(|name| Pkg::new(name)).collect();
        let mut setup = Phase::setup(Some(pkgs));
        setup.apt_pkgs = Some(more(&task.apt_pkgs));
        setup.nix_libs = Some(more(&task.nix_libs));
        plan.add_phase(setup);
    }
    if let Some(command) = &task.install_command {
        plan.add_phase(Phase::install(Some(command.clone())));
    }
    if let Some(command) = &task.build_command {
        plan.add_phase(Phase::build(Some(command.clone())));
    }
    if let Some(command) = &task.start_command {
        plan.set_start_phase(StartPhase::new(command.clone()));
    }
    plan
}

/// Refuses a plan whose files would be written elsewhere than into the output directory: their
/// names come from the source's `nixpacks.toml`.
fn check_file_names(plan: &BuildPlan) -> Result<()> {
    for name in plan.static_assets.iter().flatten().map(|(name, _)| name) {
        if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
            bail!("the static asset `{name}` leads out of the assets' directory");
        }
    }
    for archive in plan.phases.iter().flatten().filter_map(|(_, p)| p.nixpkgs_archive.as_deref()) {
        if archive.contains('/') {
            bail!("`{archive}` cannot be the name of a nixpkgs archive");
        }
    }
    Ok(())
}

/// Writes the Dockerfile and what goes with it.
fn write(plan: &BuildPlan, app: &Path, environment: &Environment, cache_key: &str) -> Result<()> {
    let output = app.join(OUTPUT);
    // Whatever the source has there is nixpacks' own from an earlier time, or a trap: a link in it
    // would be written through.
    remove(&output).with_context(|| format!("cannot clear `{OUTPUT}`"))?;
    let options = DockerBuilderOptions {
        out_dir: Some(app.to_str().context("the app's path is not UTF-8 text")?.to_owned()),
        cache_key: Some(cache_key.to_owned()),
        ..DockerBuilderOptions::default()
    };
    DockerImageBuilder::new(Logger::new(), options)
        .create_image(app.to_str().unwrap_or_default(), plan, environment)
        .now_or_never()
        .context("nixpacks waits for something")??;
    let dockerfile = output.join("Dockerfile");
    let command = plan.start_phase.as_ref().and_then(|start| start.cmd.as_deref());
    let text = fs::read_to_string(&dockerfile).context("cannot read the Dockerfile")?;
    fs::write(&dockerfile, with_start(&text, command.unwrap_or_default()))
        .context("cannot write the Dockerfile")?;
    // Nobody runs it, and its random name would make every image another one.
    fs::remove_file(output.join("build.sh")).context("cannot remove `build.sh`")
}

/// Puts the command that starts the app into the Dockerfile as it is: nixpacks escapes its quotes alone.
fn with_start(dockerfile: &str, command: &str) -> String {
    let written = format!("CMD [\"{}\"]", command.replace('"', "\\\""));
    let meant = format!("CMD {}", serde_json::json!([command]));
    match dockerfile.rfind(&written) {
        Some(at) => [&dockerfile[..at], &meant, &dockerfile[at + written.len()..]].concat(),
        None => dockerfile.to_owned(),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_command_is_escaped_for_where_it_stands() {
        for command in [
            "npm start",
            r#"node -e "console.log('a\nb')""#,
            r#"sh -c "echo \"quoted\"""#,
            r"grep '\d' \",
            "one\ntwo",
            "é \u{1}",
        ] {
            let written = format!("CMD [\"{}\"]", command.replace('"', "\\\""));
            let text = with_start(&format!("FROM a\n{written}\n"), command);
            let list = text.strip_prefix("FROM a\nCMD ").expect("it begins as before");
            let parsed: Vec<String> =
                serde_json::from_str(list.trim_end()).expect("a list in one line");
            assert_eq!(parsed, [command]);
            assert_eq!(text.lines().count(), 2);
        }
        let plain = "FROM a\nCMD [\"npm run \\\"x\\\"\"]\n";
        assert_eq!(with_start(plain, r#"npm run "x""#), plain, "what was right stays as it is");
    }
}
