//! Where settings come from: the real environment, and `config/.env` below it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::ConfigErrors;
use super::file::EnvFile;
use super::names::meant;
use super::table::{Setting, Variables};

/// The file that is read beside the environment, relative to the working directory.
pub const ENV_FILE: &str = "config/.env";

/// What is set, as texts.
pub struct Environment {
    /// The first place that has a variable of a setting gives its value: what is said in two places
    /// is not mixed.
    pub(super) places: [Place; 2],
    /// The directory of the user that the worker runs as.
    pub(super) home: Option<PathBuf>,
    /// One line for each variable that cannot be read, or is a slip.
    pub(super) errors: Vec<String>,
    /// One line for each that may not be meant so.
    pub(super) warnings: Vec<String>,
}

/// One place that variables come from.
pub(super) struct Place {
    pub source: Source,
    pub variables: Variables,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Environment,
    EnvFile,
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Environment => "environment",
            Source::EnvFile => ENV_FILE,
            Source::Default => "default",
        })
    }
}

impl Environment {
    /// Reads `file`, where it is there, and the real environment, which wins.
    ///
    /// # Errors
    ///
    /// The file is there but cannot be read.
    pub fn read(file: &Path) -> Result<Self, ConfigErrors> {
        Ok(Self::of(std::env::vars_os(), EnvFile::read(file)?))
    }

    pub(super) fn of(real: impl IntoIterator<Item = (OsString, OsString)>, file: EnvFile) -> Self {
        let EnvFile { variables, lines, mut errors, mut warnings } = file;
        let mut texts = HashMap::new();
        // A name that is no text is not ours.
        for (name, value) in
            real.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        {
            let value = value.into_string().unwrap_or_else(|value| {
                if is_ours(&name) {
                    errors.push(format!("{name}: is not UTF-8 text"));
                }
                value.to_string_lossy().into_owned()
            });
            texts.insert(name, value);
        }
        let mut variables = variables;
        prefer_lower_case(&mut texts);
        prefer_lower_case(&mut variables);
        let lines = lines.into_iter().map(|(name, line)| (usual_case(name), line));
        let home = texts.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let mut unknown: Vec<_> = texts.keys().filter(|name| !is_ours(name)).cloned().collect();
        unknown.sort();
        let places = [Place::of(Source::Environment, texts), Place::of(Source::EnvFile, variables)];
        for name in unknown.iter().filter(|name| !name.contains(|c: char| c.is_ascii_lowercase())) {
            // An environment is shared with others. A name of theirs that looks like one of ours does no
            // harm where ours is set; where it is not, the worker would go on with a default in silence.
            if let Some((setting, variable)) = meant(name)
                && !places.iter().any(|place| setting.is_in(&place.variables))
            {
                errors.push(format!(
                    "{name}: is no setting; perhaps {variable} is meant (if it is somebody else's, set {variable} as well)"
                ));
            }
        }
        let mut foreign: Vec<_> = lines.filter(|(name, _)| !is_ours(name)).collect();
        foreign.sort_by_key(|(_, line)| *line);
        for (name, line) in foreign {
            match meant(&name) {
                Some((_, variable)) => errors.push(format!(
                    "{name}: is no setting ({ENV_FILE} line {line}); perhaps {variable} is meant"
                )),
                None => warnings.push(format!(
                    "{ENV_FILE} line {line}: {name} is no setting, and the worker does not read it"
                )),
            }
        }
        Self { places, home, errors, warnings }
    }
}

impl Place {
    /// An empty value counts as unset, as compose files and `.env` files mean it.
    fn of(source: Source, variables: HashMap<String, String>) -> Self {
        let texts = variables
            .into_iter()
            .filter(|(name, _)| is_ours(name))
            .map(|(name, value)| (name, unquoted(value.trim()).trim().to_owned()))
            .filter(|(_, value)| !value.is_empty());
        let variables = envy::from_iter(texts);
        Self { source, variables: variables.expect("every field takes any text, or none") }
    }
}

/// The variables of proxies in lower case, in which they are at least as common, and win.
const IN_LOWER_CASE: [&str; 3] = ["http_proxy", "https_proxy", "no_proxy"];

fn prefer_lower_case(texts: &mut HashMap<String, String>) {
    for name in IN_LOWER_CASE {
        if let Some(value) = texts.remove(name).filter(|value| !value.trim().is_empty()) {
            texts.insert(usual_case(name.to_owned()), value);
        }
    }
}

fn usual_case(name: String) -> String {
    if IN_LOWER_CASE.contains(&name.as_str()) { name.to_ascii_uppercase() } else { name }
}

/// Whether the worker reads a variable of this name.
fn is_ours(name: &str) -> bool {
    Setting::all().flat_map(Setting::variables).any(|variable| variable.name() == name)
}

/// A value without the pair of quotes around it, if there is one: some who read `config/.env` leave them in
/// place.
fn unquoted(value: &str) -> &str {
    let inside = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}
