//! A line of coloured text that no text can break out of, cut to a width.

use std::fmt::Write as _;

use super::Screen;

/// How a piece of a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// What matters less.
    Faint,
    /// What matters more.
    Bold,
    /// A name.
    Name,
    /// What went well.
    Good,
    /// What did not.
    Bad,
    /// What lies on the critical path.
    Critical,
}

impl Style {
    /// Parameters of the escape sequence that selects it.
    fn parameters(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Faint => Some("2"),
            Self::Bold => Some("1"),
            Self::Name => Some("36"),
            Self::Good => Some("32"),
            Self::Bad => Some("31"),
            Self::Critical => Some("1;35"),
        }
    }
}

/// Pieces of text with their styles. Every piece is made harmless when it is added, wherever it is from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line(Vec<(Style, String)>);

impl Line {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a piece.
    #[must_use]
    pub fn add(mut self, style: Style, text: impl AsRef<str>) -> Self {
        self.0.push((style, harmless(text.as_ref())));
        self
    }

    /// Adds a piece in plain style.
    #[must_use]
    pub fn plain(self, text: impl AsRef<str>) -> Self {
        self.add(Style::Plain, text)
    }

    /// The pieces of `after`, after its own.
    #[must_use]
    pub fn join(mut self, mut after: Self) -> Self {
        self.0.append(&mut after.0);
        self
    }

    /// Columns that it takes.
    pub fn columns(&self) -> usize {
        self.0.iter().flat_map(|(_, text)| text.chars()).map(columns).sum()
    }

    /// The line as text; what is over the screen's width becomes one `…`.
    pub fn render(&self, screen: Screen) -> String {
        let mut room = match screen.width {
            Some(width) if self.columns() > width || self.letters() > width.saturating_mul(DENSITY) => {
                Some((width.saturating_sub(1), width.saturating_mul(DENSITY)))
            }
            _ => None,
        };
        let mut text = String::new();
        for (style, piece) in &self.0 {
            let (kept, whole) = match &mut room {
                Some(room) => cut(piece, room),
                None => (piece.as_str(), true),
            };
            match style.parameters().filter(|_| screen.colour && !kept.is_empty()) {
                Some(parameters) => {
                    let _ = write!(text, "\u{1b}[{parameters}m{kept}\u{1b}[0m");
                }
                None => text.push_str(kept),
            }
            if !whole {
                break;
            }
        }
        if room.is_some() {
            text.push('…');
        }
        text
    }

    fn letters(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }
}

/// Characters for each column of a cut line: marks that take no column of their own could be there without end.
const DENSITY: usize = 4;

/// The part of `text` that fits the columns and characters of `room`, which it takes, and whether that is all of it.
fn cut<'t>(text: &'t str, room: &mut (usize, usize)) -> (&'t str, bool) {
    for (at, c) in text.char_indices() {
        match (room.0.checked_sub(columns(c)), room.1.checked_sub(1)) {
            (Some(columns), Some(letters)) => *room = (columns, letters),
            _ => return (&text[..at], false),
        }
    }
    (text, true)
}

/// Columns that a terminal gives a character.
fn columns(c: char) -> usize {
    console::measure_text_width(c.encode_utf8(&mut [0; 4]))
}

/// The text with everything that could move the cursor, recolour, reorder or hide written as an escape: control
/// characters, line breaks of all kinds, marks of writing direction, characters without a shape, and tags.
pub fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if dangerous(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

fn dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const DARK: Screen = Screen { width: None, colour: false };

    #[test]
    fn hostile_text_does_nothing() {
        let hostile = [
            ("\u{1b}[2J\u{1b}]0;owned\u{7}", r"\u{1b}[2J\u{1b}]0;owned\u{7}"),
            ("a\nb\rc\td\u{8}\0\u{7f}", r"a\nb\rc\td\u{8}\u{0}\u{7f}"),
            ("\u{9b}31m one byte of C1", r"\u{9b}31m one byte of C1"),
            ("user\u{202e}txt.exe\u{2066}\u{200f}", r"user\u{202e}txt.exe\u{2066}\u{200f}"),
            ("no\u{200b}thing\u{2028}here\u{e0041}", r"no\u{200b}thing\u{2028}here\u{e0041}"),
        ];
        for (text, wanted) in hostile {
            assert_eq!(Line::new().plain(text).render(DARK), wanted);
            let shown = Line::new().add(Style::Bad, text).render(Screen { width: Some(30), colour: true });
            let inside = shown.strip_prefix("\u{1b}[31m").unwrap();
            assert_eq!(inside.matches('\u{1b}').count(), 1, "only the style's own end: {shown:?}");
        }
        assert_eq!(harmless("naïve 日本 🦀 é ; λ → ok"), "naïve 日本 🦀 é ; λ → ok");
    }

    #[test]
    fn a_line_is_as_wide_as_the_screen_at_most() {
        let line = Line::new().add(Style::Bold, "日本語").plain("abc").add(Style::Faint, "");
        assert_eq!(line.columns(), 9);
        let at = |width, colour| line.render(Screen { width: Some(width), colour });
        assert_eq!(at(9, false), "日本語abc");
        assert_eq!(at(8, false), "日本語a…");
        // A wide character is not halved.
        assert_eq!(at(4, false), "日…");
        assert_eq!(at(5, true), "\u{1b}[1m日本\u{1b}[0m…");
        assert_eq!(line.render(Screen { width: None, colour: false }), "日本語abc");
        // Marks on one letter take no column, and would never end the line.
        let marks = Line::new().plain(format!("a{}", "\u{301}".repeat(1000)));
        assert!(marks.render(Screen { width: Some(20), colour: false }).chars().count() <= 20 * DENSITY + 1);
    }
}
