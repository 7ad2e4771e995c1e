//! `config/.env`: one `NAME=value` a line.
//!
//! Values are literal, as in `docker run --env-file` and in Compose's `format: raw`: no `$`, no backslash
//! and no `#` means anything in one. So all who read the file read the same.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::ConfigErrors;

/// What Windows' editors put in front of a text.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// The file, read to its end.
#[derive(Debug, Default)]
pub(super) struct EnvFile {
    pub variables: HashMap<String, String>,
    /// The line that gives each variable.
    pub lines: HashMap<String, usize>,
    /// One for each line that cannot be read.
    pub errors: Vec<String>,
    /// One for each line that may not say what it was meant to.
    pub warnings: Vec<String>,
}

impl EnvFile {
    /// Nothing, where the file is not there.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be read at all.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigErrors> {
        let name = path.display().to_string();
        let refused = |why: String| Err(ConfigErrors(vec![format!("{name}: {why}")]));
        match fs::read(path) {
            Ok(bytes) if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") => {
                refused("is UTF-16 text; save it as UTF-8".to_owned())
            }
            Ok(bytes) => Ok(Self::parse(&name, &bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => refused(format!("cannot be read: {error}")),
        }
    }

    /// `name` is what the file is called in errors.
    fn parse(name: &str, bytes: &[u8]) -> Self {
        let mut file = Self::default();
        let bytes = bytes.strip_prefix(MARK).unwrap_or(bytes);
        for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let number = at + 1;
            // A bad line is not quoted: it may hold a credential.
            let Ok(line) = std::str::from_utf8(line) else {
                file.errors.push(format!("{name} line {number}: is not UTF-8 text"));
                continue;
            };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((variable, value)) = pair(line) else {
                file.errors.push(format!("{name} line {number}: is not NAME=value"));
                continue;
            };
            if value.contains(" #") {
                file.warnings.push(format!(
                    "{name} line {number}: the ` #` belongs to the value of {variable}; a comment has a line of its own"
                ));
            }
            if let Some(before) = file.lines.insert(variable.to_owned(), number) {
                file.warnings.push(format!(
                    "{name} line {number}: {variable} stands in line {before} already; this one counts"
                ));
            }
            file.variables.insert(variable.to_owned(), value.to_owned());
        }
        file
    }
}

fn pair(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    // What a shell would want, and nobody else.
    let name = name.strip_prefix("export ").map_or(name, str::trim);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit());
    (good && !name.is_empty()).then(|| (name, value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> EnvFile {
        EnvFile::parse("config/.env", text)
    }

    #[test]
    fn values_are_taken_as_they_stand() {
        for value in [
            "pa$word", "${HOME}", "$(id)", "`id`", "a\\nb", "a#b", "a b", "x=y=z", "it's", "a\"b",
            "%2f", "\\", "!", "ünï",
        ] {
            for text in [
                format!("A={value}\n"),
                format!("\u{feff}A={value}\r\nB=c"),
                format!("# x\n\n  export A = {value}  "),
            ] {
                let file = read(text.as_bytes());
                assert_eq!(file.variables["A"], value, "{text}");
                assert_eq!((file.errors.len(), file.warnings.len()), (0, 0), "{file:?}");
            }
        }
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_all_others_are_read() {
        let file =
            read(b"\xef\xbb\xbfA=1\nhunter2\n\nB=2\n1C=3\nD E=hunter2\n=x\n\xe9=1\nF=\xe9\nG=7");
        let bad = |line, what| format!("config/.env line {line}: is not {what}");
        assert_eq!(
            file.errors,
            [
                bad(2, "NAME=value"),
                bad(5, "NAME=value"),
                bad(6, "NAME=value"),
                bad(7, "NAME=value"),
                bad(8, "UTF-8 text"),
                bad(9, "UTF-8 text"),
            ]
        );
        let good = [("A", "1"), ("B", "2"), ("G", "7")];
        assert_eq!(file.variables, good.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
        assert_eq!(file.lines["G"], 10);
    }

    #[test]
    fn what_may_not_be_meant_is_warned_of() {
        let file = read(b"A=1\nA=2 # two\n");
        assert_eq!(file.variables["A"], "2 # two");
        let [comment, twice] = &file.warnings[..] else { panic!("two: {file:?}") };
        assert!(comment.starts_with("config/.env line 2: the ` #`"), "{comment}");
        assert!(twice.contains("A stands in line 1 already"), "{twice}");
    }
}
