//! A line of `metrics.jsonl` as sinks take it, and the names that peers have for our figures.

use std::path::Path;

use parl_rollout::{RolloutError, durable};
use serde_json::{Map, Value};

use super::config::Style;
use crate::error::TrainerError;

/// A figure's name here, in verl and in TRL; empty where a peer has none that is the same or next to it.
const NAMES: [(&str, &str, &str); 14] = [
    ("reward/mean", "critic/rewards/mean", "reward"),
    ("loss/mean", "actor/pg_loss", "loss"),
    ("optim/lr", "actor/lr", "learning_rate"),
    ("optim/grad_norm", "actor/grad_norm", "grad_norm"),
    ("entropy/mean", "actor/entropy", "entropy"),
    ("mismatch_kl/mean", "rollout_corr/k3_kl", ""),
    ("clip_frac/low", "actor/pg_clipfrac_lower", "clip_ratio/low_mean"),
    ("clip_frac/high", "actor/pg_clipfrac", "clip_ratio/high_mean"),
    ("response_length/mean", "response_length/mean", "completions/mean_length"),
    ("num_turns/mean", "num_turns/mean", ""),
    ("frac_reward_zero_std", "", "frac_reward_zero_std"),
    ("time/rollout", "timing_s/gen", ""),
    ("time/learn", "timing_s/update_actor", ""),
    ("perf/throughput", "perf/throughput", ""),
];

/// The name of a figure of ours in a style; ours where the peer has none.
pub fn alias(style: Style, name: &str) -> &str {
    let Some((_, verl, trl)) = NAMES.iter().find(|(ours, _, _)| *ours == name) else { return name };
    match style {
        Style::Verl if !verl.is_empty() => verl,
        Style::Trl if !trl.is_empty() => trl,
        _ => name,
    }
}

/// What a line says.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The step, from 0.
    pub step: u64,
    /// When its step was done: seconds since 1970, UTC.
    pub unix_seconds: f64,
    /// Everything else that is there (a `null` is not), under the style's names, in the line's order.
    pub values: Vec<(String, Value)>,
}

impl Line {
    /// Takes a line apart; `before` stands in for the time of one that has none, written before lines had it.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn parse(text: &str, style: Style, before: f64) -> Result<Self, String> {
        let map: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| format!("not a JSON object: {e}"))?;
        let step = map.get("step").and_then(Value::as_u64).ok_or("`step` is no whole number from 0")?;
        let seconds = |name: &str| map.get(name).and_then(Value::as_f64);
        let unix_seconds = seconds("timestamp").unwrap_or_else(|| {
            before + seconds("time/rollout").unwrap_or_default() + seconds("time/learn").unwrap_or_default()
        });
        let values = map
            .into_iter()
            .filter(|(name, value)| name != "step" && name != "timestamp" && !value.is_null())
            .map(|(name, value)| (alias(style, &name).to_owned(), value))
            .collect();
        Ok(Self { step, unix_seconds, values })
    }
}

/// The lines of a run's `metrics.jsonl` whose steps are below `end`; `made_at` is when the run was made, in seconds.
/// A last line that was torn is left out; no file is no lines.
///
/// # Errors
/// When the file cannot be read, or a line of it is none of ours.
pub fn read(run: &Path, style: Style, made_at: f64, end: u64) -> Result<Vec<Line>, TrainerError> {
    let path = run.join("metrics.jsonl");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let bytes = durable::read(&path)?;
    let corrupt = |message| RolloutError::Corrupt { path: path.clone(), message };
    let text = String::from_utf8(bytes).map_err(|e| corrupt(format!("not UTF-8: {e}")))?;
    let whole = text.rfind('\n').map_or("", |at| &text[..at]);
    let mut lines: Vec<Line> = Vec::new();
    for (i, text) in whole.lines().enumerate() {
        let before = lines.last().map_or(made_at, |line| line.unix_seconds);
        let line = Line::parse(text, style, before).map_err(|e| corrupt(format!("line {}: {e}", i + 1)))?;
        if line.step < end {
            lines.push(line);
        }
    }
    Ok(lines)
}
