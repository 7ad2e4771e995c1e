//! What is left of a text on a terminal: without escape sequences, and without characters that have no sign
//! of their own.

use std::borrow::Cow;
use std::ops::Range;

/// A text without what cannot be seen, line breaks included: two texts that look alike are alike here.
pub(super) struct Visible<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    /// Where each byte stood; `None` = where it stands now.
    origin: Option<Vec<usize>>,
}

impl<'a> Visible<'a> {
    /// Without `escapes` only single characters go: what an escape sequence holds stays.
    pub(super) fn of(text: &'a str, escapes: bool) -> Self {
        if !text.bytes().any(may_hide) {
            return Self { bytes: text.as_bytes().into(), origin: None };
        }
        let (mut bytes, mut origin) = (Vec::with_capacity(text.len()), Vec::new());
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let next = at + c.len_utf8();
            if escapes && begins_escape(c) {
                at += escape_length(&text[at..]);
                continue;
            }
            if !is_hidden(c) {
                bytes.extend_from_slice(&text.as_bytes()[at..next]);
                origin.extend(at..next);
            }
            at = next;
        }
        Self { bytes: bytes.into(), origin: Some(origin) }
    }

    /// Where a stretch of it stands in the text.
    pub(super) fn origin(&self, stretch: Range<usize>) -> Range<usize> {
        match &self.origin {
            Some(origin) => origin[stretch.start]..origin[stretch.end - 1] + 1,
            None => stretch,
        }
    }
}

/// Whether a text has an escape sequence, or its beginning.
pub(super) fn has_escapes(text: &str) -> bool {
    text.contains(begins_escape)
}

/// A text without escape sequences and control characters. Tabs stay.
pub fn without_escapes(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if begins_escape(c) {
            rest = &rest[escape_length(rest)..];
            continue;
        }
        if c == '\t' || !c.is_control() {
            clean.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    clean
}

/// Whether a byte may belong to a character that [`Visible`] leaves out.
fn may_hide(byte: u8) -> bool {
    matches!(byte, 0..=0x1f | 0x7f | 0xc2 | 0xd8 | 0xe1 | 0xe2 | 0xef | 0xf3)
}

/// Control characters, and those of Unicode that join, turn or mark text.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// ESC, and the single characters that stand for ESC and another one (ECMA-48).
pub(super) fn begins_escape(c: char) -> bool {
    matches!(c, '\u{1b}' | '\u{90}' | '\u{98}' | '\u{9b}' | '\u{9d}'..='\u{9f}')
}

/// The length of the escape sequence that `text` begins with, in bytes.
pub(super) fn escape_length(text: &str) -> usize {
    let mut characters = text.char_indices();
    let introducer = match characters.next() {
        Some((_, '\u{1b}')) => match characters.next() {
            Some((_, c)) => c,
            None => return text.len(),
        },
        // '\u{9b}' is ESC [, and so on.
        Some((_, c)) => char::from_u32(u32::from(c) - 0x40).unwrap_or(c),
        None => return 0,
    };
    let (of_parameters, of_text) = (introducer == '[', "]PX^_".contains(introducer));
    if !of_parameters && !of_text && !(' '..='/').contains(&introducer) {
        return characters.offset();
    }
    for (at, c) in characters.by_ref() {
        let end = at + c.len_utf8();
        match c {
            '\u{7}' | '\u{9c}' if of_text => return end,
            '\u{1b}' if of_text => return end + usize::from(text[end..].starts_with('\\')),
            _ if of_text => {}
            ' '..='/' => {}
            '0'..='?' if of_parameters => {}
            // What belongs to no sequence ends it, and is not part of it.
            c if c.is_control() || !c.is_ascii() => return at,
            _ => return end,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminals_orders_are_left_out_and_the_text_around_them_stays() {
        for (text, left) in [
            ("plain \t text", "plain \t text"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}[1;38;5;208mx\u{1b}[K\u{1b}[2Jy", "xy"),
            ("\u{1b}]0;title\u{7}x\u{1b}]8;;http://a\u{1b}\\link\u{1b}]8;;\u{1b}\\", "xlink"),
            ("\u{1b}(Bx\u{1b}7y\u{1b}M\u{1b}#8z", "xyz"),
            ("\u{9b}31mred\u{9d}title\u{9c}x", "redx"),
            ("a\u{8}\u{7}b\r", "ab"),
            ("a\u{1b}", "a"),
            ("a\u{1b}[", "a"),
            ("a\u{1b}[12\nb", "ab"),
            ("a\u{1b}[1é", "aé"),
            ("\u{1b}\u{1b}[1mx", "[1mx"),
        ] {
            assert_eq!(without_escapes(text), left, "{text:?}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_left_out_and_known_by_its_place() {
        let text = "a\u{200b}b\n\u{1b}[1mcé\u{1b}[0md";
        let visible = Visible::of(text, true);
        assert_eq!(*visible.bytes, *"abcéd".as_bytes());
        assert_eq!(&text[visible.origin(1..5)], "b\n\u{1b}[1mcé");
        assert_eq!(*Visible::of(text, false).bytes, *"ab[1mcé[0md".as_bytes());
        assert_eq!(Visible::of("plain", true).origin(1..3), 1..3);
    }
}
