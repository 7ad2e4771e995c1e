//! Text that must not be seen: it can be used, and moved in the two queues that carry credentials,
//! but never printed.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// A credential or another text that must reach no log, error, image or notification.
///
/// `Debug` and `Display` print a placeholder, and it does not implement `Serialize`: the one way to
/// the text is [`Secret::expose`], which is easy to find in a review.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Whoever calls this answers for where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// Takes known secrets out of text that others wrote (engine and forge errors, build output).
#[derive(Clone, Default)]
pub struct Redactor(Vec<Secret>);

impl Redactor {
    /// Texts of fewer than this many bytes are left alone: replacing them would only garble.
    const SHORTEST: usize = 4;
    /// Single lines of a secret are known by themselves from this many bytes on.
    const LINE: usize = 8;

    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let mut known = Vec::new();
        for secret in secrets {
            // Logs come line by line, and so must the lines of a key file be known.
            let lines =
                secret.expose().lines().map(str::trim).filter(|line| line.len() >= Self::LINE);
            known.extend(lines.map(Secret::new));
            known.push(secret);
        }
        Self::of_texts(known)
    }

    /// One that knows what either of two knows.
    pub fn and(mut self, other: &Self) -> Self {
        self.0.extend(other.0.iter().cloned());
        Self::of_texts(self.0)
    }

    fn of_texts(mut known: Vec<Secret>) -> Self {
        known.retain(|secret| secret.expose().len() >= Self::SHORTEST);
        // Longest first, so that a secret that contains another one goes whole.
        known.sort_by_key(|s| std::cmp::Reverse(s.expose().len()));
        Self(known)
    }

    /// `text` with every known secret replaced.
    pub fn redact(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret.expose(), "[secret]"))
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redactor({} secrets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("hunter2hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "[secret] [secret]");
    }

    #[test]
    fn a_redactor_knows_the_lines_of_a_secret() {
        let redactor = Redactor::new([Secret::new("-----BEGIN-----\nMIIEvQIBADANBg\nok\n")]);
        assert_eq!(redactor.redact("it is MIIEvQIBADANBg ok"), "it is [secret] ok");
    }

    #[test]
    fn a_redactor_and_another_take_the_longest_of_both_first() {
        let redactor = Redactor::new([Secret::new("abcd")]);
        let redactor = redactor.and(&Redactor::new([Secret::new("abcdef")]));
        assert_eq!(redactor.redact("abcdef abcd"), "[secret] [secret]");
    }

    #[test]
    fn a_redactor_takes_the_longest_secret_first() {
        let redactor =
            Redactor::new([Secret::new("abcd"), Secret::new("abcdef"), Secret::new("x")]);
        assert_eq!(redactor.redact("x abcdef abcd"), "x [secret] [secret]");
    }
}
