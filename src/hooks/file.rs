//! The applications file: read and checked as a whole, with every error told by its line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use image_builder_actors::model::request::ForgeName;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::parse;
use image_builder_actors::parse::Rules;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use toml::Spanned;

use super::application::{Application, Watched};

/// Where the applications are, unless a setting says otherwise.
pub const DEFAULT_FILE: &str = "config/applications.toml";

/// Longest applications file, and longest file of a secret, in bytes.
pub(super) const LONGEST_FILE: u64 = 4 << 20;
const LONGEST_SECRET: u64 = 64 << 10;

/// What a `buildPlan` has: the request's own fields.
pub const PLAN_FIELDS: [&str; 17] = [
    "builder",
    "rootDirectory",
    "dockerfilePath",
    "nixpacksPath",
    "target",
    "keepGitDir",
    "envs",
    "buildArgs",
    "secrets",
    "registryAuth",
    "platforms",
    "nixPkgs",
    "nixLibs",
    "aptPkgs",
    "installCommand",
    "buildCommand",
    "startCommand",
];

/// The forges whose hooks are taken, with the setting that has the secret of all their hooks.
pub(super) const FORGES: [(ForgeName, &str); 3] = [
    (ForgeName::Github, "GITHUB_HOOK_SECRET"),
    (ForgeName::Gitlab, "GITLAB_HOOK_SECRET"),
    (ForgeName::Gitea, "GITEA_HOOK_SECRET"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    application: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(rename = "userID")]
    user_id: String,
    #[serde(rename = "applicationID")]
    application_id: Option<String>,
    connector: Option<String>,
    repo: String,
    branches: Option<Spanned<Vec<String>>>,
    tags: Option<Spanned<Vec<String>>>,
    releases: Option<Spanned<Vec<String>>>,
    paths: Option<Spanned<Vec<String>>>,
    ignore: Option<Spanned<Vec<String>>>,
    hook_secret_file: Option<Spanned<String>>,
    token_file: Option<Spanned<String>>,
    token_ref: Option<String>,
    force: Option<bool>,
    supersede: Option<bool>,
    commit_status: Option<bool>,
    build_plan: Option<Spanned<toml::Table>>,
}

/// What is wrong with the file: a line of text each, which begins with the file's name and the line's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileErrors(pub Vec<String>);

/// What is in an applications file, and in the files that it names.
pub(super) struct Contents {
    pub applications: Vec<Application>,
    pub secrets: Vec<SecretFile>,
}

/// A file of a secret, as it was when it was read.
pub(super) struct SecretFile {
    path: PathBuf,
    secret: Secret,
}

impl SecretFile {
    /// Whether the same is in it now.
    pub(super) fn is_as_it_was(&self) -> bool {
        read_secret(&self.path).is_ok_and(|now| now.expose() == self.secret.expose())
    }
}

/// What an applications file is checked against.
pub(super) struct Context<'a> {
    pub path: &'a Path,
    pub rules: &'a Rules,
    /// What hooks are signed with whose application says nothing else.
    pub secrets: &'a BTreeMap<ForgeName, Secret>,
}

impl Context<'_> {
    pub(super) fn read(&self, text: &str) -> Result<Contents, FileErrors> {
        let file: File = toml::from_str(text).map_err(|error| {
            // The library's own text repeats the line, which may hold a secret.
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let message = error.message().lines().collect::<Vec<_>>().join(" ");
            FileErrors(vec![self.error(line, &message)])
        })?;
        let mut errors = Vec::new();
        let (mut applications, mut secrets) = (Vec::new(), Vec::new());
        for entry in file.application {
            let line = line_of(text, entry.span().start);
            let mut reader =
                Reader { context: self, text, line, errors: &mut errors, secrets: &mut secrets };
            applications.extend(reader.application(entry.into_inner()));
        }
        if errors.is_empty() {
            Ok(Contents { applications, secrets })
        } else {
            Err(FileErrors(errors))
        }
    }

    fn error(&self, line: usize, message: &str) -> String {
        format!("{}:{line}: {message}", self.path.display())
    }
}

/// Reads one entry.
struct Reader<'a> {
    context: &'a Context<'a>,
    text: &'a str,
    /// Where the entry begins.
    line: usize,
    errors: &'a mut Vec<String>,
    secrets: &'a mut Vec<SecretFile>,
}

