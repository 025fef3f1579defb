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
use crate::run::folder::{Marker, marker, read_json};

/// All of a page but the agents' texts.
#[derive(Debug, Serialize)]
pub struct Page {
    /// Who made the run, and when.
    pub run: Option<Marker>,
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
    /// Training steps that are sealed in the log.
    pub sealed: usize,
    /// How many of these were read for the choice of episodes.
    pub read: usize,
    /// The chosen episodes.
    pub episodes: Vec<EpisodeView>,
}

/// A page with what its agents' texts are made from.
pub struct Shown {
    /// The page.
    pub page: Page,
    /// The records of `page.episodes`, in their order.
    pub records: Vec<EpisodeRecord>,
    /// None when the run's tokenizer cannot be read.
    pub dialect: Option<Dialect>,
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
        marker(run)?;
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

    /// Reads what a page shows: the episodes of these ids, or a choice where there are none. What is damaged is left
    /// out and noted.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] for an episode that is not there; [`TrainerError::Rollout`] when the disk fails.
    pub fn read(&mut self, wanted: &[String]) -> Result<Shown, TrainerError> {
        let mut page = self.figures()?;
        let sealed = self.log.sealed_steps()?;
        page.sealed = sealed.len();
        let mut notes = std::mem::take(&mut page.notes);
        let found = if wanted.is_empty() {
            let steps = sampled_steps(&sealed);
            page.read = steps.len();
            self.chosen(&steps, &mut notes)
        } else {
            wanted.iter().map(|id| self.named(id, &sealed, &mut notes)).collect::<Result<_, _>>()?
        };
        let mut records = Vec::new();
        for Found { step, record, shown_for } in found {
            page.episodes.push(view(step, &record, shown_for));
            records.push(record);
        }
        let dialect = match self.dialect() {
            Ok(dialect) => Some(dialect),
            Err(error) => {
                notes.push(format!("tokens are shown by their ids: {error}"));
                None
            }
        };
        page.notes = notes;
        Ok(Shown { page, records, dialect })
    }

    /// The page without episodes, which costs little to read.
    ///
    /// # Errors
    /// [`TrainerError::Rollout`] when the disk fails.
    pub fn figures(&self) -> Result<Page, TrainerError> {
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
        let [config, start_eval, final_eval] =
            ["config.resolved.json", "start_eval.json", "final_eval.json"].map(&mut file);
        let metrics = self.run.join("metrics.jsonl");
        let text = if metrics.is_file() { durable::read(&metrics)? } else { Vec::new() };
        let (series, more) = series(&String::from_utf8_lossy(&text));
        notes.extend(more);
        if series.lines_a_point > 1 {
            notes.push(format!("each point of a curve is the mean of {} steps", series.lines_a_point));
        }
        Ok(Page {
            run: marker(&self.run).ok(),
            notes,
            config,
            series,
            start_eval,
            final_eval,
            sealed: 0,
            read: 0,
            episodes: Vec::new(),
        })
    }

    /// The dialect whose tokenizer lies beside the run.
    fn dialect(&self) -> Result<Dialect, RolloutError> {
        Dialect::from_json(&durable::read(&self.run.join("tokenizer.json"))?)
    }

    /// The episodes of a sealed step, or a note on why there are none.
    fn episodes(&self, step: u32) -> Result<Vec<EpisodeRecord>, String> {
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
                self.known.insert(*step, Known { seal, digests: self.episodes(*step).map(digests) });
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
            let of_step = self.episodes(step).unwrap_or_default();
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
        let hint = id.strip_prefix('s').and_then(|rest| rest.get(..6)).and_then(|digits| digits.parse().ok());
        let hinted = hint.into_iter().filter(|step| sealed.contains(step));
        let others = sealed.iter().copied().filter(|step| Some(*step) != hint);
        for step in hinted.chain(others) {
            match self.episodes(step) {
                Ok(of_step) => {
                    if let Some(record) = of_step.into_iter().find(|e| e.episode_id == id) {
                        return Ok(Found { step, record, shown_for: "chosen by you" });
                    }
                }
                Err(note) if notes.contains(&note) => {}
                Err(note) => notes.push(note),
            }
        }
        let notes: String = notes.iter().map(|note| format!("; {note}")).collect();
        let run = self.run.display();
        Err(TrainerError::Folder(format!("{run}: no sealed step holds the episode `{id}`{notes}")))
    }
}
