//! What a person wants built: a folder, or a repository at the forge, and how.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use image_builder_actors::delivery::artifacts::labels;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BUILDER_LABEL, BuildKey};
use image_builder_actors::model::request::{BuildRequest, BuilderKind, Target};
use image_builder_actors::model::secret::Secret;
use image_builder_actors::model::workspace::Workspace;
use image_builder_actors::parse;
use image_builder_actors::ports::{FetchedSource, Plan, SourceConnector};
use serde_json::json;
use time::OffsetDateTime;

use crate::blocking::blocking;
use crate::config::ToolConfig;
use crate::exit::{Exit, StartError};
use crate::wiring::tools::Tools;

/// Whose a folder's image is.
const LOCAL_USER: &str = "local";
/// The variable with the forge's token.
const TOKEN: &str = "GITHUB_TOKEN";
/// Longest token or secret that is read from a file, in bytes.
const LONGEST_SECRET: u64 = 512 * 1024;

/// What to build, and how.
#[derive(Debug, Args)]
pub(super) struct WantedArguments {
    /// A folder, or a repository at the forge: owner/name, with @ and a branch, tag or commit behind it
    #[arg(value_name = "PATH|OWNER/NAME[@REF]")]
    source: String,
    /// The folder in it that is built
    #[arg(long, value_name = "FOLDER")]
    root: Option<String>,
    /// What makes the image; without it a Dockerfile if there is one, else nixpacks
    #[arg(long, value_enum)]
    builder: Option<BuilderName>,
    /// The Dockerfile, from that folder on
    #[arg(short, long, value_name = "PATH")]
    file: Option<String>,
    /// The stage of the Dockerfile that is built; without it the last one
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// A build argument; NAME alone takes its value from the environment
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    build_args: Vec<String>,
    /// A variable of the app: set in nixpacks' image, a build argument for a Dockerfile
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    envs: Vec<String>,
    /// A secret for RUN --mount=type=secret,id=ID, read from a file
    #[arg(long = "secret", value_name = "ID=PATH")]
    secrets: Vec<String>,
    /// The file with the forge's token, - for the standard input; without it GITHUB_TOKEN is used
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BuilderName {
    Dockerfile,
    Nixpacks,
}

/// What is wanted, read and found good.
pub(super) struct Wanted {
    pub(super) request: BuildRequest,
    /// `None` = a repository at the forge.
    folder: Option<PathBuf>,
    /// What else the ref may be, in the order in which it is tried.
    otherwise: Vec<Target>,
    /// The ref as it was given.
    reference: Option<String>,
}

/// How a build argument, a variable or a secret is given.
type Pair = (String, String);

impl WantedArguments {
    /// Reads what is wanted.
    ///
    /// # Errors
    ///
    /// The command line is wrong, or a file that it names cannot be read.
    pub(super) fn read(&self, config: &ToolConfig) -> Result<Wanted, StartError> {
        let folder = self.folder()?;
        let (repo, reference) = match (&folder, self.source.rsplit_once('@')) {
            (None, Some((repo, reference))) => (repo.to_owned(), Some(reference.to_owned())),
            (None, None) => (self.source.clone(), None),
            (Some(_), _) => (format!("{LOCAL_USER}/folder"), None),
        };
        let application = folder.as_ref().map(|folder| {
            folder.file_name().map_or("root".to_owned(), |name| name.to_string_lossy().into_owned())
        });
        let token = if folder.is_some() { None } else { self.token()? };
        let pairs = |option: &str, given: &[String]| {
            given.iter().map(|text| pair(option, text)).collect::<Result<BTreeMap<_, _>, _>>()
        };
        let builder = self.builder.map(|builder| match builder {
            BuilderName::Dockerfile => BuilderKind::Dockerfile.as_str(),
            BuilderName::Nixpacks => BuilderKind::Nixpacks.as_str(),
        });
        let secrets = self.secrets.iter().map(|text| secret(text));
        let secrets: BTreeMap<_, _> = secrets.collect::<Result<_, _>>()?;
        let of_plan = json!({
            "builder": builder,
            "rootDirectory": self.root,
            "dockerfilePath": self.file,
            "target": self.target,
            "buildArgs": pairs("--build-arg", &self.build_args)?,
            "envs": pairs("--env", &self.envs)?,
            "secrets": secrets,
        });
        let targets = reference.as_deref().map_or(Vec::new(), targets);
        let body = json!({
            "userID": repo.rsplit('/').nth(1).unwrap_or(LOCAL_USER),
            "repo": repo,
            "applicationID": application,
            "token": token,
            "buildPlan": of_plan,
        });
        let rules = config.forge.rules(&config.limits);
        let id = uuid::Uuid::new_v4().to_string();
        let request = parse::parse(body.to_string().as_bytes(), &id, &rules)
            .map_err(|rejected| usage(in_options(&rejected.fault.message)))?;
        let mut targets = targets.into_iter();
        let target = targets.next().unwrap_or(Target::DefaultBranch);
        let request = BuildRequest { target, ..request };
        Ok(Wanted { request, folder, otherwise: targets.collect(), reference })
    }

