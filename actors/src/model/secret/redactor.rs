//! Finds known secrets in what others wrote, in whatever form they stand there.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use zeroize::Zeroizing;

use super::visible::{Visible, has_escapes};
use super::{Secret, forms};

/// Shorter forms of a secret, in bytes, are left alone: replacing them would only garble.
const SHORTEST: usize = 4;
/// A secret of so many bytes is known where it stands as a word of its own.
const WORD: usize = 3;
/// Single lines of a secret are known by themselves from this many bytes on.
const LINE: usize = 8;
/// Of a longer form each piece of this many bytes is known by itself.
const PIECE: usize = 256;
/// Forms are found by their first bytes, and compared then.
const HEAD: usize = 32;
/// A longer secret, in bytes, is known as it is alone, and in no other form.
const LONGEST_ENCODED: usize = 4 * 1024;
/// What all heads may have together, in bytes. Past it no other forms are known, past four times as much none.
const HEADS: usize = 256 * 1024;
/// A line that may hold a secret's beginning is waited with from this many bytes of it on.
const BEGINNING: usize = 4;

/// What a secret is replaced by.
const PLACEHOLDER: &str = "[secret]";

/// Takes known secrets out of text that others wrote (engine and forge errors, build output).
///
/// A secret is known as it is, encoded (URL, base64, hexadecimal), escaped (JSON) and quoted (shell), in
/// upper and lower case, with escape sequences, control characters and line breaks anywhere within. Clones
/// share what is known.
#[derive(Clone, Default)]
pub struct Redactor(Option<Arc<Known>>);

struct Known {
    secrets: Vec<Secret>,
    forms: Vec<Form>,
    /// By the forms' heads. It cannot be wiped, unlike the forms.
    heads: AhoCorasick,
    /// By the forms' first [`BEGINNING`] bytes.
    beginnings: AhoCorasick,
    /// The longest form, in bytes.
    longest: usize,
}

struct Form {
    text: Zeroizing<Vec<u8>>,
    /// Whether it counts only where no letter or digit is beside it.
    is_word: bool,
}

impl Redactor {
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let mut forms = Forms::default();
        let secrets: Vec<_> = secrets.into_iter().collect();
        for secret in &secrets {
            forms.add_as_it_is(secret.expose().trim());
        }
        for secret in &secrets {
            forms.add_encoded(secret.expose().trim());
        }
        Self(Known::of(forms.list, secrets).map(Arc::new))
    }

    /// One that knows a further secret.
    pub fn and(&self, secret: Secret) -> Self {
        let known = self.0.iter().flat_map(|known| &known.secrets);
        Self::new(known.cloned().chain([secret]))
    }

    /// `text` with every known secret replaced.
    pub fn redact(&self, text: &str) -> String {
        let Some(known) = &self.0 else { return text.to_owned() };
        let mut clean = String::with_capacity(text.len());
        let mut from = 0;
        for place in known.places(text) {
            clean.push_str(&text[from..place.start]);
            clean.push_str(PLACEHOLDER);
            from = place.end;
        }
        clean.push_str(&text[from..]);
        clean
    }

    /// Where the beginning of a secret stands that what follows `text` may complete.
    pub fn unfinished(&self, text: &str) -> Option<usize> {
        self.0.as_ref()?.unfinished(text)
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} forms)", self.0.as_ref().map_or(0, |known| known.forms.len()))
    }
}

/// Forms as they are collected.
#[derive(Default)]
struct Forms {
    list: Vec<Form>,
    /// What their heads have together, in bytes.
    heads: usize,
}

impl Forms {
    fn add_as_it_is(&mut self, text: &str) {
        self.add(text, 4 * HEADS);
        let lines = text.lines().map(str::trim).filter(|line| line.len() >= LINE);
        for line in lines.filter(|line| line.len() < text.len()) {
            self.add(line, 4 * HEADS);
        }
    }

