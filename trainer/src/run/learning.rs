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
    use parl_kernels::shape::ModelShape;
    use parl_rollout::policy::scripted::Script;

    use super::*;
    use crate::learner::initial;
    use crate::run::environment::Environment;
    use crate::run::rollout::run_batch;
    use crate::run::seats;

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

    /// A scripted batch with advantages, and a learner that fits its tokens.
    fn scripted() -> (Config, Box<dyn Policy>, Batch, Learning) {
        let mut config = Config::default();
        (config.rollout.tasks_per_step, config.rollout.group_size) = (1, 2);
        let environment = Environment::new(&config).unwrap();
        let mut policy = seats::experts(&environment, Script::Parallel);
        let specs = environment.training_specs(&config, 0);
        let rules = &environment.rules;
        let mut batch =
            run_batch(&config, &environment, rules, policy.as_mut(), &specs, 0, &mut |_| {}).unwrap();
        for (record, advantage) in batch.records.iter_mut().zip([0.5, -0.5]) {
            record.scored.as_mut().unwrap().advantage = Some(advantage);
            record.branches[0].temperatures.fill(1.0);
        }
        let shape = ModelShape {
            vocab: environment.dialect.vocab_size(),
            hidden: 8,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ffn: 8,
            max_positions: 2048,
            rope_theta: 10_000.0,
            rms_eps: 1e-6,
            qkv_bias: false,
            qk_norm: false,
            tied_head: true,
        };
        let learner = Learner::new(shape.clone(), initial(&shape, 0), config.learner.optimizer(), 1).unwrap();
        (config, policy, batch, Learning { learner, refused_in_a_row: 0 })
    }

    #[test]
    fn three_refusals_in_a_row_end_the_run_and_change_nothing() {
        let (config, mut policy, good, mut learning) = scripted();
        let (_, _, mut bad, _) = scripted();
        let drawn = bad.records[1].branches[0].loss_mask.iter().position(|m| *m).unwrap();
        bad.records[1].branches[0].logprobs[drawn] = f32::NAN;
        let mut update = |batch: &Batch| {
            let learned = learning.update(&config, policy.as_mut(), 0, batch, &|_, _| {});
            (learned, learning.learner.save().unwrap())
        };
        let (learned, before) = update(&good);
        assert!(matches!(learned, Ok(Learned::Updated(_))));
        for _ in 0..2 {
            let (learned, after) = update(&bad);
            assert!(matches!(&learned, Ok(Learned::Refused(why)) if why.contains("NaN")), "{learned:?}");
            assert_eq!(after, before);
        }
        // One good update and the count begins anew.
        let (_, before) = update(&good);
        assert!(update(&bad).0.is_ok() && update(&bad).0.is_ok());
        let (learned, after) = update(&bad);
        assert_eq!((learned.unwrap_err().exit_code(), after), (6, before));
    }

    #[test]
    fn only_what_the_orchestrator_drew_is_trained() {
        let (_, _, batch, _) = scripted();
        for (sample, record) in samples(&batch).iter().zip(&batch.records) {
            let branch = &record.branches[0];
            let drawn: Vec<usize> = (0..sample.mask.len()).filter(|i| sample.mask[*i]).collect();
            assert_eq!(drawn.last(), Some(&(sample.mask.len() - 1)));
            assert_eq!(sample.tokens, branch.token_ids[..sample.tokens.len()]);
            assert_eq!(drawn.len() as u64, record.agents[0].tokens_out);
        }
    }
}
