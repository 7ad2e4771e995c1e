//! What an operator gives for what was taken out of a letter: from files, the standard input and the
//! environment, never from the command line itself.

use std::io::Read;
use std::path::{Path, PathBuf};

use image_builder_actors::model::secret::Secret;

use super::arguments::Credentials;
use crate::dead_letters::redrive::{Given, Values};

/// The variable that holds the forge's token.
const TOKEN: &str = "IMAGE_BUILDER_TOKEN";

/// The longest token that a request may have, in bytes.
const LONGEST_TOKEN: usize = 4096;

/// Longest file of values, in bytes: no request may be longer.
const LONGEST_FILE: u64 = 512 * 1024;

/// What cannot be used as it was given. Quotes no value.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum GivenError {
    #[error("{what}: cannot read {file}: {error}")]
    Unreadable { what: String, file: String, error: std::io::Error },
    #[error("{what}: {problem}")]
    Bad { what: String, problem: String },
}

/// Reads what the arguments name.
pub(super) fn given(arguments: &Credentials) -> Result<Given, GivenError> {
    let mut secrets = Values::new();
    for (id, file) in &arguments.secrets {
        let text = read(&format!("--secret {id}"), file)?;
        secrets.insert(id.clone(), Secret::new(without_line_end(&text)));
    }
    let values = |option: &str, file: &Option<PathBuf>| match file {
        Some(file) => values(option, &read(option, file)?),
        None => Ok(Values::new()),
    };
    Ok(Given {
        token: token(arguments)?,
        secrets,
        envs: values("--env-file", &arguments.env_file)?,
        build_args: values("--build-arg-file", &arguments.build_arg_file)?,
        without_credentials: arguments.without_credentials,
    })
}

/// The forge's token.
pub(in crate::cli) fn token(arguments: &Credentials) -> Result<Option<Secret>, GivenError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (what, text) = if let Some(file) = &arguments.token_file {
        ("--token-file".to_owned(), read("--token-file", file)?)
    } else if arguments.token_stdin {
        let what = "--token-stdin";
        ("--token-stdin".to_owned(), bounded(what, "the standard input", std::io::stdin().lock())?)
    } else if let Some(text) = variable(TOKEN) {
        (TOKEN.to_owned(), text)
    } else if let Some(file) = variable(&format!("{TOKEN}_FILE")) {
        let what = format!("{TOKEN}_FILE");
        let text = read(&what, Path::new(&file))?;
        (what, text)
    } else {
        return Ok(None);
    };
    let token = text.trim();
    if token.is_empty() {
        return Err(GivenError::Bad { what, problem: "it holds no token".to_owned() });
    }
    if token.len() > LONGEST_TOKEN || token.chars().any(char::is_control) {
        let problem = format!("a token has one line of at most {LONGEST_TOKEN} bytes");
        return Err(GivenError::Bad { what, problem });
    }
    Ok(Some(Secret::new(token)))
}

fn read(what: &str, file: &Path) -> Result<String, GivenError> {
    let name = file.display().to_string();
    match std::fs::File::open(file) {
        Ok(open) => bounded(what, &name, open),
        Err(error) => Err(GivenError::Unreadable { what: what.to_owned(), file: name, error }),
    }
}

fn bounded(what: &str, file: &str, source: impl Read) -> Result<String, GivenError> {
    let mut bytes = Vec::new();
    let what = what.to_owned();
    if let Err(error) = source.take(LONGEST_FILE + 1).read_to_end(&mut bytes) {
        return Err(GivenError::Unreadable { what, file: file.to_owned(), error });
    }
    if bytes.len() as u64 > LONGEST_FILE {
        let problem = format!("{file} is longer than {LONGEST_FILE} bytes");
        return Err(GivenError::Bad { what, problem });
    }
    String::from_utf8(bytes)
        // What Windows' editors put in front of a text.
        .map(|text| text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
        .map_err(|_| GivenError::Bad { what, problem: format!("{file} is not text in UTF-8") })
}

/// Lines of `NAME=VALUE`.
fn values(option: &str, text: &str) -> Result<Values, GivenError> {
    let mut values = Values::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let pair = line.split_once('=').map(|(name, value)| (name.trim(), value));
        let Some((name, value)) = pair.filter(|(name, _)| !name.is_empty()) else {
            let problem = format!("line {} is not NAME=VALUE", number + 1);
            return Err(GivenError::Bad { what: option.to_owned(), problem });
        };
        values.insert(name.to_owned(), Secret::new(value));
    }
    Ok(values)
}

/// Editors and shells end a file with a line end that belongs to no secret.
fn without_line_end(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_they_stand() {
        let read = values("--env-file", "# x\n\nA=b=c \nB=\"q\"\n C =\n").expect("good lines");
        let read: Vec<_> =
            read.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        assert_eq!(read, [("A", "b=c "), ("B", "\"q\""), ("C", "")]);
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_and_not_quoted() {
        let error = values("--env-file", "A=b\nhunter2\n").expect_err("no value").to_string();
        assert_eq!(error, "--env-file: line 2 is not NAME=VALUE");
    }

    #[test]
    fn one_line_end_does_not_belong_to_a_secret() {
        assert_eq!(without_line_end("a\nb\n"), "a\nb");
        assert_eq!(without_line_end("a\r\n"), "a");
        assert_eq!(without_line_end("a\n\n"), "a\n");
    }
}
