//! Patterns of paths as git matches them (its `wildmatch`), in a time that grows with the lengths of pattern and
//! path alone: both are a stranger's.

/// A pattern with wildcards.
#[derive(Debug)]
pub(super) struct Glob {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Byte(u8),
    /// `?`: any byte but a `/`.
    One,
    /// `[…]`: one of these bytes, and never a `/`.
    Class(Box<[bool; 256]>),
    /// `*`: any bytes but a `/`.
    Run,
    /// `**` where a name of a path is expected: any bytes.
    Deep,
    /// Before a `**` and the `/` after it, which may be nothing together.
    Maybe,
}

impl Glob {
    /// `None` = the pattern is malformed, and matches nothing.
    pub(super) fn new(pattern: &[u8]) -> Option<Self> {
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some((&first, after)) = rest.split_first() {
            rest = after;
            match first {
                b'\\' => {
                    let (&escaped, after) = rest.split_first()?;
                    rest = after;
                    parts.push(Part::Byte(escaped));
                }
                b'?' => parts.push(Part::One),
                b'[' => {
                    let (class, after) = class(rest)?;
                    rest = after;
                    parts.push(Part::Class(class));
                }
                b'*' => {
                    let stars = rest.iter().take_while(|&&byte| byte == b'*').count();
                    rest = &rest[stars..];
                    let begins = matches!(parts.last(), None | Some(Part::Byte(b'/')));
                    let ends = rest.is_empty() || rest[0] == b'/' || rest.starts_with(b"\\/");
                    let is_deep = stars > 0 && begins && ends;
                    if is_deep && rest.starts_with(b"/") {
                        parts.push(Part::Maybe);
                    }
                    parts.push(if is_deep { Part::Deep } else { Part::Run });
                }
                byte => parts.push(Part::Byte(byte)),
            }
        }
        Some(Self { parts })
    }

    /// Whether the whole of a path matches.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        // Where in the pattern a match of what was read so far may stand.
        let mut here = vec![false; self.parts.len() + 1];
        let mut next = here.clone();
        here[0] = true;
        self.skip(&mut here);
        for &byte in path {
            next.fill(false);
            for (at, part) in self.parts.iter().enumerate().filter(|&(at, _)| here[at]) {
                match part {
                    Part::Byte(wanted) => next[at + 1] |= *wanted == byte,
                    Part::One => next[at + 1] |= byte != b'/',
                    Part::Class(class) => next[at + 1] |= class[usize::from(byte)],
                    Part::Run => next[at] |= byte != b'/',
                    Part::Deep => next[at] = true,
                    Part::Maybe => {}
                }
            }
            self.skip(&mut next);
            std::mem::swap(&mut here, &mut next);
        }
        here[self.parts.len()]
    }

    /// Adds where a match may stand when what may be nothing is nothing.
    fn skip(&self, places: &mut [bool]) {
        for (at, part) in self.parts.iter().enumerate() {
            if places[at] && matches!(part, Part::Run | Part::Deep | Part::Maybe) {
                places[at + 1] = true;
                if let Part::Maybe = part {
                    places[at + 3] = true;
                }
            }
        }
    }
}

/// What follows a `[`: the bytes that it stands for, and what follows its `]`.
fn class(pattern: &[u8]) -> Option<(Box<[bool; 256]>, &[u8])> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let mut at = usize::from(negated);
    let begin = at;
    let mut class = Box::new([false; 256]);
    // What a range may begin with.
    let mut previous = None;
    loop {
        let byte = *pattern.get(at)?;
        at += 1;
        if byte == b']' && at - 1 > begin {
            break;
        }
        let named = || named(pattern.get(at..)?);
        match (byte, previous, pattern.get(at)) {
            (b'-', Some(from), Some(&to)) if to != b']' => {
                at += 1;
                let to = if to == b'\\' { escaped(pattern, &mut at)? } else { to };
                (from..=to).for_each(|byte: u8| class[usize::from(byte)] = true);
                previous = None;
                continue;
            }
            (b'[', _, Some(b':')) if named().is_some() => {
                let (name, length) = named()?;
                add_named(&mut class, name)?;
                at += length;
                previous = None;
                continue;
            }
            // It has no end.
            (b'[', _, Some(b':')) if !pattern[at..].contains(&b']') => return None,
            _ => {}
        }
        let byte = if byte == b'\\' { escaped(pattern, &mut at)? } else { byte };
        class[usize::from(byte)] = true;
        previous = (byte != 0).then_some(byte);
    }
    if negated {
        class.iter_mut().for_each(|is_in| *is_in = !*is_in);
    }
    class[usize::from(b'/')] = false;
    Some((class, &pattern[at..]))
}

