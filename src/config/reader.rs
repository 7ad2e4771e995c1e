//! From texts to typed values, collecting one line for each that is bad.

use std::fmt;
use std::path::Path;

use reqwest::Url;

use super::ConfigErrors;
use super::environment::{Environment, Source};
use super::settings::Variables;
use super::table::{Name, Setting};
use super::values::{Kind, Shown};

/// What a setting came to, as far as it is shown.
pub struct Effective {
    pub setting: &'static Setting,
    /// `None` = it is not set, and has no value that could be shown.
    pub value: Option<String>,
    pub source: Source,
    /// The variable that brought the value, if any did.
    pub variable: Option<String>,
    /// The file that this variable names, if the value stands in one.
    pub file: Option<String>,
}

/// Reads settings. The methods that give their values are in the table's module.
pub(super) struct Reader<'a> {
    environment: &'a Environment,
    pub errors: Vec<String>,
    effective: Vec<Effective>,
}

/// What was set is bad, and a line says so.
struct Told;

/// The text of a setting, and the variable that brought it.
struct Found {
    variable: String,
    text: String,
    file: Option<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment) -> Self {
        Self { environment, errors: Vec::new(), effective: Vec::new() }
    }

    /// What was read, if all of it is good.
    pub(super) fn finish<T>(self, read: Option<T>) -> Result<(T, Vec<Effective>), ConfigErrors> {
        match read {
            Some(read) if self.errors.is_empty() => Ok((read, self.effective)),
            _ => Err(ConfigErrors::new(self.errors)),
        }
    }

    pub(super) fn bad(&mut self, variable: &str, what: impl fmt::Display) {
        self.errors.push(format!("{variable}: {what}"));
    }

    /// What `read` reads, and whether all of it is good.
    pub(super) fn good<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> (T, bool) {
        let errors = self.errors.len();
        let value = read(self);
        (value, self.errors.len() == errors)
    }

    pub(super) fn home(&self) -> Option<&Path> {
        self.environment.home.as_deref()
    }

    /// Whether any variable gives this setting a value, be it good or bad.
    pub(super) fn is_set(&self, field: &str) -> bool {
        let setting = Setting::of_field(field);
        self.environment.places.iter().any(|place| setting.is_in(&place.variables))
    }

    /// The variable that brought the value of a setting that was read.
    pub(super) fn variable_of(&self, field: &str) -> Option<String> {
        let setting = Setting::of_field(field);
        let read = self.effective.iter().find(|read| std::ptr::eq(read.setting, setting))?;
        read.variable.clone()
    }

    /// For `or` of the table. In place of a bad value there is the default, so that reading goes on.
    pub(super) fn or<T>(&mut self, field: &str, kind: &Kind<T>, default: &str) -> T {
        match self.given(field, kind) {
            Ok(Some(value)) => return value,
            Ok(None) => self.note_default(field, Some(default.to_owned())),
            Err(Told) => {}
        }
        let default = (kind.read)(default);
        default.unwrap_or_else(|error| unreachable!("{field}'s default: {error}"))
    }

    /// For `otherwise` of the table.
    pub(super) fn otherwise<T: fmt::Display>(
        &mut self,
        field: &str,
        kind: &Kind<T>,
        otherwise: T,
    ) -> T {
        match self.given(field, kind) {
            Ok(Some(value)) => return value,
            Ok(None) => self.note_default(field, Some(otherwise.to_string())),
            Err(Told) => {}
        }
        otherwise
    }

    /// For `unset` of the table.
    pub(super) fn optional<T>(&mut self, field: &str, kind: &Kind<T>) -> Option<T> {
        let given = self.given(field, kind);
        if matches!(given, Ok(None)) {
            self.note_default(field, None);
        }
        given.unwrap_or(None)
    }

    /// For `required` of the table.
    pub(super) fn required<T>(&mut self, field: &str, kind: &Kind<T>, example: &str) -> Option<T> {
        let given = self.given(field, kind);
        if matches!(given, Ok(None)) {
            let name = Setting::of_field(field).name();
            self.bad(&name, format!("is required, for example {example}"));
        }
        given.unwrap_or(None)
    }

    fn note_default(&mut self, field: &str, value: Option<String>) {
        let setting = Setting::of_field(field);
        let source = Source::Default;
        self.effective.push(Effective { setting, value, source, variable: None, file: None });
    }

    /// The value that is set. The first place that has one of the setting's variables gives it.
    fn given<T>(&mut self, field: &str, kind: &Kind<T>) -> Result<Option<T>, Told> {
        let setting = Setting::of_field(field);
        let mut places = self.environment.places.iter();
        let Some(place) = places.find(|place| setting.is_in(&place.variables)) else {
            return Ok(None);
        };
        let mut found = None;
        for name in setting.names {
            match name.find(&place.variables) {
                Ok(text) => found = found.or(text),
                Err(line) => self.errors.push(line),
            }
        }
        let Found { variable, text, file } = found.ok_or(Told)?;
        let value = (kind.read)(&text).map_err(|what| {
            self.bad(&variable, what);
            Told
        })?;
        let shown = match kind.shown {
            Shown::Address => without_credentials(&text),
            Shown::Whole if setting.is_secret() => "[secret]".to_owned(),
            Shown::Whole => text,
        };
        self.effective.push(Effective {
            setting,
            value: Some(shown),
            source: place.source,
            variable: Some(variable),
            file,
        });
        Ok(Some(value))
    }
}

impl Setting {
    fn is_in(&self, variables: &Variables) -> bool {
        self.variables().any(|variable| (variable.of)(variables).is_some())
    }
}

impl Name {
    /// The text under this name, or in the file that `<NAME>_FILE` names. An error is a whole line.
    fn find(&self, variables: &Variables) -> Result<Option<Found>, String> {
        let text = (self.value.of)(variables);
        let file = self.file.as_ref().and_then(|file| Some((file.name(), (file.of)(variables)?)));
        let name = self.value.name();
        let (variable, path) = match (text, file) {
            (Some(_), Some((file, _))) => {
                return Err(format!("{name}: set either {name} or {file}, not both"));
            }
            (Some(text), None) => {
                return Ok(Some(Found { variable: name, text: text.to_owned(), file: None }));
            }
            (None, Some(file)) => file,
            (None, None) => return Ok(None),
        };
        match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => {
                let (text, file) = (text.trim().to_owned(), Some(path.to_owned()));
                Ok(Some(Found { variable, text, file }))
            }
            Ok(_) => Err(format!("{variable}: {path} is empty")),
            Err(error) => Err(format!("{variable}: cannot read {path}: {error}")),
        }
    }
}

/// An address without user, password, query and fragment. Where it cannot be told what in it may be a
/// credential, nothing of it.
fn without_credentials(text: &str) -> String {
    let hidden = || "[secret]".to_owned();
    let Ok(mut url) = Url::parse(text) else { return hidden() };
    let has_user = !url.username().is_empty() || url.password().is_some();
    if text.contains('@') && !has_user {
        // A password that was not percent-encoded, taken for a port and a path.
        return hidden();
    }
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return hidden();
    }
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}
