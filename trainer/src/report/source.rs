//! A run's folder as its readers see it. Nothing here writes, locks or waits: a run may be training in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use parl_rollout::RolloutError;
use parl_rollout::dialect::Dialect;
use parl_rollout::durable;
use parl_rollout::trajectory::log::TrajectoryLog;
use parl_rollout::trajectory::record::EpisodeRecord;
use serde::Serialize;
use serde_json::Value;

use super::choose::{Digest, choose, sampled_steps};
use super::episode::{EpisodeView, view};
use super::series::{Series, series};
use crate::error::TrainerError;
use crate::run::environment::step_prefix;
use crate::run::folder::{Marker, read_json};

/// Tables over several runs, beside their folders, as `scripts/ablations` writes them:
/// `[{"caption": …, "columns": [name, …], "rows": [{"name": …, "runs": [folder, …], "cells": [text, …]}]}]`.
pub const ABLATIONS: &str = "../ablations.json";

/// What the page shows but for single episodes; costs little to read.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Who made the run, and when.
    pub run: Option<Marker>,
    /// Name of its folder.
    pub folder: String,
    /// What a reader should know: what is damaged, left out, or thinned.
    pub notes: Vec<String>,
    /// The resolved config.
    pub config: Value,
    /// Curves.
    pub series: Series,
    /// Held-out figures before the first step, as `trainer run` writes them.
    pub start_eval: Value,
    /// The rows of the table at the end.
    pub final_eval: Value,
    /// Tables that compare this run with others (see [`ABLATIONS`]); null where there are none.
    pub ablations: Value,
}

/// The chosen episodes.
#[derive(Default, Serialize)]
pub struct Episodes {
    /// As [`Figures::notes`].
    pub episode_notes: Vec<String>,
    /// Training steps that are sealed in the log.
    pub sealed: usize,
    /// How many of these were read for the choice; 0 where it was made by hand.
    pub read: usize,
    /// Who worked when.
    pub episodes: Vec<EpisodeView>,
    /// The records of `episodes`, in their order.
    #[serde(skip)]
    pub records: Vec<EpisodeRecord>,
    /// Spells their tokens; `None` when the run's tokenizer cannot be read.
    #[serde(skip)]
    pub dialect: Option<Dialect>,
}

/// All of a page but the agents' texts.
#[derive(Serialize)]
pub struct Page<'p> {
    /// Curves, tables, config.
    #[serde(flatten)]
    pub figures: &'p Figures,
    /// The timeline.
    #[serde(flatten)]
    pub episodes: &'p Episodes,
}

/// A run that is read, maybe again and again.
pub struct Source {
    run: PathBuf,
    log: TrajectoryLog,
    known: BTreeMap<u32, Known>,
}

/// What is kept of a step between two reads.
struct Known {
    /// The manifest's hash: a resumed run may write a step anew.
    seal: Option<String>,
    /// Digests, or a note on why there are none.
    digests: Result<Vec<Digest>, String>,
}

/// An episode to show.
struct Found {
    step: u32,
    record: EpisodeRecord,
    shown_for: &'static str,
}

impl Source {
    /// The run in a folder.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] when there is none.
    pub fn open(run: &Path) -> Result<Self, TrainerError> {
        Marker::read(run)?;
        Ok(Self::awaited(run))
    }

    /// The run that will be in a folder.
    pub fn awaited(run: &Path) -> Self {
        Self { run: run.to_owned(), log: TrajectoryLog::new(run), known: BTreeMap::new() }
    }

    /// Where it is.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The episodes of these ids, or a choice where there are none. What is damaged is left out and noted.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] for an episode that is not there; [`TrainerError::Rollout`] when the disk fails.
    pub fn episodes(&mut self, wanted: &[String]) -> Result<Episodes, TrainerError> {
        let sealed = self.log.sealed_steps()?;
        let mut all = Episodes { sealed: sealed.len(), ..Episodes::default() };
        let found = if wanted.is_empty() {
            let steps = sampled_steps(&sealed);
            all.read = steps.len();
            self.chosen(&steps, &mut all.episode_notes)
        } else {
            let named = |id: &String| self.named(id, &sealed, &mut all.episode_notes);
            wanted.iter().map(named).collect::<Result<_, _>>()?
        };
        for Found { step, record, shown_for } in found {
            all.episodes.push(view(step, &record, shown_for));
            all.records.push(record);
        }
        if !all.records.is_empty() {
            match self.dialect() {
                Ok(dialect) => all.dialect = Some(dialect),
                Err(error) => all.episode_notes.push(format!("tokens are shown by their ids: {error}")),
            }
        }
        Ok(all)
    }

