//! Columns of text.

use super::line::{Line, Style};

/// Which side a column is even on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// A line for the headings and one for each row, in columns as wide as their widest cell. A row has a cell for each
/// heading.
pub(super) fn table(headings: &[(&str, Side)], rows: Vec<Vec<(Style, String)>>) -> Vec<Line> {
    let first = headings.iter().map(|(name, _)| Line::new().add(Style::Faint, name)).collect::<Vec<_>>();
    let rows = rows
        .into_iter()
        .map(|row| row.into_iter().map(|(style, text)| Line::new().add(style, text)).collect());
    let all: Vec<Vec<Line>> = std::iter::once(first).chain(rows).collect();
    let width =
        |column: usize| all.iter().filter_map(|row| row.get(column)).map(Line::columns).max().unwrap_or(0);
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut lines = Vec::new();
    for row in &all {
        let mut line = Line::new();
        for (at, ((cell, (_, side)), width)) in row.iter().zip(headings).zip(&widths).enumerate() {
            let gap = " ".repeat(width - cell.columns());
            let last = at + 1 == headings.len();
            line = match side {
                Side::Right => line.plain(gap).join(cell.clone()),
                Side::Left if last => line.join(cell.clone()),
                Side::Left => line.join(cell.clone()).plain(gap),
            };
            if !last {
                line = line.plain("  ");
            }
        }
        lines.push(line);
    }
    lines
}
