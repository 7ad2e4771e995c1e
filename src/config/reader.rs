//! From texts to typed values, collecting one line for each that is bad.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_builder_actors::model::secret::Secret;
use reqwest::Url;
use reqwest::header::HeaderMap;
use tracing_subscriber::EnvFilter;

use super::ConfigErrors;
use super::environment::{Environment, Source};
use super::settings::settings;
use super::table::{Fallback, Name, Setting, Variables};
use super::values::*;
use crate::credentials::AppKey;
use crate::engine::docker::Tenancy;
use crate::engine::docker::disk::size::{Size, Watermark};
use crate::engine::settings::{CacheMode, Compression, Provenance};
use crate::net::address::without_credentials;
use crate::net::networks::Networks;
use crate::net::proxy::ProxyUrl;
use crate::net::signature::SigningKeys;
use crate::registry::RegistryUrl;
use crate::telemetry::LogFormat;

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

/// Reads settings, each with the method of its name.
pub(super) struct Reader<'a> {
    pub environment: &'a Environment,
    pub errors: Vec<String>,
    effective: Vec<Effective>,
}

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

    /// The variable that brought the value of a setting that was read.
    pub(super) fn variable_of(&self, name: &str) -> Option<String> {
        let read = self.effective.iter().find(|read| read.setting.name() == name)?;
        read.variable.clone()
    }

    /// The value that is set and good. The first place that has one of the setting's variables gives it.
    /// `computed` is what counts where none has, if the table does not know it.
    fn given<T>(&mut self, field: &str, kind: &Kind<T>, computed: Option<String>) -> Option<T> {
        let setting = Setting::of_field(field);
        let mut places = self.environment.places.iter();
        let Some(place) = places.find(|place| setting.is_in(&place.variables)) else {
            self.unset(setting, computed);
            return None;
        };
        let mut found = None;
        for name in setting.names {
            match name.find(&place.variables) {
                Ok(text) => found = found.or(text),
                Err(line) => self.errors.push(line),
            }
        }
        let Found { variable, text, file } = found?;
        let value = (kind.read)(&text).map_err(|what| self.bad(&variable, what)).ok()?;
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
        Some(value)
    }

    fn unset(&mut self, setting: &'static Setting, computed: Option<String>) {
        let value = match setting.default {
            Fallback::Text(default) => Some(default.to_owned()),
            Fallback::Words(_) | Fallback::Example { .. } => computed,
        };
        let source = Source::Default;
        self.effective.push(Effective { setting, value, source, variable: None, file: None });
    }
}

/// A method for each setting, which gives its typed value. In place of a bad value there is the default, so
/// that reading goes on.
macro_rules! methods {
    ($($title:literal {$(
        $(#[doc = $meaning:literal])+
        $field:ident $(/ $file:ident)? $(, $alias:ident / $alias_file:ident)?:
            $value:ty = $kind:ident $default:ident $text:literal $(example $example:literal)?;
    )*})*) => {
        impl Reader<'_> {$($(
            methods!(@$default $field: $value = $kind $text);
        )*)*}
    };

    (@or $field:ident: $value:ty = $kind:ident $text:literal) => {
        pub(super) fn $field(&mut self) -> $value {
            self.given(stringify!($field), &$kind, None).unwrap_or_else(|| {
                ($kind.read)($text).expect("the defaults of the table are good")
            })
        }
    };
    (@otherwise $field:ident: $value:ty = $kind:ident $text:literal) => {
        pub(super) fn $field(&mut self, otherwise: $value) -> $value {
            let given = self.given(stringify!($field), &$kind, Some(otherwise.to_string()));
            given.unwrap_or(otherwise)
        }
    };
    (@$optional:ident $field:ident: $value:ty = $kind:ident $text:literal) => {
        pub(super) fn $field(&mut self) -> Option<$value> {
            self.given(stringify!($field), &$kind, None)
        }
    };
}

settings!(methods);

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
        // Editors put a mark in front of a text, and a line end behind it.
        let text = std::fs::read_to_string(path)
            .map(|text| text.trim_start_matches('\u{feff}').trim().to_owned());
        match text {
            Ok(text) if !text.is_empty() => {
                Ok(Some(Found { variable, text, file: Some(path.to_owned()) }))
            }
            Ok(_) => Err(format!("{variable}: {path} is empty")),
            Err(error) => Err(format!("{variable}: cannot read {path}: {error}")),
        }
    }
}
