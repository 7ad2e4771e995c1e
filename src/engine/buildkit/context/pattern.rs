//! A pattern of `.dockerignore`, matched in a time that grows with the path's length and with how many `*` the
//! pattern has: strangers write both.

/// A pattern: `*` and `?` stop at a slash, `**` does not, `\` takes the next character as it is.
#[derive(Debug)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
    /// How many tokens at the beginning stand for one character each.
    plain: usize,
}

#[derive(Debug)]
enum Token {
    Literal(char),
    /// `?`
    One,
    /// `[a-c]`, or `[^a-c]`
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// `*`
    Name,
    /// `**` at the end
    Any,
    /// `**/`: nothing, or what ends in a slash. The rest of it is the next token.
    Directories,
    /// What has begun to be some directories.
    Within,
}

impl Token {
    /// Whether it stands for this one character.
    fn is(&self, c: char) -> bool {
        match self {
            Token::Literal(literal) => *literal == c,
            Token::One => c != '/',
            Token::Class { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)) != *negated
            }
            Token::Name | Token::Any | Token::Directories | Token::Within => false,
        }
    }

    fn is_plain(&self) -> bool {
        matches!(self, Token::Literal(_) | Token::One | Token::Class { .. })
    }
}

impl Pattern {
    /// Reads a cleaned pattern; `None` = it is none.
    pub(super) fn parse(pattern: &str) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut rest = pattern.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '*' if rest.next_if_eq(&'*').is_some() => {
                    let slash = rest.next_if_eq(&'/').is_some();
                    let tail: String = rest.clone().collect();
                    // `**name` at the start means any path that ends so, as long as nothing else in it
                    // is special; moby has it so.
                    let suffix =
                        tokens.is_empty() && !slash && !tail.contains(['*', '?', '[', ']', '\\']);
                    if tail.is_empty() || suffix {
                        tokens.push(Token::Any);
                    } else {
                        tokens.extend([Token::Directories, Token::Within]);
                    }
                }
                '*' => tokens.push(Token::Name),
                '?' => tokens.push(Token::One),
                '\\' => tokens.push(Token::Literal(rest.next()?)),
                '[' => tokens.push(class(&mut rest)?),
                literal => tokens.push(Token::Literal(literal)),
            }
        }
        let plain = tokens.iter().take_while(|token| token.is_plain()).count();
        Some(Self { tokens, plain })
    }

    /// How many of its tokens can stand for any number of characters.
    pub(super) fn wild(&self) -> usize {
        self.tokens.iter().filter(|token| !token.is_plain()).count()
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        let mut rest = path.chars();
        for token in &self.tokens[..self.plain] {
            if !rest.next().is_some_and(|c| token.is(c)) {
                return false;
            }
        }
        if self.plain == self.tokens.len() {
            return rest.next().is_none();
        }
        // All places in the pattern at which the path so far may be, each once.
        let mut places = Places::new(self.tokens.len());
        let mut next = Places::new(self.tokens.len());
        places.add(&self.tokens, self.plain);
        for c in rest {
            for &place in &places.list {
                match self.tokens.get(place) {
                    None => {}
                    Some(Token::Name) if c == '/' => {}
                    Some(Token::Name | Token::Any) => next.add(&self.tokens, place),
                    Some(Token::Directories) => {}
                    Some(Token::Within) => {
                        next.add(&self.tokens, place);
                        if c == '/' {
                            next.add(&self.tokens, place + 1);
                        }
                    }
                    Some(token) if token.is(c) => next.add(&self.tokens, place + 1),
                    Some(_) => {}
                }
            }
            if next.list.is_empty() {
                return false;
            }
            std::mem::swap(&mut places, &mut next);
            next.clear();
        }
        places.marked[self.tokens.len()]
    }
}

/// A set of places in a pattern.
struct Places {
    list: Vec<usize>,
    marked: Vec<bool>,
}

impl Places {
    fn new(tokens: usize) -> Self {
        Self { list: Vec::new(), marked: vec![false; tokens + 1] }
    }

    /// Adds a place, and those after what may stand for nothing.
    fn add(&mut self, tokens: &[Token], place: usize) {
        let mut place = place;
        while !std::mem::replace(&mut self.marked[place], true) {
            self.list.push(place);
            match tokens.get(place) {
                Some(Token::Name | Token::Any) => place += 1,
                Some(Token::Directories) => {
                    if !std::mem::replace(&mut self.marked[place + 1], true) {
                        self.list.push(place + 1);
                    }
                    place += 2;
                }
                _ => break,
            }
        }
    }

    fn clear(&mut self) {
        for place in self.list.drain(..) {
            self.marked[place] = false;
        }
    }
}

/// A class such as `[a-c]` or `[^x]`, whose `[` was read. `None` = it is not closed, or empty, or a range of
/// it is none.
fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Token> {
    let negated = rest.next_if_eq(&'^').is_some();
    let mut ranges: Vec<(char, char)> = Vec::new();
    loop {
        let first = match rest.next()? {
            ']' if ranges.is_empty() => return None,
            ']' => return Some(Token::Class { negated, ranges }),
            '\\' => rest.next()?,
            literal => literal,
        };
        let mut ahead = rest.clone();
        let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']');
        let last = if is_range {
            rest.next();
            match rest.next()? {
                '\\' => rest.next()?,
                literal => literal,
            }
        } else {
            first
        };
        if last < first {
            return None;
        }
        ranges.push((first, last));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_class_is_read_as_go_reads_it() {
        let matches = |pattern: &str, path: &str| {
            Pattern::parse(pattern).map(|pattern| pattern.matches(path))
        };
        assert_eq!(matches("[a-c-]x", "-x"), Some(true));
        assert_eq!(matches("[\\a-\\c]", "b"), Some(true));
        assert_eq!(matches("[^a-c]", "/"), Some(true));
        for bad in ["[c-a]", "[a", "[]a]", "[a-", "[\\"] {
            assert_eq!(matches(bad, "a"), None, "{bad}");
        }
    }

    #[test]
    fn no_pattern_takes_a_time_that_grows_with_the_ways_to_match_it() {
        let path = "a".repeat(3_000);
        let begun = Instant::now();
        for pattern in [
            "?".repeat(2_999),
            "*a".repeat(500) + "b",
            "**/a".repeat(500) + "b",
            "*".to_owned() + &"?*".repeat(500) + "b",
        ] {
            let pattern = Pattern::parse(&pattern).expect("a pattern");
            assert!(!pattern.matches(&path));
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
