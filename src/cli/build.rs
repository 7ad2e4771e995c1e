//! `image-builder build`: one build at a terminal, with no queue and no service.

use std::time::{Duration, Instant};

use clap::Args;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BuildKey, BuiltImage, ImageLocation};
use image_builder_actors::model::reference::{ImageReference, is_component};
use image_builder_actors::ports::{BuildOrder, ImageBuilder, Planner, Registry};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::faults;
use super::progress::{Ended, Progress, ProgressMode};
use super::stop::Stop;
use super::wanted::{Wanted, WantedArguments};
use super::{environment, print, temporary_folder, wait_for};
use crate::config::ConfigErrors;
use crate::exit::{Exit, StartError};
use crate::text::ascii;
use crate::wiring::tools::Tools;

/// The tag of an image that no commit names.
const LATEST: &str = "latest";

/// Build an image from a folder or a repository, with no queue and no service.
///
/// The image is made by a Dockerfile if there is one, and by nixpacks else. It stays on the engine
/// (DOCKER_HOST); --push sends it to the registry of the settings as well. With BUILDKIT_HOST it is built there, and
/// goes to the registry alone. A folder is taken as it lies there, without what its .dockerignore names.
///
/// Progress goes to the standard error stream, and what was built to the standard output stream.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0    built
  1    what is to be built is at fault: its last lines and one sentence say why
  64   usage
  69   something needed is not available: the engine, the registry, the forge
  75   temporary failure: try it again
  78   bad settings, one line each
  130  stopped by Ctrl-C
  143  stopped by SIGTERM

Examples:
  image-builder build . --tag shop:dev
  image-builder build owner/name@main --push
  image-builder build . --secret npm=.npmrc --build-arg VERSION=7
  docker run --rm $(image-builder build . --quiet)

The settings that count are those of the engine, the registry and the forge; `image-builder config
--example` lists them.")]
pub struct Arguments {
    #[command(flatten)]
    wanted: WantedArguments,
    /// A name for the image on the engine; it can be given several times
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    tags: Vec<String>,
    /// Push to the registry (REGISTRY_URL), under this name there; without one under a name made of the
    /// repository and its commit, or of the folder
    #[arg(long, value_name = "NAME[:TAG]", num_args = 0..=1, require_equals = true)]
    push: Option<Option<String>>,
    /// Run every step, whatever the engine's build cache has
    #[arg(long)]
    no_cache: bool,
    /// How progress is shown
    #[arg(long, value_enum, value_name = "HOW", default_value_t = ProgressMode::Auto)]
    progress: ProgressMode,
    /// Show no progress, and print only the image's id, or its digest once it is pushed
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON, also where it is a failure
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.tools()?;
    let prepared = arguments.wanted.read(&config).and_then(|wanted| {
        let tools = Tools::assemble(config, arguments.no_cache)?;
        Ok((Run::new(arguments, &tools, wanted)?, tools))
    });
    Ok(prepared
        .and_then(|(run, tools)| run.to_its_end(&tools))
        .unwrap_or_else(|error| error.told()))
}

/// What is to be done.
struct Run<'a> {
    arguments: &'a Arguments,
    wanted: Wanted,
    /// The names that the image gets on the engine.
    names: Vec<String>,
    /// The name that it is pushed under; the tag may only be known when the source is.
    push: Option<PushName>,
}

/// A name in the registry of the settings.
#[derive(Debug, PartialEq, Eq)]
struct PushName {
    repository: String,
    tag: Option<String>,
}

/// What was made.
struct Made {
    image: BuiltImage,
    commit: Option<String>,
    /// What it is called on the engine.
    names: Vec<String>,
    /// Where it was pushed to, and the digest that it has there.
    pushed: Option<(ImageReference, String)>,
}