fn escaped(pattern: &[u8], at: &mut usize) -> Option<u8> {
    let byte = *pattern.get(*at)?;
    *at += 1;
    Some(byte)
}

/// The name in `:name:]`, and how long all of that is.
fn named(text: &[u8]) -> Option<(&[u8], usize)> {
    let end = 1 + text.get(1..)?.iter().position(|&byte| byte == b']')?;
    let name = text[1..end].strip_suffix(b":")?;
    Some((name, end + 1))
}

/// Adds a class of POSIX's; `None` = there is none of that name.
fn add_named(class: &mut [bool; 256], name: &[u8]) -> Option<()> {
    let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let is_in: &dyn Fn(&u8) -> bool = match name {
        b"alnum" => &u8::is_ascii_alphanumeric,
        b"alpha" => &u8::is_ascii_alphabetic,
        b"blank" => &|byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => &u8::is_ascii_control,
        b"digit" => &u8::is_ascii_digit,
        b"graph" => &u8::is_ascii_graphic,
        b"lower" => &u8::is_ascii_lowercase,
        b"print" => &|byte| matches!(byte, b' '..=b'~'),
        b"punct" => &u8::is_ascii_punctuation,
        b"space" => &space,
        b"upper" => &u8::is_ascii_uppercase,
        b"xdigit" => &u8::is_ascii_hexdigit,
        _ => return None,
    };
    for byte in (0..=u8::MAX).filter(|byte| is_in(byte)) {
        class[usize::from(byte)] = true;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        Glob::new(pattern.as_bytes()).is_some_and(|glob| glob.matches(path.as_bytes()))
    }

    #[test]
    fn a_pattern_matches_what_git_says() {
        for (pattern, path, expected) in [
            ("", "", true),
            ("", "a", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("*", "a", true),
            ("*", "a/b", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("**", "a/b", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "ab", false),
            ("**/b", "b", true),
            ("**/b", "a/b", true),
            ("**/b", "ab", false),
            ("a**b", "axb", true),
            ("a**b", "a/b", false),
            ("a**/b", "ax/b", true),
            ("a**/b", "a/x/b", false),
            ("*/b", "/b", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("a\\", "a\\", false),
            ("[a-c]", "b", true),
            ("[a-c]", "d", false),
            ("[!a-c]", "d", true),
            ("[^a-c]", "b", false),
            ("[!a]", "/", false),
            ("[]]", "]", true),
            ("[]-]", "-", true),
            ("[a-]", "-", true),
            (r"[\]]", "]", true),
            (r"[a-\c]", "b", true),
            ("[[:digit:]x]", "7", true),
            ("[[:digit:]x]", "x", true),
            ("[[:digit:]x]", "a", false),
            ("[[:nothing:]]", "a", false),
            ("[[:]", ":", true),
            ("[[:", "[", false),
            ("[a", "a", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern:?} and {path:?}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_longer_than_others() {
        let pattern = "a*".repeat(1_000) + "b";
        assert!(!matches(&pattern, &"a".repeat(3_500)));
        assert!(!matches(&("**/".repeat(600) + "b"), &"a/".repeat(1_700)));
    }
}
