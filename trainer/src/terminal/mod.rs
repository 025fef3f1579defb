//! What a person reads in a terminal: runs as a table, a step's episodes as a table, one episode as a tree.

pub mod episode;
pub mod episodes;
pub mod line;
pub mod runs;
mod table;

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};

use line::Line;

/// Where lines are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// Columns to cut lines to; `None` where nothing is cut.
    pub width: Option<usize>,
    /// Whether escape sequences may colour.
    pub colour: bool,
}

impl Screen {
    /// Standard output: the terminal's width when it is one and `width` says nothing else, and colours on a terminal
    /// unless `NO_COLOR` is set (to anything but nothing).
    pub fn stdout(width: Option<u16>) -> Self {
        let terminal = io::stdout().is_terminal();
        // A terminal that does not know its size counts as one of 80 columns.
        let own = || terminal.then(|| console::Term::stdout().size().1);
        Self {
            width: width.or_else(own).map(usize::from),
            colour: coloured(terminal, std::env::var_os("NO_COLOR").as_deref()),
        }
    }
}

fn coloured(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Writes the lines.
///
/// # Errors
/// When the output is closed.
pub fn show(out: &mut dyn Write, screen: Screen, lines: &[Line]) -> io::Result<()> {
    lines.iter().try_for_each(|line| writeln!(out, "{}", line.render(screen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_owner_wants_them() {
        let set = |text: &'static str| Some(OsStr::new(text));
        assert!(coloured(true, None) && coloured(true, set("")));
        assert!(!coloured(true, set("1")) && !coloured(true, set("0")));
        assert!(!coloured(false, None) && !coloured(false, set("")));
    }
}