impl<'a> Run<'a> {
    fn new(arguments: &'a Arguments, tools: &Tools, wanted: Wanted) -> Result<Self, StartError> {
        let names = arguments.tags.iter().map(|name| full_name(name));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        let push = match &arguments.push {
            None => None,
            Some(Some(name)) => Some(PushName::parse(name, &tools.registry_name())?),
            Some(None) => {
                let named = own_reference(&tools.registry_name(), &wanted, LATEST);
                Some(PushName { repository: named.repository, tag: None })
            }
        };
        if tools.fleet.is_some() {
            needs_no_engine(push.is_some(), &names)?;
        }
        Ok(Self { arguments, wanted, names, push })
    }

    fn to_its_end(&self, tools: &Tools) -> Result<Exit, StartError> {
        // Outlives the threads that work in it.
        let place = temporary_folder()?;
        wait_for(self.watched(tools, &place))
    }

    /// Does it, until it is done or somebody asks for an end.
    async fn watched(&self, tools: &Tools, place: &TempDir) -> Result<Exit, StartError> {
        let mut stop = Stop::listen()?;
        let mode = (!self.arguments.quiet).then_some(self.arguments.progress);
        let progress = Progress::start(mode);
        let id = &self.wanted.request.build_id;
        let log = BuildLog::new(id, self.wanted.request.redactor_with(&tools.secrets()))
            .with_listener(progress.listener());
        let begun = Instant::now();
        let mut work = Box::pin(self.work(tools, place, &progress, &log));
        let ended = tokio::select! {
            made = &mut work => Ok(made),
            exit = stop.asked() => Err(exit),
        };
        drop(work);
        Ok(match ended {
            Ok(Ok(made)) => {
                progress.end(Ended::Done);
                self.tell(&made, begun.elapsed())
            }
            Ok(Err(fault)) => {
                progress.end(Ended::Failed(fault.step.clone()));
                self.tell_fault(&fault, &log)
            }
            Err(exit) => {
                progress.end(Ended::Stopped);
                eprintln!("image-builder: stopped");
                exit
            }
        })
    }

    async fn work(
        &self,
        tools: &Tools,
        place: &TempDir,
        progress: &Progress,
        log: &BuildLog,
    ) -> Result<Made, Fault> {
        let wanted = &self.wanted;
        // Before anything is fetched for it.
        match &tools.fleet {
            Some(fleet) => fleet.look().await.map_err(|why| {
                Fault::new(StageName::Builder, Reason::EngineDown, format!("No build host: {why}"))
            })?,
            None => tools.engine.ping().await?,
        }
        let fetching = wanted.is_repository().then(|| {
            let name = format!("fetching {}", wanted.shown());
            (progress.begin(name.clone()), name)
        });
        let source = wanted.fetch(tools, place.path(), log).await?;
        if let Some((part, name)) = fetching {
            progress.done(part, name);
        }
        let plan = tools.planner.plan(&source, &wanted.request, log).await?;
        let key = BuildKey::of(&wanted.request, &source.commit, &plan.fingerprint);
        let commit = wanted.commit(&source).map(str::to_owned);
        let tag = commit.as_deref().unwrap_or(LATEST);
        let to = self.push.as_ref().map(|name| name.reference(&tools.registry_name(), tag));
        let reference = match (&tools.fleet, &to) {
            // It goes there at once.
            (Some(_), Some(to)) => to.clone(),
            _ => own_reference(&tools.registry_name(), wanted, tag),
        };
        let order = BuildOrder {
            build_id: wanted.request.build_id.clone(),
            labels: wanted.labels(&source, &plan, &key),
            plan,
            key,
            reference: reference.clone(),
        };
        let builder: &dyn ImageBuilder = match &tools.fleet {
            Some(fleet) => fleet,
            None => &tools.engine,
        };
        let image = match builder.build(&order, log).await? {
            ImageLocation::OnEngine(image) => image,
            ImageLocation::Pushed { digest } if tools.fleet.is_some() => {
                let image_id = tag_pushed(tools, &reference, &digest).await?;
                let image = BuiltImage::new(image_id, order.plan.builder, order.key);
                let pushed = Some((reference, digest));
                return Ok(Made { image, commit, names: Vec::new(), pushed });
            }
            ImageLocation::InRegistry(_) | ImageLocation::Pushed { .. } => {
                let message = "The engine did not keep the image.";
                return Err(Fault::new(StageName::Builder, Reason::EngineFailed, message));
            }
        };
        let names = if self.names.is_empty() {
            tools.engine.local_names(&image.id, &reference).await?
        } else {
            tools.engine.rename(&image.id, &reference, &self.names).await?;
            self.names.clone()
        };
        let pushed = match to {
            None => None,
            Some(to) => {
                let shown = format!("pushing {to}");
                let part = progress.begin(shown.clone());
                let digest = tools.engine.push(&image, &to, log).await?;
                progress.done(part, shown);
                Some((to, digest))
            }
        };
        Ok(Made { image, commit, names, pushed })
    }

