//! Sinks' files for a run that is over, out of its `metrics.jsonl`.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::{Format, TrackingConfig};
use super::tensorboard::EventFile;
use super::wandb::OfflineRun;
use super::{About, Sink, line};
use crate::config::{self, ConfigErrors, Issue, Validate};
use crate::error::TrainerError;
use crate::run::folder::{RunFolder, read_json};

/// The one section of a config that matters here.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Section {
    tracking: TrackingConfig,
}

impl Validate for Section {
    fn issues(&self) -> Vec<Issue> {
        let issue = |(key, message)| Issue { key: format!("tracking.{key}"), message };
        self.tracking.issues().into_iter().map(issue).collect()
    }
}

/// Writes the files of all sinks of a run anew, from the first step on: those that its config names with `overrides`
/// (`tracking.key=value`) laid over it. Returns what was written, a line each.
///
/// # Errors
/// [`TrainerError::Folder`] when there is no run or it is being written to; [`TrainerError::Config`] for overrides that
/// are none, and when no sink is named; else when a file of the run is damaged or the disk fails.
pub fn backfill(run: &Path, overrides: &[String]) -> Result<Vec<String>, TrainerError> {
    let folder = RunFolder::hold(run)?;
    let marker = folder.marker()?;
    let path = run.join("config.resolved.json");
    let resolved = read_json(&path)?;
    let section = json!({"tracking": resolved.get("tracking").unwrap_or(&json!({}))});
    let files = vec![(path.display().to_string(), section.to_string())];
    let section: Section = config::load(files, overrides, &|_| None)?.config;
    let config = section.tracking;
    if config.sinks.is_empty() {
        let message =
            "the run's config names no sinks: add `tracking.sinks=[tensorboard, wandb]`, or one of them";
        return Err(ConfigErrors(vec![message.to_owned()]).into());
    }
    let about = About::new(run, &marker, &resolved)?;
    let lines = line::read(run, config.style, about.began_at, u64::MAX)?;
    config.sinks.iter().map(|format| write(*format, &config, &about, &lines)).collect()
}

/// Writes the files of a sink; returns what they are.
fn write(
    format: Format,
    config: &TrackingConfig,
    about: &About,
    lines: &[line::Line],
) -> Result<String, TrainerError> {
    Ok(match format {
        Format::Tensorboard => {
            EventFile::replace(about, lines)?.finish(0)?;
            format!("tensorboard: {} steps in {}", lines.len(), about.run.join("tensorboard").display())
        }
        Format::Wandb => {
            let mut run = OfflineRun::open(about, &config.wandb, lines)?;
            run.finish(0)?;
            let (rows, folder) = (run.rows(), run.folder().display());
            format!("wandb: {rows} steps that were not uploaded yet in {folder}")
        }
    })
}
