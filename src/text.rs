//! Texts as people read them on a terminal. Of a stranger's nothing moves the cursor, changes a colour or turns the
//! direction of the text.

use image_builder_actors::model::secret::with_colours;
use serde_json::Value;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, UtcOffset};

/// A stranger's text on one line: what a terminal would act upon is written as an escape, like `\u{1b}`.
pub(crate) fn plain(text: &str) -> String {
    escaped(text, |c| c.is_control() || is_unsafe(c))
}

/// The same in the colours that a build gave it.
pub(crate) fn coloured(text: &str) -> String {
    escaped(&with_colours(text, usize::MAX), is_unsafe)
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => safe.push(' '),
            c if is_escaped(c) => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// Control characters that JSON does not escape, and characters that turn or hide text.
pub(crate) fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\u{7f}'..='\u{9f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}')
}

/// At most so many characters.
pub(crate) fn shorten(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.to_owned();
    }
    text.chars().take(longest - 1).chain(['…']).collect()
}

/// JSON in which nothing is left that a terminal acts upon.
pub(crate) fn ascii(value: &Value) -> String {
    let mut safe = String::new();
    for c in value.to_string().chars() {
        if is_unsafe(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A moment, and how far away it is.
pub(crate) fn relative(moment: OffsetDateTime) -> String {
    let away = moment - OffsetDateTime::now_utc();
    let distance = distance(away);
    let distance =
        if away.is_positive() { format!("in {distance}") } else { format!("{distance} ago") };
    format!("{} ({distance})", when(moment))
}

/// How long something is, in its largest unit.
pub(crate) fn distance(length: Duration) -> String {
    let length = length.abs();
    let units =
        [(length.whole_days(), 'd'), (length.whole_hours(), 'h'), (length.whole_minutes(), 'm')];
    let (count, unit) =
        units.into_iter().find(|(count, _)| *count > 0).unwrap_or((length.whole_seconds(), 's'));
    format!("{count}{unit}")
}

pub(crate) fn when(moment: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    moment.to_offset(UtcOffset::UTC).format(format).unwrap_or_else(|_| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_colours_and_does_nothing_else_to_a_terminal() {
        let line = "\u{1b}[32mok\u{1b}[0m\t\u{1b}]0;title\u{7}\u{1b}[2Jx\u{202e}y";
        assert_eq!(coloured(line), "\u{1b}[0;32mok\u{1b}[0m x\\u{202e}y");
        assert!(plain(line).starts_with("\\u{1b}[32mok"));
    }

    #[test]
    fn a_moment_is_told_with_how_far_away_it_is() {
        let now = OffsetDateTime::now_utc();
        for (away, told) in [
            (Duration::seconds(-5), "(5s ago)"),
            (Duration::minutes(-61), "(1h ago)"),
            (Duration::hours(-49), "(2d ago)"),
            (Duration::minutes(10) + Duration::seconds(30), "(in 10m)"),
        ] {
            let text = relative(now + away);
            assert!(text.ends_with(told) && text.starts_with(&when(now + away)), "{text}");
        }
    }
}
