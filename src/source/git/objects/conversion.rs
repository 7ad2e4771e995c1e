//! From what git stores of a file to what it writes: line ends, `$Id$` and encodings, as git does it on Linux where
//! nothing is configured.

use std::borrow::Cow;

use git2::Oid;

use super::encoding::Encoding;

/// How the lines of a file end, by its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineEnds {
    Binary,
    /// Text, with the line ends of Linux.
    Text,
    /// Text if it looks like it, with the line ends of Linux.
    Auto,
    AutoCrlf,
    Crlf,
}

/// What is to be done with a file's content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conversion {
    line_ends: LineEnds,
    ident: Option<Ident>,
    encoding: Option<Encoding>,
}

/// How `$Id$` is expanded. Git has two ways, which differ in what looks nearly like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ident {
    /// With the whole content in memory.
    Whole,
    Streamed,
}

impl Conversion {
    /// `None` = files are written as they are stored. `filtered`: git shows them to a program as well.
    pub(super) fn new(
        line_ends: LineEnds,
        ident: bool,
        encoding: Option<&[u8]>,
        filtered: bool,
    ) -> Option<Self> {
        let encoding = encoding.and_then(Encoding::named);
        let is_whole = filtered
            || encoding.is_some()
            || matches!(line_ends, LineEnds::Auto | LineEnds::AutoCrlf);
        let ident = ident.then_some(if is_whole { Ident::Whole } else { Ident::Streamed });
        let changes_ends = matches!(line_ends, LineEnds::AutoCrlf | LineEnds::Crlf);
        let is_needed = changes_ends || ident.is_some() || encoding.is_some();
        is_needed.then_some(Self { line_ends, ident, encoding })
    }

    /// What is written of the blob with this name and content; and the encoding that it cannot be written in, in
    /// which case git complains and leaves it as it is.
    pub(super) fn apply<'a>(&self, id: Oid, stored: &'a [u8]) -> (Cow<'a, [u8]>, Option<&str>) {
        let expanded = match self.ident {
            Some(Ident::Whole) if stored.contains(&b'$') => Cow::Owned(expand_ident(id, stored)),
            Some(Ident::Streamed) if stored.contains(&b'$') => {
                Cow::Owned(expand_streamed_ident(id, stored))
            }
            _ => Cow::Borrowed(stored),
        };
        let ended = match needs_crlf(self.line_ends, &expanded) {
            Some(lines) => Cow::Owned(with_crlf(&expanded, lines)),
            None => expanded,
        };
        let Some(encoding) = self.encoding.as_ref().filter(|_| !ended.is_empty()) else {
            return (ended, None);
        };
        match encoding.encode(&ended) {
            Some(encoded) => (Cow::Owned(encoded), None),
            None => (ended, Some(encoding.name())),
        }
    }
}

/// How many lines lack a CR that is to be there; `None` = the content stays as it is.
fn needs_crlf(line_ends: LineEnds, content: &[u8]) -> Option<usize> {
    match line_ends {
        LineEnds::Crlf => {}
        LineEnds::AutoCrlf if looks_like_plain_text(content) => {}
        _ => return None,
    }
    let mut previous = 0;
    let lacks = content.iter().filter(|&&byte| {
        let lacks = byte == b'\n' && previous != b'\r';
        previous = byte;
        lacks
    });
    Some(lacks.count()).filter(|&lines| lines > 0)
}

/// Whether git takes a content for text of which every line ends in LF.
fn looks_like_plain_text(content: &[u8]) -> bool {
    let (mut printable, mut not_printable) = (0_usize, 0_usize);
    for byte in content {
        match byte {
            0 | b'\r' => return false,
            b'\n' => {}
            // Backspace, tab, escape and form feed.
            8 | b'\t' | 27 | 12 => printable += 1,
            127 | 0..32 => not_printable += 1,
            _ => printable += 1,
        }
    }
    // The end of a file, as DOS had it.
    if content.last() == Some(&26) {
        not_printable -= 1;
    }
    printable / 128 >= not_printable
}

