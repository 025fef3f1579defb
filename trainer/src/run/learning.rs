//! From a scored batch to an update: the orchestrator's own tokens, and what becomes of the weights.

use parl_rollout::policy::Policy;
use parl_rollout::swarm::Seat;
use parl_rollout::trajectory::record::{EpisodeRecord, TokenBranch};

use super::rollout::Batch;
use crate::config::Config;
use crate::error::TrainerError;
use crate::learner::{Learner, LearnerError, Sample, StepReport};

/// So many refused updates in a row end the run.
const REFUSALS: u32 = 3;

/// What became of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Learned {
    /// The weights were moved.
    Updated(StepReport),
    /// Something was no number: the weights are as they were.
    Refused(String),
}

/// The learner's side of a run.
pub struct Learning {
    /// The learner.
    pub learner: Learner,
    /// Updates in a row that were refused.
    pub refused_in_a_row: u32,
}

/// The samples of a batch: each scored episode's orchestrator context, masked to what it drew itself. Sub-agents are
/// frozen: their contexts are no part of it, and what they said is masked like any observation.
pub fn samples(batch: &Batch) -> Vec<Sample> {
    let mut groups: Vec<&str> = Vec::new();
    let mut samples = Vec::new();
    for record in &batch.records {
        let Some((branch, advantage)) = trained(record) else { continue };
        let group = groups.iter().position(|g| *g == record.group_id).unwrap_or_else(|| {
            groups.push(&record.group_id);
            groups.len() - 1
        });
        // What came after the last drawn token bears on none; it may even be what no longer fitted the context.
        let end = branch.loss_mask.iter().rposition(|drawn| *drawn).map_or(0, |last| last + 1);
        samples.push(Sample {
            tokens: branch.token_ids[..end].to_vec(),
            mask: branch.loss_mask[..end].to_vec(),
            logprobs: branch.logprobs[..end].to_vec(),
            temperatures: temperatures(branch)[..end].to_vec(),
            advantage: advantage as f32,
            group,
        });
    }
    samples
}

fn trained(record: &EpisodeRecord) -> Option<(&TokenBranch, f64)> {
    let branch = record.branches.iter().find(|b| b.branch_idx == 0)?;
    Some((branch, record.scored.as_ref()?.advantage?))
}

/// The temperature of each token: that of its model call, 1 where none was drawn.
fn temperatures(branch: &TokenBranch) -> Vec<f32> {
    let mut all = vec![1.0; branch.token_ids.len()];
    for (i, (from, temperature)) in branch.step_offsets.iter().zip(&branch.temperatures).enumerate() {
        let to = branch.step_offsets.get(i + 1).map_or(all.len(), |next| *next as usize);
        all[*from as usize..to].fill(*temperature);
    }
    all
}

impl Learning {
    /// One update on `batch`: the policy gives its lease back, the weights move, and the policy takes the new ones in.
    ///
    /// # Errors
    /// [`LearnerError::NotFinite`] when it is the third refusal in a row; whatever else the learner fails with.
    pub fn update(
        &mut self,
        config: &Config,
        policy: &mut dyn Policy,
        step: u64,
        batch: &Batch,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Learned, TrainerError> {
        let samples = samples(batch);
        policy.give_back(Seat::Orchestrator);
        let lr = config.learner.lr_at(step);
        let result = self.learner.train_step(&samples, config.learner.objective, lr, progress);
        let learned = match result {
            Ok(report) => {
                self.refused_in_a_row = 0;
                Learned::Updated(report)
            }
            Err(error @ LearnerError::NotFinite { .. }) => {
                self.refused_in_a_row += 1;
                if self.refused_in_a_row >= REFUSALS {
                    return Err(error.into());
                }
                Learned::Refused(error.to_string())
            }
            Err(error) => return Err(error.into()),
        };
        policy.publish(Seat::Orchestrator, self.learner.lease()?)?;
        Ok(learned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_the_temperature_of_its_call() {
        let branch = TokenBranch {
            token_ids: vec![0; 7],
            step_offsets: vec![2, 5],
            temperatures: vec![0.6, 1.5],
            ..TokenBranch::default()
        };
        assert_eq!(temperatures(&branch), [1.0, 1.0, 0.6, 0.6, 0.6, 1.5, 1.5]);
    }
}
