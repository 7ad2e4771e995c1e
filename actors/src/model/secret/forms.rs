//! The ways in which programs write a text: encoded, escaped and quoted.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// The text itself, and each way to write it that differs; letters in one case where both are used.
pub(super) fn of(text: &str) -> Vec<Zeroizing<String>> {
    let mut forms: Vec<Zeroizing<String>> = Vec::new();
    let mut add = |form: String| {
        let form = Zeroizing::new(form);
        if !forms.contains(&form) {
            forms.push(form);
        }
    };
    add(text.to_owned());
    base64(text.as_bytes()).into_iter().for_each(&mut add);
    for safe in ["-_.~", "-_.~!'()*", "-_.~!'()*;,/?:@&=+$#"] {
        let url = url(text, safe);
        add(url.replace("%20", "+"));
        add(url);
    }
    for between in ["", " ", ":", "%", "\\x"] {
        add(hex(text.as_bytes(), between));
    }
    let json = json(text);
    add(json.replace('/', "\\/"));
    add(html_safe(&json));
    add(ascii(&json));
    add(json);
    for quote in ["'\\''", "'\"'\"'"] {
        add(text.replace('\'', quote));
    }
    add(escaped(text, "\\\"$`!"));
    add(escaped(text, "\\\"$`"));
    add(escaped(text, " \t!\"#$&'()*,;<=>?[\\]^`{|}~"));
    let [ansi, octal] = ansi_quoted(text);
    add(ansi);
    add(octal);
    add(text.to_uppercase());
    add(text.to_lowercase());
    forms
}

/// What is sure to stand in the base64 of anything that holds these bytes, wherever it holds them. The
/// characters that its neighbours have a part in are left out.
fn base64(bytes: &[u8]) -> Vec<String> {
    let mut forms = Vec::new();
    for (before, shared) in [(0, 0), (1, 2), (2, 3)] {
        let shifted = Zeroizing::new([&[0; 2][..before], bytes].concat());
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let mut text = engine.encode(&*shifted);
            if shifted.len() % 3 != 0 {
                text.pop();
            }
            forms.push(text.get(shared..).unwrap_or_default().to_owned());
        }
    }
    forms
}

fn hex(bytes: &[u8], between: &str) -> String {
    let mut text = String::with_capacity(bytes.len() * (2 + between.len()));
    for byte in bytes {
        let _ = write!(text, "{between}{byte:02x}");
    }
    // What stands between two bytes need not stand before the first.
    text.get(between.len()..).unwrap_or_default().to_owned()
}

/// Percent-encoded, but for letters, digits and these marks.
fn url(text: &str, safe: &str) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || safe.as_bytes().contains(&byte) {
            url.push(byte.into());
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// As it stands in a JSON string.
fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// What some writers of JSON do so that it can stand in HTML.
fn html_safe(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// What some writers of JSON do so that it is ASCII.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

/// With a backslash before each of these marks.
fn escaped(text: &str, marks: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if marks.contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// As it stands in `$'…'`: with characters that cannot be printed by their names, or else as octal numbers.
fn ansi_quoted(text: &str) -> [String; 2] {
    let (mut named, mut octal) = (String::new(), String::new());
    for c in text.chars() {
        let name = match c {
            '\\' | '\'' => Some(c),
            '\n' => Some('n'),
            '\r' => Some('r'),
            '\t' => Some('t'),
            '\u{7}' => Some('a'),
            '\u{8}' => Some('b'),
            '\u{b}' => Some('v'),
            '\u{c}' => Some('f'),
            '\u{1b}' => Some('E'),
            _ => None,
        };
        if let Some(name) = name {
            named.extend(['\\', name]);
        } else if c.is_control() {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(named, "\\{byte:03o}");
            }
        } else {
            named.push(c);
        }
        match name {
            Some('\\' | '\'') => octal.extend(['\\', c]),
            _ if c.is_ascii() && !c.is_control() => octal.push(c),
            _ => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(octal, "\\{byte:03o}");
                }
            }
        }
    }
    [named, octal]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_known_in_the_forms_that_programs_write() {
        let forms = of("a/b 'c' \"$d\"<é\n\u{1b}");
        for known in [
            "a/b 'c' \"$d\"<é\n\u{1b}",
            "a%2Fb%20%27c%27%20%22%24d%22%3C%C3%A9%0A%1B",
            "a%2Fb+%27c%27+%22%24d%22%3C%C3%A9%0A%1B",
            "a/b%20'c'%20%22$d%22%3C%C3%A9%0A%1B",
            "612f6220276327202224642",
            "61 2f 62 20 27",
            "61\\x2f\\x62\\x20",
            "a/b 'c' \\\"$d\\\"<é\\n\\u001b",
            "a\\/b 'c' \\\"$d\\\"<é\\n\\u001b",
            "a/b 'c' \\\"$d\\\"\\u003cé\\n\\u001b",
            "a/b 'c' \\\"$d\\\"<\\u00e9\\n\\u001b",
            "a/b '\\''c'\\'' \"$d\"<é\n\u{1b}",
            "a/b 'c' \\\"\\$d\\\"<é\n\u{1b}",
            "a/b\\ \\'c\\'\\ \\\"\\$d\\\"\\<é\n\u{1b}",
            "a/b \\'c\\' \"$d\"<é\\n\\E",
            "a/b \\'c\\' \"$d\"<\\303\\251\\012\\033",
            "A/B 'C' \"$D\"<É\n\u{1b}",
        ] {
            assert!(forms.iter().any(|form| form.starts_with(known)), "{known:?}: {forms:#?}");
        }
    }

    #[test]
    fn base64_is_known_wherever_the_text_begins_and_ends() {
        let text = "s3cr3t-\u{ff}\u{ff}?>";
        for length in [1, 2, 3, 6, 7, 8, 15] {
            let text = &text.as_bytes()[..length.min(text.len())];
            for before in 0..4 {
                for after in 0..4 {
                    let around = [&b"\xffxyz"[..before], text, &b"zyx\xff"[..after]].concat();
                    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
                        let encoded = engine.encode(&around);
                        let known = base64(text);
                        assert!(
                            known.iter().any(|form| !form.is_empty() && encoded.contains(&**form))
                                || length == 1,
                            "{encoded} {known:?}"
                        );
                    }
                }
            }
        }
    }
}
