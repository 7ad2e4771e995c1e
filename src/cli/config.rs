//! `image-builder config`: shows the settings that are in force.

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;

use super::{environment, print};
use crate::config::{ConfigErrors, Effective, Fallback, GROUPS, example};
use crate::exit::Exit;

/// No value makes its column wider than this, in characters.
const WIDEST: usize = 40;

/// Show the settings that are in force, and where each comes from.
///
/// They come from the environment and from config/.env; nothing is touched. Secrets are not shown, and
/// addresses without what may be a credential in them. Bad values are told as `image-builder serve` tells
/// them.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0   the settings are good
  64  usage
  78  some are bad, or one is missing

Examples:
  image-builder config
  image-builder config --json | jq -r 'select(.source != \"default\") | .name'
  image-builder config --example > config/.env

`image-builder config --example` lists the settings, and docs/settings.md explains them.")]
pub struct Arguments {
    /// Print one line of JSON for each setting
    #[arg(long, conflicts_with = "example")]
    json: bool,
    /// Print a config/.env of all settings, with what they mean and their defaults
    #[arg(long)]
    example: bool,
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    if arguments.example {
        return Ok(print(&example()));
    }
    let (config, settings) = environment()?.effective()?;
    for warning in config.warnings() {
        eprintln!("image-builder: warning: {warning}");
    }
    let text = if arguments.json { lines_of_json(&settings) } else { table(&settings) };
    Ok(print(&text))
}

fn table(settings: &[Effective]) -> String {
    let names = settings.iter().map(|it| it.setting.name().len()).max().unwrap_or(0);
    let values = settings.iter().map(|it| shown(it).chars().count()).filter(|w| *w <= WIDEST);
    let values = values.max().unwrap_or(0);
    let mut text = String::new();
    for group in GROUPS {
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{gap}{}", group.title);
        let of_group =
            |it: &&Effective| group.settings.iter().any(|one| std::ptr::eq(one, it.setting));
        for it in settings.iter().filter(of_group) {
            let (name, value, source) = (it.setting.name(), shown(it), source(it));
            let _ = writeln!(text, "  {name:names$}  {value:values$}  {source}");
        }
    }
    text
}

fn shown(it: &Effective) -> &str {
    it.value.as_deref().unwrap_or("-")
}

/// Where a value comes from, in words.
fn source(it: &Effective) -> String {
    let name = it.setting.name();
    match (&it.variable, &it.file) {
        (Some(variable), Some(file)) => format!("{} ({variable}: {file})", it.source),
        (Some(variable), None) if *variable != name => format!("{} ({variable})", it.source),
        (Some(_), None) => it.source.to_string(),
        (None, _) => match it.setting.default {
            Fallback::Words(words) | Fallback::Example { words, .. } => {
                format!("{} ({})", it.source, words.replace('`', ""))
            }
            Fallback::Text(_) => it.source.to_string(),
        },
    }
}

fn lines_of_json(settings: &[Effective]) -> String {
    let line = |it: &Effective| {
        json!({
            "name": it.setting.name(),
            "value": it.value,
            "source": it.source.to_string(),
            "variable": it.variable,
            "file": it.file,
        })
    };
    settings.iter().map(|it| format!("{}\n", line(it))).collect()
}
