//! Notices that secrets are where they must not be.

use std::fmt;
use std::io::{self, Read};

use aho_corasick::{AhoCorasick, MatchKind};

use super::{Secret, forms};

/// A shorter secret, in bytes, may be a word that stands anywhere by chance.
const SHORTEST: usize = 12;
/// The same, of a secret that has letters alone.
const SHORTEST_OF_LETTERS: usize = 20;
/// Of a longer form, in bytes, its beginning is looked for.
const LONGEST: usize = 256;
/// A longer secret, in bytes, is looked for as it is alone.
const LONGEST_ENCODED: usize = 4 * 1024;
/// So much is looked at at a time, in bytes.
const WINDOW: usize = 64 * 1024;
/// So many secrets are looked for at the most.
const MOST: usize = 256;

/// Looks for secrets in bytes that ought to hold none: as they are, encoded, escaped and quoted, in the case
/// that they have.
///
/// What may stand anywhere by chance is not looked for: less than twelve bytes, or less than twenty letters.
/// Clones share what is looked for.
#[derive(Clone, Default)]
pub struct Tripwire {
    forms: Option<AhoCorasick>,
    /// Whose form each of them is.
    names: Vec<String>,
}

impl Tripwire {
    /// Looks for these, each with the name by which its owner knows it.
    pub fn new(secrets: impl IntoIterator<Item = (String, Secret)>) -> Self {
        let (mut names, mut known) = (Vec::new(), Vec::new());
        let secrets = secrets.into_iter().filter(|(_, secret)| is_telling(secret.expose().trim()));
        for (name, secret) in secrets.take(MOST) {
            let text = secret.expose().trim();
            let forms = match text.len() {
                ..=LONGEST_ENCODED => forms::of(text),
                _ => vec![text.to_owned().into()],
            };
            for form in forms.into_iter().filter(|form| form.len() >= SHORTEST) {
                names.push(name.clone());
                known.push(form.as_bytes()[..form.len().min(LONGEST)].to_vec());
            }
        }
        if known.is_empty() {
            return Self::default();
        }
        // Which one is found does not matter, and this kind is the fastest.
        let forms = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostFirst)
            .build(&known)
            .expect("what is looked for is bounded");
        Self { forms: Some(forms), names }
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.forms.is_none()
    }

    /// The name of a secret that is in here.
    pub fn find(&self, bytes: impl AsRef<[u8]>) -> Option<&str> {
        let found = self.forms.as_ref()?.find(bytes.as_ref())?;
        Some(&self.names[found.pattern()])
    }

    /// The same, of what can be read. It is read up to the first one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn find_in(&self, mut bytes: impl Read) -> io::Result<Option<&str>> {
        let mut window = vec![0; WINDOW];
        let mut filled = 0;
        loop {
            let read = match bytes.read(&mut window[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                return Ok(None);
            }
            // What was read before may have the beginning of a form.
            let from = filled.saturating_sub(LONGEST - 1);
            filled += read;
            if let Some(name) = self.find(&window[from..filled]) {
                return Ok(Some(name));
            }
            if filled == WINDOW {
                window.copy_within(WINDOW - (LONGEST - 1).., 0);
                filled = LONGEST - 1;
            }
        }
    }
}

fn is_telling(text: &str) -> bool {
    let letters_alone = text.chars().all(char::is_alphabetic);
    text.len() >= if letters_alone { SHORTEST_OF_LETTERS } else { SHORTEST }
}

impl fmt::Debug for Tripwire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tripwire({} forms)", self.names.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tripwire(text: &str) -> Tripwire {
        Tripwire::new([("its name".to_owned(), Secret::new(text))])
    }

    #[test]
    fn a_secret_is_found_as_it_is_and_encoded() {
        let wire = tripwire("s3cr3t/of-mine\n");
        for text in [
            "KEY=s3cr3t/of-mine",
            "s3cr3t%2Fof-mine",
            "czNjcjN0L29mLW1pbmUK",
            "eHN6czNjcjN0L29mLW1pbmV5",
            "\"s3cr3t\\/of-mine\"",
        ] {
            assert_eq!(wire.find(text), Some("its name"), "{text}");
        }
        for text in ["", "s3cr3t", "S3CR3T/OF-MINF", "s3cr3t/of-"] {
            assert_eq!(wire.find(text), None, "{text}");
        }
    }

    #[test]
    fn what_may_stand_anywhere_by_chance_is_not_looked_for() {
        for text in ["", "production", "us-east-1", "organisations", "   x   "] {
            assert!(tripwire(text).is_empty(), "{text}");
        }
        assert!(!tripwire("correcthorsebatterystaple").is_empty());
        assert!(!tripwire("hunter2hunter2").is_empty());
        assert_eq!(Tripwire::default().find("anything"), None);
    }

    /// Gives its bytes a few at a time.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let some = self.0.len().min(5).min(buffer.len());
            self.0.read(&mut buffer[..some])
        }
    }

    #[test]
    fn a_secret_is_found_whatever_pieces_it_is_read_in() {
        let wire = tripwire("s3cr3t/of-mine");
        for before in (WINDOW - 20..WINDOW + 20).chain([0, 1, 200_000]) {
            let mut bytes = vec![0xff; before];
            bytes.extend_from_slice(b"s3cr3t/of-mine");
            let cut = &bytes[..bytes.len() - 1];
            assert_eq!(wire.find_in(Drip(&bytes)).expect("read"), Some("its name"));
            assert_eq!(wire.find_in(&*bytes).expect("read"), Some("its name"), "{before}");
            assert_eq!(wire.find_in(cut).expect("read"), None, "{before}");
        }
    }
}