    /// The folder that is meant, where one is.
    fn folder(&self) -> Result<Option<PathBuf>, StartError> {
        let text = self.source.as_str();
        let path = Path::new(text);
        if path.is_dir() {
            let folder = path.canonicalize();
            return folder.map(Some).map_err(|error| usage(format!("cannot open {text}: {error}")));
        }
        let is_path = text.starts_with(['.', '/', '~']) || !text.contains('/');
        if is_path || path.exists() {
            let what = if path.exists() { "is not a folder" } else { "is not there" };
            return Err(usage(format!(
                "{text} {what}; give a folder, or a repository as owner/name"
            )));
        }
        Ok(None)
    }

    fn token(&self) -> Result<Option<String>, StartError> {
        let Some(path) = &self.token_file else {
            return Ok(std::env::var(TOKEN).ok().filter(|token| !token.trim().is_empty()));
        };
        let mut text = String::new();
        let read = if path == Path::new("-") {
            io::stdin().take(LONGEST_SECRET).read_to_string(&mut text)
        } else {
            fs::File::open(path)
                .and_then(|file| file.take(LONGEST_SECRET).read_to_string(&mut text))
        };
        read.map_err(|error| usage(format!("--token-file {}: {error}", path.display())))?;
        let token = text.trim();
        if token.is_empty() {
            return Err(usage(format!("--token-file {}: it is empty", path.display())));
        }
        Ok(Some(token.to_owned()))
    }
}

impl Wanted {
    /// What it is called for people.
    pub(super) fn shown(&self) -> String {
        match (&self.folder, &self.reference) {
            (Some(folder), _) => folder.display().to_string(),
            (None, Some(reference)) => format!("{}@{reference}", self.request.repo),
            (None, None) => self.request.repo.to_string(),
        }
    }

    /// Whether it has to be fetched from the forge.
    pub(super) fn is_repository(&self) -> bool {
        self.folder.is_none()
    }

    /// The commit that is built, where there is one.
    pub(super) fn commit<'a>(&self, source: &'a FetchedSource) -> Option<&'a str> {
        self.is_repository().then_some(source.commit.as_str())
    }

    /// Gets the files. A folder is used where it lies, unless planning would write into it.
    ///
    /// # Errors
    ///
    /// What the forge and the planner say.
    pub(super) async fn fetch(
        &self,
        tools: &Tools,
        parent: &Path,
        log: &BuildLog,
    ) -> Result<FetchedSource, Fault> {
        let no_room = |error: io::Error| {
            let message =
                format!("There is no room for the files in {}: {error}.", parent.display());
            Fault::new(StageName::Connector, Reason::DiskLow, message)
        };
        let workspace = || Workspace::create(parent).map_err(no_room);
        let Some(folder) = &self.folder else {
            let forge = tools.forge().map_err(|error| {
                Fault::new(StageName::Connector, Reason::ForgeFailed, error.to_string())
            })?;
            return self.fetch_repository(&forge, workspace, log).await;
        };
        let workspace = workspace()?;
        let mut tree = folder.clone();
        if tools.planner.writes_into(folder, &self.request.plan).await? {
            tree = workspace.path().join("source");
            let (from, to) = (folder.clone(), tree.clone());
            blocking(move || copy(&from, &to)).await.map_err(|error| {
                let message = format!("Cannot copy {}: {error}.", folder.display());
                Fault::new(StageName::Connector, Reason::InvalidPlan, message)
            })?;
        }
        Ok(FetchedSource {
            commit: String::new(),
            committed_at: OffsetDateTime::now_utc(),
            version: String::new(),
            url: String::new(),
            tree,
            workspace,
        })
    }

    async fn fetch_repository(
        &self,
        forge: &impl SourceConnector,
        workspace: impl Fn() -> Result<Workspace, Fault>,
        log: &BuildLog,
    ) -> Result<FetchedSource, Fault> {
        let mut fetched = forge.fetch(&self.request, None, workspace()?, log).await;
        for target in &self.otherwise {
            match &fetched {
                Err(fault) if fault.reason == Reason::RefNotFound => {}
                _ => break,
            }
            let request = BuildRequest { target: target.clone(), ..self.request.clone() };
            fetched = forge.fetch(&request, None, workspace()?, log).await;
        }
        fetched.map_err(|fault| match (&self.reference, fault.reason) {
            (Some(reference), Reason::RefNotFound) if !self.otherwise.is_empty() => {
                let repo = &self.request.repo;
                let message = format!("{repo} has no branch, tag or commit `{reference}`.");
                Fault { message, ..fault }
            }
            _ => fault,
        })
    }

    /// The labels of the image. A folder has no commit and no address to tell of.
    pub(super) fn labels(
        &self,
        source: &FetchedSource,
        plan: &Plan,
        key: &BuildKey,
    ) -> BTreeMap<String, String> {
        if self.is_repository() {
            return labels(source, plan, key);
        }
        BTreeMap::from([(BUILDER_LABEL.to_owned(), plan.builder.as_str().to_owned())])
    }
}