    /// All but the episodes. What is damaged is left out and noted.
    ///
    /// # Errors
    /// [`TrainerError::Rollout`] when the disk fails.
    pub fn figures(&self) -> Result<Figures, TrainerError> {
        let mut notes = Vec::new();
        let mut file = |name: &str| {
            let path = self.run.join(name);
            if !path.is_file() {
                return Value::Null;
            }
            read_json(&path).unwrap_or_else(|error| {
                notes.push(format!("left out: {error}"));
                Value::Null
            })
        };
        let [config, start_eval, final_eval, ablations] =
            ["config.resolved.json", "start_eval.json", "final_eval.json", ABLATIONS].map(&mut file);
        let metrics = self.run.join("metrics.jsonl");
        let text = if metrics.is_file() { durable::read(&metrics)? } else { Vec::new() };
        let (series, more) = series(&String::from_utf8_lossy(&text));
        notes.extend(more);
        if series.lines_a_point > 1 {
            notes.push(format!("each point of a curve is the mean of {} steps", series.lines_a_point));
        }
        let run = Marker::read(&self.run).ok();
        let folder = self.run.canonicalize().unwrap_or_else(|_| self.run.clone());
        let folder = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Figures { run, folder, notes, config, series, start_eval, final_eval, ablations })
    }

    /// The dialect whose tokenizer lies beside the run.
    fn dialect(&self) -> Result<Dialect, RolloutError> {
        Dialect::from_json(&durable::read(&self.run.join("tokenizer.json"))?)
    }

    /// The episodes of a sealed step, or a note on why there are none.
    fn records(&self, step: u32) -> Result<Vec<EpisodeRecord>, String> {
        self.log.read_step(step).map_err(|error| format!("step {step} is left out: {error}"))
    }

    fn chosen(&mut self, steps: &[u32], notes: &mut Vec<String>) -> Vec<Found> {
        // Records of large swarms are large: of all but one step, only digests are held at a time.
        self.known.retain(|step, _| steps.contains(step));
        for step in steps {
            let seal = self.log.seal(*step);
            if self.known.get(step).is_none_or(|known| known.seal.is_none() || known.seal != seal) {
                let digests =
                    |of_step: Vec<EpisodeRecord>| of_step.iter().map(|e| Digest::of(*step, e)).collect();
                self.known.insert(*step, Known { seal, digests: self.records(*step).map(digests) });
            }
        }
        let mut digests: Vec<&Digest> = Vec::new();
        for known in self.known.values() {
            match &known.digests {
                Ok(of_step) => digests.extend(of_step),
                Err(note) => notes.push(note.clone()),
            }
        }
        let choices = choose(&digests);
        let chosen = || choices.iter().filter_map(|(at, shown_for)| Some((*digests.get(*at)?, *shown_for)));
        let mut found = Vec::new();
        for step in chosen().map(|(digest, _)| digest.step).collect::<BTreeSet<u32>>() {
            let of_step = self.records(step).unwrap_or_default();
            for (order, (digest, shown_for)) in chosen().enumerate().filter(|(_, (d, _))| d.step == step) {
                if let Some(record) = of_step.iter().find(|e| e.episode_id == digest.id) {
                    found.push((order, Found { step, record: record.clone(), shown_for }));
                }
            }
        }
        found.sort_by_key(|(order, _)| *order);
        found.into_iter().map(|(_, found)| found).collect()
    }

    fn named(&self, id: &str, sealed: &[u32], notes: &mut Vec<String>) -> Result<Found, TrainerError> {
        // An id begins with its step, so it is found at once; where a log names them otherwise, by search.
        let (of_id, others): (Vec<u32>, Vec<u32>) =
            sealed.iter().partition(|step| id.starts_with(&step_prefix(u64::from(**step))));
        for step in of_id.into_iter().chain(others) {
            match self.records(step) {
                Ok(of_step) => {
                    if let Some(record) = of_step.into_iter().find(|e| e.episode_id == id) {
                        return Ok(Found { step, record, shown_for: "chosen by you" });
                    }
                }
                Err(note) if notes.contains(&note) => {}
                Err(note) => notes.push(note),
            }
        }
        let mut message = format!("{}: no sealed step holds the episode `{id}`", self.run.display());
        for note in notes {
            message.push_str("; ");
            message.push_str(note);
        }
        Err(TrainerError::Folder(message))
    }
}
