//! The runs below a folder: found by their markers, with their state and key figures.

use std::fs;
use std::path::Path;

use parl_rollout::durable;
use parl_rollout::trajectory::log::TrajectoryLog;
use serde::Serialize;
use serde_json::Value;

use super::line::{Line, Style};
use super::table::{Side, table};
use crate::error::TrainerError;
use crate::run::folder::{Marker, is_written_to, read_json};
use crate::run::metrics::newest;

/// Folders in folders that are looked into.
const DEPTH: usize = 6;

/// What a run is up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A process writes to it.
    Running,
    /// It can be gone on with.
    Stopped,
    /// It did all its steps, and the evaluation at the end.
    Finished,
    /// A file of it cannot be used.
    Damaged,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Finished => "finished",
            Self::Damaged => "damaged",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Running => Style::Name,
            Self::Stopped => Style::Plain,
            Self::Finished => Style::Good,
            Self::Damaged => Style::Bad,
        }
    }
}

/// A run in a list. Figures are of its last step; what is not known is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    /// Its folder.
    pub path: String,
    /// Its name, as its marker has it.
    pub name: Option<String>,
    /// What it is up to.
    pub state: State,
    /// What is damaged.
    pub damage: Option<String>,
    /// Steps done.
    pub steps: u64,
    /// Steps that it is to do.
    pub max_steps: Option<u64>,
    /// Share of successes.
    pub success: Option<f64>,
    /// Mean critical steps.
    pub critical_steps: Option<f64>,
    /// Mean assignments.
    pub agents: Option<f64>,
    /// λ1.
    pub lambda_parallel: Option<f64>,
    /// λ2.
    pub lambda_finish: Option<f64>,
    /// Share of successes on held-out tasks at the end.
    pub held_out: Option<f64>,
    /// When it last wrote a line of metrics, or was made; UTC.
    pub when: Option<String>,
}

/// The runs at and below `folder`, in the order of their paths. Links are not followed, and what lies in a run is not
/// looked at.
///
/// # Errors
/// [`TrainerError::Folder`] when there is no such folder. A run that cannot be read is listed as damaged.
pub fn list(folder: &Path) -> Result<Vec<Listed>, TrainerError> {
    if !folder.is_dir() {
        return Err(TrainerError::Folder(format!("{}: there is no such folder", folder.display())));
    }
    let mut found = Vec::new();
    look_into(folder, DEPTH, &mut found);
    Ok(found)
}

fn look_into(folder: &Path, depth: usize, found: &mut Vec<Listed>) {
    if Marker::is_in(folder) {
        found.push(listed(folder));
    } else if depth > 0 {
        // A folder that may not be read holds no run for this reader.
        for name in durable::names(folder).unwrap_or_default() {
            let path = folder.join(name);
            if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                look_into(&path, depth - 1, found);
            }
        }
    }
}

/// Reads what the list has of a run.
fn listed(run: &Path) -> Listed {
    let mut row = Listed {
        path: run.display().to_string(),
        name: None,
        state: State::Stopped,
        damage: None,
        steps: 0,
        max_steps: None,
        success: None,
        critical_steps: None,
        agents: None,
        lambda_parallel: None,
        lambda_finish: None,
        held_out: None,
        when: None,
    };
    match read(run, &mut row) {
        Ok(state) => row.state = state,
        Err(error) => (row.state, row.damage) = (State::Damaged, Some(error.to_string())),
    }
    row
}

fn read(run: &Path, row: &mut Listed) -> Result<State, TrainerError> {
    let marker = Marker::read(run)?;
    row.name = Some(marker.run_id);
    row.when = Some(marker.made_at.clone());
    let number = |v: &Value, path: &str| v.pointer(path).and_then(Value::as_f64);
    let metrics = run.join("metrics.jsonl");
    if metrics.is_file() {
        let modified = fs::metadata(&metrics).and_then(|meta| meta.modified()).ok();
        if let Some(at) = modified.and_then(|at| jiff::Timestamp::try_from(at).ok()) {
            row.when = Some(at.to_string());
        }
        if let Some(last) = newest(run)? {
            let figure = |name: &str| last.get(name).and_then(Value::as_f64);
            row.steps = last.get("step").and_then(Value::as_u64).map_or(0, |step| step.saturating_add(1));
            row.success = figure("success/mean");
            row.critical_steps = figure("parl/critical_steps");
            row.agents = figure("parl/num_subagents");
            row.lambda_parallel = figure("parl/lambda_parallel");
            row.lambda_finish = figure("parl/lambda_finish");
        }
    }
    let mut evaluated = true;
    let config = run.join("config.resolved.json");
    if config.is_file() {
        let config = read_json(&config)?;
        row.max_steps = config.pointer("/run/max_steps").and_then(Value::as_u64);
        evaluated = config.pointer("/run/final_eval_tasks").and_then(Value::as_u64) == Some(0);
    }
    let end = run.join("final_eval.json");
    if end.is_file() {
        evaluated = true;
        let rows = read_json(&end)?;
        let own =
            |row: &&Value| row.get("name").is_some_and(|name| name == "end" || name == "this run's policy");
        row.held_out =
            rows.as_array().and_then(|rows| number(rows.iter().find(own)?, "/summary/all/success"));
    }
    if is_written_to(run)? {
        return Ok(State::Running);
    }
    let log = TrajectoryLog::new(run);
    if let Some(last) = log.sealed_steps()?.last() {
        log.verify(*last)?;
    }
    let done = row.max_steps.is_some_and(|max| row.steps >= max);
    Ok(if done && evaluated { State::Finished } else { State::Stopped })
}

const HEADINGS: [(&str, Side); 9] = [
    ("run", Side::Left),
    ("state", Side::Left),
    ("step", Side::Right),
    ("success", Side::Right),
    ("critical", Side::Right),
    ("agents", Side::Right),
    ("λ", Side::Right),
    ("held-out", Side::Right),
    ("when (UTC)", Side::Left),
];

/// A line a run, below the headings; then what is damaged.
pub fn lines(runs: &[Listed]) -> Vec<Line> {
    let text =
        |value: Option<f64>, form: fn(f64) -> String| (Style::Plain, value.map_or("-".to_owned(), form));
    let percent: fn(f64) -> String = |v| format!("{:.1}%", 100.0 * v);
    let row = |run: &Listed| {
        let of = run.max_steps.map_or("?".to_owned(), |max| max.to_string());
        let lambda = match (run.lambda_parallel, run.lambda_finish) {
            (Some(parallel), Some(finish)) => format!("{parallel:.3}/{finish:.3}"),
            _ => "-".to_owned(),
        };
        let when = run.when.as_deref().unwrap_or("-");
        vec![
            (Style::Bold, run.path.clone()),
            (run.state.style(), run.state.name().to_owned()),
            (Style::Plain, format!("{}/{of}", run.steps)),
            text(run.success, percent),
            text(run.critical_steps, |v| format!("{v:.2}")),
            text(run.agents, |v| format!("{v:.2}")),
            (Style::Plain, lambda),
            text(run.held_out, percent),
            (Style::Faint, when.chars().take(16).map(|c| if c == 'T' { ' ' } else { c }).collect()),
        ]
    };
    let mut lines = table(&HEADINGS, runs.iter().map(row).collect());
    for run in runs {
        if let Some(damage) = &run.damage {
            lines.push(Line::new().add(Style::Bad, "damaged  ").plain(damage));
        }
    }
    lines
}
