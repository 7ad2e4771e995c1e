//! What the person sees: lines, in colours where it is a terminal that shows them.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Columns that a line of a build's output may take.
const WIDTH: usize = 110;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    Plain,
    Dim,
    Bold,
    Red,
    Green,
    Yellow,
    Cyan,
    Magenta,
    Blue,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Colour::Plain => "0",
            Colour::Dim => "2",
            Colour::Bold => "1",
            Colour::Red => "31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Cyan => "36",
            Colour::Magenta => "35",
            Colour::Blue => "34",
        }
    }
}

pub(crate) struct Screen {
    colours: bool,
    started: Instant,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours, started: Instant::now() }
    }

    /// A part of the demo begins.
    pub(crate) fn heading(&self, text: &str) {
        self.line(Colour::Plain, "");
        self.line(Colour::Bold, text);
        self.line(Colour::Dim, &"─".repeat(text.chars().count()));
    }

    pub(crate) fn line(&self, colour: Colour, text: &str) {
        self.write(&self.paint(colour, text));
    }

    /// Several lines, indented.
    pub(crate) fn block(&self, colour: Colour, text: &str) {
        for line in text.trim_end().lines() {
            self.write(&format!("    {}", self.paint(colour, line)));
        }
    }

    /// Something that happened to a build: when, to which one, where, and what.
    pub(crate) fn event(
        &self,
        who: &str,
        colour: Colour,
        place: &str,
        text_colour: Colour,
        text: &str,
    ) {
        let time = clock(self.started.elapsed());
        self.write(&format!(
            "{} {} {} {}",
            self.paint(Colour::Dim, &time),
            self.paint(colour, &format!("{who:<8}")),
            self.paint(Colour::Plain, &format!("{place:<10}")),
            self.paint(text_colour, &cut(text)),
        ));
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if !self.colours || colour == Colour::Plain {
            return text.to_owned();
        }
        format!("\x1b[{}m{text}\x1b[0m", colour.code())
    }

    /// A reader that went away (`make demo | head`) is no reason to leave things lying about.
    fn write(&self, line: &str) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

fn clock(time: Duration) -> String {
    let tenths = time.as_millis() / 100;
    format!("{:>3}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10)
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
