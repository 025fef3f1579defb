//! Checkpoints: all that a run needs to go on, in one folder whose appearance is the commit.
//!
//! `checkpoints/step_000100/` holds the model as Hugging Face lays it out (`hf/`), the learner's exact state
//! (`trainer_state.safetensors`), where the run stands (`state.json`), in async mode the episodes under way
//! (`rollout.json`), and a `MANIFEST` of every file's length and hash.
//! It is written under another name, synced, and renamed; readers verify the manifest before they parse anything.

mod manifest;

use std::path::{Path, PathBuf};

use parl_rollout::{RolloutError, durable};
use serde::{Deserialize, Serialize};

use crate::error::TrainerError;
use crate::learner::Learner;
use crate::sft::model_dir;
use manifest::Manifest;

const LEARNER: &str = "trainer_state.safetensors";
const STATE: &str = "state.json";
const ROLLOUT: &str = "rollout.json";
/// The folder of the model inside of a checkpoint.
pub const MODEL: &str = "hf";

/// Version of the layout; a reader refuses a newer one by name.
const FORMAT: u32 = 1;

/// Where a run stands. Everything that is drawn is keyed by seed, step, episode and position, so the step alone says
/// where each random stream, the task cursor and the schedules are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of this layout.
    pub format: u32,
    /// Name of the run.
    pub run_id: String,
    /// Training steps done: the number of the next one, and of sealed steps in the log.
    pub step: u64,
    /// Updates in a row that were refused because something was no number.
    pub refused_in_a_row: u32,
    /// Who sat in the orchestrator's seat at the start, and who sits in the sub-agents': script or hash of weights.
    pub policies: [String; 2],
    /// Program that wrote it.
    pub made_by: String,
    /// Vector level of the inference kernels; bits are promised on the same one.
    pub cpu_level: String,
}

impl State {
    /// The state of a run after `step` steps.
    pub fn new(run_id: &str, step: u64, refused_in_a_row: u32, policies: [String; 2]) -> Self {
        Self {
            format: FORMAT,
            run_id: run_id.to_owned(),
            step,
            refused_in_a_row,
            policies,
            made_by: concat!("parl ", env!("CARGO_PKG_VERSION")).to_owned(),
            cpu_level: parl_kernels::cpu::Level::best().name().to_owned(),
        }
    }
}

/// A verified checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Where the run stands.
    pub state: State,
    /// The learner's state, if one was trained.
    pub learner: Option<Vec<u8>>,
    /// Episodes under way, if rollouts are ahead of the learner.
    pub rollout: Option<Vec<u8>>,
}

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    root: PathBuf,
}

/// The folder of a step's checkpoint.
fn name(step: u64) -> String {
    format!("step_{step:06}")
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step_")?.parse().ok()
}

impl Checkpoints {
    /// Those under a run's folder.
    pub fn new(run: &Path) -> Self {
        Self { root: run.join("checkpoints") }
    }

    /// Steps that have a checkpoint, in order.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, TrainerError> {
        let mut steps: Vec<u64> =
            durable::names(&self.root)?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Where a step's checkpoint stands.
    pub fn path(&self, step: u64) -> PathBuf {
        self.root.join(name(step))
    }

