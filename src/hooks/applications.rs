//! The applications, read anew when their file changes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image_builder_actors::model::request::ForgeName;
use image_builder_actors::model::secret::Secret;
use image_builder_actors::parse::Rules;

use super::application::Application;
use super::file::{
    Contents, Context, DEFAULT_FILE, FORGES, FileErrors, LONGEST_FILE, SecretFile, read_text,
};

/// Where the applications are, and what their hooks are signed with.
#[derive(Debug, Clone, Default)]
pub struct ApplicationsSettings {
    /// `None` = the usual place, where there need be no file.
    pub file: Option<PathBuf>,
    /// What hooks of a forge are signed with whose application says nothing else.
    pub secrets: BTreeMap<ForgeName, Secret>,
}

/// The applications. Whoever asks for them has the file looked at: while what is in it is bad, those that were read
/// before are in force.
pub struct Applications {
    settings: ApplicationsSettings,
    rules: Rules,
    state: Mutex<State>,
}

struct State {
    text: String,
    secrets: Vec<SecretFile>,
    applications: Arc<[Application]>,
    /// What is wrong with the file as it is now.
    error: Option<String>,
}

impl ApplicationsSettings {
    fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }

    /// Whether there are applications, or are to be.
    pub fn is_used(&self) -> bool {
        self.file.is_some() || self.path().exists()
    }

    /// Looks whether the file is good.
    ///
    /// # Errors
    /// All that is wrong with it, a line of text each.
    pub fn check(&self, rules: &Rules) -> Result<(), Vec<String>> {
        self.read(rules, &self.text()?).map(drop)
    }

    /// What is in the file; nothing, where there is none and need be none.
    fn text(&self) -> Result<String, Vec<String>> {
        let path = self.path();
        if self.file.is_none() && !path.exists() {
            return Ok(String::new());
        }
        read_text(path, LONGEST_FILE)
            .map_err(|why| vec![format!("APPLICATIONS_FILE: {} {why}", path.display())])
    }

    fn read(&self, rules: &Rules, text: &str) -> Result<Contents, Vec<String>> {
        let context = Context { path: self.path(), rules, secrets: &self.secrets };
        context.read(text).map_err(|FileErrors(lines)| lines)
    }
}

impl State {
    fn of(text: String, Contents { applications, secrets }: Contents) -> Self {
        Self { text, secrets, applications: applications.into(), error: None }
    }
}

impl Applications {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// All that is wrong with it, a line of text each.
    pub fn open(settings: ApplicationsSettings, rules: Rules) -> Result<Self, Vec<String>> {
        let text = settings.text()?;
        let contents = settings.read(&rules, &text)?;
        let state = Mutex::new(State::of(text, contents));
        Ok(Self { settings, rules, state })
    }

    /// The applications as the file has them now. It is read, which blocks.
    pub fn current(&self) -> Arc<[Application]> {
        let text = self.settings.text();
        let mut state = self.state();
        if state.error.is_none()
            && text.as_ref() == Ok(&state.text)
            && state.secrets.iter().all(SecretFile::is_as_it_was)
        {
            return state.applications.clone();
        }
        let read = text.and_then(|text| {
            let contents = self.settings.read(&self.rules, &text)?;
            Ok(State::of(text, contents))
        });
        match read {
            Ok(anew) => {
                let count = anew.applications.len();
                tracing::info!(applications = count, "the applications file was read anew");
                *state = anew;
            }
            Err(lines) => {
                let error = lines.join("; ");
                if state.error.as_ref() != Some(&error) {
                    tracing::warn!(
                        "the applications file is bad, and what it said before is in force: {error}"
                    );
                }
                state.error = Some(error);
            }
        }
        state.applications.clone()
    }

    /// Whether the file is good as it is now. It is read, which blocks.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn look(&self) -> Result<(), String> {
        self.current();
        self.state().error.clone().map_or(Ok(()), Err)
    }

    /// What all hooks of a forge are signed with whose application says nothing else.
    pub fn secret_of(&self, forge: ForgeName) -> Option<&Secret> {
        self.settings.secrets.get(&forge)
    }

    /// The setting of that secret.
    pub fn setting_of(forge: ForgeName) -> &'static str {
        FORGES.into_iter().find(|(of, _)| *of == forge).map_or("", |(_, setting)| setting)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Applications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applications").field("file", &self.settings.path()).finish_non_exhaustive()
    }
}
