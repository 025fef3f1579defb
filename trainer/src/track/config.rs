//! The config's section `tracking`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Copies of the metrics for tools that people look at runs with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrackingConfig {
    /// Formats that metrics are written in besides `metrics.jsonl`, into the run's folder: `tensorboard` (event files),
    /// `wandb` (a run as the W&B client leaves it offline).
    pub sinks: Vec<Format>,
    /// Whose metric names they use; `metrics.jsonl` has ours in any case.
    pub style: Style,
    /// What the W&B client is told about the run.
    pub wandb: WandbConfig,
}

impl TrackingConfig {
    /// What is wrong beyond single keys: key and message.
    pub fn issues(&self) -> Vec<(String, String)> {
        let mut issues = Vec::new();
        let repeated = self.sinks.iter().enumerate().find(|(i, sink)| self.sinks[..*i].contains(sink));
        if let Some((i, sink)) = repeated {
            issues.push((format!("sinks[{i}]"), format!("`{}` is named already", sink.name())));
        }
        let project = &self.wandb.project;
        if project.trim().is_empty() || project.chars().any(|c| "/\\#?%:\"".contains(c) || c.is_control()) {
            let message =
                format!("`{project}` is no project of W&B: it may not be empty or hold any of /\\#?%:\"");
            issues.push(("wandb.project".to_owned(), message));
        }
        issues
    }
}

/// A format that metrics are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// TensorBoard's event files, in `tensorboard/`.
    Tensorboard,
    /// The W&B client's offline files, in `wandb/`.
    Wandb,
}

impl Format {
    /// As the config has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tensorboard => "tensorboard",
            Self::Wandb => "wandb",
        }
    }
}

/// Whose metric names are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Ours, as in `metrics.jsonl`.
    #[default]
    Parl,
    /// verl's, where it has such a figure.
    Verl,
    /// TRL's, where it has such a figure.
    Trl,
}

/// What the W&B client is told about the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WandbConfig {
    /// Project.
    pub project: String,
    /// Team or user; `null` leaves it to the client's own default.
    pub entity: Option<String>,
    /// Group of runs that this one belongs to.
    pub group: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
}

impl Default for WandbConfig {
    fn default() -> Self {
        Self { project: "parl".to_owned(), entity: None, group: None, tags: Vec::new() }
    }
}
