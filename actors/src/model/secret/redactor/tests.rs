use std::time::Instant;

use super::*;
use crate::testing::draw::Draw;

fn redactor(secret: &str) -> Redactor {
    Redactor::new([Secret::new(secret)])
}

#[test]
fn a_secret_is_known_in_every_form() {
    let redactor = redactor("pa$s/'word\" <é>");
    for (text, clean) in [
        ("x pa$s/'word\" <é> y", "x [secret] y"),
        ("x PA$S/'WORD\" <É> y", "x [secret] y"),
        ("?a=pa%24s%2F%27word%22%20%3C%C3%A9%3E&", "?a=[secret]&"),
        ("?a=pa%24s%2f%27word%22+%3c%c3%a9%3e&", "?a=[secret]&"),
        ("70612473 2F27 ", "70612473 2F27 "),
        ("70612473 7061247 3", "70612473 7061247 3"),
        ("[706124732F27776F726422203CC3A93E]", "[[secret]]"),
        ("70 61 24 73 2f 27 77 6f 72 64 22 20 3c c3 a9 3e", "[secret]"),
        (r#"{"a":"pa$s/'word\" <é>"}"#, r#"{"a":"[secret]"}"#),
        (r#"{"a":"pa$s\/'word\" <é>"}"#, r#"{"a":"[secret]"}"#),
        (r#"{"a":"pa$s/'word\" \u003cé\u003e"}"#, r#"{"a":"[secret]"}"#),
        (r#"{"a":"pa$s/'word\" <\u00e9>"}"#, r#"{"a":"[secret]"}"#),
        (r#"+ echo 'pa$s/'\''word" <é>'"#, "+ echo '[secret]'"),
        (r#"+ echo "pa\$s/'word\" <é>""#, "+ echo \"[secret]\""),
        (r#"+ echo $'pa$s/\'word" <\303\251>'"#, "+ echo $'[secret]'"),
        (r#"+ echo pa\$s/\'word\"\ \<é\>"#, "+ echo [secret]"),
        ("pa\u{1b}[31m$s/'wo\u{1b}[0mrd\" <é>", "[secret]"),
        ("\u{1b}]0;pa$s/'word\" <é>\u{7}", "\u{1b}]0;[secret]\u{7}"),
        ("p\u{200b}a$s/'\u{0}wo\trd\"\r\n <é>", "[secret]"),
        ("pa$s/'word\" <e>", "pa$s/'word\" <e>"),
    ] {
        assert_eq!(redactor.redact(text), clean, "{text:?}");
    }
}

#[test]
fn a_secret_with_control_characters_is_known_with_and_without_them() {
    let redactor = redactor("s3c\u{7}r3t\u{1b}[1mx\ty");
    for text in ["s3c\u{7}r3t\u{1b}[1mx\ty", "s3cr3txy", "s3cr3t[1mxy"] {
        assert_eq!(redactor.redact(text), "[secret]", "{text:?}");
    }
    assert_eq!(redactor.redact(r#""s3c\u0007r3t\u001b[1mx\ty""#), "\"[secret]\"");
}

#[test]
fn a_secret_of_several_lines_is_known_as_a_whole_and_by_its_lines() {
    let redactor = redactor("-----BEGIN-----\nMIIEvQIBADANBg\nok\n");
    assert_eq!(redactor.redact("it is MIIEvQIBADANBg ok"), "it is [secret] ok");
    assert_eq!(redactor.redact("<-----BEGIN-----\r\nMIIEvQIBADANBg\r\nok>"), "<[secret]>");
}

#[test]
fn secrets_that_overlap_go_together() {
    let redactor = Redactor::new(["abcd", "abcdef", "efgh", "x"].map(Secret::new));
    assert_eq!(redactor.redact("x abcdef abcd abcdefgh"), "x [secret] [secret] [secret]");
}

#[test]
fn a_secret_of_three_bytes_is_known_as_a_word_and_a_shorter_one_is_not() {
    let redactor = Redactor::new(["abc", "12"].map(Secret::new));
    let text = "abc=ABC,xabc abcs abc_ 12 'abc'";
    assert_eq!(redactor.redact(text), "[secret]=[secret],xabc abcs abc_ 12 '[secret]'");
    assert_eq!(redactor.redact("61:62:63"), "[secret]");
}

#[test]
fn a_secret_of_nothing_is_none() {
    let redactor = Redactor::new(["", " ", "\n", "\u{1b}[1m"].map(Secret::new));
    assert_eq!(redactor.redact("a \n\u{1b}[1mb"), "a \n\u{1b}[1mb");
}

#[test]
fn a_long_secret_is_known_by_its_pieces() {
    let long: String = (0..2_000).map(|n| format!("{n:04}")).collect();
    let redactor = redactor(&long);
    assert_eq!(redactor.redact(&format!("<{long}>")).matches("[secret]").count(), 32);
    let part = &long[PIECE..2 * PIECE];
    assert_eq!(redactor.redact(&format!("<{part}>")), "<[secret]>");
}

#[test]
fn the_beginning_of_a_secret_at_the_end_of_a_text_is_known() {
    let redactor = redactor("correct horse battery");
    for (text, at) in [
        ("x correct ho", Some(2)),
        ("x corr", Some(2)),
        ("x CORRECT\n ho\u{1b}[0m\n", Some(2)),
        ("x cor", None),
        ("correct horse battery", None),
        ("correct horse x", None),
        ("", None),
    ] {
        assert_eq!(redactor.unfinished(text), at, "{text:?}");
    }
    assert_eq!(Redactor::default().unfinished("corr"), None);
}

fn text(draw: &mut Draw, characters: usize) -> String {
    const ODD: [char; 16] =
        [' ', '"', '\'', '\\', '/', '$', '&', '<', '%', '+', 'é', '€', '😀', '\n', '\t', '\u{7}'];
    (0..characters)
        .map(|_| match draw.below(4) {
            0 => ODD[draw.below(ODD.len())],
            1 => char::from(b'0' + draw.below(10) as u8),
            _ => char::from(b'a' + draw.below(26) as u8),
        })
        .collect()
}

/// What a terminal does not show, put between any two characters of a text.
fn interspersed(draw: &mut Draw, text: &str) -> String {
    const BETWEEN: [&str; 6] =
        ["\u{1b}[1m", "\u{1b}]8;;x\u{7}", "\n", "\r\n", "\u{200b}", "\u{1b}[0K"];
    let mut mixed = String::new();
    for c in text.chars() {
        mixed.push(c);
        if draw.below(6) == 0 {
            mixed.push_str(BETWEEN[draw.below(BETWEEN.len())]);
        }
    }
    mixed
}

#[test]
fn no_secret_survives() {
    let mut draw = Draw::new(1);
    for round in 0..150 {
        let (length, around) = (4 + draw.below(40), 1 + draw.below(20));
        let secret = format!("S{}Z", text(&mut draw, length));
        let redactor = redactor(&secret);
        for form in forms::of(secret.trim()) {
            let shown = String::from_utf8_lossy(&Visible::of(&form, true).bytes).into_owned();
            if shown.len() < SHORTEST {
                continue;
            }
            let (before, after) = (text(&mut draw, around), text(&mut draw, around));
            let written = interspersed(&mut draw, &shown);
            let clean = redactor.redact(&format!("{before} {written} {after}"));
            let left = String::from_utf8_lossy(&Visible::of(&clean, true).bytes).to_lowercase();
            assert!(
                !left.contains(&shown.to_lowercase()),
                "{round}: {secret:?} as {form:?}: {clean:?}"
            );
            assert!(clean.contains(PLACEHOLDER), "{round}: {secret:?} as {form:?}: {clean:?}");
        }
    }
}

#[test]
fn requests_with_many_and_long_secrets_cost_little() {
    let started = Instant::now();
    let many = Redactor::new((0..5_000).map(|n| Secret::new(format!("{n:08}"))));
    let long = redactor(&"0123456789abcdef\n".repeat(4_000));
    assert_eq!(many.redact("x 00004999"), "x [secret]");
    assert_eq!(long.redact("x 0123456789abcdef"), "x [secret]");
    let heads: usize = many.0.iter().map(|known| known.heads.memory_usage()).sum();
    assert!(heads < 64 << 20, "{heads} bytes");
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}
