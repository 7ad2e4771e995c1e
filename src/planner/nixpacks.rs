//! The strategy `nixpacks`: finds out what the source is written in and makes a Dockerfile for it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use ::nixpacks::get_providers;
use image_builder_actors::model::build_log::{BuildLog, cut};
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::limits::Limits;
use image_builder_actors::model::request::{BuildRequest, BuilderKind, PlanRequest};
use image_builder_actors::ports::{FetchedSource, Plan};
use tokio::io::AsyncWriteExt;

use super::aside::Aside;
use super::buildable;
use super::cache::cache_key;
use super::child::{self, Answer, OUTPUT, Planned, Task};
use super::confine::{self, Unusable};
use super::fingerprint::Fingerprint;
use super::{Context, PlannerSettings, disk_fault, invalid};
use crate::blocking::blocking;
use crate::child as process;

/// The release of the library that plans. `tests/contract/planner.rs` holds it against the command.
pub const VERSION: &str = "1.41.0";

/// Files that nixpacks takes as its configuration when none is named.
const CONFIG_FILES: [&str; 2] = ["nixpacks.toml", "nixpacks.json"];

/// What is read of the child's answer and of its warnings, in bytes each.
const LONGEST_ANSWER: u64 = 16 << 20;
const LONGEST_WARNINGS: u64 = 16 << 10;

/// What the planner has seen before it turned to nixpacks.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    pub context: Context,
    /// Where a Dockerfile was looked for; `None` = the request asks for nixpacks.
    pub dockerfile_missing: Option<String>,
}

/// The plan, and what `nixpacks plan --format json` would print.
pub(super) async fn plan(
    settings: &PlannerSettings,
    source: &FetchedSource,
    wish: &BuildRequest,
    sight: Sight,
    progress: &BuildLog,
) -> Result<(Plan, serde_json::Value), Fault> {
    let task = task(settings, &sight.context, wish);

    let (context, request, limits) =
        (sight.context.clone(), wish.plan.clone(), settings.limits.clone());
    let refuge = source.workspace.path().join("aside");
    let aside = blocking(move || {
        check_config_files(&context, &request, &limits)?;
        Aside::set(&context.path, &refuge, limits.planner_file_bytes)
            .map_err(|error| disk_fault("look through the source", &error))
    })
    .await?;
    let answer = ask_child(settings, &task, progress).await;
    let context = sight.context.path.clone();
    let output = match &answer {
        Ok(Answer::Planned(planned)) => Some(planned.app.join(OUTPUT)),
        _ => None,
    };
    let unseen = blocking(move || {
        let unseen = aside.describe(&context);
        aside.put_back(output.as_deref()).map(|()| unseen)
    })
    .await
    .map_err(|error| disk_fault("put the source together again", &error))?;

    let planned = match answer? {
        Answer::Planned(planned) => *planned,
        Answer::NothingFound => {
            let context = sight.context.path.clone();
            let elsewhere = blocking(move || buildable::describe(&context)).await;
            return Err(nothing_found(&sight, &unseen, &elsewhere));
        }
        Answer::NoStart => {
            return Err(Fault::new(
                StageName::Builder,
                Reason::NoBuildPlan,
                format!(
                    "nixpacks found no command that starts the app: set `startCommand`, or add a \
                     start script or a `Procfile`{unseen}"
                ),
            ));
        }
        Answer::Refused(message) => {
            let message = cut(message, 1000);
            return Err(invalid(format!("nixpacks cannot plan this app: {message}{unseen}")));
        }
        Answer::DiskFull => {
            return Err(disk_fault("write the plan", &io::ErrorKind::StorageFull.into()));
        }
    };
    if let Some(kind) = planned.variables.get("NIXPACKS_METADATA") {
        progress.note(format!("building with nixpacks {VERSION}: {kind}"));
    }
    let (tree, request, limits) = (source.tree.clone(), wish.plan.clone(), settings.limits.clone());
    blocking(move || finish(&tree, planned, &request, &task.cache_key, &limits)).await
}

fn task(settings: &PlannerSettings, context: &Context, wish: &BuildRequest) -> Task {
    let plan = &wish.plan;
    Task {
        app: context.path.clone(),
        config_file: plan
            .nixpacks_path
            .as_deref()
            .and_then(confine::relative)
            .map(|path| path.to_string_lossy().into_owned()),
        envs: plan.envs.clone(),
        nix_pkgs: plan.nix_pkgs.clone(),
        nix_libs: plan.nix_libs.clone(),
        apt_pkgs: plan.apt_pkgs.clone(),
        install_command: plan.install_command.clone(),
        build_command: plan.build_command.clone(),
        start_command: plan.start_command.clone(),
        cache_key: cache_key(&settings.cache_secret, wish),
        cpu_seconds: settings.limits.planner_cpu_time.as_secs().max(1),
        memory_bytes: settings.limits.planner_memory_bytes,
    }
}

