//! The colours that a build gives its output, and nothing else of what it tells a terminal.
//!
//! No sequence is passed on as it was written: the style of each character is worked out, and said anew in one form.
//! So no sequence holds what was put into it, none conceals what it is about, and each line ends as it began.

use super::visible::{begins_escape, escape_length};

/// After so many changes in one line the rest of it has no colours.
const MOST_CHANGES: usize = 100;
/// Behind what was cut.
const CUT: &str = " […]";

/// How a character looks. Colours are the sixteen of a terminal: 30 to 37 and 90 to 97.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Style {
    bold: bool,
    dim: bool,
    italic: bool,
    underlined: bool,
    struck: bool,
    front: Option<u8>,
    /// 40 to 47 and 100 to 107.
    back: Option<u8>,
}

/// A text in its colours, without any other order to a terminal and without control characters; tabs stay. It is cut
/// to so many visible bytes.
pub fn with_colours(text: &str, longest: usize) -> String {
    let mut shown = String::with_capacity(text.len());
    let (mut style, mut drawn) = (Style::default(), Style::default());
    let (mut visible, mut changes) = (0, 0);
    let mut rest = text;
    let mut is_cut = false;
    while let Some(c) = rest.chars().next() {
        if begins_escape(c) {
            let (sequence, behind) = rest.split_at(escape_length(rest));
            style.apply(sequence);
            rest = behind;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        if c != '\t' && c.is_control() {
            continue;
        }
        visible += c.len_utf8();
        if visible > longest {
            is_cut = true;
            break;
        }
        let wanted = if changes < MOST_CHANGES { style.seen() } else { Style::default() };
        if wanted != drawn {
            wanted.write(&mut shown);
            drawn = wanted;
            changes += 1;
        }
        shown.push(c);
    }
    if drawn != Style::default() {
        Style::default().write(&mut shown);
    }
    if is_cut {
        shown.push_str(CUT);
    }
    shown
}

impl Style {
    /// Takes in a sequence, if it is one about colours.
    fn apply(&mut self, sequence: &str) {
        let parameters = sequence.strip_prefix("\u{1b}[").or(sequence.strip_prefix('\u{9b}'));
        let Some(parameters) = parameters.and_then(|rest| rest.strip_suffix('m')) else { return };
        if !parameters.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')) {
            return;
        }
        let mut codes = parameters.split([';', ':']).map(|code| match code {
            "" => Some(0),
            code => code.parse::<u8>().ok(),
        });
        while let Some(code) = codes.next() {
            let Some(code) = code else { continue };
            match code {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                3 => self.italic = true,
                4 => self.underlined = true,
                9 => self.struck = true,
                22 => (self.bold, self.dim) = (false, false),
                23 => self.italic = false,
                24 => self.underlined = false,
                29 => self.struck = false,
                30..=37 | 90..=97 => self.front = Some(code),
                38 => self.front = mixed(&mut codes).map(|colour| colour + 30).or(self.front),
                39 => self.front = None,
                40..=47 | 100..=107 => self.back = Some(code),
                48 => self.back = mixed(&mut codes).map(|colour| colour + 40).or(self.back),
                49 => self.back = None,
                _ => {}
            }
        }
    }

    /// The same, such that it is seen: not on a ground of its own colour.
    fn seen(self) -> Self {
        let hue = |code: u8| code % 10;
        let is_hidden = match (self.front, self.back) {
            (Some(front), Some(back)) => hue(front) == hue(back),
            // A terminal's own colour is black or white, as a rule.
            (None, Some(back)) => matches!(hue(back), 0 | 7),
            (Some(_) | None, None) => false,
        };
        if is_hidden { Self { back: None, ..self } } else { self }
    }

    fn write(self, text: &mut String) {
        text.push_str("\u{1b}[0");
        let flags = [
            (self.bold, 1),
            (self.dim, 2),
            (self.italic, 3),
            (self.underlined, 4),
            (self.struck, 9),
        ];
        let flags = flags.into_iter().filter_map(|(is_set, code)| is_set.then_some(code));
        for code in flags.chain(self.front).chain(self.back) {
            text.push_str(&format!(";{code}"));
        }
        text.push('m');
    }
}

/// The nearest of the eight colours to the one that the codes behind 38 and 48 mix.
fn mixed(codes: &mut impl Iterator<Item = Option<u8>>) -> Option<u8> {
    let of = |red: u8, green: u8, blue: u8| {
        u8::from(red > 127) + 2 * u8::from(green > 127) + 4 * u8::from(blue > 127)
    };
    let mut next = || codes.next().flatten();
    match next()? {
        2 => Some(of(next()?, next()?, next()?)),
        5 => Some(match next()? {
            number @ 0..=15 => number % 8,
            244.. => 7,
            232.. => 0,
            number => {
                let (red, green, blue) =
                    ((number - 16) / 36, (number - 16) / 6 % 6, (number - 16) % 6);
                of(red * 51, green * 51, blue * 51)
            }
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::without_escapes;
    use super::*;

    fn coloured(text: &str) -> String {
        with_colours(text, 1000).replace('\u{1b}', "^")
    }

    #[test]
    fn colours_are_kept_in_one_form_and_all_other_orders_go() {
        for (text, shown) in [
            ("plain\ttext", "plain\ttext"),
            ("\u{1b}[31mred\u{1b}[0m.", "^[0;31mred^[0m."),
            ("\u{1b}[1;32m\u{1b}[Kok\u{1b}[m", "^[0;1;32mok^[0m"),
            ("\u{9b}91mx\u{1b}[39my", "^[0;91mx^[0my"),
            (
                "\u{1b}[38;5;208mx\u{1b}[38;2;0;0;255my\u{1b}[48:5:22mz",
                "^[0;31mx^[0;34my^[0;34;40mz^[0m",
            ),
            ("\u{1b}[4;9;3;2mx\u{1b}[24;29;23;22my", "^[0;2;3;4;9mx^[0my"),
            ("a\u{1b}[31m\u{1b}[0mb\u{1b}[31m", "ab"),
            ("\u{1b}]0;title\u{7}x\u{8}\u{1b}[2J\u{1b}(By\r", "xy"),
            // What conceals, blinks or turns is no colour.
            ("\u{1b}[8;5;7mx", "x"),
            ("\u{1b}[30;40mx\u{1b}[0;47my\u{1b}[97;41mz", "^[0;30mx^[0my^[0;97;41mz^[0m"),
            ("\u{1b}[?31mx\u{1b}[>4;1my\u{1b}[999;31mz", "xy^[0;31mz^[0m"),
            ("\u{1b}[38;5mx\u{1b}[38;7;1my", "x^[0;1my^[0m"),
        ] {
            assert_eq!(coloured(text), shown, "{text:?}");
        }
    }

    #[test]
    fn a_line_is_cut_where_it_is_without_colours_and_has_no_end_of_changes() {
        assert_eq!(with_colours("\u{1b}[31mééé", 5), "\u{1b}[0;31méé\u{1b}[0m […]");
        assert_eq!(with_colours("ééé", 6), "ééé");
        let rainbow: String = (0..10_000).map(|n| format!("\u{1b}[3{}mx", n % 7 + 1)).collect();
        let shown = with_colours(&rainbow, 2048);
        assert!(shown.len() < 4096, "{}", shown.len());
        assert_eq!(without_escapes(&shown), "x".repeat(2048) + CUT);
    }
}
