//! The mark of all secrets that tests give to the program, by which `tests/canary` and the ends of tests find one that
//! got out.
//!
//! A secret without the mark is one that a test's own user puts into an image or a log on purpose, to see what is made
//! of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// What each secret has in it.
pub const MARK: &str = "canary-4b7d";

/// A secret that no other test has.
pub fn secret(hint: &str) -> String {
    super::unique(&format!("{MARK}-{hint}"))
}

/// A text as it is, in hexadecimal, and as it looks inside of base64, wherever it begins there.
pub fn forms(secret: &str) -> Vec<String> {
    let encoded = (0..3).map(|before| {
        let padded = [&vec![0; before], secret.as_bytes()].concat();
        let encoded = STANDARD_NO_PAD.encode(padded);
        // The characters at both ends depend on what stands beside the text.
        encoded[2 * before..encoded.len() - 2].to_owned()
    });
    let hex = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    encoded.chain([hex, secret.to_owned()]).collect()
}

/// Panics if one of the texts shows the mark.
#[track_caller]
pub fn assert_not_in<'a>(what: &str, texts: impl IntoIterator<Item = &'a String>) {
    let forms = forms(MARK);
    for text in texts {
        let shown = forms.iter().find(|form| text.contains(*form));
        assert!(shown.is_none(), "a secret is in {what}: {text}");
    }
}
