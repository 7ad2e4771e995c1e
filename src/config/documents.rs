//! The table of settings as documents. Tests compare them with the files in the repository; this
//! rewrites those:
//!
//! ```console
//! $ UPDATE=1 cargo test --lib config::
//! ```

use std::fmt::Write as _;

use super::table::{Fallback, GROUPS, Setting};

/// Longest line of the example file, where words can be parted.
const WIDTH: usize = 100;

const EXAMPLE: &str = "\
Settings of image-builder. `make prep` copies this file to config/.env, which the worker reads below the \
real environment: a variable that is set there wins. Lines that are commented out show the defaults. \
Durations are written like 500ms, 30s, 5m, 2h, 7d, and sizes like 500MB, 20GB, 20GiB. Every secret can \
stand in a file of its own instead, which the variable of the same name with _FILE names; not both can be \
set. Where the real environment has one of a setting's variables, none of them is read here. \
A line is NAME=value, and the value is literal to the end of the line: $, \\ and # mean nothing in it. A pair of \
quotes around the whole value is left out. A comment has a line of its own.";

/// `config/.env.example`.
pub fn example() -> String {
    let mut text = String::new();
    comment(&mut text, EXAMPLE);
    for group in GROUPS {
        let title = format!("# --- {} ", group.title);
        let _ = writeln!(text, "\n{title:-<WIDTH$}");
        for setting in group.settings {
            text.push('\n');
            example_of(&mut text, setting);
        }
    }
    text
}

fn example_of(text: &mut String, setting: &Setting) {
    let mut meaning = setting.meaning();
    if let Fallback::Words(words) | Fallback::Example { words, .. } = setting.default {
        let _ = write!(meaning, " Unset: {words}.");
    }
    // Links are seen from where the file lies.
    comment(text, &meaning.replace('`', "").replace("](", "](../docs/"));
    for (at, variable) in setting.variables().enumerate() {
        let name = variable.name();
        let _ = match setting.default {
            Fallback::Example { example, .. } if at == 0 => writeln!(text, "{name}={example}"),
            Fallback::Text(default) if at == 0 => writeln!(text, "#{name}={default}"),
            _ => writeln!(text, "#{name}="),
        };
    }
}

/// Words as lines of a comment.
fn comment(text: &mut String, words: &str) {
    let mut line = "#".to_owned();
    for word in words.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = "#".to_owned();
        }
        let _ = write!(line, " {word}");
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
const SETTINGS: &str = "\
# Settings

This page is made from the table in `src/config/settings.rs`, by `UPDATE=1 cargo test --lib config::`.

Settings are environment variables. Beside the environment `config/.env` is read, relative to the working \
directory; [`config/.env.example`](../config/.env.example) is one to begin with. The real environment wins: \
where it has any variable of a setting (an older name or `_FILE` is one too), the file is not asked for that \
setting. An empty value counts as unset.

A line of the file is `NAME=value`. The value is literal to the end of the line: `$`, `\\` and `#` mean nothing in \
it, and a comment has a line of its own that begins with `#`. That is also how `docker run --env-file` and Compose \
(`format: raw`, from 2.30 on) read it, so a worker has the same values however it is started. A pair of quotes around \
a whole value is left out, wherever the value comes from. The file is UTF-8, with or without a byte order mark. It is \
no shell script: do not `source` it.

- **Secrets** can stand in a file of their own, which `<NAME>_FILE` names; not both can be set. They are never \
shown.
- **Durations** are a number and a unit: `500ms`, `30s`, `5m`, `2h`, `7d`, or several: `1h 30m`.
- Of durations, `M` (months) is refused, and so is what is shorter than 50 ms or longer than 31 days, where the \
table does not say otherwise. `DEAD_QUEUE_TTL`, `RETRY_INITIAL_DELAY` and `RETRY_MAX_DELAY` may be 1 ms to 49 days.
- **Sizes** are a number and a unit, decimal or binary: `500MB`, `20GB`, `20GiB`. **Shares** of a disk are like \
`5%`; both together (`5%,2GB`) mean the smaller one. A size below 1 MB is refused, but for `0`; a share above 80% as well: it is of free space.
- **Addresses** are never shown with user, password, query or fragment. Characters of a password that mean something \
in an address are percent-encoded: `/` is `%2F`, `?` is `%3F`, `#` is `%23`, `@` is `%40`, `%` is `%25`.
- **Names**: a variable whose name looks like a misspelt setting is an error in the file, since the worker would go on \
with a default in silence. In the real environment, which others have a part in, it is one only while the setting \
itself is not set. Other names in the file are warned of, and in the real \
environment they do not matter.
- **Numbers** are whole, from 1 to 10000. `RETRY_MULTIPLIER` (1 to 100) and `BUILDER_CPUS` (0.01 to 10000) may have a \
fraction.

Bad and missing values are reported all at once, a line each that begins with the variable to mend, before anything \
is touched; the worker then exits 78. `image-builder config` shows what is in force and where it came from.
";

/// `docs/settings.md`.
#[cfg(test)]
pub(super) fn settings() -> String {
    let mut text = SETTINGS.to_owned();
    for group in GROUPS {
        let _ = write!(
            text,
            "\n## {}\n\n| variable | value | default | meaning |\n|---|---|---|---|\n",
            group.title
        );
        for setting in group.settings {
            let names = setting.variables().map(|variable| format!("`{}`", variable.name()));
            let names = names.collect::<Vec<_>>().join("<br>");
            let default = match setting.default {
                Fallback::Text(default) => format!("`{default}`"),
                Fallback::Words(words) => words.to_owned(),
                Fallback::Example { words, example } => format!("{words}; like `{example}`"),
            };
            let _ = writeln!(
                text,
                "| {names} | {} | {default} | {} |",
                setting.form,
                setting.meaning()
            );
        }
    }
    text
}