/// Refuses a configuration file that is not there, leads out of the context or is too long.
fn check_config_files(context: &Context, wish: &PlanRequest, limits: &Limits) -> Result<(), Fault> {
    // The variable is nixpacks' own way to name the file.
    let named = [
        ("nixpacksPath", wish.nixpacks_path.as_deref()),
        ("NIXPACKS_CONFIG_FILE", wish.envs.get("NIXPACKS_CONFIG_FILE").map(String::as_str)),
    ];
    for (field, path) in named {
        let Some(path) = path else { continue };
        let path_to_file = confine::resolve(&context.path, path).map_err(|unusable| {
            invalid(match unusable {
                Unusable::Missing => {
                    format!("`{field}`: there is no `{path}` in {}", context.shown)
                }
                Unusable::LeadsOut => {
                    format!("`{field}`: `{path}` leads out of {}", context.shown)
                }
            })
        })?;
        confine::read_plan_file(&path_to_file, path, limits.plan_file_bytes)?;
    }
    for name in CONFIG_FILES {
        // One that is missing or leads out is not shown to nixpacks either.
        if let Ok(path) = confine::resolve(&context.path, name) {
            confine::read_plan_file(&path, name, limits.plan_file_bytes)?;
        }
    }
    Ok(())
}

/// Runs nixpacks in a child process. Dropping the future kills it.
async fn ask_child(
    settings: &PlannerSettings,
    task: &Task,
    progress: &BuildLog,
) -> Result<Answer, Fault> {
    let failed = |error: io::Error| disk_fault("run nixpacks", &error);
    let body = serde_json::to_vec(task).map_err(|error| failed(error.into()))?;
    let mut child = process::command(&settings.program, child::COMMAND).spawn().map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let send_task = async {
        let Some(mut stdin) = stdin else { return };
        // A child that died without reading shows in its exit status.
        drop(stdin.write_all(&body).await);
    };
    let ((), output, warnings, status) = tokio::join!(
        send_task,
        process::read_some(stdout, LONGEST_ANSWER),
        process::read_some(stderr, LONGEST_WARNINGS),
        child.wait()
    );
    for line in String::from_utf8_lossy(&warnings).lines().filter(|line| !line.trim().is_empty()) {
        progress.note(format!("nixpacks: {line}"));
    }
    let status = status.map_err(failed)?;
    if !status.success() {
        return Err(broken_off(settings, status));
    }
    let last = output.rsplit(|byte| *byte == b'\n').find(|line| !line.is_empty());
    serde_json::from_slice(last.unwrap_or_default()).map_err(|error| failed(error.into()))
}

fn broken_off(settings: &PlannerSettings, status: ExitStatus) -> Fault {
    const SIGXCPU: i32 = 24;
    if status.code() == Some(i32::from(process::EXIT_WORKER)) {
        return disk_fault("run nixpacks", &io::Error::other(status.to_string()));
    }
    let what = match status.signal() {
        Some(SIGXCPU) => {
            let limit = settings.limits.planner_cpu_time.as_secs();
            format!("needed more than {limit} s of processor time")
        }
        _ => format!("broke off ({status})"),
    };
    invalid(format!(
        "nixpacks {what} while it read this app: its files are not as nixpacks expects them; \
         a Dockerfile can be used instead"
    ))
}

fn nothing_found(sight: &Sight, unseen: &str, elsewhere: &str) -> Fault {
    let names: Vec<_> = get_providers().iter().map(|provider| provider.name()).collect();
    let dockerfile =
        sight.dockerfile_missing.as_deref().map_or(String::new(), |at| format!("no {at}, and "));
    let message = format!(
        "no way to build this was found: {dockerfile}nothing in {} that nixpacks knows ({}){unseen}{elsewhere}",
        sight.context.shown,
        names.join(", ")
    );
    Fault::new(StageName::Builder, Reason::NoBuildPlan, message)
}

