//! Colours and tables, for people.

use std::io::IsTerminal;

use image_builder_actors::model::secret::without_escapes;

use crate::text::{coloured, plain};

/// A line of a build's log, for a terminal: in its colours, unless they are not wanted.
pub(in crate::cli) fn log_line(line: &str, colours: Colours) -> String {
    if colours.0 { coloured(line) } else { plain(&without_escapes(line)) }
}

/// How texts are coloured: not at all where nobody sees it, or does not want it.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::cli) struct Colours(bool);

impl Colours {
    /// For the standard output stream.
    pub(in crate::cli) fn of_stdout() -> Self {
        Self::of(&std::io::stdout())
    }

    /// For the standard error stream.
    pub(in crate::cli) fn of_stderr() -> Self {
        Self::of(&std::io::stderr())
    }

    fn of(stream: &impl IsTerminal) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let is_dumb = set("TERM").is_some_and(|term| term == "dumb");
        Self(stream.is_terminal() && set("NO_COLOR").is_none() && !is_dumb)
    }

    /// The state of a build, which `text` shows.
    pub(in crate::cli) fn state(self, state: &str, text: &str) -> String {
        let colour = match state {
            "ready" => 32,
            "failed" => 31,
            "cancelled" => 33,
            "queued" | "waiting" => 2,
            _ => 36,
        };
        if self.0 { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Lines of columns, each as wide as its widest cell but for the last. `paint` is given each cell's line (0 = the
/// heading), column and padded text.
pub(in crate::cli) fn table<const N: usize>(
    lines: &[[String; N]],
    paint: impl Fn(usize, usize, &str) -> String,
) -> String {
    let width = |text: &str| text.chars().count();
    let widest = |column: usize| lines.iter().map(|line| width(&line[column])).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(widest);
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cells = line.iter().enumerate().map(|(column, cell)| {
            let is_last = column + 1 == N;
            let pad = if is_last { 0 } else { widths[column] - width(cell) };
            paint(number, column, &format!("{cell}{}", " ".repeat(pad)))
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let lines = [["ID", "STATE"], ["b", "ready"], ["é-long", "x"]];
        let lines = lines.map(|line| line.map(str::to_owned));
        let text = table(&lines, |_, _, cell| cell.to_owned());
        assert_eq!(text, "ID      STATE\nb       ready\né-long  x\n");
    }

    #[test]
    fn nothing_is_coloured_where_no_colours_are_wanted() {
        assert_eq!(Colours(false).state("ready", "ready"), "ready");
        let line = "\u{1b}[31mx\u{1b}[0m\u{7}";
        assert_eq!(log_line(line, Colours(false)), "x");
        assert_eq!(log_line(line, Colours(true)), "\u{1b}[0;31mx\u{1b}[0m");
        assert_eq!(Colours(true).state("ready", "ready"), "\u{1b}[32mready\u{1b}[0m");
    }
}
