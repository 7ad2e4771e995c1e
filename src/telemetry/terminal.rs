//! What a stream of text is shown on.

use std::io::IsTerminal;
use std::os::fd::BorrowedFd;

use rustix::termios::tcgetwinsize;

/// Where text goes: whether in colours, and how wide it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Terminal {
    pub(super) colours: bool,
    width: Width,
}

#[derive(Debug, Clone, Copy, Default)]
enum Width {
    #[default]
    Unknown,
    Fixed(usize),
    /// Asked for each line: people resize windows.
    Of(BorrowedFd<'static>),
}

impl Terminal {
    pub(super) fn of_stderr() -> Self {
        Self::of(rustix::stdio::stderr())
    }

    pub(super) fn of_stdout() -> Self {
        Self::of(rustix::stdio::stdout())
    }

    /// What `stream` is shown on. `NO_COLOR` takes the colours away; where the stream only leads to a
    /// terminal, `CLICOLOR_FORCE` gives them and `COLUMNS` the width.
    fn of(stream: BorrowedFd<'static>) -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let forced = is_set("CLICOLOR_FORCE");
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let width = match (stream.is_terminal(), columns) {
            (true, _) => Width::Of(stream),
            (false, Some(columns)) if forced => Width::Fixed(columns),
            (false, _) => Width::Unknown,
        };
        Self { colours: (stream.is_terminal() || forced) && !is_set("NO_COLOR"), width }
    }

    /// So many columns, without colours.
    #[cfg(test)]
    pub(super) fn plain(columns: Option<usize>) -> Self {
        Self { colours: false, width: columns.map_or(Width::Unknown, Width::Fixed) }
    }

    #[cfg(test)]
    pub(super) fn coloured() -> Self {
        Self { colours: true, width: Width::Unknown }
    }

    /// Columns; `None` = not known.
    pub(super) fn width(self) -> Option<usize> {
        match self.width {
            Width::Unknown => None,
            Width::Fixed(columns) => Some(columns),
            Width::Of(stream) => {
                tcgetwinsize(stream).ok().map(|size| size.ws_col.into()).filter(|width| *width > 0)
            }
        }
    }
}