    /// Writes the checkpoint of `state.step` and, once it is durable, lets `latest` point to it and removes all but
    /// the newest `keep_last` (0 keeps all).
    ///
    /// # Errors
    /// When the disk refuses or a weight is no number; the checkpoints there were are untouched then.
    pub fn write(
        &self,
        state: &State,
        learner: Option<&Learner>,
        rollout: Option<&[u8]>,
        tokenizer: &[u8],
        keep_last: u32,
    ) -> Result<(), TrainerError> {
        let path = self.path(state.step);
        let partial = durable::temporary(&path);
        durable::create_dir(&self.root)?;
        durable::remove(&partial)?;
        let written = fill(&partial, state, learner, rollout, tokenizer);
        if let Err(error) = written.and_then(|()| Ok(durable::publish(&partial, &path)?)) {
            // Best effort: a full disk gets its room back, and the error that is told is the first one.
            let _ = durable::remove(&partial);
            return Err(error);
        }
        durable::point(&self.root.join("latest"), &name(state.step))?;
        durable::write_atomic(&self.root.join("latest.txt"), format!("{}\n", name(state.step)).as_bytes())?;
        if keep_last > 0 {
            let steps = self.steps()?;
            for step in steps.iter().rev().skip(keep_last as usize) {
                durable::remove(&self.path(*step))?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint that is whole, and a line about each newer one that is not.
    ///
    /// # Errors
    /// The newest one's fault when there are checkpoints and none is whole.
    pub fn newest(&self) -> Result<(Option<Checkpoint>, Vec<String>), TrainerError> {
        let mut faults: Vec<TrainerError> = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match read(&self.path(step)) {
                Ok(checkpoint) => {
                    return Ok((Some(checkpoint), faults.iter().map(ToString::to_string).collect()));
                }
                Err(fault) => faults.push(fault),
            }
        }
        match faults.into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok((None, Vec::new())),
        }
    }

    /// Moves checkpoints of steps after `step` out of the way.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn quarantine_after(&self, step: u64, quarantine: &Path) -> Result<(), TrainerError> {
        for late in self.steps()?.into_iter().filter(|s| *s > step) {
            durable::relocate(&self.path(late), &quarantine.join("checkpoints").join(name(late)))?;
        }
        Ok(())
    }
}

/// Writes a checkpoint's files, and the manifest that vouches for them, into `folder`.
fn fill(
    folder: &Path,
    state: &State,
    learner: Option<&Learner>,
    rollout: Option<&[u8]>,
    tokenizer: &[u8],
) -> Result<(), TrainerError> {
    durable::create_dir(folder)?;
    let mut files = Vec::new();
    if let Some(learner) = learner {
        let origin = serde_json::json!({
            "made_by": state.made_by, "run": state.run_id, "step": state.step, "version": learner.version(),
        });
        let hf = folder.join(MODEL);
        model_dir::write(&hf, learner.shape(), learner.params(), tokenizer, &origin)?;
        files.extend(durable::names(&hf)?.into_iter().map(|file| format!("{MODEL}/{file}")));
        durable::write_atomic(&folder.join(LEARNER), &learner.save()?)?;
        files.push(LEARNER.to_owned());
    }
    if let Some(rollout) = rollout {
        durable::write_atomic(&folder.join(ROLLOUT), rollout)?;
        files.push(ROLLOUT.to_owned());
    }
    let text = serde_json::to_vec_pretty(state).map_err(|e| TrainerError::Internal(e.to_string()))?;
    durable::write_atomic(&folder.join(STATE), &text)?;
    files.push(STATE.to_owned());
    Manifest::of(folder, &files)?.write(folder)
}

/// The model's folder in a checkpoint, or in the newest whole checkpoint of a run.
///
/// # Errors
/// When there is none, or it is damaged.
pub fn model_in(path: &Path) -> Result<PathBuf, TrainerError> {
    let found = if path.join("checkpoints").is_dir() {
        Checkpoints::new(path).newest()?.0
    } else {
        Some(read(path)?)
    };
    match found.filter(|checkpoint| checkpoint.learner.is_some()) {
        Some(checkpoint) => Ok(checkpoint.path.join(MODEL)),
        None => Err(TrainerError::Folder(format!("{}: there is no trained model in it", path.display()))),
    }
}

/// Verifies a checkpoint's every byte, then reads it.
///
/// # Errors
/// Naming the file that is missing or damaged.
pub fn read(path: &Path) -> Result<Checkpoint, TrainerError> {
    let manifest = Manifest::verified(path)?;
    let corrupt = |file: &str, message: String| {
        TrainerError::Rollout(RolloutError::Corrupt { path: path.join(file), message })
    };
    let state: State = serde_json::from_slice(&durable::read(&path.join(STATE))?)
        .map_err(|e| corrupt(STATE, format!("not a run's state: {e}")))?;
    if state.format != FORMAT {
        let message = format!("its format is {}, this program reads {FORMAT}", state.format);
        return Err(corrupt(STATE, message));
    }
    let named = |file: &str| manifest.names(file).then(|| durable::read(&path.join(file))).transpose();
    Ok(Checkpoint { path: path.to_owned(), state, learner: named(LEARNER)?, rollout: named(ROLLOUT)? })
}

#[cfg(test)]
mod tests;