/// What a ref may be: a name is a branch or a tag, and hexadecimal digits may be a commit. A whole commit is
/// nothing else.
fn targets(reference: &str) -> Vec<Target> {
    let id = reference.to_ascii_lowercase();
    let is_commit = (4..=40).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit());
    let whole = is_commit && id.len() == 40;
    let commit = is_commit.then_some(Target::Commit { id, branch: None });
    let names = [Target::Branch(reference.to_owned()), Target::Tag(reference.to_owned())];
    names.into_iter().filter(|_| !whole).chain(commit).collect()
}

/// `NAME=VALUE`, or a NAME whose value the environment has.
fn pair(option: &str, text: &str) -> Result<Pair, StartError> {
    if let Some((name, value)) = text.split_once('=') {
        return Ok((name.to_owned(), value.to_owned()));
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(usage(format!(
            "{option} {text}: write {text}=VALUE, or set {text} in the environment"
        ))),
    }
}

/// `ID=PATH`, or `id=ID,src=PATH` and `id=ID,env=NAME` as Docker writes them.
fn secret(text: &str) -> Result<Pair, StartError> {
    let bad = |what: String| usage(format!("--secret {text}: {what}"));
    let fields: BTreeMap<_, _> =
        text.split(',').filter_map(|field| field.split_once('=')).collect();
    let field = |names: [&str; 2]| names.into_iter().find_map(|name| fields.get(name).copied());
    let dockers = fields.get("id").filter(|_| text.contains(','));
    let (id, path) = match dockers {
        Some(id) => match (field(["src", "source"]), field(["env", "env"])) {
            (Some(path), _) => (*id, path),
            (None, Some(name)) => {
                let value = std::env::var(name).map_err(|_| bad(format!("{name} is not set")))?;
                return Ok(((*id).to_owned(), value));
            }
            (None, None) => return Err(bad("write it as ID=PATH".to_owned())),
        },
        None => text.split_once('=').ok_or_else(|| bad("write it as ID=PATH".to_owned()))?,
    };
    let file = fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    let mut value = String::new();
    file.take(LONGEST_SECRET).read_to_string(&mut value).map_err(|error| bad(error.to_string()))?;
    Ok((id.to_owned(), Secret::new(value).expose().to_owned()))
}

/// Copies a folder for a build that writes into it. Git's own directory is left out, as it is of a
/// repository that is fetched; what is neither a file, a folder nor a link as well.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        fs::create_dir_all(to.join(&folder))?;
        for entry in fs::read_dir(from.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if path != Path::new(".git") {
                    folders.push(path);
                }
            } else if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(entry.path())?, to.join(&path))?;
            } else if kind.is_file() {
                fs::copy(entry.path(), to.join(&path))?;
            }
        }
    }
    Ok(())
}

/// A message about a request's fields, with the options that they come from.
pub(super) fn in_options(message: &str) -> String {
    const FIELDS: [(&str, &str); 10] = [
        ("`buildPlan.target`", "`--target`"),
        ("`rootDirectory`", "`--root`"),
        ("`dockerfilePath`", "`--file`"),
        ("`target`", "`--target`"),
        ("`buildArgs`", "`--build-arg`"),
        ("`envs`", "`--env`"),
        ("`secrets`", "`--secret`"),
        ("`builder`", "`--builder`"),
        ("the repository's root", "the root"),
        ("buildPlan.", ""),
    ];
    FIELDS.iter().fold(message.to_owned(), |text, (field, option)| text.replace(field, option))
}

fn usage(why: impl std::fmt::Display) -> StartError {
    StartError::new(Exit::Usage, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ref_is_a_branch_a_tag_or_a_commit() {
        let branch = |name: &str| Target::Branch(name.to_owned());
        let tag = |name: &str| Target::Tag(name.to_owned());
        let commit = |id: &str| Target::Commit { id: id.to_owned(), branch: None };
        let whole = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(targets("main"), [branch("main"), tag("main")]);
        assert_eq!(targets("DEAD"), [branch("DEAD"), tag("DEAD"), commit("dead")]);
        assert_eq!(targets(whole), [commit(whole)]);
    }

    #[test]
    fn a_secret_is_read_from_a_file_in_either_way_to_write_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("npm");
        fs::write(&path, "s3cr3t\n").expect("written");
        let path = path.display();
        for text in [format!("npm={path}"), format!("id=npm,src={path}")] {
            let (id, value) = secret(&text).expect("it is good");
            assert_eq!((id.as_str(), value.as_str()), ("npm", "s3cr3t\n"));
        }
        for text in ["npm", "npm=/nowhere", "id=npm,type=file"] {
            assert!(secret(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_folder_is_copied_with_its_links_and_without_its_history() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        for (path, text) in [("src/x", "x"), (".git/HEAD", "ref"), ("web/.git", "gitdir")] {
            let path = from.join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, text).expect("written");
        }
        std::os::unix::fs::symlink("src/x", from.join("link")).expect("linked");
        copy(&from, &to).expect("copied");
        assert_eq!(fs::read_to_string(to.join("link")).expect("it leads to it"), "x");
        assert!(!to.join(".git").exists() && to.join("web/.git").exists());
    }
}
