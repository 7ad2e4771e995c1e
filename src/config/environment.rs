//! Where settings come from: the real environment, and `config/.env` below it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::ConfigErrors;
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
    /// One line for each variable of ours that is no text.
    pub(super) errors: Vec<String>,
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
        Ok(Self::of(std::env::vars_os(), read_file(file)?))
    }

    pub(super) fn of(
        real: impl IntoIterator<Item = (OsString, OsString)>,
        file: HashMap<String, String>,
    ) -> Self {
        let mut errors = Vec::new();
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
        let home = texts.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let places = [Place::of(Source::Environment, texts), Place::of(Source::EnvFile, file)];
        Self { places, home, errors }
    }
}

impl Place {
    /// An empty value counts as unset, as compose files and `.env` files mean it.
    fn of(source: Source, variables: HashMap<String, String>) -> Self {
        let texts = variables
            .into_iter()
            .filter(|(name, _)| is_ours(name))
            .map(|(name, value)| (name, value.trim().to_owned()))
            .filter(|(_, value)| !value.is_empty());
        let variables = envy::from_iter(texts);
        Self { source, variables: variables.expect("every field takes any text, or none") }
    }
}

/// Whether the worker reads a variable of this name.
fn is_ours(name: &str) -> bool {
    Setting::all().flat_map(Setting::variables).any(|variable| variable.name() == name)
}

fn read_file(file: &Path) -> Result<HashMap<String, String>, ConfigErrors> {
    let mut vars = HashMap::new();
    match dotenvy::from_filename_iter(file) {
        Ok(lines) => {
            for line in lines {
                // The error quotes the line, which may hold a credential: it is not repeated.
                let (name, value) = line.map_err(|_| {
                    ConfigErrors(vec![format!(
                        "{}: a line after {} good ones cannot be read; write NAME=value, with quotes around a value with spaces",
                        file.display(),
                        vars.len()
                    )])
                })?;
                vars.insert(name, value);
            }
        }
        Err(dotenvy::Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => return Err(ConfigErrors(vec![format!("{}: cannot be read", file.display())])),
    }
    Ok(vars)
}
