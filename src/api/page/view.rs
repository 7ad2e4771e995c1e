//! What all pages have in common.

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use image_builder_actors::ports::build_store::BuildState;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

use super::assets;
use crate::net::address::encoded;

/// What stands around each page.
pub(super) struct Frame {
    pub(super) title: String,
    /// The entry of the menu that it belongs to; empty = none.
    pub(super) here: &'static str,
    /// What forms show; empty where none need to.
    pub(super) form_token: String,
    /// Whether somebody is logged in.
    pub(super) is_logged_in: bool,
    /// Whether the menu is of use.
    pub(super) has_menu: bool,
    pub(super) assets: &'static str,
}

impl Frame {
    /// For whoever is not known.
    pub(super) fn bare(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            here: "",
            form_token: String::new(),
            is_logged_in: false,
            has_menu: false,
            assets: &assets::VERSION,
        }
    }
}

/// A page, rendered.
pub(super) fn html(page: &impl Template) -> Response {
    Html(page.render().expect("a template that was compiled")).into_response()
}

/// A moment.
#[derive(Debug, Clone)]
pub(super) struct When {
    /// For machines.
    pub(super) iso: String,
    /// For whoever wants to know exactly.
    pub(super) exact: String,
    /// How long ago it is.
    pub(super) ago: String,
    /// The same as a length.
    pub(super) away: String,
}

impl When {
    pub(super) fn new(moment: OffsetDateTime) -> Self {
        let away = OffsetDateTime::now_utc() - moment;
        let exact = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
        let iso = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
        let format = |description| moment.format(description).unwrap_or_else(|_| "-".to_owned());
        let length = coarse(away.abs());
        let ago = match away.abs() {
            near if near < Duration::seconds(1) => "now".to_owned(),
            _ if away.is_negative() => format!("in {length}"),
            _ => format!("{length} ago"),
        };
        Self { iso: format(iso), exact: format(exact), ago, away: length }
    }
}

/// How long something is, in its largest unit.
fn coarse(length: Duration) -> String {
    let units = [
        (length.whole_days(), "d"),
        (length.whole_hours(), "h"),
        (length.whole_minutes(), "min"),
        (length.whole_seconds(), "s"),
    ];
    let (count, unit) = units.into_iter().find(|(count, _)| *count > 0).unwrap_or((0, "s"));
    format!("{count}\u{a0}{unit}")
}

/// How long something took.
pub(super) fn took(length: Duration) -> String {
    let seconds = length.as_seconds_f64().max(0.0);
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.1}\u{a0}s"),
        10..60 => format!("{whole}\u{a0}s"),
        60..3600 => format!("{}\u{a0}min {:02}\u{a0}s", whole / 60, whole % 60),
        _ => format!("{}\u{a0}h {:02}\u{a0}min", whole / 3600, whole % 3600 / 60),
    }
}

/// So many bytes, in the unit that fits.
pub(super) fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut amount = bytes as f64;
    let mut unit = "B";
    for next in units {
        if amount < 1000.0 {
            break;
        }
        amount /= 1000.0;
        unit = next;
    }
    if unit == "B" || amount >= 100.0 {
        format!("{amount:.0}\u{a0}{unit}")
    } else {
        format!("{amount:.1}\u{a0}{unit}")
    }
}

/// A number that people read: `12 345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{2009}');
        }
        text.push(digit);
    }
    text
}

/// What a state is called in a heading.
pub(super) fn title_of(state: BuildState) -> &'static str {
    match state {
        BuildState::Queued => "Queued",
        BuildState::Fetching => "Fetching",
        BuildState::Building => "Building",
        BuildState::Pushing => "Pushing",
        BuildState::Waiting => "Waiting",
        BuildState::Ready => "Ready",
        BuildState::Failed => "Failed",
        BuildState::Cancelled => "Cancelled",
    }
}

/// Part of an address: nothing, or what stands behind the question mark.
pub(super) fn query<'a>(parts: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> String {
    let said = parts.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let said: Vec<_> = said.filter(|(_, value)| !value.is_empty()).collect();
    match serde_urlencoded::to_string(said) {
        Ok(text) if !text.is_empty() => format!("?{text}"),
        _ => String::new(),
    }
}

/// Where a build of this id is shown; of a user, where it is said whose it is.
pub fn path_of(id: &str, user: Option<&str>) -> String {
    format!("/builds/{}{}", encoded(id), query([("user", user)]))
}

/// A part of a log, as it can be read without the script: no escape sequence of a terminal, and no other character
/// that is not seen.
pub(super) fn readable(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let mut lines = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                // A sequence ends with a letter, and holds nothing but these until then.
                while chars.next_if(|c| matches!(c, '\u{20}'..='\u{3f}')).is_some() {}
                chars.next_if(|c| matches!(c, '\u{40}'..='\u{7e}'));
            }
            '\r' if chars.peek() == Some(&'\n') => {}
            '\r' => lines.push('\n'),
            '\n' | '\t' => lines.push(c),
            c if c.is_control() || crate::text::is_unsafe(c) => lines.push('\u{fffd}'),
            c => lines.push(c),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_said_in_the_unit_that_fits() {
        for (millis, text) in [
            (0, "0.0\u{a0}s"),
            (1_250, "1.2\u{a0}s"),
            (59_900, "59\u{a0}s"),
            (61_000, "1\u{a0}min 01\u{a0}s"),
            (3_725_000, "1\u{a0}h 02\u{a0}min"),
            (-5, "0.0\u{a0}s"),
        ] {
            assert_eq!(took(Duration::milliseconds(millis)), text);
        }
        for (bytes, text) in [
            (0, "0\u{a0}B"),
            (999, "999\u{a0}B"),
            (1_500, "1.5\u{a0}kB"),
            (44_272_272, "44.3\u{a0}MB"),
            (250_000_000_000, "250\u{a0}GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(
            [0, 999, 1000, 1234567].map(grouped).join(","),
            "0,999,1\u{2009}000,1\u{2009}234\u{2009}567"
        );
    }

    #[test]
    fn a_moment_says_how_far_away_it_is() {
        let ago = |seconds| When::new(OffsetDateTime::now_utc() - Duration::seconds(seconds)).ago;
        assert_eq!(ago(0), "now");
        assert_eq!(ago(90), "1\u{a0}min ago");
        assert_eq!(ago(3 * 24 * 3600 + 5), "3\u{a0}d ago");
        assert!(ago(-3605).starts_with("in 1\u{a0}h"));
    }

    #[test]
    fn nothing_of_a_log_moves_a_cursor_or_hides() {
        let log = "a\u{1b}[1;31mred\u{1b}[0m\r\nb\rc\td\u{7}\u{202e}e\u{1b}]0;title\u{1b}[";
        assert_eq!(readable(log.as_bytes()), "ared\nb\nc\td\u{fffd}\u{fffd}e\u{fffd}]0;title");
    }

    #[test]
    fn an_address_says_what_is_said() {
        let parts = [("q", Some("a b&c")), ("state", None), ("user", Some(""))];
        assert_eq!(query(parts), "?q=a+b%26c");
        assert_eq!(query([("q", None)]), "");
    }
}
