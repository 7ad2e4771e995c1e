//! What of a text can be shown.

use std::fmt::Write as _;

/// The hexadecimal digits that are shown of a longer hash.
const HASH_DIGITS: usize = 12;
/// Hexadecimal digits in a row that are taken for a hash: those of SHA-1.
const SHORTEST_HASH: usize = 40;

/// One line that shows all that is in it: nothing moves the cursor, hides, or turns the line around.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\t' => plain.push_str("  "),
            '\n' => plain.push_str(" / "),
            c if is_hidden(c) => plain.extend(c.escape_default()),
            c => plain.push(c),
        }
    }
    plain
}

/// Whether a character has no sign of its own but changes how others are seen: control characters, the
/// marks of bidirectional text, and those that end a line. The joiners stay, which scripts and emoji need.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}')
}

/// What a build is called on a line, in eight columns. Of a random UUID the beginning tells which one it
/// is; other ids often begin alike (by a name, or by the time) and end alike.
pub(super) fn short_id(id: &str) -> String {
    let characters: Vec<char> = id.chars().collect();
    if characters.len() <= 8 {
        return plain(id);
    }
    if uuid::Uuid::try_parse(id).is_ok_and(|id| id.get_version_num() == 4) {
        return id[..8].to_owned();
    }
    let ends = characters[..3].iter().chain(&['…']).chain(&characters[characters.len() - 4..]);
    plain(&ends.collect::<String>())
}

/// Leaves out the numbers that the operating system gives its errors: their names stand before them.
pub(super) fn without_error_numbers(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(" (os error ") {
        let Some((_, behind)) = after.split_once(')') else { break };
        short.push_str(before);
        rest = behind;
    }
    short.push_str(rest);
    short
}

/// Cuts hashes, which nobody reads to their end.
pub(super) fn shorten_hashes(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        let others = rest[digits..].bytes().take_while(|byte| !byte.is_ascii_hexdigit()).count();
        let (hash, other) = (&rest[..digits], &rest[digits..digits + others]);
        match digits >= SHORTEST_HASH {
            true => {
                let _ = write!(short, "{}…", &hash[..HASH_DIGITS]);
            }
            false => short.push_str(hash),
        }
        short.push_str(other);
        rest = &rest[digits + others..];
    }
    short
}
