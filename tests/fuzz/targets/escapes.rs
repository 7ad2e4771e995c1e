//! Terminal escapes: what a stranger writes moves no cursor, and hides no secret that a terminal would show.

#![no_main]

use image_builder_actors::model::secret::{Redactor, Secret, without_escapes};
use image_builder_fuzz::{is_unsafe, plain};
use libfuzzer_sys::fuzz_target;

/// Twelve characters that stand in no escape sequence of the corpus.
const SECRET: &str = "QWxkYXJpb24x";

fuzz_target!(|pieces: Vec<String>| {
    // The secret, with whatever it may be between each two characters of it.
    let mut text = String::new();
    for (at, c) in SECRET.chars().enumerate() {
        text.push(c);
        text.push_str(pieces.get(at).map_or("", String::as_str));
    }
    let shown = plain(&text);
    assert!(!shown.contains(|c: char| c.is_control() || is_unsafe(c)), "{shown:?}");
    assert_eq!(plain(&shown), shown, "what is plain stays as it is");

    let clean = Redactor::new([Secret::new(SECRET)]).redact(&text);
    assert!(!without_escapes(&clean).contains(SECRET), "{text:?}: {clean:?}");
});