    /// Prints what was made.
    fn tell(&self, made: &Made, took: Duration) -> Exit {
        if self.arguments.json {
            return print(&format!("{}\n", ascii(&self.result(made, took))));
        }
        let digest = made.pushed.as_ref().map(|(to, digest)| format!("{}@{digest}", to.name()));
        if self.arguments.quiet {
            return print(&format!("{}\n", digest.as_ref().unwrap_or(&made.image.id)));
        }
        let mut text = format!("image   {}\n", made.image.id);
        for name in &made.names {
            text.push_str(&format!("name    {name}\n"));
        }
        if let Some((to, _)) = &made.pushed {
            text.push_str(&format!("pushed  {to}\n"));
        }
        if let Some(digest) = digest {
            text.push_str(&format!("digest  {digest}\n"));
        }
        print(&text)
    }

    fn result(&self, made: &Made, took: Duration) -> Value {
        let pushed = made.pushed.as_ref().map(|(to, digest)| {
            json!({"reference": to.to_string(), "repository": to.name(), "digest": digest})
        });
        json!({
            "outcome": "built",
            "source": self.wanted.shown(),
            "commit": made.commit,
            "builder": made.image.builder,
            "image": {"id": made.image.id, "names": made.names},
            "pushed": pushed,
            "seconds": took.as_millis() as f64 / 1000.0,
        })
    }

    /// Says why there is no image.
    fn tell_fault(&self, fault: &Fault, log: &BuildLog) -> Exit {
        eprintln!("image-builder: {}", faults::sentence(fault));
        if self.arguments.json {
            let mut result = faults::of_json(fault, &log.tail());
            result["outcome"] = json!("failed");
            result["source"] = json!(self.wanted.shown());
            let written = print(&format!("{}\n", ascii(&result)));
            if written != Exit::Ok {
                return written;
            }
        }
        Exit::of(fault.reason)
    }
}

/// Whether what is asked for can be had of hosts that keep no images.
fn needs_no_engine(pushes: bool, names: &[String]) -> Result<(), StartError> {
    let why = match names.first() {
        None if pushes => return Ok(()),
        None => "BUILDKIT_HOST: its hosts keep no images; give --push, or unset it".to_owned(),
        Some(name) => format!(
            "--tag {name}: the hosts of BUILDKIT_HOST keep no images; name it with --push=NAME, or unset BUILDKIT_HOST"
        ),
    };
    Err(StartError::new(Exit::Usage, why))
}

/// Gives an image its tag that a build host has pushed by its digest, and returns the image's id.
async fn tag_pushed(tools: &Tools, to: &ImageReference, digest: &str) -> Result<String, Fault> {
    let failed = |message: String| Fault::new(StageName::Pusher, Reason::RegistryFailed, message);
    let registry = tools.registry().map_err(|error| failed(format!("{error:#}.")))?;
    let image = registry.find(&to.with_tag(digest)).await?.ok_or_else(|| {
        failed(format!("The registry does not have {digest} of {}, which was pushed.", to.name()))
    })?;
    let refused = registry.tag(&image, to, std::slice::from_ref(&to.tag)).await?;
    match refused.into_iter().next() {
        Some(refused) => Err(refused.fault),
        None => Ok(image.image_id),
    }
}

/// What an image is called in the registry where nobody says otherwise.
fn own_reference(registry: &str, wanted: &Wanted, tag: &str) -> ImageReference {
    let request = &wanted.request;
    ImageReference::for_build(registry, &request.user_id, &request.application_id, tag)
}

