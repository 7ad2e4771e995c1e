//! The lines of a `.gitattributes` file.

/// Longer lines are none to git.
const LONGEST_LINE: usize = 2048;
/// What may be around and between the words of a line.
const BLANK: [u8; 4] = *b" \t\r\n";
/// What a line that defines a macro begins with.
const MACRO: &[u8] = b"[attr]";

/// What an attribute is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Set,
    Unset,
    /// As if nothing were said of it.
    Unspecified,
    Text(Vec<u8>),
}

/// The lines of a file. What follows a zero byte is none of it.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    text.split(|&byte| byte == b'\n')
}

/// A line that says something.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) subject: Subject,
    pub(super) states: Vec<(&'a [u8], Value)>,
}

#[derive(Debug)]
pub(super) enum Subject {
    Paths(Vec<u8>),
    Macro(Vec<u8>),
}

impl<'a> Line<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let line = if line.len() < LONGEST_LINE { trimmed(line) } else { return None };
        if line.is_empty() || line[0] == b'#' {
            return None;
        }
        let (pattern, rest) = unquoted(line).unwrap_or_else(|| {
            let (word, rest) = word(line);
            (word.to_vec(), rest)
        });
        let states = states(rest)?;
        let subject = match pattern.strip_prefix(MACRO) {
            None | Some([]) => Subject::Paths(pattern),
            Some(name) => {
                let (name, _) = word(trimmed(name));
                is_name(name).then(|| Subject::Macro(name.to_vec()))?
            }
        };
        Some(Self { subject, states })
    }
}

/// The attributes that a line lists; `None` = one of them is malformed, which spoils the line.
fn states(mut rest: &[u8]) -> Option<Vec<(&[u8], Value)>> {
    let mut states = Vec::new();
    while !trimmed(rest).is_empty() {
        let (state, after) = word(trimmed(rest));
        rest = after;
        let (name, value) = match state[0] {
            b'-' => (&state[1..], Value::Unset),
            b'!' => (&state[1..], Value::Unspecified),
            _ => (state, Value::Set),
        };
        let (name, value) = match name.iter().position(|&byte| byte == b'=') {
            None => (name, value),
            Some(end) if value == Value::Set => {
                (&name[..end], Value::Text(name[end + 1..].to_vec()))
            }
            Some(end) => (&name[..end], value),
        };
        if !is_name(name) {
            return None;
        }
        states.push((name, value));
    }
    Some(states)
}

/// Whether an attribute may be called so.
fn is_name(name: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    !name.is_empty() && name[0] != b'-' && name.iter().all(plain) && !name.starts_with(b"builtin_")
}

/// Without the blanks that it begins with.
fn trimmed(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|byte| BLANK.contains(byte)).count();
    &text[blanks..]
}

/// What is before the first blank, and the rest.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| BLANK.contains(byte)).unwrap_or(text.len());
    text.split_at(end)
}

/// A text in quotes, as C has them, and what follows it.
fn unquoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = text.strip_prefix(b"\"")?;
    let mut unquoted = Vec::new();
    loop {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match byte {
            b'"' => return Some((unquoted, rest)),
            b'\\' => {
                let (&escaped, after) = rest.split_first()?;
                rest = after;
                unquoted.push(match escaped {
                    b'a' => 7,
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 11,
                    b'\\' | b'"' => escaped,
                    b'0'..=b'3' => {
                        let digits = rest.get(..2)?;
                        rest = &rest[2..];
                        digits.iter().try_fold(escaped - b'0', |value, digit| {
                            matches!(digit, b'0'..=b'7').then(|| 8 * value + (digit - b'0'))
                        })?
                    }
                    _ => return None,
                });
            }
            byte => unquoted.push(byte),
        }
    }
}