/// Puts a CR before each LF that has none; there are so many.
fn with_crlf(content: &[u8], lacking: usize) -> Vec<u8> {
    let mut converted = Vec::with_capacity(content.len() + lacking);
    for line in content.split_inclusive(|&byte| byte == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(text) if !text.ends_with(b"\r") => {
                converted.extend_from_slice(text);
                converted.extend_from_slice(b"\r\n");
            }
            _ => converted.extend_from_slice(line),
        }
    }
    converted
}

/// Puts the blob's name into each `$Id$`, and anew into each `$Id: …$` of git's.
fn expand_ident(id: Oid, content: &[u8]) -> Vec<u8> {
    let expansion = format!("Id: {id} $");
    let mut expanded = Vec::with_capacity(content.len());
    let mut rest = content;
    while let Some(dollar) = rest.iter().position(|&byte| byte == b'$') {
        let (before, after) = rest.split_at(dollar + 1);
        expanded.extend_from_slice(before);
        rest = after;
        let keyword = match rest.strip_prefix(b"Id") {
            Some([b'$', ..]) => 3,
            Some([b':', value @ ..]) => match value.iter().position(|&byte| byte == b'$') {
                // No other can follow.
                None => break,
                Some(end) if is_of_others(&value[..end]) => continue,
                Some(end) => 4 + end,
            },
            _ => continue,
        };
        expanded.extend_from_slice(expansion.as_bytes());
        rest = &rest[keyword..];
    }
    expanded.extend_from_slice(rest);
    expanded
}

/// Whether what stands in `$Id:…$` was put there by another version control system: it goes over a line's end, or
/// has a space within.
fn is_of_others(value: &[u8]) -> bool {
    let space = value.iter().skip(1).position(|&byte| byte == b' ');
    value.contains(&b'\n') || space.is_some_and(|at| at + 2 < value.len())
}

/// The same, in the way of git's filter for streams: byte for byte, without looking back.
fn expand_streamed_ident(id: Oid, content: &[u8]) -> Vec<u8> {
    /// What a keyword begins with. The filter takes the zero byte at the end of C's text for a part of it.
    const HEAD: [u8; 4] = *b"$Id\0";
    let expansion = format!(": {id} $");
    let mut expanded = Vec::with_capacity(content.len());
    // What is not let go yet, and how much of the head came after it; or that a value is being read.
    let mut left = Vec::new();
    let mut matched = 0;
    let mut in_value = false;
    for &byte in content {
        if in_value {
            left.push(byte);
            if byte == b'$' && !is_foreign(&left) {
                left.truncate(3);
                left.extend_from_slice(expansion.as_bytes());
            }
            if byte == b'$' || byte == b'\n' {
                expanded.append(&mut left);
                in_value = false;
            }
            continue;
        }
        if HEAD.get(matched) == Some(&byte) {
            matched += 1;
            continue;
        }
        left.extend_from_slice(&HEAD[..matched]);
        let begun = std::mem::take(&mut matched);
        match (begun, byte) {
            (3, b'$') => left.extend_from_slice(expansion.as_bytes()),
            (3, b':') => {
                left.push(byte);
                in_value = true;
                continue;
            }
            (3, _) => {
                left.push(byte);
                continue;
            }
            _ => left.push(byte),
        }
        expanded.append(&mut left);
    }
    expanded.append(&mut left);
    expanded.extend_from_slice(&HEAD[..matched]);
    expanded
}

/// Whether a keyword with its value has a space within the value.
fn is_foreign(keyword: &[u8]) -> bool {
    let Some(value) = keyword.strip_prefix(b"$Id: ") else { return false };
    let value = value.split(|&byte| byte == 0).next().unwrap_or_default();
    let space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    (0..value.len()).any(|at| space(value[at]) && value.get(at + 1) != Some(&b'$'))
}
