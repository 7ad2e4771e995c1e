//! `image-builder plan`: what would be built, and why.

use clap::Args;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::Fault;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::faults;
use super::progress::{Ended, Progress, ProgressMode};
use super::stop::Stop;
use super::wanted::{Wanted, WantedArguments};
use super::{environment, print, temporary_folder, wait_for};
use crate::api::plans::{ShownDockerfile, ShownPlan};
use crate::config::ConfigErrors;
use crate::engine::docker::disk::size::Size;
use crate::exit::{Exit, StartError};
use crate::planner::NIXPACKS_VERSION;
use crate::text::{ascii, plain};
use crate::wiring::tools::Tools;

/// Show what would be built from a folder or a repository, and why.
///
/// It tells which builder makes the image, how much the engine would be sent, and shows the Dockerfile: the
/// source's own, or the one that nixpacks makes. Nothing is built, and no engine is needed. Of build
/// arguments, variables and secrets only the names are shown.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0    there is a plan
  1    there is none, and one sentence says what was looked for
  64   usage
  69   the forge is not available
  75   temporary failure: try it again
  78   bad settings, one line each
  130  stopped by Ctrl-C
  143  stopped by SIGTERM

Examples:
  image-builder plan .
  image-builder plan owner/name@v1.2 --root web
  image-builder plan . --builder nixpacks --json | jq -r .dockerfile.text

The settings that count are those of the forge; `image-builder config --example` lists them.")]
pub struct Arguments {
    #[command(flatten)]
    wanted: WantedArguments,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.tools()?;
    let planned = arguments.wanted.read(&config).and_then(|wanted| {
        let tools = Tools::assemble(config, false)?;
        // Outlives the threads that work in it.
        let place = temporary_folder()?;
        wait_for(watched(arguments, &wanted, &tools, &place))
    });
    Ok(planned.unwrap_or_else(|error| error.told()))
}

/// Plans, until that is done or somebody asks for an end.
async fn watched(
    arguments: &Arguments,
    wanted: &Wanted,
    tools: &Tools,
    place: &TempDir,
) -> Result<Exit, StartError> {
    let mut stop = Stop::listen()?;
    let progress = Progress::start(wanted.is_repository().then_some(ProgressMode::Auto));
    let request = &wanted.request;
    let log = BuildLog::new(&request.build_id, request.redactor_with(&tools.secrets()))
        .with_listener(progress.listener());
    let planned = tokio::select! {
        planned = plan(wanted, tools, place, &progress, &log) => planned,
        exit = stop.asked() => {
            progress.end(Ended::Stopped);
            return Ok(exit);
        }
    };
    match planned {
        Ok(shown) => {
            progress.end(Ended::Done);
            let text = if arguments.json {
                format!("{}\n", ascii(&to_json(wanted, &shown)))
            } else {
                to_text(wanted, &shown)
            };
            Ok(print(&text))
        }
        Err(fault) => {
            progress.end(Ended::Failed(None));
            eprintln!("image-builder: {}", faults::sentence(&fault));
            if arguments.json {
                let mut result = faults::of_json(&fault, &[]);
                result["source"] = json!(wanted.shown());
                print(&format!("{}\n", ascii(&result)));
            }
            Ok(Exit::of(fault.reason))
        }
    }
}

async fn plan(
    wanted: &Wanted,
    tools: &Tools,
    place: &TempDir,
    progress: &Progress,
    log: &BuildLog,
) -> Result<ShownPlan, Fault> {
    let name = format!("fetching {}", wanted.shown());
    let part = progress.begin(&name);
    let source = wanted.fetch(tools, place.path(), log).await?;
    progress.done(part, name);
    let shown = tools.plan(&source, &wanted.request, log).await?;
    Ok(ShownPlan { because: faults::in_options(&shown.because), ..shown })
}

fn to_text(wanted: &Wanted, shown: &ShownPlan) -> String {
    let mut text = String::new();
    // Strangers' words, in part.
    let mut line =
        |name: &str, value: &str| text.push_str(&format!("{name:10}  {}\n", plain(value)));
    line("source", &wanted.shown());
    if let Some(commit) = &shown.commit {
        line("commit", commit);
    }
    line("builder", &format!("{}, because {}", shown.builder.as_str(), shown.because));
    if shown.nixpacks.is_some() {
        let found = shown.provider.as_ref().map_or(String::new(), |found| format!(": {found}"));
        line("nixpacks", &format!("{NIXPACKS_VERSION}{found}"));
    }
    if let Some(target) = &shown.target {
        line("target", target);
    }
    if !shown.root_directory.is_empty() {
        line("root", &shown.root_directory);
    }
    let files = shown.context.files;
    let files_are = if files == 1 { "file" } else { "files" };
    line("context", &format!("{files} {files_are}, {}", Size(shown.context.bytes)));
    for (name, values) in [
        ("images", &shown.base_images),
        ("arguments", &shown.build_args),
        ("secrets", &shown.secrets),
    ] {
        if !values.is_empty() {
            line(name, &values.join(", "));
        }
    }
    for warning in &shown.warnings {
        line("warning", warning);
    }
    let ShownDockerfile { path, text: dockerfile } = &shown.dockerfile;
    text.push_str(&format!("\n# {}\n", plain(path)));
    for line in dockerfile.lines() {
        text.push_str(&format!("{}\n", plain(line)));
    }
    text
}

fn to_json(wanted: &Wanted, shown: &ShownPlan) -> Value {
    let mut plan = json!(shown);
    plan["source"] = json!(wanted.shown());
    plan
}
