//! What has to hold of any names and any secrets: tried with many, the same ones each time. What nobody thought of is
//! for the fuzz targets (`tests/fuzz`) to find.

use std::collections::HashMap;
use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::reference::ImageReference;
use super::secret::{Redactor, Secret, without_escapes};
use crate::testing::draw::Draw;

/// A text of these parts, so many from this range.
fn text(draw: &mut Draw, parts: &[&str], shortest: usize, longest: usize) -> String {
    let length = shortest + draw.below(longest - shortest + 1);
    (0..length).map(|_| draw.of(parts)).collect()
}

#[test]
fn no_two_users_or_applications_share_an_image_name() {
    let parts =
        ["a", "A", "-", "--", ".", "_", "__", "/", "0", "é", "ß", " ", "x-", "%2f", "\u{0}"];
    let mut draw = Draw::new(0x9e37_79b9_7f4a_7c15);
    let mut names: HashMap<String, (String, String)> = HashMap::new();
    for _ in 0..20_000 {
        let pair = (text(&mut draw, &parts, 0, 4), text(&mut draw, &parts, 0, 4));
        let name = ImageReference::for_build("r.example", &pair.0, &pair.1, "tag").repository;
        // What stands in for a text that is none of a registry's may be somebody's own name.
        for altered in name.split('/') {
            let posing = (altered.to_owned(), pair.1.clone());
            let taken =
                ImageReference::for_build("r.example", &posing.0, &posing.1, "tag").repository;
            let known = names.insert(taken.clone(), posing.clone());
            assert!(known.is_none_or(|known| known == posing), "{posing:?} shares {taken}");
        }
        let known = names.insert(name.clone(), pair.clone());
        assert!(known.as_ref().is_none_or(|known| *known == pair), "{known:?}, {pair:?}: {name}");
    }
}

/// The ways in which a secret is written down, by other code than that which looks for it.
fn written(secret: &str, draw: &mut Draw) -> String {
    let each = |bytes: &[u8], before: &str| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{before}{byte:02x}").expect("into memory");
            text
        })
    };
    let padded = || {
        let before = "xyz";
        format!("{}{secret}{}", &before[..secret.len() % 3], &before[..secret.len() % 2])
    };
    match draw.below(9) {
        0 => secret.to_owned(),
        1 => secret.to_uppercase(),
        2 => STANDARD.encode(padded()),
        3 => URL_SAFE_NO_PAD.encode(padded()),
        4 => each(secret.as_bytes(), ""),
        5 => each(secret.as_bytes(), "%"),
        6 => each(secret.as_bytes(), "\\x"),
        7 => serde_json::Value::from(secret).to_string(),
        _ => {
            // What a terminal does not show, between any two characters.
            let hidden = ["\u{1b}[1m", "\u{1b}]0;t\u{7}", "\u{200b}", "\u{0}", "\u{ad}", ""];
            secret.chars().flat_map(|c| [c.to_string(), draw.of(&hidden).to_owned()]).collect()
        }
    }
}

#[test]
fn no_secret_survives_in_any_of_its_forms() {
    let parts = ["k", "Z", "7", "/", "+", "=", "'", "\"", "\\", "$", "%", "é", "-", "_", "<"];
    let around = [" ", "a", "=", "\"", "\n", "\u{1b}[0m", "ö", ":", "/"];
    let mut draw = Draw::new(0x2545_f491_4f6c_dd1d);
    for _ in 0..100 {
        let secret = text(&mut draw, &parts, 12, 40);
        let redactor = Redactor::new([Secret::new(secret.clone())]);
        for _ in 0..20 {
            let form = written(&secret, &mut draw);
            let text = format!(
                "{}{form}{}",
                text(&mut draw, &around, 0, 4),
                text(&mut draw, &around, 0, 4)
            );
            let clean = redactor.redact(&text);
            assert!(clean.contains("[secret]"), "{secret:?} as {text:?} is left: {clean:?}");
            let shown = without_escapes(&clean);
            assert!(!shown.contains(&secret), "{secret:?} as {text:?} is left: {clean:?}");
        }
    }
}