impl Reader<'_> {
    fn application(&mut self, entry: Entry) -> Option<Application> {
        let before = self.errors.len();
        let watched = Watched {
            branches: self.patterns("branches", entry.branches),
            tags: self.patterns("tags", entry.tags),
            releases: self.patterns("releases", entry.releases),
            paths: self.patterns("paths", entry.paths),
            ignore: self.patterns("ignore", entry.ignore),
        };
        let name = entry.connector.as_deref().unwrap_or("github");
        let known =
            FORGES.into_iter().find(|(forge, _)| ForgeName::from_name(name) == Some(*forge));
        let Some((forge, setting)) = known else {
            let known = FORGES.map(|(forge, _)| format!("`{}`", forge.as_str())).join(", ");
            self.bad(self.line, &format!("`connector`: hooks come from {known} alone"));
            return None;
        };
        let own = self.secret("hookSecretFile", entry.hook_secret_file);
        let secret = own.or_else(|| self.context.secrets.get(&forge).cloned());
        if secret.is_none() && self.errors.len() == before {
            let message = format!(
                "nothing says what its hooks are signed with: set {setting}, or `hookSecretFile` here"
            );
            self.bad(self.line, &message);
        }
        let token = self.secret("tokenFile", entry.token_file);
        let plan = entry.build_plan.map(|plan| self.plan(plan));
        let fields = [
            ("tokenRef", entry.token_ref.map(Value::from)),
            ("force", entry.force.map(Value::from)),
            ("commitStatus", Some(entry.commit_status.unwrap_or(true).into())),
            ("buildPlan", plan),
        ];
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let fields: Map<String, Value> = fields.collect();
        // What a request may say is checked by those who read requests.
        let mut sample = json!({
            "userID": entry.user_id, "repo": entry.repo, "connector": name, "applicationID": entry.application_id,
            "token": token.as_ref().map(Secret::expose),
        });
        let whole = sample.as_object_mut().expect("it is an object");
        whole.extend(fields.clone());
        let sample = sample.to_string();
        let request = match parse::parse(sample.as_bytes(), "an-application", self.context.rules) {
            Ok(request) => request,
            Err(rejected) => {
                self.bad(self.line, rejected.fault.message.trim_end_matches('.'));
                return None;
            }
        };
        let secret = secret.filter(|_| self.errors.len() == before)?;
        Some(Application {
            line: self.line,
            user_id: request.user_id,
            application_id: request.application_id,
            forge,
            repo: request.repo,
            watched,
            secret,
            token,
            fields,
            supersede: entry.supersede.unwrap_or(true),
        })
    }

    fn bad(&mut self, line: usize, message: &str) {
        self.errors.push(self.context.error(line, message));
    }

    fn line_at<T>(&self, value: &Spanned<T>) -> usize {
        line_of(self.text, value.span().start)
    }

    /// Patterns as `.gitignore` has them: `*` ends at a slash, `**` does not, and what ends in a slash is all
    /// below.
    fn patterns(&mut self, name: &str, patterns: Option<Spanned<Vec<String>>>) -> Option<GlobSet> {
        let patterns = patterns?;
        let line = self.line_at(&patterns);
        let mut set = GlobSetBuilder::new();
        for pattern in patterns.into_inner() {
            let trimmed = pattern.trim_start_matches('/');
            let whole = match trimmed.strip_suffix('/') {
                Some(directory) => format!("{directory}/**"),
                None => trimmed.to_owned(),
            };
            let mut glob = GlobBuilder::new(&whole);
            match glob.literal_separator(true).backslash_escape(true).build() {
                Ok(glob) if !whole.is_empty() => drop(set.add(glob)),
                Ok(_) => self.bad(line, &format!("`{name}` has an empty pattern")),
                Err(error) => {
                    let message = format!("`{name}`: `{pattern}` is no pattern: {}", error.kind());
                    self.bad(line, &message);
                }
            }
        }
        set.build().map_err(|error| self.bad(line, &format!("`{name}`: {error}"))).ok()
    }

    fn secret(&mut self, name: &str, path: Option<Spanned<String>>) -> Option<Secret> {
        let path = path?;
        let line = self.line_at(&path);
        let path = path.into_inner();
        match read_secret(Path::new(&path)) {
            Ok(secret) => {
                self.secrets.push(SecretFile { path: path.into(), secret: secret.clone() });
                Some(secret)
            }
            Err(why) => {
                // Not its name: somebody may have put the secret itself here.
                self.bad(line, &format!("`{name}`: the file {why}"));
                None
            }
        }
    }

    fn plan(&mut self, plan: Spanned<toml::Table>) -> Value {
        for name in plan.as_ref().keys().filter(|name| !PLAN_FIELDS.contains(&name.as_str())) {
            let line = line_of_key(self.text, plan.span().start, name);
            self.errors
                .push(self.context.error(line, &format!("`buildPlan` has no field `{name}`")));
        }
        serde_json::to_value(plan.into_inner()).unwrap_or_default()
    }
}

/// The secret in a file, without the line end that editors put behind it.
fn read_secret(path: &Path) -> Result<Secret, String> {
    let text = read_text(path, LONGEST_SECRET)?;
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(Secret::new(text)) }
}

/// The text of a file that is not longer than this.
pub(super) fn read_text(path: &Path, longest: u64) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if length > longest {
        return Err(format!("has more than {longest} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
}

/// The number of the line that a byte is in, from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}

/// The line of a key in a table that begins there.
fn line_of_key(text: &str, table: usize, key: &str) -> usize {
    let first = line_of(text, table);
    let is_key = |line: &str| {
        let rest = line.trim_start().trim_start_matches(['"', '\'']).strip_prefix(key);
        rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with('='))
    };
    let at = text.lines().skip(first - 1).position(is_key);
    first + at.unwrap_or(0)
}
