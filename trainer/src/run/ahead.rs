//! Async mode: rollouts that are ahead of the learner.
//!
//! While a step is learned from, the next step's episodes go on to their ends under the weights from before; then the
//! new weights are installed, on a tick that no clock has a say in. Places that become free are taken by episodes of the
//! steps after, as far as [`Config::lead`] lets them: those go on over several updates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use parl_rollout::policy::Policy;
use parl_rollout::swarm::EpisodeSpec;
use parl_rollout::swarm::carried::Carried;
use parl_rollout::swarm::driver::{Progress, Rollout, Stage};
use parl_rollout::trajectory::record::{EpisodeRecord, Status};
use serde::{Deserialize, Serialize};

use super::environment::Environment;
use super::rollout::{Batch, score};
use crate::config::Config;
use crate::error::TrainerError;

/// What a checkpoint holds of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// Wall clock at which the run's rollouts began, microseconds since 1970.
    epoch_us: i64,
    /// Seconds since the last batch was taken.
    seconds: f64,
    /// Episodes under way.
    carried: Carried,
    /// Numbers of episodes that infrastructure failed once.
    again: BTreeSet<u64>,
    /// Episodes that are over, of steps that are not learned from yet.
    done: Vec<EpisodeRecord>,
}

/// A rollout that lives as long as its run. An episode's number is that of its random stream.
pub struct Ahead<'a> {
    config: &'a Config,
    environment: &'a Environment,
    rollout: Rollout<'a>,
    epoch_us: i64,
    /// Episodes of the steps that are admitted and not taken.
    steps: BTreeMap<u64, Vec<EpisodeSpec>>,
    done: BTreeMap<u64, EpisodeRecord>,
    /// Those that are run once more: infrastructure failed them.
    again: BTreeSet<u64>,
    /// When the last batch was taken, and seconds before that which count too.
    since: Instant,
    before: f64,
}

/// The wall clock at which the rollouts of a checkpoint began.
///
/// # Errors
/// [`TrainerError::Resume`] for one that holds none.
pub fn epoch_us(saved: &[u8]) -> Result<i64, TrainerError> {
    Ok(parse(saved)?.epoch_us)
}

fn parse(saved: &[u8]) -> Result<Saved, TrainerError> {
    serde_json::from_slice(saved)
        .map_err(|e| TrainerError::Resume(format!("the checkpoint's episodes under way: {e}")))
}

/// Episodes under way at once: a step's. More would only begin sooner, under older weights.
pub fn places(config: &Config) -> usize {
    let rollout = &config.rollout;
    let of_a_step = u64::from(rollout.tasks_per_step) * u64::from(rollout.group_size);
    of_a_step.min(u64::from(rollout.max_concurrent_episodes)) as usize
}

impl<'a> Ahead<'a> {
    /// Rollouts of a run without an episode under way.
    pub fn new(config: &'a Config, environment: &'a Environment, stage: &'a Stage<'a>) -> Self {
        Self {
            config,
            environment,
            rollout: Rollout::new(stage),
            epoch_us: stage.epoch_us,
            steps: BTreeMap::new(),
            done: BTreeMap::new(),
            again: BTreeSet::new(),
            since: Instant::now(),
            before: 0.0,
        }
    }

    /// Goes on from a checkpoint whose next step is `step`, with a fresh policy that has its weights.
    ///
    /// # Errors
    /// [`TrainerError::Resume`] for what is no state of rollouts; what the rollout fails with.
    pub fn restore(&mut self, saved: &[u8], step: u64, policy: &mut dyn Policy) -> Result<(), TrainerError> {
        let saved = parse(saved)?;
        self.done = saved.done.into_iter().map(|record| (record.seed, record)).collect();
        self.again = saved.again;
        self.before = saved.seconds;
        self.admit(step);
        Ok(self.rollout.go_on(saved.carried, policy)?)
    }

    /// The state for [`Ahead::restore`], right after the policy was told to forget.
    ///
    /// # Errors
    /// [`TrainerError::Internal`] for what JSON cannot say.
    pub fn save(&self, policy: &dyn Policy) -> Result<Vec<u8>, TrainerError> {
        let saved = Saved {
            epoch_us: self.epoch_us,
            seconds: self.seconds(),
            carried: self.rollout.carried(policy),
            again: self.again.clone(),
            done: self.done.values().cloned().collect(),
        };
        serde_json::to_vec(&saved).map_err(|e| TrainerError::Internal(e.to_string()))
    }

    fn seconds(&self) -> f64 {
        self.before + self.since.elapsed().as_secs_f64()
    }

    /// Lets the episodes begin that may under the weights which `step` begins with.
    pub fn admit(&mut self, step: u64) {
        let last = (step + self.config.lead()).min(self.config.run.max_steps.saturating_sub(1));
        let from = self.steps.last_key_value().map_or(step, |(newest, _)| newest + 1);
        for step in from..=last {
            let specs = self.environment.training_specs(self.config, step);
            for spec in specs.iter().filter(|spec| !self.done.contains_key(&spec.stream_id)) {
                self.rollout.admit(spec.stream_id, spec.clone());
            }
            self.steps.insert(step, specs);
        }
    }

    /// Goes on until all episodes of `step` are over, if they are admitted.
    ///
    /// # Errors
    /// What the rollout fails with.
    pub fn until(
        &mut self,
        step: u64,
        policy: &mut dyn Policy,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), TrainerError> {
        let numbers = |specs: &Vec<EpisodeSpec>| specs.iter().map(|spec| spec.stream_id).collect();
        let wanted: Vec<u64> = self.steps.get(&step).map(numbers).unwrap_or_default();
        loop {
            let done = wanted.iter().filter(|number| self.done.contains_key(*number)).count();
            progress(Progress { done, total: wanted.len(), ticks: self.rollout.ticks() });
            if done == wanted.len() {
                return Ok(());
            }
            for (number, record) in self.rollout.tick(policy)? {
                self.over(number, record)?;
            }
        }
    }

    /// Infrastructure failures are nobody's fault: once more, under the same keys.
    fn over(&mut self, number: u64, record: EpisodeRecord) -> Result<(), TrainerError> {
        if record.status == Status::Error && self.again.insert(number) {
            let spec = self.steps.values().flatten().find(|spec| spec.stream_id == number);
            self.rollout.admit(number, spec.cloned().ok_or_else(|| lost(number))?);
        } else {
            self.done.insert(number, record);
        }
        Ok(())
    }

    /// The scored episodes of `step`, all of which are over.
    ///
    /// # Errors
    /// [`TrainerError::Internal`] when they are not.
    pub fn take(&mut self, step: u64) -> Result<Batch, TrainerError> {
        let specs = self.steps.remove(&step).unwrap_or_default();
        let mut records = Vec::new();
        for spec in &specs {
            self.again.remove(&spec.stream_id);
            records.push(self.done.remove(&spec.stream_id).ok_or_else(|| lost(spec.stream_id))?);
        }
        let tasks: Vec<_> = specs.into_iter().map(|spec| spec.task).collect();
        let mut batch = score(&self.config.rewards, step, records, &tasks);
        batch.rollout_seconds = self.seconds();
        (self.since, self.before) = (Instant::now(), 0.0);
        Ok(batch)
    }
}

fn lost(number: u64) -> TrainerError {
    TrainerError::Internal(format!("episode {number} is lost"))
}

#[cfg(test)]
mod tests;
