//! A run as it lies on the disk, for those who only read it.

use std::path::{Path, PathBuf};

use parl_rollout::trajectory::log::TrajectoryLog;
use parl_rollout::trajectory::record::EpisodeRecord;

use super::environment::step_prefix;
use super::folder::Marker;
use crate::error::TrainerError;

/// Ids that an error lists.
const LISTED: usize = 4;

/// A run that is there and has at least one sealed step.
#[derive(Debug)]
pub struct StoredRun {
    path: PathBuf,
    /// What it says of itself.
    pub marker: Marker,
    /// Its log.
    pub log: TrajectoryLog,
    /// Its sealed steps in order; there is at least one.
    pub steps: Vec<u32>,
}

impl StoredRun {
    /// The run in the folder at `path`.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] where there is no run, or none with a sealed step; [`TrainerError::Rollout`] when its
    /// marker is damaged or the disk fails.
    pub fn open(path: &Path) -> Result<Self, TrainerError> {
        let marker = Marker::read(path)?;
        let log = TrajectoryLog::new(path);
        let steps = log.sealed_steps()?;
        let run = Self { path: path.to_owned(), marker, log, steps };
        if run.steps.is_empty() { Err(run.refusal("it has no sealed step yet")) } else { Ok(run) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last sealed step.
    pub fn last_step(&self) -> u32 {
        self.steps.last().copied().unwrap_or_default()
    }

    /// An error about this run.
    pub fn refusal(&self, message: &str) -> TrainerError {
        TrainerError::Folder(format!("{}: {message}", self.path.display()))
    }

    /// Sealed steps that may hold an episode whose id is `id` or begins with it.
    pub fn steps_of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = u32> + 'a {
        // Evaluated episodes are named otherwise.
        let number = |rest: &str| rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_digit());
        let by_step = id.strip_prefix('s').is_some_and(number);
        let may = move |step: &u32| {
            let prefix = step_prefix(u64::from(*step));
            !by_step || id.starts_with(&prefix) || prefix.starts_with(id)
        };
        self.steps.iter().copied().filter(may)
    }

    /// The one episode whose id is `id` or, where there is none of that id, begins with it; and its step.
    ///
    /// # Errors
    /// [`TrainerError::Folder`] when there is none or more than one; [`TrainerError::Rollout`] for a damaged step.
    pub fn episode(&self, id: &str) -> Result<(u32, EpisodeRecord), TrainerError> {
        let mut found: Vec<(u32, EpisodeRecord)> = Vec::new();
        for step in self.steps_of(id) {
            let of_step = self.log.read_step(step)?.into_iter().filter(|e| e.episode_id.starts_with(id));
            found.extend(of_step.map(|e| (step, e)));
            // A prefix that is shared already is refused; there is no need to read a whole run to say so.
            if found.len() > LISTED {
                break;
            }
        }
        if let Some(exact) = found.iter().position(|(_, e)| e.episode_id == id) {
            return Ok(found.swap_remove(exact));
        }
        match found.len() {
            0 => Err(self.refusal(&format!("no sealed step has an episode `{id}`"))),
            1 => Ok(found.swap_remove(0)),
            n => {
                let ids: Vec<&str> = found.iter().take(LISTED).map(|(_, e)| e.episode_id.as_str()).collect();
                let more = if n > LISTED { ", …" } else { "" };
                Err(self
                    .refusal(&format!("more than one episode begins with `{id}`: {}{more}", ids.join(", "))))
            }
        }
    }
}