    fn add_encoded(&mut self, text: &str) {
        if text.len() <= LONGEST_ENCODED && self.heads < HEADS {
            for form in forms::of(text) {
                self.add(&form, HEADS);
            }
        }
    }

    fn add(&mut self, text: &str, room: usize) {
        for escapes in [true, false].into_iter().filter(|escapes| *escapes || has_escapes(text)) {
            let visible = Visible::of(text, escapes);
            let visible = String::from_utf8_lossy(&visible.bytes);
            for piece in pieces(&visible) {
                self.add_piece(piece, room);
            }
        }
    }

    fn add_piece(&mut self, piece: &str, room: usize) {
        let text = Zeroizing::new(piece.as_bytes().to_ascii_lowercase());
        let head = text.len().min(HEAD);
        if text.len() < WORD || self.heads + head > room {
            return;
        }
        self.heads += head;
        self.list.push(Form { is_word: text.len() < SHORTEST, text });
    }
}

/// `text` in pieces of at most [`PIECE`] bytes, the last of which may overlap the one before it.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let boundary = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= text.len() {
            return None;
        }
        let end = boundary((at + PIECE).min(text.len()));
        let start = if text.len() - at < HEAD { boundary(end.saturating_sub(HEAD)) } else { at };
        at = end;
        Some(&text[start..end])
    })
}

impl Known {
    fn of(mut forms: Vec<Form>, secrets: Vec<Secret>) -> Option<Self> {
        forms.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        forms.dedup_by(|a, b| *a.text == *b.text);
        let longest = forms.iter().map(|form| form.text.len()).max()?;
        let by_first = |bytes: usize| {
            AhoCorasick::builder()
                .ascii_case_insensitive(true)
                .build(forms.iter().map(|form| &form.text[..form.text.len().min(bytes)]))
                .expect("the heads are bounded")
        };
        let (heads, beginnings) = (by_first(HEAD), by_first(BEGINNING));
        Some(Self { secrets, heads, beginnings, longest, forms })
    }

    /// Where secrets stand, in order and apart from each other.
    fn places(&self, text: &str) -> Vec<Range<usize>> {
        let mut found = self.places_in(text, true);
        if has_escapes(text) {
            found.extend(self.places_in(text, false));
        }
        found.sort_unstable_by_key(|place| place.start);
        let mut apart: Vec<Range<usize>> = Vec::with_capacity(found.len());
        for place in found {
            match apart.last_mut() {
                Some(last) if place.start < last.end => last.end = last.end.max(place.end),
                _ => apart.push(place),
            }
        }
        apart
    }

    fn places_in(&self, text: &str, escapes: bool) -> Vec<Range<usize>> {
        let visible = Visible::of(text, escapes);
        self.heads
            .find_overlapping_iter(&*visible.bytes)
            .filter_map(|head| {
                let form = &self.forms[head.pattern()];
                let stretch = head.start()..head.start() + form.text.len();
                let there = visible.bytes.get(stretch.clone())?;
                if !there.eq_ignore_ascii_case(&form.text) {
                    return None;
                }
                let place = visible.origin(stretch);
                (!form.is_word || stands_alone(text, &place)).then_some(place)
            })
            .collect()
    }

    fn unfinished(&self, text: &str) -> Option<usize> {
        let visible = Visible::of(text, true);
        let from = (visible.bytes.len() + 1).saturating_sub(self.longest);
        let end = &visible.bytes[from..];
        let first = self.beginnings.find_overlapping_iter(end).filter(|beginning| {
            let (form, there) = (&self.forms[beginning.pattern()].text, &end[beginning.start()..]);
            there.len() < form.len() && there.eq_ignore_ascii_case(&form[..there.len()])
        });
        let start = from + first.map(|beginning| beginning.start()).min()?;
        Some(visible.origin(start..start + 1).start)
    }
}

/// Whether no letter or digit is beside what stands there.
fn stands_alone(text: &str, place: &Range<usize>) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    !is_part(text[..place.start].chars().next_back()) && !is_part(text[place.end..].chars().next())
}

#[cfg(test)]
mod tests;
