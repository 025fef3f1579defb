//! A run's episodes in other programs' formats. Each format is a pure function from records to its rows; a step is
//! read, turned and written before the next one is read.

mod atif;
mod chrome_trace;
mod origin;
mod range;
mod trl_parquet;
mod verifiers;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use parl_rollout::RolloutError;
use parl_rollout::dialect::Dialect;
use parl_rollout::durable;
use parl_rollout::trajectory::completions;
use parl_rollout::trajectory::record::EpisodeRecord;
use serde::Serialize;

use crate::error::TrainerError;
use crate::run::stored::StoredRun;
pub use origin::Origin;
pub use range::StepRange;

/// What other programs read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Timelines for Perfetto: agents as threads, the critical path as a track of its own.
    ChromeTrace,
    /// Harbor's Agent Trajectory Interchange Format, one file an episode.
    Atif,
    /// TRL's tables of completions, one file a step.
    TrlParquet,
    /// Episodes as the verifiers library saves them, one file a step.
    VerifiersJsonl,
}

impl Format {
    /// The name on the command line and of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Self::ChromeTrace => "chrome-trace",
            Self::Atif => "atif",
            Self::TrlParquet => "trl-parquet",
            Self::VerifiersJsonl => "verifiers-jsonl",
        }
    }
}

/// Which episodes are exported.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Of these steps; of all when `None`.
    pub steps: Option<StepRange>,
    /// These episodes alone; all when there are none.
    pub episodes: Vec<String>,
}

/// What an export wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Folder that holds the files.
    pub folder: PathBuf,
    /// Files written.
    pub files: usize,
    /// Episodes in them.
    pub episodes: usize,
    /// Steps that they are from.
    pub steps: usize,
}

/// Writes the selected episodes of the run at `run` in `format` below `out`, or below the run's `export/FORMAT`.
/// Files that are there under the same names are replaced.
///
/// # Errors
/// [`TrainerError::Folder`] when the run is none or lacks what is selected; [`TrainerError::Rollout`] for damaged steps
/// and when the disk refuses. What is written by then stays.
pub fn export(
    run: &Path,
    format: Format,
    selection: &Selection,
    out: Option<&Path>,
) -> Result<Report, TrainerError> {
    let run = StoredRun::open(run)?;
    let steps = selected_steps(&run, selection)?;
    let folder = out.map_or_else(|| run.path().join("export").join(format.name()), Path::to_path_buf);
    let writer = Writer::new(&run, format, folder)?;
    let mut report = Report { folder: writer.folder.clone(), files: 0, episodes: 0, steps: 0 };
    let mut missing: Vec<&str> = selection.episodes.iter().map(String::as_str).collect();
    for step in steps {
        let mut records = run.log.read_step(step)?;
        if !selection.episodes.is_empty() {
            records.retain(|record| selection.episodes.contains(&record.episode_id));
            missing.retain(|id| records.iter().all(|record| record.episode_id != **id));
        }
        if !records.is_empty() {
            report.files += writer.write(step, &records)?;
            report.episodes += records.len();
            report.steps += 1;
        }
    }
    match missing.first() {
        Some(id) => Err(run.refusal(&format!("no selected step has an episode `{id}`"))),
        None => Ok(report),
    }
}

/// The sealed steps that may hold what is selected.
fn selected_steps(run: &StoredRun, selection: &Selection) -> Result<Vec<u32>, TrainerError> {
    let mut steps = run.steps.clone();
    if let Some(range) = selection.steps {
        steps.retain(|step| range.contains(*step));
        if steps.is_empty() {
            let (first, last) = (run.steps.first().copied().unwrap_or_default(), run.last_step());
            let message = format!("--steps {range}: its sealed steps are {first} to {last}");
            return Err(run.refusal(&message));
        }
    }
    if !selection.episodes.is_empty() {
        let may: Vec<u32> = selection.episodes.iter().flat_map(|id| run.steps_of(id)).collect();
        steps.retain(|step| may.contains(step));
    }
    Ok(steps)
}

/// Turns the records of a step into files.
struct Writer {
    format: Format,
    folder: PathBuf,
    run_id: String,
    /// Where the format holds tokens message by message.
    dialect: Option<Dialect>,
}

impl Writer {
    fn new(run: &StoredRun, format: Format, folder: PathBuf) -> Result<Self, TrainerError> {
        let dialect = match format {
            Format::VerifiersJsonl => {
                Some(Dialect::from_json(&durable::read(&run.path().join("tokenizer.json"))?)?)
            }
            _ => None,
        };
        Ok(Self { format, folder, run_id: run.marker.run_id.clone(), dialect })
    }

    /// Writes the records of one step; returns the number of files.
    fn write(&self, step: u32, records: &[EpisodeRecord]) -> Result<usize, TrainerError> {
        let origin = Origin { run_id: &self.run_id, step };
        let of_step = self.folder.join(format!("step_{step:06}"));
        match self.format {
            Format::ChromeTrace => {
                let path = self.folder.join(format!("step_{step:06}.json"));
                write(&path, &json(&chrome_trace::trace(records, origin))?)?;
            }
            Format::Atif => {
                for record in records {
                    let path = of_step.join(format!("{}.json", file_name(record)?));
                    write(&path, &json(&atif::trajectory(record, origin))?)?;
                }
                return Ok(records.len());
            }
            Format::TrlParquet => {
                durable::create_dir(&self.folder)?;
                let rows: Vec<_> = records.iter().map(|record| trl_parquet::row(record, origin)).collect();
                completions::write(&self.folder.join(format!("completions_{step:05}.parquet")), &rows)?;
            }
            Format::VerifiersJsonl => {
                let opens = |id: u32| self.dialect.as_ref().is_some_and(|dialect| dialect.opens_message(id));
                let mut lines = Vec::new();
                for record in records {
                    lines.extend(json(&verifiers::episode(record, origin, &opens))?);
                    lines.push(b'\n');
                }
                write(&of_step.join("traces.jsonl"), &lines)?;
            }
        }
        Ok(1)
    }
}

/// An episode's id as the name of a file; one from a foreign log could name any path.
fn file_name(record: &EpisodeRecord) -> Result<&str, TrainerError> {
    let id = record.episode_id.as_str();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !id.is_empty() && id.chars().all(plain) {
        return Ok(id);
    }
    let message = format!("the episode id {id:?} is no name for a file");
    Err(TrainerError::Rollout(RolloutError::Log(message)))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, TrainerError> {
    serde_json::to_vec(value).map_err(|e| TrainerError::Internal(e.to_string()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainerError> {
    if let Some(folder) = path.parent() {
        durable::create_dir(folder)?;
    }
    Ok(durable::write_atomic(path, bytes)?)
}

#[cfg(test)]
mod tests;
