//! What a setting is, and all settings as data.

use super::settings::settings;
use super::values::*;

/// The settings of one subject, under the title that the documents have for it.
pub struct Group {
    pub title: &'static str,
    pub settings: &'static [Setting],
}

/// One setting.
pub struct Setting {
    /// Its own name, then older ones.
    pub(super) names: &'static [Name],
    /// The lines of its description, with a space in front.
    pub(super) meaning: &'static [&'static str],
    /// How its values are written, in a word or two.
    pub form: &'static str,
    pub default: Fallback,
}

/// What counts where nothing is set.
#[derive(Clone, Copy)]
pub enum Fallback {
    /// This value.
    Text(&'static str),
    /// A value that is computed, or none at all, in words.
    Words(&'static str),
    /// None at all, in words; the example sets it to this.
    Example { words: &'static str, example: &'static str },
}

/// A variable, and for secrets the one that names a file with the value.
pub(super) struct Name {
    pub value: Variable,
    pub file: Option<Variable>,
}

pub(super) struct Variable {
    /// The name in lower case, as the field of [`Variables`] has it.
    pub field: &'static str,
    pub of: fn(&Variables) -> Option<&str>,
}

impl Setting {
    /// Every setting, in the documents' order.
    pub(super) fn all() -> impl Iterator<Item = &'static Setting> {
        GROUPS.iter().flat_map(|group| group.settings)
    }

    /// The setting of this field, which must be in the table.
    pub(super) fn of_field(field: &str) -> &'static Setting {
        let setting = Setting::all().find(|setting| setting.names[0].value.field == field);
        setting.unwrap_or_else(|| panic!("`{field}` is not in the table of settings"))
    }

    /// Whether any of its variables is set in a place.
    pub(super) fn is_in(&self, variables: &Variables) -> bool {
        self.variables().any(|variable| (variable.of)(variables).is_some())
    }

    /// The name of its variable.
    pub fn name(&self) -> String {
        self.names[0].value.name()
    }

    /// Whether its value is never to be shown, and is read from a file as well.
    pub(super) fn is_secret(&self) -> bool {
        self.names[0].file.is_some()
    }

    /// One or more sentences, in Markdown.
    pub(super) fn meaning(&self) -> String {
        self.meaning.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }

    /// All variables that give it a value.
    pub(super) fn variables(&self) -> impl Iterator<Item = &'static Variable> {
        self.names.iter().flat_map(|name| [Some(&name.value), name.file.as_ref()]).flatten()
    }
}

impl Variable {
    /// The variable as it is written in an environment.
    pub(super) fn name(&self) -> String {
        self.field.to_ascii_uppercase()
    }
}

macro_rules! table {
    ($($title:literal {$(
        $(#[doc = $meaning:literal])+
        $field:ident $(/ $file:ident)? $(, $alias:ident / $alias_file:ident)?:
            $value:ty = $kind:ident $default:ident $text:literal $(example $example:literal)?;
    )*})*) => {
        /// The variables of one place as texts, which envy fills: one that is not set there is `None`.
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        pub(super) struct Variables {$($(
            $field: Option<String>,
            $($file: Option<String>,)?
            $($alias: Option<String>, $alias_file: Option<String>,)?
        )*)*}

        /// All settings.
        pub static GROUPS: &[Group] = &[$(Group {
            title: $title,
            settings: &[$(Setting {
                names: &[
                    table!(@name $field $($file)?),
                    $(table!(@name $alias $alias_file),)?
                ],
                meaning: &[$($meaning),+],
                form: $kind.form,
                default: table!(@default $default $text $($example)?),
            }),*],
        }),*];
    };

    (@name $field:ident) => { Name { value: table!(@variable $field), file: None } };
    (@name $field:ident $file:ident) => {
        Name { value: table!(@variable $field), file: Some(table!(@variable $file)) }
    };
    (@variable $field:ident) => {
        Variable { field: stringify!($field), of: |variables| variables.$field.as_deref() }
    };

    (@default or $text:literal) => { Fallback::Text($text) };
    (@default otherwise $text:literal) => { Fallback::Words($text) };
    (@default unset $text:literal) => { Fallback::Words($text) };
    (@default unset $words:literal $example:literal) => { Fallback::Example { words: $words, example: $example } };
}

settings!(table);
