//! Drawing on a terminal: each frame over the one before, in one write, so that nothing flickers.

use std::io::Write;
use std::os::fd::BorrowedFd;

use rustix::termios::tcgetwinsize;
use unicode_width::UnicodeWidthStr;

const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const CLEAR_REST_OF_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
const PLAIN: &str = "\x1b[0m";

/// A terminal that does not tell its size has this one.
const USUAL: Size = Size { columns: 80, rows: 24 };

/// How a line is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Heading,
    Done,
    Running,
    Failed,
    Dim,
}

/// A line of a frame. None is wider than the terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) tone: Tone,
    pub(super) text: String,
}

/// How much there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    /// Rows of a frame: one less than the terminal has, since the cursor stands below it.
    pub(super) rows: usize,
}

/// A terminal, with the frame that it shows.
pub(super) struct Screen<W: Write> {
    out: W,
    /// Asked for its size before each frame: people resize windows.
    terminal: Option<BorrowedFd<'static>>,
    colours: bool,
    /// The columns that each line of the frame has.
    shown: Vec<usize>,
    cursor_is_hidden: bool,
}

impl<W: Write> Screen<W> {
    pub(super) fn of_stderr(out: W) -> Self {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let terminal = Some(rustix::stdio::stderr());
        Self { out, terminal, colours, shown: Vec::new(), cursor_is_hidden: false }
    }

    #[cfg(test)]
    pub(super) fn to(out: W) -> Self {
        Self { out, terminal: None, colours: true, shown: Vec::new(), cursor_is_hidden: false }
    }

    pub(super) fn size(&self) -> Size {
        let told = self.terminal.and_then(|terminal| tcgetwinsize(terminal).ok());
        match told {
            Some(told) if told.ws_col > 0 && told.ws_row > 1 => {
                Size { columns: told.ws_col.into(), rows: usize::from(told.ws_row) - 1 }
            }
            _ => USUAL,
        }
    }

    /// Draws a frame in place of the last one, on a terminal of this size.
    pub(super) fn draw(&mut self, lines: &[Line], size: Size) {
        let mut text = String::new();
        if !self.cursor_is_hidden {
            self.cursor_is_hidden = true;
            text.push_str(HIDE_CURSOR);
        }
        // A terminal that became narrower has wrapped what it shows.
        let rows = |columns: &usize| columns.div_ceil(size.columns.max(1)).max(1);
        let up: usize = self.shown.iter().map(rows).sum();
        if up > 0 {
            text.push_str(&format!("\x1b[{up}A"));
        }
        text.push('\r');
        for line in lines {
            let tone = if self.colours { tone(line.tone) } else { "" };
            text.push_str(tone);
            text.push_str(&line.text);
            if !tone.is_empty() {
                text.push_str(PLAIN);
            }
            text.push_str(CLEAR_REST_OF_LINE);
            text.push_str("\r\n");
        }
        text.push_str(CLEAR_BELOW);
        self.shown = lines.iter().map(|line| line.text.width()).collect();
        self.write(&text);
    }

    /// Leaves the frame where it is, with this text below it.
    pub(super) fn finish(&mut self, text: &str) {
        self.shown.clear();
        let cursor = if std::mem::take(&mut self.cursor_is_hidden) { SHOW_CURSOR } else { "" };
        self.write(&format!("{cursor}{text}"));
    }

    fn write(&mut self, text: &str) {
        // A terminal that is gone is no reason to stop the build.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

/// However the thread that draws ends, the cursor is shown again.
impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        if self.cursor_is_hidden {
            self.finish("");
        }
    }
}

fn tone(tone: Tone) -> &'static str {
    match tone {
        Tone::Heading | Tone::Running => "",
        Tone::Done => "\x1b[34m",
        Tone::Failed => "\x1b[31m",
        Tone::Dim => "\x1b[2m",
    }
}
