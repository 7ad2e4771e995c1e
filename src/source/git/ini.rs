//! Git's configuration format, as far as `.gitmodules` and `.lfsconfig` need it.
//!
//! Both come from a stranger. libgit2 would read them too, but also follow their `include`s into
//! the files of this machine.

/// One `key = value`, with the section that it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// Lower-case.
    pub(super) section: String,
    /// The name in quotes after the section's, as it is written.
    pub(super) subsection: Option<String>,
    /// Lower-case.
    pub(super) key: String,
    pub(super) value: String,
}

/// The settings in a text, in their order. What is not understood is left out.
pub(super) fn parse(text: &str) -> Vec<Setting> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut settings = Vec::new();
    let mut section = String::new();
    let mut subsection = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut line = line.trim_start();
        if let Some(header) = line.strip_prefix('[') {
            let Some((name, sub, rest)) = parse_header(header) else { continue };
            (section, subsection) = (name, sub);
            line = rest.trim_start();
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let key = key.trim();
        if !key.starts_with(|c: char| c.is_ascii_alphabetic()) {
            continue;
        }
        settings.push(Setting {
            section: section.clone(),
            subsection: subsection.clone(),
            key: key.to_ascii_lowercase(),
            value: parse_value(value, &mut lines),
        });
    }
    settings
}

/// `section]` or `section "subsection"]`, and what follows on the line.
fn parse_header(header: &str) -> Option<(String, Option<String>, &str)> {
    let end = header.find(|c: char| c == ']' || c.is_whitespace())?;
    let (name, rest) = header.split_at(end);
    let name = name.to_ascii_lowercase();
    let rest = rest.trim_start();
    if let Some(rest) = rest.strip_prefix(']') {
        return Some((name, None, rest));
    }
    let rest = rest.strip_prefix('"')?;
    let mut subsection = String::new();
    let mut characters = rest.char_indices();
    while let Some((index, c)) = characters.next() {
        match c {
            '\\' => subsection.push(characters.next()?.1),
            '"' => {
                let rest = rest[index + 1..].trim_start().strip_prefix(']')?;
                return Some((name, Some(subsection), rest));
            }
            c => subsection.push(c),
        }
    }
    None
}

/// A value: quotes and escapes taken away, comments dropped, a backslash at the end goes on.
fn parse_value<'a>(first: &str, lines: &mut impl Iterator<Item = &'a str>) -> String {
    let mut value = String::new();
    // How much of `value` was written on purpose: blanks at the end go.
    let mut kept = 0;
    let mut quoted = false;
    let mut line = first.trim_start();
    'lines: loop {
        let mut characters = line.chars();
        while let Some(c) = characters.next() {
            match c {
                '"' => {
                    quoted = !quoted;
                    kept = value.len();
                    continue;
                }
                '#' | ';' if !quoted => break 'lines,
                '\\' => match characters.next() {
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    Some('b') => drop(value.pop()),
                    Some(c) => value.push(c),
                    None => match lines.next() {
                        Some(next) => {
                            line = next;
                            continue 'lines;
                        }
                        None => break 'lines,
                    },
                },
                c => {
                    value.push(c);
                    if c.is_whitespace() && !quoted {
                        continue;
                    }
                }
            }
            kept = value.len();
        }
        break;
    }
    value.truncate(kept.min(value.len()));
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_keys_and_values_are_read_as_git_reads_them() {
        let text = "; a comment\n[submodule \"a \\\"b\\\"\"]\n\tpath = libs/a # here\n\tURL = \"x # y\"\n\
                    [Core] bare = true\n[lfs]\n  url=https://x/\\\n  y  \n[broken\nno value\n\n= z\n";
        let settings: Vec<_> = parse(text)
            .into_iter()
            .map(|s| (s.section, s.subsection.unwrap_or_default(), s.key, s.value))
            .collect();
        let expected = [
            ("submodule", "a \"b\"", "path", "libs/a"),
            ("submodule", "a \"b\"", "url", "x # y"),
            ("core", "", "bare", "true"),
            ("lfs", "", "url", "https://x/  y"),
        ];
        assert_eq!(settings.len(), expected.len(), "{settings:?}");
        for (got, expected) in settings.iter().zip(expected) {
            let got = (got.0.as_str(), got.1.as_str(), got.2.as_str(), got.3.as_str());
            assert_eq!(got, expected);
        }
    }
}
