//! Going on with a run: which checkpoint, what may differ, and what is set aside.

use std::path::Path;

use parl_rollout::swarm::Seat;
use serde_json::Value;

use super::Parts;
use super::folder::read_json;
use crate::checkpoint::{self, Checkpoint, State};
use crate::config::{Config, differences};
use crate::error::TrainerError;

/// Keys that may differ when a run is gone on with.
const FREE_ON_RESUME: [&str; 10] = [
    // Compared by the hash of the weights, not by the folder that they lie in.
    "rollout.orchestrator.policy.model",
    "rollout.subagent.policy.model",
    "run.device",
    "run.max_steps",
    "run.checkpoint_every",
    "run.keep_last",
    "run.stop_after_steps",
    "run.final_eval_tasks",
    "run.eval_temperature",
    // Nothing that is trained depends on who looks on.
    "tracking",
];

/// A run's config with the defaults of keys that there were none of when it was written; as it is where it has keys that
/// there are none of now.
fn completed(old: Value) -> Value {
    let config = serde_json::from_value::<Config>(old.clone());
    config.and_then(serde_json::to_value).unwrap_or(old)
}

/// Where a run goes on.
#[derive(Debug, Default)]
pub(super) struct Resumed {
    /// The next step.
    pub step: u64,
    /// The episodes under way, where rollouts are ahead of the learner.
    pub under_way: Option<Vec<u8>>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Parts<'_> {
    /// Finds the checkpoint to go on from, checks the log up to it, sets aside what is newer, and puts its state back.
    ///
    /// # Errors
    /// [`TrainerError::Resume`] naming what differs or is missing; a damaged file's own error.
    pub(super) fn resume(&mut self, resolved: &Value, named: Option<&Path>) -> Result<Resumed, TrainerError> {
        let config = self.folder.path().join("config.resolved.json");
        // A run that ended before it wrote its config has done nothing that could differ.
        let old = if config.exists() { completed(read_json(&config)?) } else { resolved.clone() };
        let differing: Vec<String> = differences(&old, resolved, &FREE_ON_RESUME)
            .into_iter()
            .map(|d| format!("{} is {} in the run and {} now", d.key, d.old, d.new))
            .collect();
        if !differing.is_empty() {
            return Err(TrainerError::Resume(format!(
                "the config differs from the run's: {}",
                differing.join("; ")
            )));
        }
        let (checkpoint, faults) = match named {
            Some(path) => (Some(checkpoint::read(path)?), Vec::new()),
            None => self.checkpoints.newest()?,
        };
        let mut notes: Vec<String> =
            faults.into_iter().map(|fault| format!("passed over: {fault}")).collect();
        match &checkpoint {
            Some(checkpoint) => notes.extend(self.suits(checkpoint)?),
            None => notes.push("there is no checkpoint yet: the run starts over".to_owned()),
        }
        let step = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.state.step);
        let sealed = self.log.sealed_steps()?;
        for step in 0..step as u32 {
            if !sealed.contains(&step) {
                return Err(TrainerError::Resume(format!("the log of step {step} is missing")));
            }
            self.log.verify(step)?;
        }
        let quarantine = self.folder.quarantine();
        self.log.quarantine_after((step as u32).checked_sub(1), &quarantine)?;
        self.checkpoints.quarantine_after(step, &quarantine)?;
        if let Some(checkpoint) = &checkpoint {
            self.put_back(checkpoint)?;
        }
        if let Some(toggle) = &mut self.toggle {
            // The budgets are no part of a checkpoint: what they were measured on is in the log.
            for step in (0..step).take_while(|step| toggle.estimates(*step)).collect::<Vec<u64>>() {
                toggle.measure(step, &self.log.read_step(step as u32)?);
            }
        }
        Ok(Resumed { step, under_way: checkpoint.and_then(|checkpoint| checkpoint.rollout), notes })
    }

    /// Refuses a checkpoint of another run or with other policies; says what may cost the bits' equality.
    fn suits(&self, checkpoint: &Checkpoint) -> Result<Vec<String>, TrainerError> {
        let (name, then) = (checkpoint.path.display(), &checkpoint.state);
        if self.folder.marker()?.run_id != then.run_id {
            return Err(TrainerError::Resume(format!("{name} is of run {}", then.run_id)));
        }
        for ((seat, then), now) in ["orchestrator", "subagent"].iter().zip(&then.policies).zip(&self.policies)
        {
            if then != now {
                let message = format!("rollout.{seat}.policy is {then} in the run and {now} now");
                return Err(TrainerError::Resume(message));
            }
        }
        let now = State::new("", 0, 0, self.policies.clone());
        let pairs =
            [("written by", &then.made_by, &now.made_by), ("computed on", &then.cpu_level, &now.cpu_level)];
        let differ = pairs.into_iter().filter(|(_, then, now)| then != now);
        let note = |(what, then, now)| format!("{name} was {what} {then}, this is {now}: bits may differ");
        Ok(differ.map(note).collect())
    }

    /// Puts a checkpoint's state back into the learner, and its weights into the policy.
    fn put_back(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainerError> {
        let Some(learning) = &mut self.learning else { return Ok(()) };
        let bytes = checkpoint.learner.as_ref().ok_or_else(|| {
            TrainerError::Resume(format!("{} holds no learner's state", checkpoint.path.display()))
        })?;
        self.policy.give_back(Seat::Orchestrator);
        learning.learner.restore(bytes)?;
        learning.refused_in_a_row = checkpoint.state.refused_in_a_row;
        learning.hand_out(self.policy.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_a_version_with_fewer_keys_is_gone_on_with() {
        let now = serde_json::to_value(Config::default()).unwrap();
        let mut old = now.clone();
        let engine = old["rollout"]["engine"].as_object_mut().unwrap();
        engine.remove("kv_cache_dtype").unwrap();
        engine["kv_blocks"] = 77.into();
        let found = differences(&completed(old.clone()), &now, &FREE_ON_RESUME);
        assert_eq!(found.iter().map(|d| d.key.as_str()).collect::<Vec<_>>(), ["rollout.engine.kv_blocks"]);
        old["rollout"]["engine"]["gone"] = 1.into();
        assert_eq!(completed(old.clone()), old);
    }
}
