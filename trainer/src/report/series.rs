//! The lines of `metrics.jsonl` as columns for curves.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

/// Most points that a curve has; longer runs are shown as means of neighbours.
const MOST_POINTS: usize = 2000;

/// Figures that the loss of precision cannot be seen in: a page holds very many of them.
pub(super) fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

/// Metrics by name over the steps of a run.
#[derive(Debug, Default, Serialize, PartialEq)]
pub struct Series {
    /// Lines in all.
    pub lines: usize,
    /// Lines that one point stands for; 1 where every line is a point.
    pub lines_a_point: usize,
    /// Training step of each point, from 0 (the mean where it stands for several).
    pub steps: Vec<f64>,
    /// Every numeric metric, in the order of the steps; `null` where a line lacks it.
    pub columns: BTreeMap<String, Vec<Option<f64>>>,
}

/// The series, and what a reader should know of the lines besides.
pub fn series(text: &str) -> (Series, Vec<String>) {
    let mut notes = Vec::new();
    let mut lines: Vec<Map<String, Value>> = Vec::new();
    let mut refused = Vec::new();
    let ends_whole = text.ends_with('\n');
    let n = text.lines().count();
    for (at, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(Value::Object(map)) if map.get("step").is_some_and(Value::is_u64) => {
                if let Some(why) = map.get("optim/refused").and_then(Value::as_str) {
                    refused.push(format!("step {}: {why}", map["step"]));
                }
                lines.push(map);
            }
            // A run that is being written to, or was killed, may end in half a line.
            _ if at + 1 == n && !ends_whole => {}
            _ => notes.push(format!("metrics.jsonl:{}: not a line of metrics; it is left out", at + 1)),
        }
    }
    let more = refused.len().saturating_sub(5);
    notes.extend(refused.into_iter().take(5));
    if more > 0 {
        notes.push(format!("{more} more updates were refused"));
    }
    let lines_a_point = lines.len().div_ceil(MOST_POINTS).max(1);
    let mut columns: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
    for (at, chunk) in lines.chunks(lines_a_point).enumerate() {
        let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (name, value) in chunk.iter().flatten() {
            if let Some(value) = value.as_f64() {
                let (sum, count) = sums.entry(name).or_default();
                *sum += value;
                *count += 1.0;
            }
        }
        for (name, (sum, count)) in sums {
            let column = columns.entry(name.to_owned()).or_default();
            column.resize(at, None);
            column.push(Some(rounded(sum / count)));
        }
    }
    let points = lines.len().div_ceil(lines_a_point);
    for column in columns.values_mut() {
        column.resize(points, None);
    }
    for no_figure in ["attempt", "timestamp"] {
        columns.remove(no_figure);
    }
    let steps = columns.remove("step").unwrap_or_default().into_iter().flatten().collect();
    (Series { lines: lines.len(), lines_a_point, steps, columns }, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_columns_and_what_a_line_lacks_is_null() {
        let (series, notes) = series(
            "{\"step\":0,\"attempt\":0,\"timestamp\":9.5,\"a\":1,\"b\":0.123456789}\n{\"step\":1,\"a\":2,\"optim/refused\":\"why\"}\n\
             junk\n{\"step\":2,\"c\":5}\n{\"step\":3,\"a\"",
        );
        assert_eq!(series.steps, [0.0, 1.0, 2.0]);
        assert_eq!(series.columns["a"], [Some(1.0), Some(2.0), None]);
        assert_eq!(series.columns["b"], [Some(0.123_457), None, None]);
        assert_eq!(series.columns["c"], [None, None, Some(5.0)]);
        assert!(!series.columns.contains_key("attempt") && !series.columns.contains_key("optim/refused"));
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(
            notes[0].contains("metrics.jsonl:3") && notes[1].contains("step 1") && notes[1].contains("why")
        );
        assert_eq!(super::series("").0.steps.len(), 0);
    }

    #[test]
    fn a_long_run_is_thinned_to_means() {
        let lines: Vec<String> =
            (0..5000).map(|step| format!("{{\"step\":{step},\"a\":{}}}", step % 3)).collect();
        let text = lines.join("\n");
        let (series, _) = series(&text);
        assert_eq!((series.lines, series.lines_a_point, series.steps.len()), (5000, 3, 1667));
        assert_eq!(series.columns["a"].len(), 1667);
        assert!(series.columns["a"][..1666].iter().all(|mean| *mean == Some(1.0)));
    }
}