/// Fits what nixpacks wrote to the request, and makes the plan of it.
fn finish(
    tree: &Path,
    planned: Planned,
    wish: &PlanRequest,
    cache_key: &str,
    limits: &Limits,
) -> Result<(Plan, serde_json::Value), Fault> {
    check_variables(&planned.variables)?;
    let written = |error: io::Error| disk_fault("write the plan", &error);
    let output = planned.app.join(OUTPUT);
    let path = output.join("Dockerfile");
    let dockerfile = fs::read_to_string(&path).map_err(written)?;
    fs::write(&path, with_secrets(&dockerfile, wish.secrets.keys())).map_err(written)?;
    admit_output(&planned.app, limits).map_err(written)?;

    let mut files = BTreeMap::new();
    collect(&output, "", &mut files).map_err(written)?;
    for text in files.values_mut() {
        // Where the caches are kept does not decide what is built.
        *text = text.replace(cache_key, "");
    }
    let tree = tree.canonicalize().map_err(written)?;
    let place = planned.app.strip_prefix(&tree).unwrap_or(&planned.app).to_string_lossy();
    let fingerprint = Fingerprint::new(&format!("nixpacks {VERSION}, 1"))
        .part("directory", &*place)
        .pairs("files", &files)
        .pairs("build arguments", &planned.variables)
        .names("secrets", wish.secrets.keys())
        .platforms(&wish.platforms)
        .git_directory(wish.keep_git_dir)
        .finish();
    let plan = Plan {
        builder: BuilderKind::Nixpacks,
        context: planned.app,
        dockerfile: format!("{OUTPUT}/Dockerfile"),
        target: None,
        build_args: planned.variables,
        secrets: wish.secrets.clone(),
        platforms: wish.platforms.clone(),
        registry_auth: wish.registry_auth.clone(),
        fingerprint,
    };
    Ok((plan, planned.plan))
}

/// Refuses variables that `ENV NAME=$NAME` in the Dockerfile would not set.
fn check_variables(variables: &BTreeMap<String, String>) -> Result<(), Fault> {
    let good = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match variables.keys().find(|name| !good(name)) {
        None => Ok(()),
        Some(name) => Err(invalid(format!(
            "`{name}` cannot be the name of a variable: use letters, digits and `_`, and no digit \
             at the start"
        ))),
    }
}

/// Mounts the secrets in every step: they stand under `/run/secrets/<id>` there, and in no layer.
fn with_secrets<'a>(dockerfile: &str, ids: impl Iterator<Item = &'a String>) -> String {
    let mounts: String = ids.map(|id| format!("--mount=type=secret,id={id} ")).collect();
    if mounts.is_empty() {
        return dockerfile.to_owned();
    }
    let mut continued = false;
    let mut text = String::with_capacity(dockerfile.len());
    for line in dockerfile.lines() {
        match line.strip_prefix("RUN ") {
            Some(command) if !continued => text.extend(["RUN ", &mounts, command, "\n"]),
            _ => text.extend([line, "\n"]),
        }
        continued = line.trim_end().ends_with('\\');
    }
    text
}

/// Lets nixpacks' files into the build context where a `.dockerignore` keeps them out.
fn admit_output(app: &Path, limits: &Limits) -> io::Result<()> {
    const NAME: &str = ".dockerignore";
    // One that cannot be used is an error of whoever reads it to make the context.
    let Ok(path) = confine::resolve(app, NAME) else { return Ok(()) };
    let Ok(text) = confine::read_plan_file(&path, NAME, limits.plan_file_bytes) else {
        return Ok(());
    };
    // Replaced, not appended to: it may be a link to another file of the source.
    let place = app.join(NAME);
    fs::remove_file(&place)?;
    fs::write(&place, format!("{}\n!{OUTPUT}\n!{OUTPUT}/**\n", text.trim_end()))
}

/// The files below `directory` by their paths, with their text.
fn collect(directory: &Path, prefix: &str, files: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &name, files)?;
        } else {
            files.insert(name, String::from_utf8_lossy(&fs::read(entry.path())?).into_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_mounted_in_every_step_and_in_no_continued_line() {
        let dockerfile = "FROM a\nRUN  npm ci && \\\nRUN x\nCOPY . .\nRUN b\n";
        let ids = ["npm".to_owned(), "pip".to_owned()];
        let mounts = "--mount=type=secret,id=npm --mount=type=secret,id=pip";
        assert_eq!(
            with_secrets(dockerfile, ids.iter()),
            format!("FROM a\nRUN {mounts}  npm ci && \\\nRUN x\nCOPY . .\nRUN {mounts} b\n")
        );
        assert_eq!(with_secrets(dockerfile, [].iter()), dockerfile);
    }
}