impl PushName {
    /// A name below the registry, with or without the registry before it. No other one is pushed to: the
    /// credential is this one's alone.
    fn parse(text: &str, registry: &str) -> Result<Self, StartError> {
        let below = text.strip_prefix(registry).and_then(|rest| rest.strip_prefix('/'));
        let (repository, tag) = split_tag(below.unwrap_or(text));
        let bad = |why: String| StartError::new(Exit::Usage, format!("--push={text}: {why}"));
        let first = repository.split('/').next().unwrap_or_default();
        let is_host =
            repository.contains('/') && (first.contains(['.', ':']) || first == "localhost");
        if below.is_none() && is_host {
            return Err(bad(format!(
                "images are pushed to {registry}; set REGISTRY_URL to push elsewhere"
            )));
        }
        if !repository.split('/').all(is_component) || !tag.is_none_or(is_tag) {
            return Err(bad("it is no name for an image; write it like shop/web:v1".to_owned()));
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.map(str::to_owned) })
    }

    fn reference(&self, registry: &str, tag: &str) -> ImageReference {
        ImageReference {
            registry: registry.to_owned(),
            repository: self.repository.clone(),
            tag: self.tag.as_deref().unwrap_or(tag).to_owned(),
        }
    }
}

/// A name for the engine, with its tag.
fn full_name(text: &str) -> Result<String, StartError> {
    let (repository, tag) = split_tag(text);
    // What stands first may be a registry and its port.
    let path = match repository.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        _ => repository,
    };
    if !path.split('/').all(is_component) || !tag.is_none_or(is_tag) {
        let why = format!("--tag {text}: it is no name for an image; write it like shop:dev");
        return Err(StartError::new(Exit::Usage, why));
    }
    Ok(format!("{repository}:{}", tag.unwrap_or(LATEST)))
}

/// A name without its tag, and the tag. A port is none.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    }
}

/// Whether a text is a tag by the distribution specification.
fn is_tag(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (1..=128).contains(&text.len()) && !text.starts_with(['.', '-']) && text.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_on_the_engine_has_a_tag() {
        for (given, full) in [
            ("shop", "shop:latest"),
            ("team/shop:dev", "team/shop:dev"),
            ("localhost:5000/shop", "localhost:5000/shop:latest"),
        ] {
            assert_eq!(full_name(given).ok().as_deref(), Some(full));
        }
        for bad in ["", "Shop", "shop:", "shop:a b", "a//b", ":dev"] {
            assert_eq!(full_name(bad).map_err(|error| error.exit), Err(Exit::Usage), "{bad}");
        }
    }

    #[test]
    fn of_hosts_that_keep_no_images_only_a_push_is_asked() {
        assert!(needs_no_engine(true, &[]).is_ok());
        for (pushes, names, said) in
            [(false, vec![], "give --push"), (true, vec!["shop:dev".to_owned()], "--tag shop:dev")]
        {
            let refused = needs_no_engine(pushes, &names).expect_err(said);
            assert_eq!(refused.exit, Exit::Usage);
            assert!(refused.to_string().contains(said), "{refused}");
        }
    }

    #[test]
    fn images_are_pushed_to_the_registry_of_the_settings_alone() {
        let pushed = |name: &str| {
            let name = PushName::parse(name, "registry.example:5000/team").ok()?;
            Some(name.reference("registry.example:5000/team", "c0ffee").to_string())
        };
        for (given, to) in [
            ("shop", "registry.example:5000/team/shop:c0ffee"),
            ("a/shop:v1", "registry.example:5000/team/a/shop:v1"),
            ("registry.example:5000/team/shop:v1", "registry.example:5000/team/shop:v1"),
        ] {
            assert_eq!(pushed(given).as_deref(), Some(to));
        }
        for bad in ["ghcr.example/shop", "localhost/shop", "registry.example:5000/shop", "A:b", ""]
        {
            assert_eq!(pushed(bad), None, "{bad}");
        }
    }
}
